//! Control plane of a worker: the router calls, a prefill or decode service answers.

mod client;
mod server;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use types::{
    Accounting, Compatibility, Failure, KvEndpoints, KvEventBatch, Load, PhaseTimes, SamplingParams, StopParams, Token,
    TokenId, WorkerRef,
};

pub use client::WorkerClient;
pub(crate) use client::events;
pub use server::serve;

use crate::{EventStream, RequestContext};

/// Names a reservation.
pub type ReservationId = [u8; 16];

/// Asks a decode worker for room.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserve {
    /// Prompt tokens.
    pub n_prompt: u32,
    /// Tokens to generate at most.
    pub max_new: u32,
    /// The reservation ends by itself after this time unless it is claimed.
    pub hold: Duration,
}

/// Room on a decode worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// Claimed by [`DecodeCall::reservation`].
    pub id: ReservationId,
    /// Blocks held.
    pub n_blocks: u32,
    /// Who holds them.
    pub worker: WorkerRef,
}

/// Computes a prompt and offers its KV.
#[derive(Clone, PartialEq, Debug)]
pub struct PrefillCall {
    /// Prompt.
    pub prompt: Arc<[TokenId]>,
    /// For the first token.
    pub sampling: SamplingParams,
    /// For the first token.
    pub stop: StopParams,
    /// The only worker that may fetch the blocks.
    pub reader: WorkerRef,
    /// The blocks are given up when nobody opened a fetch this long after the prompt was computed.
    pub hold: Duration,
    /// Only sequences of one tenant share blocks.
    pub tenant: String,
}

/// Progress of a [`PrefillCall`]; `HoldEnded` is the last.
#[derive(Clone, PartialEq, Debug)]
pub enum PrefillEvent {
    /// Blocks are allocated, the KV is on offer, computing has begun.
    Started {
        /// `prefill_queue`.
        phases: PhaseTimes,
    },
    /// The first token was sampled.
    Finished {
        /// The first token.
        token: Token,
        /// Prompt tokens that were not computed because their KV was at hand.
        cached: u32,
        /// `prefill_queue`, `prefill`.
        phases: PhaseTimes,
    },
    /// The blocks are not held for this request any more.
    HoldEnded {
        /// Why.
        cause: HoldCause,
        /// Payload bytes sent.
        bytes: u64,
    },
}

/// Why a hold ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldCause {
    /// The reader has everything, or there was nothing to hand over.
    Fetched,
    /// The request was cancelled or the reader left.
    Cancelled,
    /// Nobody fetched in time.
    Expired,
}

/// Where the KV of a prompt is being computed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PullFrom {
    /// Which worker.
    pub prefill: WorkerRef,
    /// `host:port` of its KV service.
    pub address: String,
    /// Where it serves KV besides.
    pub endpoints: KvEndpoints,
    /// What it is.
    pub compatibility: Compatibility,
}

/// Generates a sequence.
#[derive(Clone, PartialEq, Debug)]
pub struct DecodeCall {
    /// From [`Reserved::id`].
    pub reservation: ReservationId,
    /// Prompt.
    pub prompt: Arc<[TokenId]>,
    /// For every token.
    pub sampling: SamplingParams,
    /// When to stop.
    pub stop: StopParams,
    /// `None`: the worker computes the prompt itself.
    pub source: Option<PullFrom>,
    /// Tokens generated so far by an earlier owner: replayed, not sent again.
    pub generated: Vec<TokenId>,
    /// Only sequences of one tenant share blocks.
    pub tenant: String,
}

/// Progress of a [`DecodeCall`]; `Finished` is the last.
#[derive(Clone, PartialEq, Debug)]
pub enum DecodeEvent {
    /// The prompt's KV is here, pulled or (if that failed) computed.
    Handoff {
        /// Payload bytes pulled.
        bytes: u64,
        /// Blocks of the prompt.
        n_blocks: u32,
        /// Transport that carried them.
        transport: String,
        /// The pull failed and this worker computes the prompt itself; tokens then start at position 0.
        recomputed: bool,
        /// `handoff`.
        phases: PhaseTimes,
    },
    /// The next token. Positions are contiguous; they start at 1 after a pull, where prefill sent position 0.
    Token(Token),
    /// Everything was sent.
    Finished {
        /// Tokens generated, all positions counted.
        n_tokens: u32,
        /// Prompt tokens that were not computed because their KV was at hand.
        cached: u32,
        /// Phases spent here.
        phases: PhaseTimes,
    },
}

/// What a worker answers to its router. Implemented by the services and by [`WorkerClient`].
#[async_trait]
pub trait WorkerApi: Send + Sync + 'static {
    /// Holds room for a sequence.
    ///
    /// # Errors
    /// `ResourceExhausted`, safe to retry, when there is none.
    async fn reserve(&self, context: RequestContext, call: Reserve) -> Result<Reserved, Failure>;

    /// Computes a prompt; see [`PrefillEvent`]. Dropping the stream cancels.
    ///
    /// # Errors
    /// Refusals: nothing was started. What fails later arrives in the stream.
    async fn run_prefill(
        &self,
        context: RequestContext,
        call: PrefillCall,
    ) -> Result<EventStream<PrefillEvent>, Failure>;

    /// Generates; see [`DecodeEvent`]. Dropping the stream cancels.
    ///
    /// # Errors
    /// Refusals: nothing was started. What fails later arrives in the stream.
    async fn run_decode(&self, context: RequestContext, call: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure>;

    /// Ends the context's choice, or all choices of its request, at whatever stage. Idempotent.
    /// Returns whether there was anything by that name.
    ///
    /// # Errors
    /// A stale epoch, or a lost connection.
    async fn cancel(&self, context: RequestContext, all_choices: bool) -> Result<bool, Failure>;

    /// Stops taking work; returns how many sequences still run.
    ///
    /// # Errors
    /// A stale epoch, or a lost connection.
    async fn drain(&self, worker: WorkerRef) -> Result<u32, Failure>;

    /// The load now, and whenever it changed, at most once per `min_interval`. Endless.
    ///
    /// # Errors
    /// A stale epoch, or a lost connection.
    async fn load_report(
        &self,
        worker: WorkerRef,
        min_interval: Duration,
    ) -> Result<EventStream<(WorkerRef, Load)>, Failure>;

    /// What changes in the prefix cache: the batches that follow the one with id `after`, while they are kept. Else,
    /// and from 0, first all that is cached, beginning with [`KvEvent::Cleared`](types::KvEvent::Cleared); of a
    /// snapshot's batches only the last has an id. Endless.
    ///
    /// # Errors
    /// A stale epoch, too many subscribers, or a lost connection. In the stream `KV_EVENTS_LOST`, safe to retry, when
    /// its reader is too slow.
    async fn kv_events(&self, worker: WorkerRef, after: u64) -> Result<EventStream<KvEventBatch>, Failure>;

    /// Where every block is.
    ///
    /// # Errors
    /// A lost connection.
    async fn accounting(&self) -> Result<Accounting, Failure>;
}
