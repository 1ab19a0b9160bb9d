//! The arena: allocation, watermarks, export, import, reset.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::kv::{Append, Pin};
use crate::memory::ZeroedBytes;

/// Set in a block's pin count while it is being reset, and in a cell's watermark while somebody appends.
pub(super) const BUSY: u32 = 1 << 31;

/// Shape of one layer's cells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CellShape {
    /// Planes in a cell: `2 * n_kv_heads` for grouped heads.
    pub planes: usize,
    /// Bytes that one token takes in one plane: `head_dim * element size`.
    pub row_bytes: usize,
}

/// Why the arena refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ArenaError {
    /// Sizes that cannot be: zero, uneven, or beyond the address space.
    #[error("kv arena of {n_layers} layers, {n_blocks} blocks of {block_tokens} tokens: {reason}")]
    Shape {
        /// Layers asked for.
        n_layers: usize,
        /// Blocks asked for.
        n_blocks: usize,
        /// Tokens per block asked for.
        block_tokens: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The system has no memory.
    #[error("no memory for {bytes} bytes of kv cache")]
    OutOfMemory {
        /// Bytes of the layer that failed.
        bytes: usize,
    },
    /// No such layer or block.
    #[error("layer {layer}, block {block} is outside an arena of {n_layers} layers and {n_blocks} blocks")]
    OutOfRange {
        /// Layer asked for.
        layer: usize,
        /// Block asked for.
        block: u32,
        /// Layers there are.
        n_layers: usize,
        /// Blocks there are.
        n_blocks: usize,
    },
    /// More rows than a block holds.
    #[error("{n_rows} rows do not fit a block of {block_tokens}")]
    TooManyRows {
        /// Rows asked for.
        n_rows: usize,
        /// Rows a block holds.
        block_tokens: usize,
    },
    /// A buffer of another size than the cell.
    #[error("a cell of layer {layer} has {expected} bytes, not {found}")]
    Length {
        /// Which layer.
        layer: usize,
        /// Bytes of its cells.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
    /// Fewer rows are published than asked for.
    #[error("layer {layer}, block {block} has {found} rows, not {wanted}")]
    MissingRows {
        /// Which layer.
        layer: usize,
        /// Which block.
        block: u32,
        /// Rows asked for.
        wanted: usize,
        /// Rows published.
        found: usize,
    },
    /// Rows are appended in order; these would leave a gap or overwrite.
    #[error("layer {layer}, block {block} has {found} rows, appending at {first_row}")]
    OutOfOrder {
        /// Which layer.
        layer: usize,
        /// Which block.
        block: u32,
        /// Where the caller wanted to append.
        first_row: usize,
        /// Rows published.
        found: usize,
    },
    /// Somebody else is appending to this cell.
    #[error("layer {layer}, block {block} is being written")]
    Busy {
        /// Which layer.
        layer: usize,
        /// Which block.
        block: u32,
    },
}

pub(super) struct Layer {
    pub(super) shape: CellShape,
    pub(super) cell_bytes: usize,
    pub(super) memory: ZeroedBytes,
    /// Watermark per block, with [`BUSY`] while somebody appends.
    pub(super) rows: Box<[AtomicU32]>,
}

/// Memory of the KV cache: `n_layers` layers of `n_blocks` cells. Share it in an `Arc`.
pub struct KvArena {
    pub(super) layers: Vec<Layer>,
    /// Readers and writers per block, or [`BUSY`] during a reset.
    pub(super) pins: Box<[AtomicU32]>,
    pub(super) block_tokens: usize,
}

impl std::fmt::Debug for KvArena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvArena")
            .field("n_layers", &self.n_layers())
            .field("n_blocks", &self.n_blocks())
            .field("block_tokens", &self.block_tokens)
            .finish_non_exhaustive()
    }
}

