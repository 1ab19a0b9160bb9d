//! An engine without weights: its next token is a keyed hash of everything before it, its time a formula.
//!
//! The KV of a token is a 128-bit state, `hash(key, state of the token before, token, position)`, kept in the arena
//! like real KV. The next token is a hash over all states read back through the block table. So a token or a block
//! that was lost, repeated, swapped or taken from another sequence changes every token after it.

mod engine;
mod hash;

use std::time::Duration;

use types::TokenId;

pub use engine::SimEngine;

/// What to simulate.
#[derive(Clone, PartialEq, Debug)]
pub struct SimConfig {
    /// Name under which it is served.
    pub name: String,
    /// Size of the vocabulary; at least 16 more than there are end-of-sequence tokens.
    pub n_vocab: usize,
    /// Most tokens of a sequence.
    pub max_context: usize,
    /// Begin-of-sequence token.
    pub bos: Option<TokenId>,
    /// End-of-sequence tokens; never chosen unless `eos_per_mille` says so.
    pub eos: Vec<TokenId>,
    /// How many of a thousand rows choose an end-of-sequence token.
    pub eos_per_mille: u32,
    /// Two engines with the same key continue alike.
    pub key: u64,
    /// How much faster than the formula time goes.
    pub speedup: Speedup,
    /// The formula.
    pub timing: Timing,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            name: "sim".into(),
            n_vocab: 49_152,
            max_context: 8_192,
            bos: None,
            eos: Vec::new(),
            eos_per_mille: 0,
            key: 0,
            speedup: Speedup::Times(1.0),
            timing: Timing::default(),
            kv_blocks: 4_096,
            block_tokens: 16,
        }
    }
}

/// How much faster than the formula time goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Speedup {
    /// This many times.
    Times(f64),
    /// Steps take no time.
    Infinite,
}

/// How long a step takes: a prefill part for slices of several tokens and a decode part for slices of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// Every step, whatever is in it.
    pub step: Duration,
    /// Each token of a slice of several.
    pub prefill_per_token: Duration,
    /// Each slice of one token.
    pub decode_per_sequence: Duration,
    /// Each thousand KV rows that slices of one token attend to.
    pub decode_per_thousand_rows: Duration,
}

impl Default for Timing {
    /// An 8-billion-parameter model on one datacentre GPU, roughly.
    fn default() -> Self {
        Self {
            step: Duration::from_micros(6_000),
            prefill_per_token: Duration::from_micros(35),
            decode_per_sequence: Duration::from_micros(40),
            decode_per_thousand_rows: Duration::from_micros(45),
        }
    }
}

impl Timing {
    /// No time at all.
    pub const ZERO: Self = Self {
        step: Duration::ZERO,
        prefill_per_token: Duration::ZERO,
        decode_per_sequence: Duration::ZERO,
        decode_per_thousand_rows: Duration::ZERO,
    };
}
