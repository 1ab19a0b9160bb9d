//! Whole prompts through an engine, without a server. The engine's KV cache is used from block 0.

use std::ops::ControlFlow;

use types::{BlockIdx, TokenId};

use crate::{Engine, EngineError, LogitRows, Mask, Slice};

/// Logits of every token, `[ids.len(), n_vocab]`, computed in chunks of `chunk` tokens (0: all at once).
///
/// # Errors
/// [`EngineError`], e.g. if the ids do not fit the context or the KV cache.
pub fn logits(engine: &mut dyn Engine, ids: &[TokenId], chunk: usize) -> Result<Vec<f32>, EngineError> {
    let mut sequence = Sequence::new(engine, ids.len());
    let mut all = Vec::new();
    let mut part = Vec::new();
    for tokens in ids.chunks(if chunk == 0 { ids.len().max(1) } else { chunk }) {
        sequence.forward(tokens, LogitRows::All, &mut part)?;
        all.append(&mut part);
    }
    Ok(all)
}

/// Continues `prompt` with the likeliest token (lowest id on ties) until an end-of-sequence token, which is
/// included, or `max_tokens`, or the end of the context.
///
/// # Errors
/// [`EngineError`], e.g. if the prompt is empty or does not fit.
pub fn greedy(engine: &mut dyn Engine, prompt: &[TokenId], max_tokens: usize) -> Result<Vec<TokenId>, EngineError> {
    let model = engine.model().clone();
    // A prompt that fills the context or more is the engine's to refuse.
    let max_tokens = max_tokens.min(model.max_context.saturating_sub(prompt.len()).max(1));
    let mut sequence = Sequence::new(engine, prompt.len() + max_tokens);
    let mut row = Vec::new();
    let mut generated = Vec::new();
    if max_tokens == 0 {
        return Ok(generated);
    }
    sequence.forward(prompt, LogitRows::Last, &mut row)?;
    loop {
        let token = argmax(&row);
        generated.push(token);
        if generated.len() == max_tokens || model.eos.contains(&token) {
            return Ok(generated);
        }
        sequence.forward(&[token], LogitRows::Last, &mut row)?;
    }
}

/// Sum of the negative log-likelihoods (natural logarithm) of `ids[1..]`, each given those before it.
///
/// # Errors
/// [`EngineError`], e.g. if the ids do not fit.
pub fn nll(engine: &mut dyn Engine, ids: &[TokenId]) -> Result<f64, EngineError> {
    let n_vocab = engine.model().n_vocab;
    // Bounds the memory for logits; the bits do not depend on it.
    const CHUNK: usize = 64;
    let mut sequence = Sequence::new(engine, ids.len());
    let mut rows = Vec::new();
    let mut sum = 0.0;
    for start in (0..ids.len()).step_by(CHUNK) {
        let end = ids.len().min(start + CHUNK);
        sequence.forward(&ids[start..end], LogitRows::All, &mut rows)?;
        for (row, &next) in rows.chunks_exact(n_vocab).zip(&ids[start + 1..]) {
            sum += log_sum_exp(row) - f64::from(row[next as usize]);
        }
    }
    Ok(sum)
}

/// The likeliest token, the lowest id on ties.
///
/// # Panics
/// If `row` is empty.
pub fn argmax(row: &[f32]) -> TokenId {
    let mut best = 0;
    for (i, &x) in row.iter().enumerate() {
        if x > row[best] {
            best = i;
        }
    }
    assert!(!row.is_empty(), "a row of logits has at least one entry");
    best as TokenId
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + row.iter().map(|&x| (f64::from(x) - max).exp()).sum::<f64>().ln()
}

/// One sequence that takes blocks from 0 on as it grows.
struct Sequence<'a> {
    engine: &'a mut dyn Engine,
    blocks: Vec<BlockIdx>,
    n_rows: usize,
    max_tokens: u32,
    positions: Vec<u32>,
}

impl<'a> Sequence<'a> {
    fn new(engine: &'a mut dyn Engine, max_tokens: usize) -> Self {
        let max_tokens = u32::try_from(max_tokens).unwrap_or(u32::MAX);
        Self { engine, blocks: Vec::new(), n_rows: 0, max_tokens, positions: Vec::new() }
    }

    fn forward(&mut self, tokens: &[TokenId], rows: LogitRows, logits: &mut Vec<f32>) -> Result<(), EngineError> {
        let arena = self.engine.arena().clone();
        let end = self.n_rows + tokens.len();
        let needed = end.div_ceil(arena.block_tokens()).min(arena.n_blocks());
        for block in self.blocks.len()..needed {
            arena.reset(block as u32);
            self.blocks.push(BlockIdx(block as u32));
        }
        self.positions.clear();
        self.positions.extend(self.n_rows as u32..end as u32);
        let slice = Slice {
            tokens,
            positions: &self.positions,
            first_row: self.n_rows as u32,
            max_tokens: self.max_tokens,
            blocks: &self.blocks,
            mask: Mask::Causal,
            logits: rows,
        };
        self.engine.forward(&[slice], logits, &mut |_| ControlFlow::Continue(()))?;
        self.n_rows = end;
        Ok(())
    }
}
