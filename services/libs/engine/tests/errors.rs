//! Steps that cannot be computed are refused before anything is, by every engine.

mod common;

use std::ops::ControlFlow;

use engine::sim::{SimConfig, SimEngine, Speedup};
use engine::{Compute, Engine, EngineConfig, EngineError, LogitRows, Mask, Slice, SliceProblem};
use types::BlockIdx;

use common::{config, golden_cases, open};

fn engines() -> Vec<Box<dyn Engine>> {
    let sim =
        SimConfig { n_vocab: 100, max_context: 100, speedup: Speedup::Infinite, kv_blocks: 8, ..SimConfig::default() };
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(SimEngine::new(sim).unwrap())];
    if let Some(case) = golden_cases("llama").into_iter().find(|c| c.join("config.json").is_file()) {
        engines.push(open(&case, &EngineConfig { kv_blocks: 8, ..config(Compute::F32) }));
    }
    engines
}

const BLOCKS: [BlockIdx; 3] = [BlockIdx(7), BlockIdx(6), BlockIdx(5)];

fn valid<'a>() -> Slice<'a> {
    Slice {
        tokens: &[1, 2, 3],
        positions: &[0, 1, 2],
        first_row: 0,
        max_tokens: 100,
        blocks: &BLOCKS,
        mask: Mask::Causal,
        logits: LogitRows::Last,
    }
}

fn problem(engine: &mut dyn Engine, slices: &[Slice<'_>]) -> (usize, SliceProblem) {
    let mut logits = vec![1.0];
    match engine.forward(slices, &mut logits, &mut |_| panic!("nothing may be computed")) {
        Err(EngineError::Slice { slice, problem }) => (slice, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn impossible_slices_are_named() {
    for mut engine in engines() {
        BLOCKS.iter().for_each(|b| engine.arena().reset(b.0));
        let n_vocab = engine.model().n_vocab;
        let max = engine.model().max_context;
        let mut check = |slice: Slice<'_>, expected: SliceProblem| {
            assert_eq!(problem(&mut *engine, &[slice]), (0, expected));
        };
        check(Slice { tokens: &[], positions: &[], ..valid() }, SliceProblem::Empty);
        let length = |field, found| SliceProblem::Length { field, found, n_tokens: 3 };
        check(Slice { positions: &[0, 1], ..valid() }, length("positions", 2));
        check(Slice { mask: Mask::Ancestors(&[None]), ..valid() }, length("mask", 1));
        let parents = [None, Some(1), None];
        let parent = SliceProblem::Parent { index: 1, parent: 1 };
        check(Slice { mask: Mask::Ancestors(&parents), ..valid() }, parent);
        let token = n_vocab as u32;
        check(Slice { tokens: &[1, token, 3], ..valid() }, SliceProblem::Token { token, n_vocab });
        let context = |position| SliceProblem::Context { position, max_context: max };
        check(Slice { positions: &[0, 1, u32::MAX], ..valid() }, context(u32::MAX as usize));
        check(Slice { first_row: max as u32 - 2, ..valid() }, context(max));
        check(Slice { first_row: u32::MAX, ..valid() }, context(u32::MAX as usize + 2));
        let too_many = SliceProblem::MaxTokens { n_rows: 3, max_tokens: 2 };
        check(Slice { max_tokens: 2, ..valid() }, too_many);
        check(Slice { blocks: &[], ..valid() }, SliceProblem::Blocks { n_rows: 3, needed: 1, found: 0 });
        check(Slice { blocks: &[BlockIdx(8)], ..valid() }, SliceProblem::Block { block: 8, n_blocks: 8 });
        let rows = SliceProblem::Rows { block: 7, layer: 0, expected: 1, found: 0 };
        check(Slice { first_row: 1, ..valid() }, rows);
        assert_eq!(problem(&mut *engine, &[valid(), valid()]), (1, SliceProblem::Shared { block: 7 }));
        let none = |_| ControlFlow::Continue(());
        engine.forward(&[valid()], &mut Vec::new(), &mut { none }).unwrap();
        let again = SliceProblem::Rows { block: 7, layer: 0, expected: 0, found: 3 };
        assert_eq!(problem(&mut *engine, &[valid()]), (0, again));
        engine.forward(&[], &mut Vec::new(), &mut { none }).unwrap();
    }
}

#[test]
fn a_step_ends_when_asked_and_the_blocks_serve_again() {
    for mut engine in engines() {
        BLOCKS.iter().for_each(|b| engine.arena().reset(b.0));
        let mut seen = Vec::new();
        let mut logits = Vec::new();
        let result = engine.forward(&[valid()], &mut logits, &mut |layer| {
            seen.push(layer);
            ControlFlow::Break(())
        });
        let n_layers = engine.arena().n_layers();
        assert_eq!((result, &seen[..]), (Err(EngineError::Aborted), &[0][..]));
        assert_eq!(engine.arena().rows(0, 7), 3);
        assert!((1..n_layers).all(|layer| engine.arena().rows(layer, 7) == 0));
        engine.arena().reset(7);
        let mut layers = Vec::new();
        let arena = engine.arena().clone();
        engine
            .forward(&[valid()], &mut logits, &mut |layer| {
                assert_eq!(arena.rows(layer, 7), 3, "published before the call");
                layers.push(layer);
                ControlFlow::Continue(())
            })
            .unwrap();
        assert_eq!(layers, (0..n_layers).collect::<Vec<_>>());
        assert_eq!(logits.len(), engine.model().n_vocab);
    }
}
