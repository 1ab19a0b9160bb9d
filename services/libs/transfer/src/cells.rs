//! Cells on their way out: what is sent together, still in the arena.

use std::sync::Arc;

use kernels::checksum::xxh3_64;
use kernels::kv::{ArenaError, KvArena, Pin};

use crate::frame::{CellId, Checksum, Head};
use crate::offer::Offered;

/// A cell that is readable, and stays so while the offer's hold lives.
pub(crate) struct OutCell {
    pub(crate) id: CellId,
    /// Its block in the arena.
    place: u32,
    n_tokens: u32,
    pub(crate) bytes: usize,
    pub(crate) checksum: u64,
    /// A block that is not full, its rest zeroed: the arena has something there that is nobody's business.
    padded: Option<Vec<u8>>,
}

/// Cells that are sent together. Keeps the hold.
pub(crate) struct Batch {
    offered: Arc<Offered>,
    arena: Arc<KvArena>,
    pub(crate) checksum: Checksum,
    pub(crate) cells: Vec<OutCell>,
}

/// A cell's bytes.
pub(crate) enum Payload<'a> {
    InArena(Pin<'a>, usize),
    Padded(&'a [u8]),
}

impl Payload<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::InArena(pin, layer) => pin.cell(*layer).expect("a batch has only cells that were readable"),
            Self::Padded(bytes) => bytes,
        }
    }
}

impl Batch {
    pub(crate) fn new(offered: Arc<Offered>, arena: Arc<KvArena>, checksum: Checksum) -> Self {
        Self { offered, arena, checksum, cells: Vec::new() }
    }

    /// Adds a cell of which `rows` rows are published.
    ///
    /// # Errors
    /// The arena's.
    pub(crate) fn push(&mut self, id: CellId, rows: usize) -> Result<(), ArenaError> {
        let (layer, place) = (id.layer as usize, self.offered.blocks[id.block as usize].0);
        let bytes = self.arena.cell_bytes(layer);
        let padded = if rows == self.arena.block_tokens() {
            None
        } else {
            let mut padded = vec![0; bytes];
            self.arena.export(layer, place, rows, &mut padded)?;
            Some(padded)
        };
        self.cells.push(OutCell { id, place, n_tokens: rows as u32, bytes, checksum: 0, padded });
        Ok(())
    }

    pub(crate) fn payload<'a>(&'a self, cell: &'a OutCell) -> Payload<'a> {
        match &cell.padded {
            Some(padded) => Payload::Padded(padded),
            None => Payload::InArena(self.arena.pin(cell.place), cell.id.layer as usize),
        }
    }

    /// Bytes of all payloads.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.cells.iter().map(|cell| cell.bytes as u64).sum()
    }

    /// Checksums of the cells, in order.
    pub(crate) fn sums(&self) -> Vec<u64> {
        self.cells.iter().map(|cell| cell.checksum).collect()
    }

    /// Fills in every checksum from the payloads as they lie in the arena.
    pub(crate) fn seal(&mut self) {
        if self.checksum == Checksum::On {
            for at in 0..self.cells.len() {
                let payload_sum = xxh3_64(self.payload(&self.cells[at]).bytes());
                self.set_checksum(at, payload_sum);
            }
        }
    }

    /// Fills in the checksum of a cell whose payload has this xxh3-64.
    pub(crate) fn set_checksum(&mut self, at: usize, payload_sum: u64) {
        if self.checksum == Checksum::On {
            let sum = self.with_head(&self.cells[at], |head| head.sum(payload_sum));
            self.cells[at].checksum = sum;
        }
    }

    /// A cell's header.
    pub(crate) fn with_head<T>(&self, cell: &OutCell, use_head: impl FnOnce(&Head<'_>) -> T) -> T {
        let offered = &self.offered;
        use_head(&Head {
            request: &offered.request.0.to_be_bytes(),
            owner_epoch: offered.owner_epoch.0,
            worker_epoch: offered.worker.epoch.0,
            layers: (cell.id.layer, cell.id.layer + 1),
            block: cell.id.block,
            n_tokens: cell.n_tokens,
            hash: &offered.hashes[cell.id.block as usize].0,
            payload_bytes: cell.bytes as u64,
            checksum: cell.checksum,
        })
    }
}
