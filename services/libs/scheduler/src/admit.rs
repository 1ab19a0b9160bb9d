//! From the queue into the batch, and back.

use std::ops::Bound;
use std::time::Duration;

use crate::plan::Plan;
use crate::sequence::Stage;
use crate::{Scheduler, SeqId};

impl Scheduler {
    /// Admits waiting sequences in order of arrival while there are places and blocks. One that does
    /// not fit is overtaken by smaller ones until it has aged; then it closes the queue.
    pub(crate) fn admit(&mut self, now: Duration, plan: &mut Plan) {
        for seq in self.waiting.clone() {
            if self.running.len() >= self.config.max_running {
                return;
            }
            let mut fits = self.allocate_known(seq, plan);
            if !fits && !self.sequences[&seq].blocks.is_empty() {
                // Blocks are not kept while waiting for more of them: two such sequences would wait for each other.
                self.preempt(seq);
                plan.preempted.push(seq);
                fits = self.allocate_known(seq, plan);
            }
            if fits {
                self.waiting.remove(&seq);
                self.running.insert(seq);
                self.sequences.get_mut(&seq).expect("waiting sequences are here").stage = Stage::Running;
            } else if self.sequences[&seq].is_aged(now, self.config.age_after) {
                return;
            }
        }
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

    /// Blocks that waiting sequences will be admitted with.
    pub(crate) fn wanted_by_waiting(&self) -> u32 {
        let missing = self.waiting.iter().map(|seq| {
            let sequence = &self.sequences[seq];
            let worst = self.worst_case(sequence.n_tokens, sequence.max_rows);
            worst.saturating_sub(sequence.blocks.len() + sequence.promised)
        });
        missing.fold(0, u32::saturating_add)
    }

    /// Sees to it that a waiting sequence owns blocks for its known tokens and has its worst case
    /// promised. One that landed keeps the promise it came with.
    fn allocate_known(&mut self, seq: SeqId, plan: &mut Plan) -> bool {
        let sequence = &self.sequences[&seq];
        let known = self.pool.blocks_for(sequence.n_tokens);
        let has = sequence.blocks.len() + sequence.promised;
        let landed = !sequence.blocks.is_empty();
        let worst = if landed { known.max(has) } else { self.worst_case(sequence.n_tokens, sequence.max_rows) };
        let more = worst - has;
        if more > self.available() {
            return false;
        }
        let sequence = self.sequences.get_mut(&seq).expect("looked up above");
        let n_new = known.saturating_sub(sequence.blocks.len());
        let owned_before = sequence.blocks.len() as usize;
        self.pool.grow(&mut sequence.blocks, n_new).expect("promised and available blocks are free");
        plan.fresh.extend(&sequence.blocks.blocks()[owned_before..]);
        self.promised += more;
        self.promised -= n_new;
        sequence.promised = sequence.promised + more - n_new;
        true
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
        self.pool.grow(&mut sequence.blocks, 1).expect("promised and available blocks are free");
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
        sequence.stage = Stage::Waiting;
        self.running.remove(&seq);
        self.waiting.insert(seq);
    }
}
