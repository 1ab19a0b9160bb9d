//! From the queue into the batch, and back.

use std::ops::Bound;
use std::time::Duration;

use crate::plan::Plan;
use crate::sequence::Stage;
use crate::{Scheduler, SeqId};

/// What a round of admission did besides admitting.
#[derive(PartialEq, Eq)]
enum Freed {
    Nothing,
    /// Somebody earlier in the queue may fit now.
    Blocks,
}

impl Scheduler {
    /// Admits waiting sequences in order of arrival while there are places and blocks. One that does
    /// not fit is overtaken by smaller ones until it has aged; then it closes the queue to all that need
    /// blocks. Those that have theirs already go on, because what they own comes back only when they end.
    pub(crate) fn admit(&mut self, now: Duration, plan: &mut Plan) {
        while self.admit_in_order(now, plan) == Freed::Blocks {}
    }

    fn admit_in_order(&mut self, now: Duration, plan: &mut Plan) -> Freed {
        let mut freed = Freed::Nothing;
        let mut closed = false;
        for seq in self.waiting.clone() {
            if self.running.len() >= self.config.max_running {
                break;
            }
            let missing = self.missing(seq);
            if missing == 0 || !closed && missing <= self.available() {
                self.allocate_known(seq, missing, plan);
                self.waiting.remove(&seq);
                self.running.insert(seq);
                self.sequences.get_mut(&seq).expect("waiting sequences are here").stage = Stage::Running;
                continue;
            }
            if !self.sequences[&seq].blocks.is_empty() {
                // Blocks are not kept while waiting for more of them: two such sequences would wait for each other.
                self.preempt(seq);
                plan.preempted.push(seq);
                freed = Freed::Blocks;
            }
            closed |= self.sequences[&seq].is_aged(now, self.config.age_after);
        }
        freed
    }

    /// Gives running decodes the block that their next token needs, oldest first. Who finds none takes
    /// those of the youngest sequence younger than itself, or else gives up its own.
    pub(crate) fn grow_decodes(&mut self, plan: &mut Plan) {
        for seq in self.running.clone() {
            while self.needs_block(seq) && !self.take_block(seq, plan) {
                let victim = self.youngest_after(seq).unwrap_or(seq);
                self.preempt(victim);
                plan.preempted.push(victim);
            }
        }
    }

    /// Blocks that waiting sequences will be admitted with, beyond what they have.
    pub(crate) fn wanted_by_waiting(&self) -> u32 {
        self.waiting.iter().map(|&seq| self.missing(seq)).fold(0, u32::saturating_add)
    }

    /// Blocks that a waiting sequence needs to be admitted, beyond those it owns or was promised, or shares with
    /// another owner. One that landed keeps the promise it came with.
    fn missing(&self, seq: SeqId) -> u32 {
        let sequence = &self.sequences[&seq];
        if sequence.blocks.is_empty() {
            let needed = self.worst_case(sequence.n_tokens, sequence.max_rows);
            needed.saturating_sub(self.peek(sequence).n_owned + sequence.promised)
        } else {
            let needed = self.pool.blocks_for(sequence.n_tokens);
            needed.saturating_sub(sequence.blocks.len() + sequence.promised)
        }
    }

    /// Promises a waiting sequence the `missing` blocks, and gives it those of its known tokens: what is here under
    /// their names, and allocates the rest.
    fn allocate_known(&mut self, seq: SeqId, missing: u32, plan: &mut Plan) {
        let available = self.pool.n_available();
        if self.sequences[&seq].blocks.is_empty() {
            self.share_prefix(seq);
        }
        let sequence = self.sequences.get_mut(&seq).expect("waiting sequences are here");
        let owned_before = sequence.blocks.len();
        let n_new = self.pool.blocks_for(sequence.n_tokens).saturating_sub(owned_before);
        self.pool.grow(&mut sequence.blocks, n_new).expect("promised and available blocks have no owner");
        plan.fresh.extend(&sequence.blocks.blocks()[owned_before as usize..]);
        let n_taken = available - self.pool.n_available();
        sequence.promised = sequence.promised + missing - n_taken;
        self.promised = self.promised + missing - n_taken;
    }

    /// The next token's row lies beyond the last block. Not of a sequence that was just preempted.
    fn needs_block(&self, seq: SeqId) -> bool {
        let sequence = &self.sequences[&seq];
        sequence.stage == Stage::Running && self.pool.blocks_for(sequence.n_tokens) > sequence.blocks.len()
    }

    fn take_block(&mut self, seq: SeqId, plan: &mut Plan) -> bool {
        let available = self.available();
        let sequence = self.sequences.get_mut(&seq).expect("running sequences are here");
        if sequence.promised > 0 {
            sequence.promised -= 1;
            self.promised -= 1;
        } else if available == 0 {
            return false;
        }
        self.pool.grow(&mut sequence.blocks, 1).expect("promised and available blocks have no owner");
        plan.fresh.extend(sequence.blocks.blocks().last());
        true
    }

    fn youngest_after(&self, seq: SeqId) -> Option<SeqId> {
        let younger = self.sequences.range((Bound::Excluded(seq), Bound::Unbounded));
        younger.rev().find(|(_, sequence)| sequence.is_preemptible()).map(|(id, _)| *id)
    }

    /// Back to the queue, at the place of its arrival, with nothing computed.
    fn preempt(&mut self, seq: SeqId) {
        self.strip(seq);
        let sequence = self.sequences.get_mut(&seq).expect("only sequences that are here are preempted");
        sequence.n_computed = 0;
        sequence.hold = None;
        sequence.stage = Stage::Waiting;
        self.running.remove(&seq);
        self.waiting.insert(seq);
    }
}
