//! Stages of a request, each a type with only its own data: [`Accepted`] → [`Tokenized`] → [`Admitted`] → events.
//!
//! A request has one or more choices. Each is served by a task of its own ([`choice`]), which gives it to a pair of
//! workers ([`route`], [`attempt`]), relays its tokens in order, each once, and gives it to other workers when those
//! fail. Dropping a request's [`Events`] cancels everything behind it, here and on the workers.

mod accept;
mod attempt;
mod choice;
mod events;
mod journal;
mod queue;
mod relay;
mod route;
mod tokenize;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rpc::TraceContext;
use rpc::inference::{GenerationOptions, Input};
use text::TextModel;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{Failure, Phase, PhaseTimes, RequestId, SamplingParams, StopParams, TokenId};

pub(crate) use accept::Accepted;
pub(crate) use events::Events;
pub(crate) use queue::Admitted;
pub(crate) use tokenize::Tokenized;

use crate::cluster::Cluster;
use crate::config::Limits;
use crate::metrics::{Endpoint, Metrics, Outcome};
use crate::prefixes::Names;

/// Texts longer than this are tokenized off the async threads, bytes.
const INLINE_BYTES: usize = 4 << 10;

/// What all requests share: one for the whole router.
pub(crate) struct Pipeline {
    pub(crate) model: String,
    pub(crate) text: TextModel,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// Unix time of the router's start, seconds.
    pub(crate) created: u64,
    longest_token: usize,
    admission: queue::Admission,
    line: route::Line,
    tokenizing: Arc<Semaphore>,
    tasks: Tasks,
}

/// Owner of every task that serves requests.
#[derive(Clone)]
pub(crate) struct Tasks {
    pub(crate) tracker: TaskTracker,
    /// Cancelled when requests must end, whatever their state.
    pub(crate) cut: CancellationToken,
    /// Guards spawn from `Drop`, where no runtime may be current.
    pub(crate) runtime: Handle,
}

/// What a client asks for.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Call {
    pub(crate) model: String,
    pub(crate) input: Input,
    pub(crate) options: GenerationOptions,
    pub(crate) layout: Layout,
    /// Where the client does not say; `None`: up to the context.
    pub(crate) max_tokens_default: Option<u32>,
}

/// How an input becomes a prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    /// End a conversation with the opening of the assistant's answer.
    pub(crate) add_generation_prompt: bool,
    /// Put around a text what the model wants around it.
    pub(crate) add_special_tokens: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { add_generation_prompt: true, add_special_tokens: true }
    }
}

/// How a request came in.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub(crate) request: RequestId,
    pub(crate) endpoint: Endpoint,
    /// When its first byte was seen.
    pub(crate) born: Instant,
    /// Time the client gives.
    pub(crate) deadline: Option<Duration>,
    pub(crate) trace: TraceContext,
    /// Only sequences of one tenant share KV.
    pub(crate) tenant: String,
}

/// A request under way.
pub(crate) struct Started {
    pub(crate) request: RequestId,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) events: Events,
}

/// What all choices of a request share.
struct Request {
    id: RequestId,
    prompt: Arc<[TokenId]>,
    /// Of the prompt's blocks; made when it is first placed.
    names: OnceLock<Names>,
    sampling: SamplingParams,
    stop: StopParams,
    stop_strings: Vec<String>,
    include_stop_string: bool,
    keep_special_tokens: bool,
    continues_text: bool,
    /// Deltas carry tokens, not only text.
    wants_tokens: bool,
    born: Instant,
    deadline: Instant,
    /// Until when it may wait for room on a worker.
    queue_deadline: Instant,
    trace: TraceContext,
    tenant: String,
    cancel: CancellationToken,
    _permit: queue::Permit,
}

impl Pipeline {
    /// For one model and its cluster. Must be called inside a tokio runtime.
    pub(crate) fn new(
        model: String,
        text: TextModel,
        cluster: Arc<Cluster>,
        limits: Limits,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Arc<Self> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Arc::new(Self {
            longest_token: text.tokenizer.longest_token_bytes(),
            admission: queue::Admission::new(&limits, &metrics),
            line: route::Line::default(),
            tokenizing: Arc::new(Semaphore::new(bootstrap::cpu_count())),
            tasks: Tasks { tracker, cut: CancellationToken::new(), runtime: Handle::current() },
            model,
            text,
            cluster,
            limits,
            metrics,
            created,
        })
    }

    /// Serves a request. What is wrong with it or refused is an error here; what fails later is an event.
    ///
    /// # Errors
    /// Invalid input, unknown model, no room in the queue, no time left.
    pub(crate) async fn generate(self: &Arc<Self>, call: Call, origin: Origin) -> Result<Started, Failure> {
        let mut ended = OutcomeGuard::new(&self.metrics, origin.endpoint);
        match self.stages(call, origin).await {
            Ok(admitted) => Ok(admitted.start(self, ended)),
            Err(failure) => {
                ended.set(Outcome::of(&failure));
                Err(failure)
            }
        }
    }

    async fn stages(&self, call: Call, origin: Origin) -> Result<Admitted, Failure> {
        Accepted::check(self, call, origin)?.tokenize(self).await?.queue(self).await
    }

    /// Ends every request now.
    pub(crate) fn cut(&self) {
        self.tasks.cut.cancel();
    }

    fn is_cut(&self) -> bool {
        self.tasks.cut.is_cancelled()
    }

    /// The served model, under its name.
    ///
    /// # Errors
    /// `NotFound` for any other name.
    pub(crate) fn check_model(&self, model: &str) -> Result<(), Failure> {
        if model == self.model { Ok(()) } else { Err(accept::unknown_model(model)) }
    }
}

/// Time of a request's phases at the router, taken one after the other.
#[derive(Clone, Copy, Debug)]
struct PhaseClock {
    last: Instant,
    times: PhaseTimes,
}

impl PhaseClock {
    fn new(born: Instant) -> Self {
        Self { last: born, times: PhaseTimes::default() }
    }

    /// `phase` ends now; the next one begins.
    fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.times.add(phase, now - self.last);
        self.last = now;
    }
}

/// Counts how a request ended; one that is dropped was cancelled.
struct OutcomeGuard {
    metrics: Metrics,
    endpoint: Endpoint,
    outcome: Outcome,
}

impl OutcomeGuard {
    fn new(metrics: &Metrics, endpoint: Endpoint) -> Self {
        metrics.in_flight.inc();
        Self { metrics: metrics.clone(), endpoint, outcome: Outcome::Cancelled }
    }

    fn set(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for OutcomeGuard {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        self.metrics.request_ended(self.endpoint, self.outcome);
    }
}
