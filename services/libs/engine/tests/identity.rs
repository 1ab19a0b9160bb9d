//! Which rows of logits come back, and what they depend on. That they do not depend on how a sequence is computed is
//! what `invariance` tries at random.

mod common;

use std::ops::ControlFlow;
use std::path::PathBuf;

use engine::{Compute, Engine, EngineConfig, LogitRows, Mask, Slice, offline};
use types::{BlockIdx, TokenId};

use common::{bits, config, dense_cases, open};

/// Tiny models: unquantised, with several weight formats, and tied.
fn models() -> Vec<PathBuf> {
    let model = |case: PathBuf| Some(case.join("model.gguf")).filter(|p| p.is_file()).unwrap_or(case);
    dense_cases().into_iter().map(model).collect()
}

fn prompt(n: usize, seed: u32) -> Vec<TokenId> {
    (0..n as u32).map(|i| (i * i * 7 + i * 13 + seed * 31) % 96).collect()
}

/// A sequence with blocks of its own.
struct Sequence {
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    blocks: Vec<BlockIdx>,
    max_tokens: u32,
    done: usize,
}

impl Sequence {
    fn new(engine: &dyn Engine, tokens: Vec<TokenId>, first_block: u32) -> Self {
        let n_blocks = tokens.len().div_ceil(engine.arena().block_tokens()) as u32;
        // Not in order.
        let blocks: Vec<_> = (0..n_blocks).rev().map(|b| BlockIdx(first_block + b)).collect();
        blocks.iter().for_each(|b| engine.arena().reset(b.0));
        let n = tokens.len() as u32;
        Self { positions: (0..n).collect(), tokens, blocks, max_tokens: n, done: 0 }
    }

    fn next(&self, n: usize, logits: LogitRows) -> Slice<'_> {
        let end = self.tokens.len().min(self.done + n);
        Slice {
            tokens: &self.tokens[self.done..end],
            positions: &self.positions[self.done..end],
            first_row: self.done as u32,
            max_tokens: self.max_tokens,
            blocks: &self.blocks,
            mask: Mask::Causal,
            logits,
        }
    }

    /// All bytes of its KV.
    fn kv(&self, engine: &dyn Engine) -> Vec<u8> {
        let arena = engine.arena();
        let mut all = Vec::new();
        for layer in 0..arena.n_layers() {
            for block in &self.blocks {
                let mut cell = vec![0; arena.cell_bytes(layer)];
                arena.export(layer, block.0, arena.rows(layer, block.0), &mut cell).unwrap();
                all.extend(cell);
            }
        }
        all
    }
}

