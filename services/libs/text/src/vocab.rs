//! The vocabulary: what each id stands for, and which literals in text are tokens of their own.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use types::TokenId;

use crate::TextError;

/// Most ids a vocabulary may have; the largest known have 262,144.
pub(crate) const VOCAB_MAX: usize = 1 << 20;

/// What an id stands for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entry {
    /// Inside a text.
    pub(crate) bytes: Box<[u8]>,
    /// Never encoded from plain text.
    pub(crate) control: bool,
    /// Left out when decoding, unless asked for.
    pub(crate) hidden: bool,
}

/// A token that is recognised in text as a whole, before everything else.
#[derive(Clone, Debug)]
pub(crate) struct Literal {
    pub(crate) text: String,
    pub(crate) id: TokenId,
    pub(crate) control: bool,
    /// Takes the white space before it.
    pub(crate) lstrip: bool,
    /// Takes the white space after it.
    pub(crate) rstrip: bool,
    /// Only where no word character touches it.
    pub(crate) single_word: bool,
}

/// A stretch of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Fragment {
    pub(crate) range: Range<usize>,
    /// `None`: ordinary text.
    pub(crate) token: Option<TokenId>,
}

/// Which literals count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Recognise {
    /// Control tokens too: the text is a template's.
    All,
    /// Only those a user may write.
    UserDefined,
}

/// Finds literals, leftmost first, the longest of those that begin together.
#[derive(Debug)]
pub(crate) struct Literals {
    literals: Vec<Literal>,
    /// All of them.
    matcher: AhoCorasick,
    /// Control tokens alone, which literals around them must not hide.
    controls: AhoCorasick,
}

impl Literals {
    /// Control tokens of a single character are left out: no text, not even a template's, makes one.
    pub(crate) fn new(literals: Vec<Literal>) -> Result<Self, TextError> {
        let usable = |l: &Literal| l.text.chars().nth(usize::from(l.control)).is_some();
        let literals: Vec<Literal> = literals.into_iter().filter(usable).collect();
        let build = |literals: &mut dyn Iterator<Item = &Literal>| {
            let builder =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(literals.map(|l| &l.text));
            builder.map_err(|e| TextError::malformed("added tokens", e))
        };
        let matcher = build(&mut literals.iter())?;
        let controls = build(&mut literals.iter().filter(|l| l.control))?;
        Ok(Self { literals, matcher, controls })
    }

    /// Literals of control tokens.
    pub(crate) fn control(&self) -> impl Iterator<Item = &str> {
        self.literals.iter().filter(|l| l.control).map(|l| l.text.as_str())
    }

    /// Where control literals begin in `text`, as far as none overlaps another; at least one if there are any.
    pub(crate) fn control_starts(&self, text: &str) -> Vec<usize> {
        self.controls.find_iter(text).map(|found| found.start()).collect()
    }

    /// Cuts `text` into fragments that cover it, none empty.
    pub(crate) fn fragments(&self, text: &str, recognise: Recognise) -> Vec<Fragment> {
        let mut fragments = Vec::new();
        let mut done = 0;
        for found in self.matcher.find_iter(text) {
            let literal = &self.literals[found.pattern().as_usize()];
            let range = literal.stretch(text, found.range(), done);
            // White space taken by the token before may reach into this match.
            let taken = found.start() < done;
            let unwanted = literal.control && recognise == Recognise::UserDefined;
            if taken || unwanted || !literal.stands_free(text, found.range()) {
                continue;
            }
            if range.start > done {
                fragments.push(Fragment { range: done..range.start, token: None });
            }
            done = range.end;
            fragments.push(Fragment { range, token: Some(literal.id) });
        }
        if done < text.len() {
            fragments.push(Fragment { range: done..text.len(), token: None });
        }
        fragments
    }
}

impl Literal {
    /// The match with the white space it takes, which begins no earlier than `done`.
    fn stretch(&self, text: &str, mut range: Range<usize>, done: usize) -> Range<usize> {
        if self.lstrip {
            range.start = text[..range.start].trim_end().len().max(done);
        }
        if self.rstrip {
            range.end = text.len() - text[range.end..].trim_start().len();
        }
        range
    }

    fn stands_free(&self, text: &str, range: Range<usize>) -> bool {
        let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !self.single_word || !word(text[..range.start].chars().next_back()) && !word(text[range.end..].chars().next())
    }
}

/// Whether an added token's text marks it as a control token even where its file does not say so.
///
/// Source: llama.cpp, convert_hf_to_gguf.py, `does_token_look_special`.
pub(crate) fn looks_like_control(text: &str) -> bool {
    const KNOWN: [&str; 6] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]", "<start_of_turn>", "<end_of_turn>"];
    KNOWN.contains(&text)
        || text.starts_with("<|") && text.ends_with("|>")
        || text.starts_with("<｜") && text.ends_with("｜>")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn literal(text: &str, id: TokenId, flags: &str) -> Literal {
        Literal {
            text: text.into(),
            id,
            control: flags.contains('c'),
            lstrip: flags.contains('l'),
            rstrip: flags.contains('r'),
            single_word: flags.contains('w'),
        }
    }

    fn check(recognise: Recognise, text: &str, expected: &[(&str, Option<TokenId>)]) {
        let literals = Literals::new(vec![
            literal("<s>", 1, "c"),
            literal("<s>long", 2, "c"),
            literal("<think>", 3, ""),
            literal("<r>", 4, "r"),
            literal("<l>", 5, "l"),
            literal("word", 6, "w"),
        ])
        .unwrap();
        let fragments = literals.fragments(text, recognise);
        let found: Vec<_> = fragments.into_iter().map(|f| (&text[f.range], f.token)).collect();
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn finds_literals() {
        use Recognise::{All, UserDefined};
        check(All, "", &[]);
        check(All, "a<s>b", &[("a", None), ("<s>", Some(1)), ("b", None)]);
        check(All, "<s>longer", &[("<s>long", Some(2)), ("er", None)]);
        check(UserDefined, "a<s><think>", &[("a<s>", None), ("<think>", Some(3))]);
        check(All, "<r> \n<r> x", &[("<r> \n", Some(4)), ("<r> ", Some(4)), ("x", None)]);
        check(All, "x \n<l> y", &[("x", None), (" \n<l>", Some(5)), (" y", None)]);
        check(All, "<r>  <l>", &[("<r>  ", Some(4)), ("<l>", Some(5))]);
        check(All, "sword word_ word.", &[("sword word_ ", None), ("word", Some(6)), (".", None)]);
    }
}
