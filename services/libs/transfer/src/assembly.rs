//! The receiving side's bookkeeping: which cells are here, which are damaged, when the sequence is complete.
//!
//! No I/O: frames and manifests in, decisions out. The arena is written here and nowhere else.

use kernels::kv::KvArena;
use proto::v1 as wire;
use types::{BlockIdx, Handoff};

use crate::frame::{CellId, Expected, FrameFault, validate_frame};
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

    /// Cells that are not here, in order.
    pub(crate) fn missing(&self) -> Vec<CellId> {
        self.wanted().filter(|&at| self.cells[at].is_none()).map(|at| self.cell(at)).collect()
    }

    /// Takes a frame. A damaged one is dropped, and said so; its cell stays missing.
    pub(crate) fn accept(
        &mut self,
        round: &mut Round,
        frame: &wire::Frame,
    ) -> Result<Result<(), FrameFault>, PullError> {
        let cell = match validate_frame(frame, &self.expected) {
            Ok(cell) => cell,
            Err(fault) => {
                round.n_rejected += 1;
                if round.n_rejected > round.asked.len() + REJECTED_SLACK {
                    return Err(PullError::Corrupt(format!("more damaged frames than cells, the last: {fault}")));
                }
                return Ok(Err(fault));
            }
        };
        let at = self.at(cell);
        if !std::mem::take(&mut round.waiting[at]) {
            let CellId { block, layer } = cell;
            return Err(PullError::Corrupt(format!("layer {layer} of block {block} came twice or unasked")));
        }
        round.n_waiting -= 1;
        match self.cells[at] {
            // Sent again for the manifest's sake: it must still be the same.
            Some(checksum) if checksum != frame.checksum => {
                Err(PullError::Corrupt("a cell changed between two fetches".into()))
            }
            Some(_) => Ok(Ok(())),
            None => {
                let rows = self.expected.rows(cell.block as usize);
                let place = self.blocks[cell.block as usize].0;
                self.arena.import(cell.layer as usize, place, rows, &frame.payload).map_err(PullError::Arena)?;
                self.cells[at] = Some(frame.checksum);
                Ok(Ok(()))
            }
        }
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

impl Round {
    /// What to ask for.
    pub(crate) fn asked(&self) -> &[CellId] {
        &self.asked
    }
}
