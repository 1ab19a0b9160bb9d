//! The state, what comes in (submissions, cancellations, verdicts) and what can be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use kvcache::{BlockPool, PoolAccounting, RequestBlocks, TransferBlocks};
use types::BlockIdx;

use crate::landing::{Landing, Reservation};
use crate::prefix::Names;
use crate::sequence::{Sequence, Stage};
use crate::{Config, ConfigError, HoldId, Kind, LandingId, ReservationId, SeqId, Step, Submission, Verdict};

/// Decides what a worker computes. See the crate's documentation.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: Config,
    pub(crate) pool: BlockPool,
    /// Sum of all promises that are not allocated yet; at most the blocks without an owner.
    pub(crate) promised: u32,
    pub(crate) sequences: BTreeMap<SeqId, Sequence>,
    /// Ids of sequences in [`Stage::Waiting`].
    pub(crate) waiting: BTreeSet<SeqId>,
    /// Ids of all others.
    pub(crate) running: BTreeSet<SeqId>,
    pub(crate) reservations: BTreeMap<ReservationId, Reservation>,
    pub(crate) landings: BTreeMap<LandingId, Landing>,
    pub(crate) holds: BTreeMap<HoldId, TransferBlocks>,
    /// The step being computed; empty: none.
    pub(crate) step: Step,
    n_ids: u64,
}

/// Why there is no place. Nothing was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Never: the whole pool is smaller.
    #[error("the sequence may need {needed} blocks, the worker has {total}")]
    TooLong {
        /// Blocks at the sequence's longest.
        needed: u32,
        /// Blocks in the pool.
        total: u32,
    },
    /// Not now.
    #[error("{needed} blocks are needed, {available} are available")]
    NoRoom {
        /// Blocks asked for.
        needed: u32,
        /// Blocks neither owned nor promised.
        available: u32,
    },
    /// Not now: enough others wait.
    #[error("{n} sequences are waiting or reserved for")]
    QueueFull {
        /// How many.
        n: usize,
    },
}

/// What a cancellation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cancelled {
    /// It is gone, its blocks are given back.
    Now,
    /// It ends with the step that is being computed.
    WithStep,
    /// It was not here any more.
    Unknown,
}

/// What came to its deadline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    /// These were cancelled; those in the running step end with it.
    pub sequences: Vec<SeqId>,
    /// These are gone.
    pub reservations: Vec<ReservationId>,
}

/// Counts for load reports and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Sequences not admitted, or preempted.
    pub n_waiting: usize,
    /// Tokens that those are still to be computed for.
    pub n_waiting_tokens: usize,
    /// Sequences in the batch.
    pub n_running: usize,
    /// Reservations not claimed.
    pub n_reservations: usize,
    /// Landings not decoded from.
    pub n_landings: usize,
    /// Transfers that own blocks.
    pub n_holds: usize,
    /// Blocks promised and not allocated.
    pub promised_blocks: u32,
    /// Where the blocks are.
    pub blocks: PoolAccounting,
}

/// What a sequence comes with.
pub(crate) struct Initial {
    pub(crate) blocks: RequestBlocks,
    /// Rows in the blocks.
    pub(crate) n_computed: usize,
    pub(crate) promised: u32,
    /// The transfer that owns the blocks too.
    pub(crate) hold: Option<HoldId>,
}

