//! Room for sequences that come with their KV: promised (reservation), then allocated (landing), then
//! a sequence.

use std::time::Duration;

use kvcache::RequestBlocks;
use types::{BlockHash, BlockIdx};

use crate::scheduler::Initial;
use crate::sequence::Submission;
use crate::{HoldId, Kind, LandingId, Refusal, ReservationId, Scheduler, SeqId};

#[derive(Debug)]
pub(crate) struct Reservation {
    pub(crate) n_prompt: usize,
    pub(crate) promised: u32,
    pub(crate) deadline: Duration,
}

#[derive(Debug)]
pub(crate) struct Landing {
    pub(crate) blocks: RequestBlocks,
    pub(crate) promised: u32,
    pub(crate) hold: HoldId,
}

/// Blocks for KV that is on its way, owned by the request (the landing) and by the transfer (the hold).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claimed {
    /// The request's side.
    pub landing: LandingId,
    /// The transfer's side.
    pub hold: HoldId,
    /// Tokens of the prompt that was reserved for.
    pub n_prompt: usize,
    /// For the prompt, in order. Those after the first `n_cached` hold another sequence's rows until they are reset.
    pub blocks: Vec<BlockIdx>,
    /// Blocks that were here already: full, shared, not to be written into.
    pub n_cached: usize,
}

impl Scheduler {
    /// Promises blocks to a sequence of `n_prompt` tokens that may get `max_new` more, until `deadline`.
    /// Gives their number.
    ///
    /// A reservation is a late arrival: it does not get blocks that waiting sequences need.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reserve(
        &mut self,
        n_prompt: usize,
        max_new: usize,
        deadline: Duration,
    ) -> Result<(ReservationId, u32), Refusal> {
        let max_tokens = n_prompt.saturating_add(max_new);
        let max_rows = Submission { kind: Kind::Decode, n_tokens: n_prompt, max_tokens, deadline }.max_rows();
        self.check_fits(max_rows)?;
        let n = self.sequences.len() + self.reservations.len() + self.landings.len();
        if n >= self.config.max_running + self.config.max_waiting {
            return Err(Refusal::QueueFull { n });
        }
        let needed = self.worst_case(n_prompt, max_rows);
        let available = self.available().saturating_sub(self.wanted_by_waiting());
        if needed > available {
            return Err(Refusal::NoRoom { needed, available });
        }
        self.promised += needed;
        let id = ReservationId(self.next_id());
        self.reservations.insert(id, Reservation { n_prompt, promised: needed, deadline });
        Ok((id, needed))
    }

    /// Gives a reservation up. Nothing happens if it is gone.
    pub fn cancel_reservation(&mut self, id: ReservationId) {
        if let Some(reservation) = self.reservations.remove(&id) {
            self.promised -= reservation.promised;
        }
    }

    /// Allocates the prompt's blocks of a reservation, as far as those named `hashes` are not here; `None` if it is
    /// gone. At least one token is left to compute.
    pub fn claim(&mut self, id: ReservationId, hashes: &[BlockHash]) -> Option<Claimed> {
        let reservation = self.reservations.remove(&id)?;
        let n_prompt = reservation.n_prompt;
        let n = self.pool.blocks_for(n_prompt);
        let n_sharable = n_prompt.saturating_sub(1) / self.pool.block_tokens();
        let mut blocks = self.pool.share_prefix(&hashes[..hashes.len().min(n_sharable)]);
        let n_cached = blocks.len();
        self.pool.grow(&mut blocks, n - n_cached).expect("what is promised is available");
        // Shared blocks that had an owner took no room: that part of the promise is given back.
        let promised = reservation.promised - n;
        self.promised -= n;
        let hold = HoldId(self.next_id());
        self.holds.insert(hold, self.pool.share(&blocks));
        let landing = LandingId(self.next_id());
        let (n_cached, all) = (n_cached as usize, blocks.blocks().to_vec());
        let claimed = Claimed { landing, hold, n_prompt, blocks: all, n_cached };
        self.landings.insert(landing, Landing { blocks, promised, hold });
        Some(claimed)
    }

    /// Gives a landing's request side up. Nothing happens if it is gone.
    pub fn cancel_landing(&mut self, id: LandingId) {
        if let Some(landing) = self.landings.remove(&id) {
            self.promised -= landing.promised;
            self.pool.release(landing.blocks);
        }
    }

    /// Turns a landing into a sequence, of which `n_computed` rows are in the landing's blocks: all of the prompt's,
    /// or those of its cached blocks, and the rest is computed here. `None` if the landing is gone.
    ///
    /// # Errors
    /// [`Refusal::TooLong`]; the landing is still there.
    ///
    /// # Panics
    /// If `n_computed` is not below the submission's `n_tokens`, or above what the blocks hold.
    pub fn submit_landed(
        &mut self,
        now: Duration,
        id: LandingId,
        n_computed: usize,
        submission: Submission,
    ) -> Option<Result<SeqId, Refusal>> {
        if !self.landings.contains_key(&id) {
            return None;
        }
        if let Err(refusal) = self.check_fits(submission.max_rows()) {
            return Some(Err(refusal));
        }
        let Landing { blocks, promised, hold } = self.landings.remove(&id)?;
        assert!(self.pool.blocks_for(n_computed) <= blocks.len(), "rows without blocks");
        Some(Ok(self.insert(now, submission, Initial { blocks, n_computed, promised, hold: Some(hold) })))
    }
}
