//! Ways to compute something else on purpose: the comparison must see each.

use engine::Engine;
use types::BlockIdx;

use crate::blocks::{export, import};
use crate::random::Random;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sabotage {
    /// Another compute mode than the plain way's.
    Compute,
    /// A token of one slice is another.
    Token,
    /// A slice's positions are one too high, its rows where they belong.
    Position,
    /// Two full blocks before a single token change places: the same sums in another order.
    Order,
    /// One bit of one key or value.
    Bit,
    /// A tree's token has the wrong parent.
    Parent,
}

impl Sabotage {
    pub(crate) const ALL: [Self; 6] =
        [Self::Compute, Self::Token, Self::Position, Self::Order, Self::Bit, Self::Parent];
}

/// Flips the highest bit of the fraction of one number among the block's first `n_rows` rows.
pub(crate) fn flip(engine: &dyn Engine, block: BlockIdx, n_rows: usize, element_bytes: usize, random: &mut Random) {
    let arena = engine.arena();
    let mut cells = export(engine, block, n_rows);
    let layer = random.below(cells.len());
    let shape = arena.cell_shape(layer);
    let plane = random.below(shape.planes) * shape.row_bytes * arena.block_tokens();
    let element = random.below(n_rows * shape.row_bytes / element_bytes) * element_bytes;
    // Little-endian: bit 9 of a binary16, bit 22 of a binary32.
    let (byte, bit) = if element_bytes == 2 { (1, 1) } else { (2, 6) };
    cells[layer][plane + element + byte] ^= 1 << bit;
    arena.reset(block.0);
    import(engine, block, n_rows, &cells);
}