impl Scheduler {
    /// An empty scheduler over a pool of `n_blocks` blocks of `block_tokens` tokens.
    ///
    /// # Errors
    /// A limit that cannot be.
    pub fn new(config: Config, n_blocks: u32, block_tokens: NonZeroU32) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            pool: BlockPool::new(n_blocks, block_tokens, config.tenant_percent),
            config,
            promised: 0,
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            reservations: BTreeMap::new(),
            landings: BTreeMap::new(),
            holds: BTreeMap::new(),
            step: Step::default(),
            n_ids: 0,
        })
    }

    /// Queues a sequence of which nothing is computed.
    ///
    /// # Errors
    /// [`Refusal::TooLong`], [`Refusal::QueueFull`].
    pub fn submit(&mut self, now: Duration, submission: Submission) -> Result<SeqId, Refusal> {
        self.check_fits(submission.max_rows())?;
        if self.waiting.len() >= self.config.max_waiting {
            return Err(Refusal::QueueFull { n: self.waiting.len() });
        }
        let blocks = self.pool.empty();
        Ok(self.insert(now, submission, Initial { blocks, n_computed: 0, promised: 0, hold: None }))
    }

    /// Ends a sequence at whatever stage.
    pub fn cancel(&mut self, seq: SeqId) -> Cancelled {
        match self.sequences.get_mut(&seq) {
            None => Cancelled::Unknown,
            Some(sequence) if matches!(sequence.stage, Stage::InStep | Stage::Doomed) => {
                sequence.stage = Stage::Doomed;
                Cancelled::WithStep
            }
            Some(_) => {
                self.remove(seq);
                Cancelled::Now
            }
        }
    }

    /// Nobody wants the step that is being computed: all its sequences were cancelled.
    pub fn step_is_moot(&self) -> bool {
        !self.step.is_empty() && self.step.slices.iter().all(|slice| self.sequences[&slice.seq].stage == Stage::Doomed)
    }

    /// Takes the outcome of the step that [`plan`](Self::plan) gave: one verdict per slice, in order.
    /// Sequences cancelled meanwhile end, whatever their verdict.
    ///
    /// # Panics
    /// If there is no such step, or a verdict does not go with its slice.
    pub fn complete(&mut self, verdicts: &[Verdict]) {
        let step = std::mem::take(&mut self.step);
        assert!(!step.is_empty() && step.slices.len() == verdicts.len(), "verdicts of another step");
        for (slice, verdict) in step.slices.iter().zip(verdicts) {
            let sequence = self.sequences.get_mut(&slice.seq).expect("a sequence outlives the step it is in");
            let doomed = sequence.stage == Stage::Doomed;
            sequence.stage = Stage::Running;
            if matches!(verdict, Verdict::Advanced | Verdict::Sampled | Verdict::Ended) {
                sequence.n_computed += slice.n_tokens;
                self.seal(slice.seq);
            }
            if doomed || matches!(verdict, Verdict::Ended | Verdict::Failed) {
                self.remove(slice.seq);
            } else if *verdict != Verdict::Undone {
                assert_eq!(*verdict == Verdict::Sampled, slice.samples, "a token without its row");
                let sequence = self.sequences.get_mut(&slice.seq).expect("it was not removed");
                sequence.n_tokens += usize::from(slice.samples);
                assert!(sequence.n_tokens <= sequence.max_rows, "a sequence longer than it was admitted for");
            }
        }
    }

    /// Gives up the step that is being computed, if any: all its sequences end. For when the engine is lost.
    pub fn abandon_step(&mut self) {
        let n = self.step.slices.len();
        if n > 0 {
            self.complete(&vec![Verdict::Failed; n]);
        }
    }

    /// Ends what has come to its deadline.
    pub fn expire(&mut self, now: Duration) -> Expired {
        let due = |deadline: Duration| deadline <= now;
        let sequences: Vec<SeqId> = self.living().filter(|(_, s)| due(s.deadline)).map(|(id, _)| id).collect();
        for seq in &sequences {
            self.cancel(*seq);
        }
        let reservations: Vec<ReservationId> =
            self.reservations.iter().filter(|(_, r)| due(r.deadline)).map(|(id, _)| *id).collect();
        for reservation in &reservations {
            self.cancel_reservation(*reservation);
        }
        Expired { sequences, reservations }
    }

    /// When [`expire`](Self::expire) has something to do next.
    pub fn next_deadline(&self) -> Option<Duration> {
        let sequences = self.living().map(|(_, sequence)| sequence.deadline);
        sequences.chain(self.reservations.values().map(|reservation| reservation.deadline)).min()
    }

    /// Blocks of a sequence, in order; none while it waits for them.
    pub fn blocks(&self, seq: SeqId) -> &[BlockIdx] {
        self.sequences.get(&seq).map_or(&[], |sequence| sequence.blocks.blocks())
    }

    /// A step is being computed.
    pub fn in_step(&self) -> bool {
        !self.step.is_empty()
    }

    /// Nothing is here: no sequence, reservation, landing or hold.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty() && self.reservations.is_empty() && self.landings.is_empty() && self.holds.is_empty()
    }

    /// Ends a transfer's ownership. Nothing happens if it ended before.
    pub fn release_hold(&mut self, hold: HoldId) {
        if let Some(blocks) = self.holds.remove(&hold) {
            self.pool.release_transfer(blocks);
        }
    }

    /// Counts.
    pub fn stats(&self) -> Stats {
        let waiting = self.waiting.iter().map(|seq| self.sequences[seq].remaining());
        Stats {
            n_waiting: self.waiting.len(),
            n_waiting_tokens: waiting.sum(),
            n_running: self.running.len(),
            n_reservations: self.reservations.len(),
            n_landings: self.landings.len(),
            n_holds: self.holds.len(),
            promised_blocks: self.promised,
            blocks: self.pool.accounting(),
        }
    }

    /// Blocks neither owned nor promised.
    pub(crate) fn available(&self) -> u32 {
        self.pool.n_available() - self.promised
    }

    /// Blocks for which a sequence of `n_tokens` that may grow to `max_rows` rows is admitted.
    pub(crate) fn worst_case(&self, n_tokens: usize, max_rows: usize) -> u32 {
        self.pool.blocks_for(max_rows.min(n_tokens.saturating_add(self.config.reserve_cap_tokens)).max(n_tokens))
    }

    pub(crate) fn check_fits(&self, max_rows: usize) -> Result<(), Refusal> {
        let (needed, total) = (self.pool.blocks_for(max_rows), self.pool.n_total());
        if needed > total { Err(Refusal::TooLong { needed, total }) } else { Ok(()) }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.n_ids += 1;
        self.n_ids
    }

    /// Adds a sequence to the queue.
    pub(crate) fn insert(&mut self, now: Duration, submission: Submission, initial: Initial) -> SeqId {
        let Initial { blocks, n_computed, promised, hold } = initial;
        assert!(n_computed < submission.n_tokens, "a sequence with nothing to compute");
        let seq = SeqId(self.next_id());
        let sequence = Sequence {
            kind: submission.kind,
            arrived: now,
            deadline: submission.deadline,
            n_tokens: submission.n_tokens,
            n_computed,
            max_rows: submission.max_rows(),
            stage: Stage::Waiting,
            blocks,
            promised,
            begun: false,
            names: Names::default(),
            hold,
        };
        self.sequences.insert(seq, sequence);
        self.waiting.insert(seq);
        seq
    }

    /// Takes the blocks and the promise of a sequence away.
    pub(crate) fn strip(&mut self, seq: SeqId) {
        let sequence = self.sequences.get_mut(&seq).expect("only sequences that are here lose their blocks");
        self.promised -= std::mem::take(&mut sequence.promised);
        self.pool.release(std::mem::replace(&mut sequence.blocks, self.pool.empty()));
    }

    fn remove(&mut self, seq: SeqId) {
        self.strip(seq);
        self.sequences.remove(&seq);
        self.waiting.remove(&seq);
        self.running.remove(&seq);
    }

    /// Sequences that are not on their way out.
    fn living(&self) -> impl Iterator<Item = (SeqId, &Sequence)> {
        self.sequences.iter().filter(|(_, s)| s.stage != Stage::Doomed).map(|(id, s)| (*id, s))
    }
}

impl Kind {
    /// Whether the blocks are shared with a transfer from the first step on.
    pub(crate) fn is_held(self) -> bool {
        self == Self::Prefill
    }
}
