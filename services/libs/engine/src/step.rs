//! Checks a step's slices before anything is computed.

use kernels::kv::KvArena;

use crate::api::SliceProblem;
use crate::{EngineError, Mask, ModelInfo, Slice};

/// Refuses slices that cannot be computed.
pub(crate) fn check(slices: &[Slice<'_>], model: &ModelInfo, arena: &KvArena) -> Result<(), EngineError> {
    let mut written = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        check_slice(slice, model, arena, &mut |block| written.push((block, index)))
            .map_err(|problem| EngineError::Slice { slice: index, problem })?;
    }
    written.sort_unstable();
    if let Some(pair) = written.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (block, slice) = pair[1];
        return Err(EngineError::Slice { slice, problem: SliceProblem::Shared { block } });
    }
    Ok(())
}

fn check_slice(
    slice: &Slice<'_>,
    model: &ModelInfo,
    arena: &KvArena,
    writes: &mut dyn FnMut(u32),
) -> Result<(), SliceProblem> {
    check_tokens(slice, model)?;
    if let Mask::Ancestors(parents) = slice.mask {
        check_parents(parents, slice.tokens.len())?;
    }
    check_blocks(slice, arena, writes)
}

fn check_tokens(slice: &Slice<'_>, model: &ModelInfo) -> Result<(), SliceProblem> {
    let n_tokens = slice.tokens.len();
    if n_tokens == 0 {
        return Err(SliceProblem::Empty);
    }
    if slice.positions.len() != n_tokens {
        return Err(SliceProblem::Length { field: "positions", found: slice.positions.len(), n_tokens });
    }
    if let Some(&token) = slice.tokens.iter().find(|&&t| t as usize >= model.n_vocab) {
        return Err(SliceProblem::Token { token, n_vocab: model.n_vocab });
    }
    let last_row = slice.first_row as usize + n_tokens - 1;
    let last = slice.positions.iter().map(|&p| p as usize).chain([last_row]).max().unwrap_or(0);
    if last >= model.max_context {
        return Err(SliceProblem::Context { position: last, max_context: model.max_context });
    }
    if last_row >= slice.max_tokens as usize && slice.mask == Mask::Causal {
        return Err(SliceProblem::MaxTokens { n_rows: last_row + 1, max_tokens: slice.max_tokens });
    }
    Ok(())
}

fn check_parents(parents: &[Option<u32>], n_tokens: usize) -> Result<(), SliceProblem> {
    if parents.len() != n_tokens {
        return Err(SliceProblem::Length { field: "mask", found: parents.len(), n_tokens });
    }
    for (index, parent) in parents.iter().enumerate() {
        if let Some(parent) = parent.filter(|&p| p as usize >= index) {
            return Err(SliceProblem::Parent { index, parent });
        }
    }
    Ok(())
}

fn check_blocks(slice: &Slice<'_>, arena: &KvArena, writes: &mut dyn FnMut(u32)) -> Result<(), SliceProblem> {
    let block_tokens = arena.block_tokens();
    let first_row = slice.first_row as usize;
    let n_rows = first_row + slice.tokens.len();
    let needed = n_rows.div_ceil(block_tokens);
    let Some(blocks) = slice.blocks.get(..needed) else {
        return Err(SliceProblem::Blocks { n_rows, needed, found: slice.blocks.len() });
    };
    for (i, block) in blocks.iter().map(|b| b.0).enumerate() {
        if block as usize >= arena.n_blocks() {
            return Err(SliceProblem::Block { block, n_blocks: arena.n_blocks() });
        }
        let expected = first_row.saturating_sub(i * block_tokens).min(block_tokens);
        for layer in 0..arena.n_layers() {
            let found = arena.rows(layer, block);
            if found != expected {
                return Err(SliceProblem::Rows { block, layer, expected, found });
            }
        }
        if expected < block_tokens {
            writes(block);
        }
    }
    Ok(())
}
