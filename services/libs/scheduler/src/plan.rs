//! The next step.

use std::time::Duration;

use types::BlockIdx;

use crate::sequence::Stage;
use crate::step::{Slice, Step};
use crate::{HoldId, Scheduler, SeqId};

/// What to do next. In this order: reset, tell, compute.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Blocks that changed hands: to be reset before anything is computed.
    pub fresh: Vec<BlockIdx>,
    /// Sequences whose first slice is in the step.
    pub started: Vec<Start>,
    /// Sequences that lost their blocks; they go on later by themselves.
    pub preempted: Vec<SeqId>,
    /// Empty: nothing can be computed now.
    pub step: Step,
}

/// A sequence gets its first slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    /// Which.
    pub seq: SeqId,
    /// The transfer's ownership of its blocks, to be given back by
    /// [`Scheduler::release_hold`]; only of prefills.
    pub hold: Option<HoldId>,
    /// Rows that are there: found, or landed.
    pub n_computed: usize,
}

impl Scheduler {
    /// Decides the next step, which then is being computed until [`complete`](Self::complete).
    ///
    /// # Panics
    /// If a step is being computed.
    pub fn plan(&mut self, now: Duration) -> Plan {
        assert!(!self.in_step(), "one step at a time");
        let mut plan = Plan::default();
        self.grow_decodes(&mut plan);
        self.admit(now, &mut plan);
        plan.step = self.compose(now);
        for slice in &plan.step.slices {
            plan.started.extend(self.start(slice.seq));
        }
        self.step = plan.step.clone();
        plan
    }

    /// Decodes first, all of them, then chunks of prompts.
    fn compose(&self, now: Duration) -> Step {
        let (decodes, prompts): (Vec<SeqId>, Vec<SeqId>) =
            self.running.iter().partition(|seq| self.sequences[seq].is_decoding());
        let budget = self.config.max_step_tokens - decodes.len();
        let mut slices: Vec<Slice> = decodes.into_iter().map(|seq| self.slice(seq, 1)).collect();
        for (seq, n_tokens) in self.share_out(now, &prompts, budget) {
            slices.push(self.slice(seq, n_tokens));
        }
        Step { slices }
    }

    /// Divides `budget` tokens among prompts given in order of arrival.
    ///
    /// The oldest has half of it for itself, so it always comes on. The other half goes to the others:
    /// first those that have aged, in order of arrival, then the shortest, so that a short prompt does
    /// not wait for a long one. What nobody else needs is the oldest's too.
    fn share_out(&self, now: Duration, prompts: &[SeqId], budget: usize) -> Vec<(SeqId, usize)> {
        let Some((&oldest, others)) = prompts.split_first() else {
            return Vec::new();
        };
        let remaining = |seq: SeqId| self.sequences[&seq].remaining();
        let mut others = others.to_vec();
        others.sort_by_key(|&seq| {
            let aged = self.sequences[&seq].is_aged(now, self.config.age_after);
            (!aged, if aged { 0 } else { remaining(seq) }, seq)
        });
        let mut left = budget - remaining(oldest).min(budget.div_ceil(2));
        let mut shares = Vec::new();
        for seq in others {
            let n_tokens = remaining(seq).min(left);
            left -= n_tokens;
            if n_tokens > 0 {
                shares.push((seq, n_tokens));
            }
        }
        let spent: usize = shares.iter().map(|(_, n_tokens)| n_tokens).sum();
        let n_oldest = remaining(oldest).min(budget - spent);
        if n_oldest > 0 {
            shares.insert(0, (oldest, n_oldest));
        }
        shares
    }

    fn slice(&self, seq: SeqId, n_tokens: usize) -> Slice {
        let sequence = &self.sequences[&seq];
        Slice { seq, first: sequence.n_computed, n_tokens, samples: n_tokens == sequence.remaining() }
    }

    /// Marks a sequence as being in the step; tells if that is for the first time.
    fn start(&mut self, seq: SeqId) -> Option<Start> {
        let sequence = self.sequences.get_mut(&seq).expect("the step is made of running sequences");
        sequence.stage = Stage::InStep;
        if std::mem::replace(&mut sequence.begun, true) {
            return None;
        }
        let shared = sequence.kind.is_held().then(|| self.pool.share(&sequence.blocks));
        let n_computed = sequence.n_computed;
        let hold = shared.map(|blocks| {
            let hold = HoldId(self.next_id());
            self.holds.insert(hold, blocks);
            self.sequences.entry(seq).and_modify(|sequence| sequence.hold = Some(hold));
            hold
        });
        Some(Start { seq, hold, n_computed })
    }
}
