//! The receiving side's bookkeeping: which cells are here, which are damaged, when the sequence is complete.
//!
//! No I/O: frames and manifests in, decisions out. The arena is written here and nowhere else.

use kernels::checksum::copy_xxh3_64;
use kernels::kv::{Append, ArenaError, KvArena};
use proto::v1 as wire;
use types::{BlockIdx, Handoff};

use crate::frame::{CellId, Checksum, Expected, FrameFault, Head};
use crate::manifest::{Closing, read_manifest};
use crate::pull::PullError;

/// Frames beyond the expected number of cells that a fetch may throw at us before we give up on its sender.
const REJECTED_SLACK: usize = 64;

/// A sequence on its way into `blocks`.
pub(crate) struct Assembly<'a> {
    expected: Expected<'a>,
    arena: &'a KvArena,
    blocks: &'a [BlockIdx],
    /// Blocks that were here before, and are asked for by no fetch.
    n_here: usize,
    /// Checksum of each cell that has come into the arena, in (block, layer) order.
    cells: Vec<Option<u64>>,
}

/// Where a payload is put before it is believed: nobody reads it there until [`Assembly::land`].
pub(crate) struct Slot<'a> {
    cell: CellId,
    /// What its checksum must be, given the payload's sum.
    sum_of: SumOf,
    place: Place<'a>,
}

enum Place<'a> {
    /// Its cell of the arena.
    Cell(Append<'a>),
    /// Beside it: the cell is there already, and is sent again for the manifest's sake.
    Beside(Vec<u8>),
}

/// A header by value: it outlives the bytes that it came in.
struct SumOf {
    request: [u8; 16],
    hash: [u8; 16],
    owner_epoch: u64,
    worker_epoch: u64,
    n_tokens: u32,
    payload_bytes: u64,
    checksum: u64,
}

/// One fetch of some of the cells.
pub(crate) struct Round {
    /// Cells that this fetch has yet to deliver, in (block, layer) order.
    waiting: Vec<bool>,
    n_waiting: usize,
    /// Cells that it was asked for.
    asked: Vec<CellId>,
    n_rejected: usize,
}

impl<'a> Assembly<'a> {
    /// Of the blocks after the first `n_here`, which are fewer than all.
    pub(crate) fn new(expected: Expected<'a>, arena: &'a KvArena, blocks: &'a [BlockIdx], n_here: usize) -> Self {
        let n_cells = expected.n_blocks() * expected.cell_bytes.len();
        Self { expected, arena, blocks, n_here, cells: vec![None; n_cells] }
    }

    /// A fetch of everything that was not here before.
    pub(crate) fn whole(&self) -> Round {
        self.round(self.wanted().map(|at| self.cell(at)).collect())
    }

    /// A fetch of what is missing; if nothing is, of one cell, for the sake of the manifest.
    pub(crate) fn repair(&self) -> Round {
        let mut missing = self.missing();
        if missing.is_empty() {
            // Fewer than all of them were here before.
            missing.push(CellId { block: self.n_here as u32, layer: 0 });
        }
        self.round(missing)
    }

    /// Whether payloads are to be hashed.
    pub(crate) fn hashes(&self) -> bool {
        self.expected.checksum == Checksum::On
    }

    /// Cells that are not here, in order.
    pub(crate) fn missing(&self) -> Vec<CellId> {
        self.wanted().filter(|&at| self.cells[at].is_none()).map(|at| self.cell(at)).collect()
    }