impl KvArena {
    /// Cells of the given sizes in bytes, one per layer, each of a single plane (token after token).
    ///
    /// # Errors
    /// [`ArenaError::Shape`] if a size is 0 or not a multiple of `block_tokens`; [`ArenaError::OutOfMemory`].
    pub fn new(cell_bytes: &[usize], n_blocks: usize, block_tokens: usize) -> Result<Self, ArenaError> {
        let divisor = block_tokens.max(1);
        if cell_bytes.iter().any(|&b| b % divisor != 0) {
            let reason = "a cell is not a whole number of bytes per token";
            return Err(ArenaError::Shape { n_layers: cell_bytes.len(), n_blocks, block_tokens, reason });
        }
        let cells: Vec<_> = cell_bytes.iter().map(|&b| CellShape { planes: 1, row_bytes: b / divisor }).collect();
        Self::with_cells(&cells, n_blocks, block_tokens)
    }

    /// Cells of the given shapes, one per layer. Memory is zeroed and taken from the system when first touched.
    ///
    /// # Errors
    /// [`ArenaError::Shape`] if a size is 0 or overflows; [`ArenaError::OutOfMemory`].
    pub fn with_cells(cells: &[CellShape], n_blocks: usize, block_tokens: usize) -> Result<Self, ArenaError> {
        let shape = |reason| ArenaError::Shape { n_layers: cells.len(), n_blocks, block_tokens, reason };
        if cells.is_empty() || n_blocks == 0 || block_tokens == 0 {
            return Err(shape("each must be at least 1"));
        }
        if n_blocks >= BUSY as usize || block_tokens >= BUSY as usize {
            return Err(shape("more than 2^31 blocks or tokens"));
        }
        let mut layers = Vec::with_capacity(cells.len());
        for cell in cells {
            let cell_bytes = cell.planes.checked_mul(cell.row_bytes).and_then(|b| b.checked_mul(block_tokens));
            let cell_bytes = cell_bytes.filter(|&b| b > 0).ok_or_else(|| shape("a cell is empty or too large"))?;
            let bytes = cell_bytes.checked_mul(n_blocks).filter(|&b| b <= isize::MAX as usize / 2);
            let bytes = bytes.ok_or_else(|| shape("larger than the address space"))?;
            let memory = ZeroedBytes::new(bytes).ok_or(ArenaError::OutOfMemory { bytes })?;
            layers.push(Layer { shape: *cell, cell_bytes, memory, rows: counters(n_blocks) });
        }
        Ok(Self { layers, pins: counters(n_blocks), block_tokens })
    }

    /// Layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Blocks in each layer.
    pub fn n_blocks(&self) -> usize {
        self.pins.len()
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Bytes of one cell of layer `layer`.
    pub fn cell_bytes(&self, layer: usize) -> usize {
        self.layers[layer].cell_bytes
    }

    /// Planes and row size of layer `layer`.
    pub fn cell_shape(&self, layer: usize) -> CellShape {
        self.layers[layer].shape
    }

    /// Rows (tokens) of the cell that are published.
    ///
    /// # Panics
    /// If there is no such layer or block.
    pub fn rows(&self, layer: usize, block: u32) -> usize {
        (self.layers[layer].rows[block as usize].load(Ordering::Acquire) & !BUSY) as usize
    }

    /// Makes every cell of `block` empty, so that it can be filled anew.
    ///
    /// # Panics
    /// If somebody holds a pin on the block or appends to it: its owner gave it away too early, and going on would
    /// mix two requests' bytes. Also if there is no such block.
    pub fn reset(&self, block: u32) {
        let pins = &self.pins[block as usize];
        // Acquire: whatever the last holder of a pin read or wrote came before this.
        if let Err(found) = pins.compare_exchange(0, BUSY, Ordering::Acquire, Ordering::Relaxed) {
            panic!("block {block} reset while pinned (state {found:#x})");
        }
        for layer in &self.layers {
            layer.rows[block as usize].store(0, Ordering::Relaxed);
        }
        pins.store(0, Ordering::Release);
    }

    /// Keeps `block` from being reset while the guard lives.
    ///
    /// # Panics
    /// If there is no such block, or 2^30 pins are held on it.
    pub fn pin(&self, block: u32) -> Pin<'_> {
        Pin::new(self, block)
    }

