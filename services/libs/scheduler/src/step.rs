//! A step as a plain value, and what became of it.

use crate::SeqId;

/// What the engine computes in one go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// At most one of each sequence.
    pub slices: Vec<Slice>,
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slice {
    /// Whose.
    pub seq: SeqId,
    /// Index in the sequence of the first token, which is also its KV row.
    pub first: usize,
    /// At least 1.
    pub n_tokens: usize,
    /// It reaches the last known token: a new one is sampled from its last row.
    pub samples: bool,
}

/// What became of one slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Its KV is there; nothing was sampled.
    Advanced,
    /// Its KV is there, and the sequence has one more token.
    Sampled,
    /// Nothing was computed; the sequence goes on as it was.
    Undone,
    /// Its KV is there, and the sequence has ended: with its last token, or because nobody wants more.
    Ended,
    /// The sequence has ended; what its rows hold is not known.
    Failed,
}

impl Step {
    /// Nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Tokens of all slices.
    pub fn n_tokens(&self) -> usize {
        self.slices.iter().map(|slice| slice.n_tokens).sum()
    }
}
