//! How workers are compared.

use types::{Load, Role};

use crate::in_flight::Counters;

/// Lower is better; equal costs go to the lower id.
pub type Cost = (u64, u64);

/// What a worker is expected to be busy with.
///
/// A report is late by its interval; our own count is exact but does not see other routers. Work of ours is in both
/// sooner or later, so the larger of the two is taken, not the sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Predicted {
    /// Prompt tokens still to be computed.
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

/// Compares workers of one role.
pub trait Policy: Send + Sync + std::fmt::Debug {
    /// What it costs to give the next sequence to a worker that is expected to be so busy.
    fn cost(&self, role: Role, predicted: &Predicted) -> Cost;
}

/// Prefill: fewest queued prompt tokens. Decode: smallest part of the pool in use. Then fewest sequences.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeastLoaded;

impl Policy for LeastLoaded {
    fn cost(&self, role: Role, predicted: &Predicted) -> Cost {
        let first = match role {
            Role::Decode => predicted.blocks_used.saturating_mul(1_000_000) / predicted.blocks_total.max(1),
            Role::Prefill | Role::Router => predicted.queued_tokens,
        };
        (first, predicted.sequences)
    }
}
