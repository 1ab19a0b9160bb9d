//! What a worker is expected to be busy with.

use types::Load;

use crate::in_flight::Counters;

/// A report is late by its interval; our own count is exact but does not see other routers. Work of ours is in both
/// sooner or later, so the larger of the two is taken, not the sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Predicted {
    /// Prompt tokens still to be computed, those of long prompts counted as by [`Work::prompt_cost`](crate::Work::prompt_cost).
    pub queued_tokens: u64,
    /// Sequences, waiting and running.
    pub sequences: u64,
    /// Blocks in use or promised.
    pub blocks_used: u64,
    /// Blocks in the pool; 0: not known yet.
    pub blocks_total: u64,
}

impl Predicted {
    pub(crate) fn new(report: Option<&Load>, own: &Counters) -> Self {
        let load = report.copied().unwrap_or_default();
        let reported_sequences = u64::from(load.n_waiting) + u64::from(load.n_running);
        Self {
            queued_tokens: own.tokens().max(u64::from(load.n_waiting_tokens)),
            sequences: own.sequences().max(reported_sequences),
            blocks_used: own.blocks().max(u64::from(load.blocks_total.saturating_sub(load.blocks_free))),
            blocks_total: u64::from(load.blocks_total),
        }
    }

    /// Whether `blocks` more are expected to fit; yes while the pool's size is not known.
    pub fn fits(&self, blocks: u64) -> bool {
        self.blocks_total == 0 || self.blocks_used.saturating_add(blocks) <= self.blocks_total
    }
}
