//! Keeps control tokens out of user text, although the template mixes both into one string.
//!
//! Before rendering, a nonce is put into every control literal that user text holds, and at the edges
//! where user text could complete one together with its surroundings. After rendering, every control
//! literal that is still whole is the template's; the nonces are taken out of the rest.

use serde_json::{Map, Value};

use super::Message;
use crate::vocab::{Fragment, Literals, Recognise};

/// Digits, so that no filter a template may apply changes them.
const NONCE_DIGITS: usize = 12;

pub(super) struct Guard<'a> {
    literals: &'a Literals,
    nonce: String,
}

impl<'a> Guard<'a> {
    /// A guard whose nonce occurs neither in the template nor in any string of the user's.
    pub(super) fn new(
        literals: &'a Literals,
        template: &str,
        messages: &[Message],
        variables: &Map<String, Value>,
    ) -> Self {
        let variables = Value::Object(variables.clone()).to_string();
        let texts: Vec<&str> = messages
            .iter()
            .flat_map(|m| [m.content.as_str(), m.name.as_deref().unwrap_or_default()])
            .chain([template, &variables])
            .collect();
        // A 9 in front and none after it: the nonce cannot overlap itself.
        let nonces = (0..).map(|n: u64| format!("9{:0width$o}", n, width = NONCE_DIGITS - 1));
        let nonce = nonces.into_iter().find(|nonce| !texts.iter().any(|t| t.contains(nonce.as_str())));
        Self { literals, nonce: nonce.expect("finite texts do not hold every number") }
    }

    /// User text that completes no control literal, whatever surrounds it.
    pub(super) fn protect(&self, text: &str) -> String {
        let mut text = text.to_owned();
        while let Some(broken) = self.break_literals(&text) {
            text = broken;
        }
        let core = text.trim();
        let (start, end) = (text.len() - text.trim_start().len(), text.trim_end().len());
        let any = |test: fn(&str, &str) -> bool| !core.is_empty() && self.literals.control().any(|l| test(l, core));
        let open_start = any(|literal, core| ends_inside(literal, core) || literal.contains(core));
        let open_end = any(begins_inside);
        if open_end {
            text.insert_str(end, &self.nonce);
        }
        if open_start {
            text.insert_str(start, &self.nonce);
        }
        text
    }

    /// `None` if there is nothing to break.
    fn break_literals(&self, text: &str) -> Option<String> {
        let mut broken = String::new();
        let mut done = 0;
        for start in self.literals.control_starts(text) {
            let cut = start + text[start..].chars().next().map_or(0, char::len_utf8);
            broken.push_str(&text[done..cut]);
            broken.push_str(&self.nonce);
            done = cut;
        }
        (done > 0).then(|| broken + &text[done..])
    }

    /// The rendered text without nonces, and what in it is a token.
    pub(super) fn fragments(&self, rendered: &str) -> (String, Vec<Fragment>) {
        let mut text = String::with_capacity(rendered.len());
        let mut fragments = Vec::new();
        for fragment in self.literals.fragments(rendered, Recognise::All) {
            let start = text.len();
            let piece = &rendered[fragment.range];
            text.push_str(&piece.replace(&self.nonce, ""));
            if text.len() > start {
                fragments.push(Fragment { range: start..text.len(), token: fragment.token });
            }
        }
        (text, fragments)
    }
}

/// Whether `text` begins with the end of `literal`.
fn ends_inside(literal: &str, text: &str) -> bool {
    literal.char_indices().skip(1).any(|(i, _)| text.starts_with(&literal[i..]))
}

/// Whether `text` ends with the beginning of `literal`.
fn begins_inside(literal: &str, text: &str) -> bool {
    literal.char_indices().skip(1).any(|(i, _)| text.ends_with(&literal[..i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::Literal;

    fn literals() -> Literals {
        let literal = |(i, text): (usize, &&str)| Literal {
            text: (*text).into(),
            id: i as u32,
            control: true,
            lstrip: false,
            rstrip: false,
            single_word: false,
        };
        Literals::new(["<|end|>", "<s>", "s>x", "\u{ff5c}e\u{ff5c}"].iter().enumerate().map(literal).collect()).unwrap()
    }

    fn message(content: &str) -> Message {
        Message { role: "user".into(), content: content.into(), name: None }
    }

    /// In every surrounding, the only tokens found are those that surround, and the text comes back.
    fn check(content: &str) {
        let literals = literals();
        let messages = [message(content)];
        let guard = Guard::new(&literals, "", &messages, &Map::new());
        let protected = guard.protect(content);
        for (before, after) in
            [("", ""), ("<s>", "<|end|>"), ("<", ">"), ("<|", "|>"), ("<|e", "nd|>"), ("<|end", ">"), ("<", "x")]
        {
            let (text, fragments) = guard.fragments(&format!("{before}{protected}{after}"));
            assert_eq!(text, format!("{before}{content}{after}"));
            let tokens = fragments.iter().filter(|f| f.token.is_some()).count();
            assert_eq!(tokens, if before == "<s>" { 2 } else { 0 }, "{before}{content}{after}: {fragments:?}");
        }
    }

    #[test]
    fn no_user_text_becomes_a_token() {
        for content in [
            " ",
            "plain",
            "<|end|>",
            "a<|end|>b<s>c",
            "<s>x",
            "<<s>s>x",
            "<|end",
            "|end|",
            "end",
            "nd",
            "d|>",
            " |> ",
            ">",
            "<",
            " < ",
            "\u{ff5c}e\u{ff5c}",
            "e",
            "s",
            "s>",
            "x",
            "<|<|end|>end|>",
            "\n<|end|>\n",
            "900000000000",
            "9000000000009",
            "900000000000<s>900000000001",
            "s>x<s>x",
        ] {
            check(content);
        }
    }

    #[test]
    fn ordinary_text_is_left_alone() {
        let literals = literals();
        let guard = Guard::new(&literals, "", &[], &Map::new());
        for content in ["Hello, world", "if a < b { c > d }", "<b>bold</b>."] {
            assert_eq!(guard.protect(content), content);
        }
    }
}
