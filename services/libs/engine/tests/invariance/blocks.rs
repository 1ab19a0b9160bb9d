//! Blocks of an arena, in no order, with as many owners as share them.

use engine::Engine;
use kernels::kv::KvArena;
use types::BlockIdx;

use crate::random::Random;

pub(crate) struct Blocks {
    free: Vec<u32>,
    owners: Vec<u32>,
}

impl Blocks {
    pub(crate) fn new(arena: &KvArena) -> Self {
        let n_blocks = arena.n_blocks() as u32;
        Self { free: (0..n_blocks).collect(), owners: vec![0; n_blocks as usize] }
    }

    /// Any free block, emptied.
    pub(crate) fn take(&mut self, arena: &KvArena, random: &mut Random) -> BlockIdx {
        let block = self.free.swap_remove(random.below(self.free.len()));
        self.owners[block as usize] = 1;
        arena.reset(block);
        BlockIdx(block)
    }

    pub(crate) fn share(&mut self, blocks: &[BlockIdx]) {
        blocks.iter().for_each(|b| self.owners[b.0 as usize] += 1);
    }

    pub(crate) fn release(&mut self, blocks: impl IntoIterator<Item = BlockIdx>) {
        for block in blocks {
            let owners = &mut self.owners[block.0 as usize];
            *owners -= 1;
            if *owners == 0 {
                self.free.push(block.0);
            }
        }
    }
}

/// The first `n_rows` rows of a block, a cell for each layer.
pub(crate) fn export(engine: &dyn Engine, block: BlockIdx, n_rows: usize) -> Vec<Vec<u8>> {
    let arena = engine.arena();
    let cell = |layer| {
        let mut cell = vec![0; arena.cell_bytes(layer)];
        arena.export(layer, block.0, n_rows, &mut cell).unwrap();
        cell
    };
    (0..arena.n_layers()).map(cell).collect()
}

/// Fills an empty block.
pub(crate) fn import(engine: &dyn Engine, block: BlockIdx, n_rows: usize, cells: &[Vec<u8>]) {
    for (layer, cell) in cells.iter().enumerate() {
        engine.arena().import(layer, block.0, n_rows, cell).unwrap();
    }
}
