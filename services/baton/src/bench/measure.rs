//! One measurement: a prompt in one step, or some decode steps of sequences that hold a context already.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::cpu::CpuEngine;
use engine::{Engine as _, EngineError, LogitRows, Mask, Slice};
use types::{BlockIdx, TokenId};

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Case {
    /// One step of one prompt.
    Prefill { tokens: usize },
    /// Steps of `batch` sequences, a token each, which hold `context` tokens at first.
    Decode { context: usize, batch: usize, steps: usize },
}

impl Case {
    /// Tokens computed while the clock runs.
    pub(super) fn n_tokens(self) -> usize {
        match self {
            Self::Prefill { tokens } => tokens,
            Self::Decode { batch, steps, .. } => batch * steps,
        }
    }

    /// Steps while the clock runs.
    pub(super) fn n_steps(self) -> usize {
        match self {
            Self::Prefill { .. } => 1,
            Self::Decode { steps, .. } => steps,
        }
    }

    /// Tokens of its longest sequence at the end.
    pub(super) fn sequence_tokens(self) -> usize {
        match self {
            Self::Prefill { tokens } => tokens,
            Self::Decode { context, steps, .. } => context + steps,
        }
    }

    /// Blocks of the KV cache that it takes.
    pub(super) fn n_blocks(self, block_tokens: usize) -> usize {
        let batch = match self {
            Self::Prefill { .. } => 1,
            Self::Decode { batch, .. } => batch,
        };
        batch * self.sequence_tokens().div_ceil(block_tokens)
    }
}

/// An engine under measurement.
pub(super) struct Bench {
    engine: CpuEngine,
    logits: Vec<f32>,
    /// KV of contexts computed so far, `[block][layer]` cells, by their length.
    contexts: BTreeMap<usize, Vec<Vec<Vec<u8>>>>,
}

impl Bench {
    pub(super) fn new(engine: CpuEngine) -> Self {
        Self { engine, logits: Vec::new(), contexts: BTreeMap::new() }
    }

    pub(super) fn engine(&self) -> &CpuEngine {
        &self.engine
    }

    /// Time that the case takes, its preparation left out.
    pub(super) fn time(&mut self, case: Case) -> Result<Duration, EngineError> {
        match case {
            Case::Prefill { tokens } => self.prefill(tokens),
            Case::Decode { context, batch, steps } => self.decode(context, batch, steps),
        }
    }

    fn prefill(&mut self, n_tokens: usize) -> Result<Duration, EngineError> {
        let blocks = self.blocks(n_tokens, 0);
        self.reset(&blocks);
        let (tokens, positions) = (prompt(n_tokens), positions(n_tokens));
        let start = Instant::now();
        self.forward(&[slice(&tokens, &positions, 0, &blocks, LogitRows::Last)])?;
        Ok(start.elapsed())
    }

    fn decode(&mut self, context: usize, batch: usize, steps: usize) -> Result<Duration, EngineError> {
        let tables: Vec<_> = (0..batch).map(|s| self.blocks(context + steps, s)).collect();
        self.compute_context(context)?;
        for table in &tables {
            self.restore(context, table)?;
        }
        let (tokens, positions) = (prompt(steps), positions(context + steps));
        let start = Instant::now();
        for step in 0..steps {
            let row = context + step;
            let (token, position) = (&tokens[step..=step], &positions[row..=row]);
            let slices: Vec<_> = tables.iter().map(|t| slice(token, position, row, t, LogitRows::Last)).collect();
            self.forward(&slices)?;
        }
        Ok(start.elapsed())
    }

    /// Computes a context and keeps its KV, if that was not done before.
    fn compute_context(&mut self, n_tokens: usize) -> Result<(), EngineError> {
        if n_tokens == 0 || self.contexts.contains_key(&n_tokens) {
            return Ok(());
        }
        let blocks = self.blocks(n_tokens, 0);
        self.reset(&blocks);
        self.forward(&[slice(&prompt(n_tokens), &positions(n_tokens), 0, &blocks, LogitRows::None)])?;
        let arena = self.engine.arena();
        let export = |layer: usize, block: BlockIdx| {
            let mut cell = vec![0; arena.cell_bytes(layer)];
            arena.export(layer, block.0, arena.rows(layer, block.0), &mut cell).map(|()| cell)
        };
        let cells = |block: &BlockIdx| (0..arena.n_layers()).map(|layer| export(layer, *block)).collect();
        let kept = blocks.iter().map(cells).collect::<Result<_, _>>()?;
        self.contexts.insert(n_tokens, kept);
        Ok(())
    }

    /// Empties the blocks and puts a kept context at their beginning.
    fn restore(&self, n_tokens: usize, blocks: &[BlockIdx]) -> Result<(), EngineError> {
        self.reset(blocks);
        let arena = self.engine.arena();
        let kept = self.contexts.get(&n_tokens).map_or(&[][..], Vec::as_slice);
        for (index, (block, cells)) in blocks.iter().zip(kept).enumerate() {
            let n_rows = arena.block_tokens().min(n_tokens - index * arena.block_tokens());
            for (layer, cell) in cells.iter().enumerate() {
                arena.import(layer, block.0, n_rows, cell)?;
            }
        }
        Ok(())
    }

    fn reset(&self, blocks: &[BlockIdx]) {
        blocks.iter().for_each(|b| self.engine.arena().reset(b.0));
    }

    /// Blocks of sequence `index`, all of which are `n_tokens` long.
    fn blocks(&self, n_tokens: usize, index: usize) -> Vec<BlockIdx> {
        let n = n_tokens.div_ceil(self.engine.arena().block_tokens()) as u32;
        (0..n).map(|i| BlockIdx(index as u32 * n + i)).collect()
    }

    fn forward(&mut self, slices: &[Slice<'_>]) -> Result<(), EngineError> {
        self.engine.forward(slices, &mut self.logits, &mut |_| ControlFlow::Continue(()))
    }
}

/// Token ids that differ; every vocabulary has a few hundred.
fn prompt(n_tokens: usize) -> Vec<TokenId> {
    (0..n_tokens).map(|i| (i * 37 % 199) as TokenId).collect()
}

fn positions(n_tokens: usize) -> Vec<u32> {
    (0..n_tokens as u32).collect()
}

fn slice<'a>(
    tokens: &'a [TokenId],
    positions: &'a [u32],
    first_row: usize,
    blocks: &'a [BlockIdx],
    logits: LogitRows,
) -> Slice<'a> {
    // No sequence here ends of itself.
    let max_tokens = u32::MAX;
    Slice { tokens, positions, max_tokens, first_row: first_row as u32, blocks, mask: Mask::Causal, logits }
}
