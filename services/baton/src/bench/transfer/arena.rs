//! KV that both processes agree about.

use std::sync::Arc;

use kernels::kv::KvArena;
use types::{BlockHash, Compatibility, Epoch, KvElement, KvGeometry, LayerKv, LayerKvKind, WorkerId, WorkerRef};

/// Tokens of a block, as in production.
const BLOCK_TOKENS: usize = 16;
/// Layers, where the number of cells allows it.
const LAYERS: [usize; 6] = [32, 16, 8, 4, 2, 1];
/// Most bytes in all, and of one cell.
const BYTES_MAX: usize = 64 << 30;
const BLOCK_MAX: usize = 16 << 20;

/// How the bytes are cut into cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) n_layers: usize,
    pub(super) n_blocks: usize,
    pub(super) cell_bytes: usize,
}

impl Layout {
    pub(super) fn new(bytes: usize, block: usize) -> anyhow::Result<Self> {
        anyhow::ensure!((64..=BLOCK_MAX).contains(&block), "--block must be between 64 bytes and 16 MiB");
        anyhow::ensure!(block.is_multiple_of(BLOCK_TOKENS), "--block must be a multiple of {BLOCK_TOKENS}");
        anyhow::ensure!((block..=BYTES_MAX).contains(&bytes), "--bytes must be between --block and 64 GiB");
        let n_cells = bytes / block;
        let n_layers = LAYERS.into_iter().find(|n| n_cells.is_multiple_of(*n)).unwrap_or(1);
        Ok(Self { n_layers, n_blocks: n_cells / n_layers, cell_bytes: block })
    }

    pub(super) fn n_cells(self) -> usize {
        self.n_layers * self.n_blocks
    }

    pub(super) fn bytes(self) -> usize {
        self.n_cells() * self.cell_bytes
    }

    pub(super) fn n_tokens(self) -> usize {
        self.n_blocks * BLOCK_TOKENS
    }

    pub(super) fn hashes(self) -> Vec<BlockHash> {
        (0..self.n_blocks).map(|block| BlockHash((block as u128 + 1).to_le_bytes())).collect()
    }

    pub(super) fn arena(self) -> anyhow::Result<Arc<KvArena>> {
        Ok(Arc::new(KvArena::new(&vec![self.cell_bytes; self.n_layers], self.n_blocks, BLOCK_TOKENS)?))
    }

    pub(super) fn cells(self) -> impl Iterator<Item = (usize, u32)> {
        (0..self.n_layers).flat_map(move |layer| (0..self.n_blocks as u32).map(move |block| (layer, block)))
    }

    pub(super) fn compatibility(self) -> Compatibility {
        let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 1 }, window: None };
        Compatibility {
            protocol: (types::PROTOCOL_MIN, types::PROTOCOL_MAX),
            model_digest: "bench".into(),
            model_revision: String::new(),
            geometry: KvGeometry {
                block_tokens: BLOCK_TOKENS as u32,
                element: KvElement::F16,
                layers: vec![layer; self.n_layers],
            },
            rope: String::new(),
            attention: String::new(),
            quantization: String::new(),
            adapters: vec![],
            drafter: String::new(),
            numerics: String::new(),
        }
    }
}

pub(super) fn source_worker() -> WorkerRef {
    WorkerRef { id: WorkerId::new("source"), epoch: Epoch(1) }
}

pub(super) fn reader_worker() -> WorkerRef {
    WorkerRef { id: WorkerId::new("reader"), epoch: Epoch(2) }
}

/// Calls `fill` with every cell's memory, then publishes it.
pub(super) fn fill_all(
    arena: &KvArena,
    layout: Layout,
    mut fill: impl FnMut(usize, u32, &mut [u8]) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    for (layer, block) in layout.cells() {
        let mut append = arena.append(layer, block, 0, BLOCK_TOKENS)?;
        fill(layer, block, append.cell_mut())?;
        append.publish();
    }
    Ok(())
}

/// Fills a cell with what belongs there: SplitMix64 from the cell's name (Steele, Lea, Flood 2014).
pub(super) fn fill(layer: usize, block: u32, cell: &mut [u8]) {
    let mut state = (layer as u64) << 32 | u64::from(block);
    for word in cell.chunks_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..word.len()]);
    }
}

/// # Errors
/// If a cell holds anything else than what belongs there.
pub(super) fn check(arena: &KvArena, layout: Layout) -> anyhow::Result<()> {
    let mut want = vec![0; layout.cell_bytes];
    for (layer, block) in layout.cells() {
        fill(layer, block, &mut want);
        let pin = arena.pin(block);
        anyhow::ensure!(pin.cell(layer) == Some(&want), "layer {layer} of block {block} is not what was sent");
    }
    Ok(())
}

pub(super) fn reset(arena: &KvArena) {
    (0..arena.n_blocks() as u32).for_each(|block| arena.reset(block));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_cut_into_cells() {
        let layout = Layout::new(1 << 30, 1 << 20).unwrap();
        assert_eq!((layout.n_layers, layout.n_blocks, layout.bytes()), (32, 32, 1 << 30));
        assert_eq!(Layout::new(3 << 20, 1 << 20).unwrap().n_layers, 1);
        assert!(Layout::new(1 << 20, 2 << 20).is_err());
        assert!(Layout::new(1 << 20, 100).is_err());
        assert!(Layout::new(usize::MAX, 1 << 20).is_err());
    }

    #[test]
    fn foreign_bytes_are_noticed() {
        let layout = Layout::new(4096, 1024).unwrap();
        let arena = layout.arena().unwrap();
        let mut damage = None;
        for damaged in [false, true] {
            fill_all(&arena, layout, |layer, block, cell| {
                fill(layer, block, cell);
                if damaged {
                    *damage.get_or_insert(cell[7]) ^= 1;
                    cell[7] ^= 1;
                }
                Ok(())
            })
            .unwrap();
            assert_eq!(check(&arena, layout).is_err(), damaged);
            reset(&arena);
        }
    }
}
