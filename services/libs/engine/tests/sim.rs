//! The simulated engine's tokens depend on every token and every block before them.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use engine::sim::{SimConfig, SimEngine, Speedup, Timing};
use engine::{Engine, LogitRows, Mask, Slice, offline};
use types::{BlockIdx, TokenId};

fn engine(key: u64) -> SimEngine {
    let config = SimConfig { n_vocab: 1_000, speedup: Speedup::Infinite, key, ..SimConfig::default() };
    SimEngine::new(config).unwrap()
}

fn prompt() -> Vec<TokenId> {
    (0..50).map(|i| i * 17 % 900).collect()
}

#[test]
fn chunks_do_not_matter_and_every_token_does() {
    let mut engine = engine(1);
    let whole = offline::logits(&mut engine, &prompt(), 0).unwrap();
    for chunk in [1, 7, 16] {
        assert_eq!(offline::logits(&mut engine, &prompt(), chunk).unwrap(), whole);
    }
    let next = offline::greedy(&mut engine, &prompt(), 8).unwrap();
    for i in 0..50 {
        let mut changed = prompt();
        changed[i] += 1;
        assert_ne!(offline::greedy(&mut engine, &changed, 8).unwrap(), next, "token {i}");
    }
    assert_ne!(offline::greedy(&mut self::engine(2), &prompt(), 8).unwrap(), next, "another key");
    assert_eq!(offline::greedy(&mut self::engine(1), &prompt(), 8).unwrap(), next, "the same key");
}

/// The token that follows the prompt when its blocks are read through `table`.
fn next_through(engine: &mut SimEngine, table: &[u32]) -> TokenId {
    let blocks: Vec<_> = table.iter().map(|&b| BlockIdx(b)).collect();
    let slice = Slice {
        tokens: &[5],
        positions: &[48],
        first_row: 48,
        max_tokens: 49,
        blocks: &blocks,
        mask: Mask::Causal,
        logits: LogitRows::Last,
    };
    engine.arena().reset(blocks[3].0);
    let mut logits = Vec::new();
    engine.forward(&[slice], &mut logits, &mut |_| ControlFlow::Continue(())).unwrap();
    offline::argmax(&logits)
}

#[test]
fn foreign_repeated_and_swapped_blocks_show() {
    let mut engine = engine(1);
    offline::logits(&mut engine, &prompt()[..48], 0).unwrap();
    let arena = engine.arena().clone();
    let mut cell = vec![0; arena.cell_bytes(0)];
    arena.export(0, 1, 16, &mut cell).unwrap();
    cell[20] ^= 1;
    arena.import(0, 9, 16, &cell).unwrap();
    let right = next_through(&mut engine, &[0, 1, 2, 8]);
    assert_eq!(next_through(&mut engine, &[0, 1, 2, 7]), right, "where the new row goes does not matter");
    for wrong in [[0, 1, 1, 8], [1, 0, 2, 8], [0, 9, 2, 8], [2, 1, 0, 8]] {
        assert_ne!(next_through(&mut engine, &wrong), right, "{wrong:?}");
    }
}

#[test]
fn ends_come_as_often_as_asked() {
    let count = |eos_per_mille| {
        let config = SimConfig {
            n_vocab: 500,
            eos: vec![2, 7],
            eos_per_mille,
            speedup: Speedup::Infinite,
            ..SimConfig::default()
        };
        let mut engine = SimEngine::new(config).unwrap();
        let logits = offline::logits(&mut engine, &vec![1; 2_000], 0).unwrap();
        logits.chunks_exact(500).filter(|row| [2, 7].contains(&offline::argmax(row))).count()
    };
    assert_eq!(count(0), 0);
    assert!((100..300).contains(&count(100)));
    assert_eq!(count(1_000), 2_000);
}

#[test]
fn time_follows_the_formula() {
    let timing = Timing { step: Duration::from_millis(20), ..Timing::ZERO };
    let took = |speedup| {
        let mut engine = SimEngine::new(SimConfig { timing, speedup, ..SimConfig::default() }).unwrap();
        let start = Instant::now();
        offline::greedy(&mut engine, &[1, 2, 3], 4).unwrap();
        start.elapsed()
    };
    assert!(took(Speedup::Times(1.0)) >= Duration::from_millis(80));
    let fast = took(Speedup::Times(4.0));
    assert!(fast >= Duration::from_millis(20), "{fast:?}");
    let bad = SimConfig { speedup: Speedup::Times(f64::NAN), ..SimConfig::default() };
    assert!(SimEngine::new(bad).is_err());
}
