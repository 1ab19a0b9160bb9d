//! SentencePiece-style byte pairs: the pair whose union has the best score is merged first.
//!
//! Source: llama.cpp, `llm_tokenizer_spm_session`, itself after SentencePiece's `bpe_model.cc`.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use types::TokenId;

use crate::vocab::Fragment;

/// How these vocabularies write a space.
pub(crate) const SPACE: char = '▁';

/// A vocabulary with scores.
pub(crate) struct Spm {
    /// Ordinary tokens, spelled as in the vocabulary, with their scores.
    pub(crate) tokens: HashMap<Box<str>, (TokenId, f32)>,
    /// Tokens of single bytes, for what no other token covers.
    pub(crate) bytes: Box<[Option<TokenId>; 256]>,
    /// For bytes without a token.
    pub(crate) unknown: Option<TokenId>,
    /// A space comes before text at the beginning and after each special token.
    pub(crate) space_prefix: bool,
}

impl Spm {
    pub(crate) fn encode(&self, text: &str, fragments: &[Fragment]) -> Vec<TokenId> {
        let mut ids = Vec::new();
        let mut after_token = true;
        for fragment in fragments {
            match fragment.token {
                Some(id) => ids.push(id),
                None => {
                    let prefix = if self.space_prefix && after_token { " " } else { "" };
                    let spelled = format!("{prefix}{}", &text[fragment.range.clone()])
                        .replace(' ', SPACE.encode_utf8(&mut [0; 4]));
                    self.encode_piece(&spelled, &mut ids);
                }
            }
            after_token = fragment.token.is_some();
        }
        ids
    }

    fn encode_piece(&self, text: &str, ids: &mut Vec<TokenId>) {
        for symbol in self.merge(text) {
            match self.tokens.get(symbol) {
                Some(&(id, _)) => ids.push(id),
                None => ids.extend(symbol.bytes().filter_map(|b| self.bytes[b as usize].or(self.unknown))),
            }
        }
    }

    /// Symbols left when no neighbours form a token: tokens, and characters that are none.
    fn merge<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), previous: i.checked_sub(1), next: Some(i + 1) })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut pairs = BinaryHeap::new();
        for i in 1..symbols.len() {
            self.offer(text, &symbols, i - 1, i, &mut pairs);
        }
        while let Some(pair) = pairs.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                // One of the two has been merged since.
                continue;
            }
            let next = right.next;
            symbols[pair.right].len = 0;
            symbols[pair.left].len = pair.len;
            symbols[pair.left].next = next;
            if let Some(next) = next {
                symbols[next].previous = Some(pair.left);
                self.offer(text, &symbols, pair.left, next, &mut pairs);
            }
            if let Some(previous) = symbols[pair.left].previous {
                self.offer(text, &symbols, previous, pair.left, &mut pairs);
            }
        }
        symbols.iter().filter(|s| s.len > 0).map(|s| &text[s.start..s.start + s.len]).collect()
    }

    fn offer(&self, text: &str, symbols: &[Symbol], left: usize, right: usize, pairs: &mut BinaryHeap<Pair>) {
        let len = symbols[left].len + symbols[right].len;
        let start = symbols[left].start;
        if let Some(&(_, score)) = self.tokens.get(&text[start..start + len]) {
            pairs.push(Pair { left, right, score, len });
        }
    }
}

/// A stretch of the text; length 0 once it is merged into its left neighbour.
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours whose union is a token of `len` bytes.
struct Pair {
    left: usize,
    right: usize,
    score: f32,
    len: usize,
}

impl Ord for Pair {
    /// The best score is the greatest; ties go to the leftmost.
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}
