//! Third stage: a place among the choices that are served at the same time. Waiting is bounded in number and time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rpc::inference::GenerationOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tracing::Instrument as _;
use types::{Code, Failure, Phase, Retry, TokenId};

use super::choice::Choice;
use super::{Events, Origin, OutcomeGuard, PhaseClock, Pipeline, Request, Started, Tokenized, events};
use crate::config::Limits;
use crate::metrics::Metrics;

/// When a refused client may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Events of one choice that wait for the client.
const BUFFERED_EVENTS: usize = 64;

/// Places for choices, given first come, first served.
pub(super) struct Admission {
    places: Arc<Semaphore>,
    n_waiting: Arc<AtomicUsize>,
    n_waiting_max: usize,
    metrics: Metrics,
}

/// The places of a request's choices.
pub(super) struct Permit(#[expect(dead_code, reason = "held, never read")] OwnedSemaphorePermit);

/// A request that may be given to workers.
pub(crate) struct Admitted {
    prompt: Arc<[TokenId]>,
    continues_text: bool,
    options: GenerationOptions,
    origin: Origin,
    deadline: Instant,
    queue_deadline: Instant,
    clock: PhaseClock,
    permit: Permit,
}

impl Admission {
    pub(super) fn new(limits: &Limits, metrics: &Metrics) -> Self {
        Self {
            places: Arc::new(Semaphore::new(limits.n_admitted)),
            n_waiting: Arc::default(),
            n_waiting_max: limits.n_waiting,
            metrics: metrics.clone(),
        }
    }

    async fn enter(&self, n: u32, until: Instant) -> Result<Permit, Failure> {
        // Only without a queue may a place be taken at once: permits are given in the order of asking.
        if let Ok(permit) = self.places.clone().try_acquire_many_owned(n) {
            return Ok(Permit(permit));
        }
        let _waiting = self.wait()?;
        match tokio::time::timeout_at(until, self.places.clone().acquire_many_owned(n)).await {
            Ok(permit) => Ok(Permit(permit.expect("the semaphore is never closed"))),
            Err(_) => Err(overloaded("QUEUE_TIMEOUT", "the request waited too long to be admitted")),
        }
    }

    fn wait(&self) -> Result<Waiting<'_>, Failure> {
        let before = self.n_waiting.fetch_add(1, Ordering::Relaxed);
        self.metrics.waiting.inc();
        let waiting = Waiting(self);
        if before >= self.n_waiting_max {
            return Err(overloaded("QUEUE_FULL", "too many requests are waiting"));
        }
        Ok(waiting)
    }
}

/// Counts a waiting request.
struct Waiting<'a>(&'a Admission);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.n_waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.waiting.dec();
    }
}

/// An early, typed refusal.
pub(super) fn overloaded(reason: &'static str, message: &str) -> Failure {
    Failure::new(Code::ResourceExhausted, reason, message).with_retry(Retry::Safe(Some(RETRY_AFTER)))
}

impl Tokenized {
    /// Waits for a place for each of its choices.
    ///
    /// # Errors
    /// `ResourceExhausted` when too many wait or it took too long, `DeadlineExceeded`.
    pub(super) async fn queue(self, pipeline: &Pipeline) -> Result<Admitted, Failure> {
        let Self { prompt, continues_text, options, origin, deadline, mut clock } = self;
        let now = Instant::now();
        if now >= deadline {
            return Err(rpc::status::deadline_exceeded());
        }
        let queue_deadline = deadline.min(now + pipeline.limits.queue_time);
        let permit = pipeline.admission.enter(options.n, queue_deadline).await?;
        clock.lap(Phase::Queue);
        Ok(Admitted { prompt, continues_text, options, origin, deadline, queue_deadline, clock, permit })
    }
}

impl Admitted {
    /// Gives every choice to a task of its own.
    pub(super) fn start(self, pipeline: &Arc<Pipeline>, ended: OutcomeGuard) -> Started {
        let Self { prompt, continues_text, options, origin, deadline, queue_deadline, clock, permit } = self;
        let n = options.n;
        let cancel = pipeline.tasks.cut.child_token();
        let request = Arc::new(Request {
            id: origin.request,
            prompt: prompt.clone(),
            names: OnceLock::new(),
            wants_tokens: options.return_token_ids || options.sampling.logprobs.is_some(),
            sampling: options.sampling,
            stop: options.stop,
            stop_strings: options.stop_strings,
            include_stop_string: options.include_stop_string,
            keep_special_tokens: options.keep_special_tokens,
            continues_text,
            born: origin.born,
            deadline,
            queue_deadline,
            trace: origin.trace,
            tenant: origin.tenant,
            cancel: cancel.clone(),
            _permit: permit,
        });
        pipeline.metrics.prompt_tokens.inc_by(prompt.len() as u64);
        let (sender, receiver) = mpsc::channel(BUFFERED_EVENTS * n as usize);
        for index in 0..n {
            let choice = Choice::new(pipeline.clone(), request.clone(), index, sender.clone());
            let span = tracing::info_span!("request", id = %request.id, choice = index);
            pipeline.tasks.tracker.spawn(choice.run().instrument(span));
        }
        let parts = events::Parts { n_choices: n, n_prompt: prompt.len(), router_phases: clock.times, cancel, ended };
        Started { request: request.id, prompt, events: Events::new(receiver, parts) }
    }
}