    /// Begins to append `n_rows` rows at `first_row`, which must be the watermark.
    ///
    /// # Errors
    /// [`ArenaError::OutOfRange`], [`ArenaError::TooManyRows`], [`ArenaError::OutOfOrder`], [`ArenaError::Busy`].
    pub fn append(&self, layer: usize, block: u32, first_row: usize, n_rows: usize) -> Result<Append<'_>, ArenaError> {
        self.check(layer, block)?;
        Append::new(self, layer, block, first_row, n_rows)
    }

    /// Copies a cell out. Bytes of rows at and above `n_rows` are written as zero.
    ///
    /// # Errors
    /// [`ArenaError::OutOfRange`]; [`ArenaError::Length`] unless `out` is as long as the cell;
    /// [`ArenaError::MissingRows`] if fewer than `n_rows` are published.
    pub fn export(&self, layer: usize, block: u32, n_rows: usize, out: &mut [u8]) -> Result<(), ArenaError> {
        self.check(layer, block)?;
        self.check_cell(layer, n_rows, out.len())?;
        let pin = self.pin(block);
        let found = pin.rows(layer);
        if found < n_rows {
            return Err(ArenaError::MissingRows { layer, block, wanted: n_rows, found });
        }
        let CellShape { planes, row_bytes } = self.cell_shape(layer);
        for (plane, out) in (0..planes).zip(out.chunks_exact_mut(row_bytes * self.block_tokens)) {
            let (valid, rest) = out.split_at_mut(n_rows * row_bytes);
            valid.copy_from_slice(pin.plane(layer, plane, n_rows));
            rest.fill(0);
        }
        Ok(())
    }

    /// Fills an empty cell with the first `n_rows` rows of `bytes`, laid out as [`Self::export`] writes them, and
    /// publishes them.
    ///
    /// # Errors
    /// [`ArenaError::OutOfRange`]; [`ArenaError::Length`] unless `bytes` is as long as the cell;
    /// [`ArenaError::OutOfOrder`] if the cell is not empty; [`ArenaError::Busy`] if somebody else fills it.
    pub fn import(&self, layer: usize, block: u32, n_rows: usize, bytes: &[u8]) -> Result<(), ArenaError> {
        self.check(layer, block)?;
        self.check_cell(layer, n_rows, bytes.len())?;
        let CellShape { planes, row_bytes } = self.cell_shape(layer);
        let mut append = self.append(layer, block, 0, n_rows)?;
        for (plane, bytes) in (0..planes).zip(bytes.chunks_exact(row_bytes * self.block_tokens)) {
            append.plane_mut(plane).copy_from_slice(&bytes[..n_rows * row_bytes]);
        }
        append.publish();
        Ok(())
    }

    fn check(&self, layer: usize, block: u32) -> Result<(), ArenaError> {
        let (n_layers, n_blocks) = (self.n_layers(), self.n_blocks());
        if layer >= n_layers || block as usize >= n_blocks {
            return Err(ArenaError::OutOfRange { layer, block, n_layers, n_blocks });
        }
        Ok(())
    }

    fn check_cell(&self, layer: usize, n_rows: usize, len: usize) -> Result<(), ArenaError> {
        if n_rows > self.block_tokens {
            return Err(ArenaError::TooManyRows { n_rows, block_tokens: self.block_tokens });
        }
        let expected = self.cell_bytes(layer);
        if len != expected {
            return Err(ArenaError::Length { layer, expected, found: len });
        }
        Ok(())
    }
}

fn counters(n: usize) -> Box<[AtomicU32]> {
    (0..n).map(|_| AtomicU32::new(0)).collect()
}
