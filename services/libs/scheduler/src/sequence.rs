//! A sequence as the scheduler sees it: counts, blocks and a stage.

use std::time::Duration;

use kvcache::RequestBlocks;

use crate::HoldId;
use crate::prefix::Names;

/// What a sequence is here for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To compute a prompt and sample one token; its blocks are shared with a transfer, so it is never
    /// preempted.
    Prefill,
    /// To go on to its end.
    Decode,
}

/// A sequence to be computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Submission {
    /// What it is here for.
    pub kind: Kind,
    /// Tokens known: prompt and generated, at least 1.
    pub n_tokens: usize,
    /// Most tokens it may ever have, prompt and answer; above `n_tokens`.
    pub max_tokens: usize,
    /// Ended afterwards by [`Scheduler::expire`](crate::Scheduler::expire).
    pub deadline: Duration,
}

impl Submission {
    /// KV rows at the sequence's end: its last token is never fed.
    pub(crate) fn max_rows(&self) -> usize {
        match self.kind {
            Kind::Prefill => self.n_tokens,
            Kind::Decode => self.max_tokens.saturating_sub(1).max(self.n_tokens),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) kind: Kind,
    pub(crate) arrived: Duration,
    pub(crate) deadline: Duration,
    /// Tokens known.
    pub(crate) n_tokens: usize,
    /// KV rows computed (or landed, or shared); always below `n_tokens`.
    pub(crate) n_computed: usize,
    /// KV rows at its end, at most.
    pub(crate) max_rows: usize,
    pub(crate) stage: Stage,
    /// In sequence order. While running: enough for `n_tokens` rows, but for a decode that is about to
    /// take its next block. While waiting: none, or those of landed KV.
    pub(crate) blocks: RequestBlocks,
    /// Blocks promised beyond those owned.
    pub(crate) promised: u32,
    /// Had a slice since it was submitted.
    pub(crate) begun: bool,
    pub(crate) names: Names,
    /// The transfer that owns its blocks too, or did.
    pub(crate) hold: Option<HoldId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Not admitted, or preempted.
    Waiting,
    /// In the batch.
    Running,
    /// In the batch, and in the step that is being computed.
    InStep,
    /// Cancelled while in the step that is being computed; ends with it.
    Doomed,
}

impl Sequence {
    /// Tokens whose KV is missing, at least 1.
    pub(crate) fn remaining(&self) -> usize {
        self.n_tokens - self.n_computed
    }

    /// One token behind: gets its token in every step.
    pub(crate) fn is_decoding(&self) -> bool {
        self.remaining() == 1
    }

    pub(crate) fn is_aged(&self, now: Duration, age_after: Duration) -> bool {
        now.saturating_sub(self.arrived) >= age_after
    }

    /// Whether its blocks can be taken from it now.
    pub(crate) fn is_preemptible(&self) -> bool {
        self.kind == Kind::Decode && !self.blocks.is_empty() && matches!(self.stage, Stage::Waiting | Stage::Running)
    }
}
