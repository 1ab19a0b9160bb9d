//! The plain way: one sequence by itself, its blocks in order, its prompt at once or token by token.

use std::ops::ControlFlow;

use engine::{Engine, LogitRows, Mask, Slice};
use types::{BlockIdx, TokenId};

use crate::blocks::export;

/// What a sequence must give however it is computed.
pub(crate) struct Expected {
    /// The prompt and the likeliest continuation.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) max_tokens: u32,
    /// Logits of each token.
    pub(crate) logits: Vec<Vec<f32>>,
    /// Cells of each block.
    pub(crate) kv: Vec<Vec<Vec<u8>>>,
}

/// Computes a prompt and its likeliest continuation, in a sequence that could have `max_tokens`.
pub(crate) fn compute(
    engine: &mut dyn Engine,
    prompt: &[TokenId],
    n_generated: usize,
    max_tokens: u32,
    at_once: bool,
) -> Expected {
    let block_tokens = engine.arena().block_tokens();
    let n_tokens = prompt.len() + n_generated;
    let blocks: Vec<_> = (0..n_tokens.div_ceil(block_tokens) as u32).map(BlockIdx).collect();
    blocks.iter().for_each(|b| engine.arena().reset(b.0));
    let mut tokens = prompt.to_vec();
    let mut logits: Vec<Vec<f32>> = Vec::new();
    while logits.len() < n_tokens {
        let done = logits.len();
        if done == tokens.len() {
            tokens.push(likeliest(&logits[done - 1]));
        }
        let end = if at_once { tokens.len() } else { done + 1 };
        let positions: Vec<_> = (done as u32..end as u32).collect();
        let slice = Slice {
            tokens: &tokens[done..end],
            positions: &positions,
            first_row: done as u32,
            max_tokens,
            blocks: &blocks,
            mask: Mask::Causal,
            logits: LogitRows::All,
        };
        let mut rows = Vec::new();
        engine.forward(&[slice], &mut rows, &mut |_| ControlFlow::Continue(())).unwrap();
        logits.extend(rows.chunks_exact(engine.model().n_vocab).map(<[f32]>::to_vec));
    }
    let rows = |i: usize| block_tokens.min(n_tokens - i * block_tokens);
    let kv = blocks.iter().enumerate().map(|(i, &b)| export(engine, b, rows(i))).collect();
    Expected { tokens, max_tokens, logits, kv }
}

fn likeliest(logits: &[f32]) -> TokenId {
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary has tokens") as u32
}