fn forward(engine: &mut dyn Engine, slices: &[Slice<'_>]) -> Vec<f32> {
    let mut logits = Vec::new();
    engine.forward(slices, &mut logits, &mut |_| ControlFlow::Continue(())).unwrap();
    logits
}

/// Logits of all tokens and the KV, computed in chunks.
fn alone(engine: &mut dyn Engine, tokens: &[TokenId], chunk: usize) -> (Vec<u32>, Vec<u8>) {
    alone_of(engine, tokens, chunk, tokens.len())
}

/// The same of a sequence that was to have up to `max_tokens` tokens.
fn alone_of(engine: &mut dyn Engine, tokens: &[TokenId], chunk: usize, max_tokens: usize) -> (Vec<u32>, Vec<u8>) {
    let mut sequence = Sequence::new(engine, tokens.to_vec(), 3);
    sequence.max_tokens = max_tokens as u32;
    let mut logits = Vec::new();
    while sequence.done < tokens.len() {
        logits.extend(forward(engine, &[sequence.next(chunk, LogitRows::All)]));
        sequence.done = tokens.len().min(sequence.done + chunk);
    }
    (bits(&logits), sequence.kv(engine))
}

#[test]
fn only_wanted_rows_come_back_in_order() {
    for model in models() {
        let mut engine = open(&model, &EngineConfig { kv_blocks: 64, ..config(Compute::Auto) });
        let n_vocab = engine.model().n_vocab;
        let wanted = [LogitRows::Last, LogitRows::None, LogitRows::All, LogitRows::Last];
        let prompts = [prompt(20, 1), prompt(5, 2), prompt(3, 3), prompt(1, 4)];
        let mut expected = Vec::new();
        for (tokens, wanted) in prompts.iter().zip(wanted) {
            let (all, _) = alone(&mut *engine, tokens, tokens.len());
            expected.extend_from_slice(&all[all.len() - wanted.count(tokens.len()) * n_vocab..]);
        }
        let sequences: Vec<_> =
            prompts.iter().zip(0..).map(|(p, i)| Sequence::new(&*engine, p.clone(), 10 + 5 * i)).collect();
        let slices: Vec<_> = sequences.iter().zip(wanted).map(|(s, w)| s.next(99, w)).collect();
        assert_eq!(bits(&forward(&mut *engine, &slices)), expected, "{}", model.display());
    }
}

/// The tests above would see a change: one flipped bit of one key changes the logits.
#[test]
fn a_changed_bit_of_the_cache_shows() {
    for model in models() {
        for compute in [Compute::F32, Compute::Auto] {
            let mut engine = open(&model, &EngineConfig { kv_blocks: 64, ..config(compute) });
            let tokens = prompt(40, 1);
            let last = |engine: &mut dyn Engine, flip: bool| {
                let mut sequence = Sequence::new(engine, tokens.clone(), 3);
                forward(engine, &[sequence.next(39, LogitRows::None)]);
                sequence.done = 39;
                if flip {
                    let arena = engine.arena().clone();
                    // Of rows that the last one sees through the models' windows.
                    let block = sequence.blocks[2].0;
                    let cells: Vec<_> = (0..arena.n_layers())
                        .map(|layer| {
                            let mut cell = vec![0; arena.cell_bytes(layer)];
                            arena.export(layer, block, 7, &mut cell).unwrap();
                            cell
                        })
                        .collect();
                    arena.reset(block);
                    for (layer, mut cell) in cells.into_iter().enumerate() {
                        cell[2] ^= u8::from(layer == 0) << 6;
                        arena.import(layer, block, 7, &cell).unwrap();
                    }
                }
                bits(&forward(engine, &[sequence.next(1, LogitRows::Last)]))
            };
            let (whole, changed) = (last(&mut *engine, false), last(&mut *engine, true));
            assert_eq!(whole, last(&mut *engine, false));
            assert_ne!(whole, changed, "{}", model.display());
        }
    }
}

/// A model with two sets of rotary frequencies goes by the length that was declared, for all positions from the first
/// on; other models do not ask for it.
#[test]
fn the_declared_length_decides_and_the_length_reached_does_not() {
    let mut n_long = 0;
    for model in models() {
        let mut engine = open(&model, &EngineConfig { kv_blocks: 64, ..config(Compute::F32) });
        let has_two = engine.model().compatibility.rope.contains("above=32");
        n_long += u32::from(has_two);
        let tokens = prompt(40, 3);
        let (short, long) =
            (alone_of(&mut *engine, &tokens[..20], 5, 32), alone_of(&mut *engine, &tokens[..20], 5, 33));
        assert_eq!(short != long, has_two, "{}", model.display());
        assert_eq!(short, alone_of(&mut *engine, &tokens[..20], 20, 20), "{}", model.display());
        // Reaching the switch changes nothing of what was before it.
        let n_vocab = engine.model().n_vocab;
        assert_eq!(alone_of(&mut *engine, &tokens, 5, 40).0[..20 * n_vocab], long.0, "{}", model.display());
    }
    assert!(n_long > 0, "no model has two sets of frequencies");
}

#[test]
fn offline_helpers_do_not_depend_on_chunks() {
    for model in models() {
        let mut engine = open(&model, &EngineConfig { kv_blocks: 64, ..config(Compute::Auto) });
        let tokens = prompt(90, 5);
        let whole = offline::logits(&mut *engine, &tokens, 0).unwrap();
        assert_eq!(bits(&whole), bits(&offline::logits(&mut *engine, &tokens, 7).unwrap()));
        let n_vocab = engine.model().n_vocab;
        let rows = whole.chunks_exact(n_vocab).zip(&tokens[1..]);
        let by_hand: f64 = rows
            .map(|(row, &next)| {
                let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
                sum.ln() - f64::from(row[next as usize])
            })
            .sum();
        let found = offline::nll(&mut *engine, &tokens).unwrap();
        assert!((found - by_hand).abs() < 1e-6 * by_hand, "{found} {by_hand}");
    }
}
