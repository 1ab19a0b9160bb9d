//! Guards through which cells are read and appended to.

use std::sync::atomic::Ordering;

use crate::kv::arena::BUSY;
use crate::kv::{ArenaError, KvArena};

/// Keeps a block from being reset; reads go through it.
pub struct Pin<'a> {
    arena: &'a KvArena,
    block: u32,
}

impl<'a> Pin<'a> {
    pub(super) fn new(arena: &'a KvArena, block: u32) -> Self {
        let pins = &arena.pins[block as usize];
        let mut seen = pins.load(Ordering::Relaxed);
        loop {
            if seen & BUSY != 0 {
                // A reset is a few stores; it ends by itself.
                std::hint::spin_loop();
                seen = pins.load(Ordering::Relaxed);
                continue;
            }
            assert!(seen < BUSY / 2, "block {block} has {seen} pins");
            // Acquire: a reset that ended before this pin came before what its holder does.
            match pins.compare_exchange_weak(seen, seen + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Self { arena, block },
                Err(now) => seen = now,
            }
        }
    }

    /// Which block.
    pub fn block(&self) -> u32 {
        self.block
    }

    /// Rows of the layer's cell that are published; they stay so while the pin lives.
    pub fn rows(&self, layer: usize) -> usize {
        self.arena.rows(layer, self.block)
    }

    /// The first `n_rows` rows of a plane, `[n_rows, row_bytes]`.
    ///
    /// # Panics
    /// If fewer rows are published or there is no such plane: a broken invariant of the caller.
    pub fn plane(&self, layer: usize, plane: usize, n_rows: usize) -> &[u8] {
        let found = self.rows(layer);
        assert!(n_rows <= found, "layer {layer}, block {} has {found} rows, not {n_rows}", self.block);
        let start = plane_start(self.arena, layer, self.block, plane);
        let len = n_rows * self.arena.layers[layer].shape.row_bytes;
        // SAFETY: `plane_start` checked layer, block and plane, and `n_rows <= found <= block_tokens`, so the range
        // lies in the layer's allocation. Nobody writes it while this borrow lives: rows below the watermark (read
        // with Acquire in `rows`, after their writer's Release) are written by nobody, and the watermark can fall
        // only in `reset`, which refuses while `self` is alive.
        unsafe { std::slice::from_raw_parts(self.arena.layers[layer].memory.as_ptr().add(start), len) }
    }
}

impl Pin<'_> {
    /// All of the layer's cell, `[planes, block_tokens, row_bytes]`; `None` unless every row is published.
    pub fn cell(&self, layer: usize) -> Option<&[u8]> {
        if self.rows(layer) < self.arena.block_tokens {
            return None;
        }
        let start = plane_start(self.arena, layer, self.block, 0);
        let layer = &self.arena.layers[layer];
        // SAFETY: as in `plane`, for all planes, which lie one after the other: each row is below the watermark.
        Some(unsafe { std::slice::from_raw_parts(layer.memory.as_ptr().add(start), layer.cell_bytes) })
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        // Release: what the holder read came before a reset that follows.
        self.arena.pins[self.block as usize].fetch_sub(1, Ordering::Release);
    }
}

/// Rows being appended to one cell. Dropping it without [`Append::publish`] leaves the cell as it was.
pub struct Append<'a> {
    pin: Pin<'a>,
    layer: usize,
    first_row: usize,
    n_rows: usize,
    published: bool,
}

impl<'a> Append<'a> {
    pub(super) fn new(
        arena: &'a KvArena,
        layer: usize,
        block: u32,
        first_row: usize,
        n_rows: usize,
    ) -> Result<Self, ArenaError> {
        let end = first_row.checked_add(n_rows).filter(|&end| end <= arena.block_tokens);
        if end.is_none() {
            let n_rows = first_row.saturating_add(n_rows);
            return Err(ArenaError::TooManyRows { n_rows, block_tokens: arena.block_tokens });
        }
        let pin = Pin::new(arena, block);
        let rows = &arena.layers[layer].rows[block as usize];
        let at = first_row as u32; // at most `block_tokens`, which is below 2^31
        match rows.compare_exchange(at, at | BUSY, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(Self { pin, layer, first_row, n_rows, published: false }),
            Err(found) if found & BUSY != 0 => Err(ArenaError::Busy { layer, block }),
            Err(found) => Err(ArenaError::OutOfOrder { layer, block, first_row, found: found as usize }),
        }
    }

    /// The rows of one plane, `[n_rows, row_bytes]`, to be overwritten.
    ///
    /// # Panics
    /// If there is no such plane.
    pub fn plane_mut(&mut self, plane: usize) -> &mut [u8] {
        let arena = self.pin.arena;
        let row_bytes = arena.layers[self.layer].shape.row_bytes;
        let start = plane_start(arena, self.layer, self.pin.block, plane) + self.first_row * row_bytes;
        // SAFETY: layer, block and plane are checked in `plane_start`, the rows in `new`, so the range lies in the
        // layer's allocation. It is at and above the watermark, where readers do not look, and the cell's BUSY bit,
        // taken in `new` and held until drop, keeps every other `Append` out; `&mut self` keeps this one's slices
        // apart. A reset cannot come between: `self.pin` is held.
        unsafe {
            let base = arena.layers[self.layer].memory.as_ptr().add(start);
            std::slice::from_raw_parts_mut(base, self.n_rows * row_bytes)
        }
    }

    /// All of the cell, `[planes, block_tokens, row_bytes]`, to be overwritten; what is written to rows that this does
    /// not append means nothing.
    ///
    /// # Panics
    /// Unless the rows begin at the first.
    pub fn cell_mut(&mut self) -> &mut [u8] {
        assert_eq!(self.first_row, 0, "a cell with published rows is not overwritten");
        let arena = self.pin.arena;
        let start = plane_start(arena, self.layer, self.pin.block, 0);
        let layer = &arena.layers[self.layer];
        // SAFETY: as in `plane_mut`, for all planes and rows: the watermark is 0, so readers look at none of them.
        unsafe { std::slice::from_raw_parts_mut(layer.memory.as_ptr().add(start), layer.cell_bytes) }
    }

    /// Makes the rows visible to readers.
    pub fn publish(mut self) {
        self.published = true;
    }
}

impl Drop for Append<'_> {
    fn drop(&mut self) {
        let rows = self.first_row + if self.published { self.n_rows } else { 0 };
        // Release: the rows' bytes come before the watermark that shows them. Clears BUSY too.
        self.pin.arena.layers[self.layer].rows[self.pin.block as usize].store(rows as u32, Ordering::Release);
    }
}

/// Offset of a plane's first row in its layer's memory.
fn plane_start(arena: &KvArena, layer: usize, block: u32, plane: usize) -> usize {
    let layer = &arena.layers[layer];
    assert!((block as usize) < arena.pins.len() && plane < layer.shape.planes, "no plane {plane} in block {block}");
    block as usize * layer.cell_bytes + plane * arena.block_tokens * layer.shape.row_bytes
}