    /// A place for the payload that belongs to `head`, whose bytes are yet to be read. A header that is not expected
    /// is rejected, and said so; its cell stays missing.
    pub(crate) fn begin(&self, round: &mut Round, head: &Head<'_>) -> Result<Result<Slot<'a>, FrameFault>, PullError> {
        let cell = match head.validate(&self.expected) {
            Ok(cell) => cell,
            Err(fault) => return round.reject(fault).map(Err),
        };
        let at = self.at(cell);
        if !round.waiting[at] {
            return Err(unasked(cell));
        }
        let (layer, block) = (cell.layer as usize, cell.block as usize);
        let place = match self.cells[at] {
            Some(_) => Place::Beside(vec![0; self.expected.cell_bytes[layer]]),
            None => {
                let rows = self.expected.rows(block);
                match self.arena.append(layer, self.blocks[block].0, 0, rows) {
                    Ok(append) => Place::Cell(append),
                    // Twice in one record.
                    Err(ArenaError::Busy { .. }) => return Err(unasked(cell)),
                    Err(error) => return Err(PullError::Arena(error)),
                }
            }
        };
        // `validate` compared both with 16 bytes.
        let owned = |bytes: &[u8]| <[u8; 16]>::try_from(bytes).expect("16 bytes");
        let sum_of = SumOf {
            request: owned(head.request),
            hash: owned(head.hash),
            owner_epoch: head.owner_epoch,
            worker_epoch: head.worker_epoch,
            n_tokens: head.n_tokens,
            payload_bytes: head.payload_bytes,
            checksum: head.checksum,
        };
        Ok(Ok(Slot { cell, sum_of, place }))
    }

    /// Takes a payload that is in its place. With the wrong checksum it is rejected, and said so; its cell stays
    /// missing, and what was written there is not seen.
    pub(crate) fn land(
        &mut self,
        round: &mut Round,
        slot: Slot<'a>,
        payload_sum: u64,
    ) -> Result<Result<(), FrameFault>, PullError> {
        let Slot { cell, sum_of, place } = slot;
        if self.expected.checksum == Checksum::On && sum_of.head(cell).sum(payload_sum) != sum_of.checksum {
            return round.reject(FrameFault::Checksum).map(Err);
        }
        let at = self.at(cell);
        if !std::mem::take(&mut round.waiting[at]) {
            return Err(unasked(cell));
        }
        round.n_waiting -= 1;
        match (place, self.cells[at]) {
            (Place::Cell(append), None) => {
                append.publish();
                self.cells[at] = Some(sum_of.checksum);
                Ok(Ok(()))
            }
            (_, Some(before)) if before == sum_of.checksum => Ok(Ok(())),
            (_, _) => Err(PullError::Corrupt("a cell changed between two fetches".into())),
        }
    }

    /// Takes a frame that came with its payload. A damaged one is dropped, and said so; its cell stays missing.
    pub(crate) fn accept(
        &mut self,
        round: &mut Round,
        frame: &wire::Frame,
    ) -> Result<Result<(), FrameFault>, PullError> {
        let head = Head::of(frame);
        // A damaged header says nothing, so the checksum comes first unless the payload can go to its place.
        let mut slot = match head.validate(&self.expected) {
            Ok(_) => match self.begin(round, &head)? {
                Ok(slot) => slot,
                Err(fault) => return Ok(Err(fault)),
            },
            Err(fault) => {
                let sum = || head.sum(kernels::checksum::xxh3_64(&frame.payload));
                let damaged = self.expected.checksum == Checksum::On && sum() != frame.checksum;
                return round.reject(if damaged { FrameFault::Checksum } else { fault }).map(Err);
            }
        };
        let payload_sum = copy_xxh3_64(&frame.payload, slot.bytes_mut());
        self.land(round, slot, payload_sum)
    }

    /// The handoff, if the fetch delivered what it was asked for, its manifest agrees, and nothing is missing.
    ///
    /// # Errors
    /// What is wrong; a repair may help.
    pub(crate) fn seal(&self, round: &Round, manifest: wire::Manifest, choice: u32) -> Result<Handoff, String> {
        if round.n_waiting > 0 {
            return Err(format!("{} of {} cells did not arrive intact", round.n_waiting, round.asked.len()));
        }
        let checksums: Vec<_> = round.asked.iter().filter_map(|&cell| self.cells[self.at(cell)]).collect();
        let payload_bytes = round.asked.iter().map(|cell| self.expected.cell_bytes[cell.layer as usize] as u64).sum();
        let closing = Closing { checksums: &checksums, payload_bytes };
        let handoff = read_manifest(manifest, &self.expected, &closing, choice)
            .map_err(|field| format!("manifest: {field} does not agree"))?;
        match self.missing().len() {
            0 => Ok(handoff),
            n => Err(format!("{n} cells are missing")),
        }
    }

    fn wanted(&self) -> std::ops::Range<usize> {
        self.n_here * self.expected.cell_bytes.len()..self.cells.len()
    }

    fn round(&self, asked: Vec<CellId>) -> Round {
        let mut waiting = vec![false; self.cells.len()];
        for &cell in &asked {
            waiting[self.at(cell)] = true;
        }
        Round { waiting, n_waiting: asked.len(), asked, n_rejected: 0 }
    }

    fn at(&self, cell: CellId) -> usize {
        cell.block as usize * self.expected.cell_bytes.len() + cell.layer as usize
    }

    fn cell(&self, at: usize) -> CellId {
        let n_layers = self.expected.cell_bytes.len();
        // Both are bounded by the prompt and the model.
        CellId { block: (at / n_layers) as u32, layer: (at % n_layers) as u32 }
    }
}

impl Slot<'_> {
    /// To be filled with the payload; as long as its cell.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.place {
            Place::Cell(append) => append.cell_mut(),
            Place::Beside(bytes) => bytes,
        }
    }

    pub(crate) fn cell(&self) -> CellId {
        self.cell
    }
}

impl SumOf {
    fn head(&self, cell: CellId) -> Head<'_> {
        Head {
            request: &self.request,
            owner_epoch: self.owner_epoch,
            worker_epoch: self.worker_epoch,
            layers: (cell.layer, cell.layer + 1),
            block: cell.block,
            n_tokens: self.n_tokens,
            hash: &self.hash,
            payload_bytes: self.payload_bytes,
            checksum: self.checksum,
        }
    }
}

fn unasked(CellId { block, layer }: CellId) -> PullError {
    PullError::Corrupt(format!("layer {layer} of block {block} came twice or unasked"))
}

impl Round {
    /// Counts a rejected frame and returns why; too many are an error.
    fn reject(&mut self, fault: FrameFault) -> Result<FrameFault, PullError> {
        self.n_rejected += 1;
        if self.n_rejected > self.asked.len() + REJECTED_SLACK {
            return Err(PullError::Corrupt(format!("more damaged frames than cells, the last: {fault}")));
        }
        Ok(fault)
    }

    /// What to ask for.
    pub(crate) fn asked(&self) -> &[CellId] {
        &self.asked
    }
}
