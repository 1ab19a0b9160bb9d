//! The life of one choice: attempts, the relay of their tokens, text and stop strings, the summary.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use rpc::inference::ChoiceDelta;
use rpc::worker::DecodeEvent;
use text::TextStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use types::{Code, Epoch, Failure, FinishReason, Phase, PhaseTimes, Token, WorkerRef};

use super::attempt::{Attempt, First, NoFirst};
use super::events::{ChoiceEvent, Summary};
use super::journal::{Journal, Place};
use super::route::Placing;
use super::{Pipeline, Request};
use crate::cluster::Worker;
use crate::failure::{is_lost, is_retryable, out_of_order, stalled};
use crate::metrics::AttemptKind;

/// Pause before another attempt, times the number of fruitless ones.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// A decode worker that has sent its last token has this long for its closing event.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// One of a request's choices, served by one task.
pub(super) struct Choice {
    pipeline: Arc<Pipeline>,
    request: Arc<Request>,
    index: u32,
    events: mpsc::Sender<ChoiceEvent>,
    text: TextStream,
    journal: Journal,
    finish: Option<FinishReason>,
    last_token: Option<Instant>,
    epoch: u64,
    summary: Summary,
}

/// Why a choice is over before its end.
enum Ended {
    Failed(Failure),
    /// Nobody listens any more.
    ClientGone,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// How an attempt ended.
enum Outcome {
    Finished,
    /// It failed in a way that others may not; its workers are avoided from now on.
    Lost(Failure),
}

/// What the relay waits for.
enum Wake {
    First(Result<First, NoFirst>),
    Decode(Option<Result<DecodeEvent, Failure>>),
    Late,
}

/// What became of a token.
enum Taken {
    GoOn,
    /// The choice is complete.
    Finished,
    /// Tokens before it are missing: here it is back.
    Early(Token),
}

impl Choice {
    pub(super) fn new(
        pipeline: Arc<Pipeline>,
        request: Arc<Request>,
        index: u32,
        events: mpsc::Sender<ChoiceEvent>,
    ) -> Self {
        let text = TextStream::new(
            pipeline.text.tokenizer.clone(),
            request.stop_strings.clone(),
            request.include_stop_string,
            request.keep_special_tokens,
            request.stop.min_tokens,
        );
        let text = if request.continues_text { text.continuing() } else { text };
        Self {
            pipeline,
            request,
            index,
            events,
            text,
            journal: Journal::default(),
            finish: None,
            last_token: None,
            epoch: 0,
            summary: Summary { index, ..Summary::default() },
        }
    }

    /// Serves the choice and says how it ended, unless nobody listens.
    pub(super) async fn run(mut self) {
        let (cancel, deadline) = (self.request.cancel.clone(), self.request.deadline);
        let served = tokio::select! {
            biased;
            () = cancel.cancelled() => {
                if !self.pipeline.is_cut() {
                    tracing::debug!(n_sent = self.journal.len(), "the client left");
                    return;
                }
                Err(Ended::Failed(Failure::new(Code::Unavailable, "SHUTTING_DOWN", "the router is shutting down")))
            }
            served = tokio::time::timeout_at(deadline, Box::pin(self.serve())) => {
                served.unwrap_or_else(|_| Err(rpc::status::deadline_exceeded().into()))
            }
        };
        let last = match served {
            Ok(()) => ChoiceEvent::Done(self.summary),
            Err(Ended::ClientGone) => return,
            Err(Ended::Failed(failure)) => {
                if failure.fault != types::Fault::Client {
                    tracing::info!(%failure, n_sent = self.journal.len(), "choice failed");
                }
                ChoiceEvent::Failed(failure)
            }
        };
        // Nobody to tell when the client has left or takes nothing.
        let _ = self.events.send_timeout(last, self.pipeline.limits.slow_client_time).await;
    }

    /// Attempts until one comes to the end. Attempts that brought tokens do not count against the limit.
    async fn serve(&mut self) -> Result<(), Ended> {
        let mut avoid = Vec::new();
        let mut n_fruitless = 0;
        loop {
            let n_before = self.journal.len();
            let failure = match self.attempt(&mut avoid).await? {
                Outcome::Finished => break,
                Outcome::Lost(failure) => failure,
            };
            n_fruitless = if self.journal.len() > n_before { 1 } else { n_fruitless + 1 };
            if n_fruitless >= self.pipeline.limits.n_attempts {
                return Err(failure.into());
            }
            tracing::info!(%failure, n_sent = self.journal.len(), "attempt failed, trying again");
            tokio::time::sleep(RETRY_PAUSE * n_fruitless).await;
        }
        self.summary.n_tokens = self.n_sent();
        Ok(())
    }

    async fn attempt(&mut self, avoid: &mut Vec<WorkerRef>) -> Result<Outcome, Ended> {
        let kind = match (self.epoch, self.journal.is_empty()) {
            (0, _) => AttemptKind::First,
            (_, true) => AttemptKind::Retry,
            (_, false) => AttemptKind::Resume,
        };
        self.pipeline.metrics.attempt(kind);
        self.epoch += 1;
        let (pipeline, request) = (self.pipeline.clone(), self.request.clone());
        let routing = Instant::now();
        let placing =
            Placing { choice: self.index, epoch: Epoch(self.epoch), n_generated: self.n_sent(), avoid: &*avoid };
        let placement = pipeline.place(&request, placing).await?;
        if let (Err(reason), AttemptKind::First | AttemptKind::Retry) = (&placement.prefill, kind) {
            pipeline.metrics.disaggregation_skipped(reason.as_str());
        }
        let mut attempt = Attempt::start(&pipeline, &request, placing, placement, self.journal.ids());
        self.summary.timeline.phases.add(Phase::Route, routing.elapsed());
        self.summary.timeline.decode_worker = attempt.decode_worker.name();
        self.summary.timeline.prefill_worker = attempt.prefill_worker.as_ref().map(Worker::name).unwrap_or_default();

        let mut relay = Relay::new(pipeline.limits.first_token_time);
        let outcome = self.relay(&mut attempt, &mut relay, avoid).await;
        self.summary.timeline.phases.merge(&relay.prefill_phases);
        self.summary.timeline.phases.merge(&relay.decode_phases);
        if let Ok(Outcome::Lost(_)) = &outcome {
            // Another attempt may go to the same workers: they must have forgotten this one.
            drop(attempt.decode);
            attempt.legs.abort().await;
        }
        outcome
    }

    /// Relays what the workers send until the choice is complete or the attempt is lost.
    async fn relay(
        &mut self,
        attempt: &mut Attempt,
        relay: &mut Relay,
        avoid: &mut Vec<WorkerRef>,
    ) -> Result<Outcome, Ended> {
        loop {
            let wake = tokio::select! {
                biased;
                first = word(&mut attempt.first), if attempt.first.is_some() => Wake::First(first),
                event = attempt.decode.next(), if relay.held.is_none() && !relay.closed => Wake::Decode(event),
                () = tokio::time::sleep_until(relay.late) => Wake::Late,
            };
            let step = match wake {
                Wake::First(word) => {
                    attempt.first = None;
                    self.first_word(attempt, relay, word).await?
                }
                Wake::Decode(event) => self.decode_event(attempt, relay, event).await?,
                Wake::Late => self.late(attempt),
            };
            let (worker, failure) = match step {
                Step::GoOn => continue,
                Step::Finished => return Ok(Outcome::Finished),
                Step::Lost(worker, failure) => (worker, failure),
            };
            if self.finish.is_some() {
                // Everything was sent; only the closing event is missing.
                tracing::debug!(%failure, "no closing event");
                return Ok(Outcome::Finished);
            }
            if is_lost(&failure) {
                self.pipeline.cluster.suspect(&worker, &failure);
            }
            avoid.push(worker);
            return if is_retryable(&failure) { Ok(Outcome::Lost(failure)) } else { Err(failure.into()) };
        }
    }

    async fn first_word(
        &mut self,
        attempt: &mut Attempt,
        relay: &mut Relay,
        word: Result<First, NoFirst>,
    ) -> Result<Step, Ended> {
        let Some(prefill) = attempt.prefill_worker.as_ref().map(|w| w.info.worker.clone()) else {
            return Ok(Step::GoOn);
        };
        match word {
            Ok(First { token, cached, phases }) => {
                relay.prefill_phases = phases;
                self.summary.cached = cached;
                for token in std::iter::once(token).chain(relay.held.take()) {
                    match self.take(token, relay).await? {
                        Taken::GoOn => {}
                        Taken::Finished => {
                            if !relay.stopped {
                                // Nothing is to be handed over; the prefill call ends by itself.
                                attempt.legs.handed_over();
                            }
                            return Ok(Step::Finished);
                        }
                        Taken::Early(_) => {
                            return Ok(Step::Lost(prefill, out_of_order("tokens are missing after the first one")));
                        }
                    }
                }
                if relay.closed {
                    return Ok(Step::Lost(
                        prefill,
                        out_of_order("decode finished, but the first token was not the last"),
                    ));
                }
                Ok(Step::GoOn)
            }
            // Decode has gone on alone: whatever became of the prefill call does not matter.
            Err(_) if self.sent_in(relay) => Ok(Step::GoOn),
            Err(NoFirst::Refused(failure)) => Ok(Step::Lost(prefill, failure)),
            Err(NoFirst::Lost(failure)) => {
                if is_lost(&failure) {
                    self.pipeline.cluster.suspect(&prefill, &failure);
                }
                if relay.held.is_some() || relay.closed { Ok(Step::Lost(prefill, failure)) } else { Ok(Step::GoOn) }
            }
        }
    }

    async fn decode_event(
        &mut self,
        attempt: &mut Attempt,
        relay: &mut Relay,
        event: Option<Result<DecodeEvent, Failure>>,
    ) -> Result<Step, Ended> {
        let lost = |failure| Ok(Step::Lost(attempt.decode_worker.info.worker.clone(), failure));
        match event {
            None => lost(rpc::status::cut_off()),
            Some(Err(failure)) => lost(failure),
            Some(Ok(DecodeEvent::Handoff { bytes, transport, recomputed, phases, n_blocks })) => {
                tracing::debug!(bytes, n_blocks, transport, recomputed, "handoff");
                relay.add_decode_phases(&phases);
                self.summary.timeline.kv_bytes += bytes;
                if recomputed && attempt.prefill_worker.is_some() {
                    self.pipeline.metrics.disaggregation_skipped("recomputed");
                    attempt.legs.cancel_prefill();
                } else if attempt.prefill_worker.is_some() {
                    self.summary.timeline.transport = transport;
                    attempt.legs.handed_over();
                }
                Ok(Step::GoOn)
            }
            Some(Ok(DecodeEvent::Token(_))) if self.finish.is_some() => {
                lost(out_of_order("a token came after the last one"))
            }
            Some(Ok(DecodeEvent::Token(token))) => match self.take(token, relay).await? {
                Taken::GoOn => Ok(Step::GoOn),
                Taken::Finished if relay.stopped => Ok(Step::Finished),
                Taken::Finished => {
                    relay.late = Instant::now() + CLOSING_TIME;
                    Ok(Step::GoOn)
                }
                // The word of prefill is under way on another connection.
                Taken::Early(token) if attempt.first.is_some() && self.journal.is_empty() && token.position == 1 => {
                    relay.held = Some(token);
                    Ok(Step::GoOn)
                }
                Taken::Early(_) => lost(out_of_order("tokens are missing")),
            },
            Some(Ok(DecodeEvent::Finished { phases, cached, .. })) => {
                attempt.legs.decode_ended();
                relay.add_decode_phases(&phases);
                if self.finish.is_none() && attempt.first.is_some() && self.journal.is_empty() {
                    // Prefill's first token is the last one, and under way on another connection.
                    relay.closed = true;
                    return Ok(Step::GoOn);
                }
                if self.finish.is_none() {
                    return lost(out_of_order("the stream finished before the last token"));
                }
                if attempt.prefill_worker.is_none() {
                    self.summary.cached = cached;
                }
                Ok(Step::Finished)
            }
        }
    }

    /// Nothing came in time. While prefill has not spoken it is the one to doubt.
    fn late(&self, attempt: &Attempt) -> Step {
        let prefill = attempt.first.as_ref().and(attempt.prefill_worker.as_ref());
        let worker = prefill.unwrap_or(&attempt.decode_worker).info.worker.clone();
        Step::Lost(worker, stalled("no token came in time"))
    }

    /// Sends a token to the client if it is the next one.
    async fn take(&mut self, token: Token, relay: &mut Relay) -> Result<Taken, Ended> {
        match self.journal.place(&token) {
            Place::Seen => return Ok(Taken::GoOn),
            Place::Gap => return Ok(Taken::Early(token)),
            Place::Diverged => {
                let message = format!("workers disagree about the token at position {}", token.position);
                return Err(Failure::new(Code::Internal, "TOKENS_DIVERGED", message).into());
            }
            Place::Next => {}
        }
        let arrived = Instant::now();
        self.journal.push(&token);
        self.pipeline.metrics.generated_tokens.inc();
        match self.last_token.replace(arrived) {
            None => self.pipeline.metrics.first_token(arrived - self.request.born),
            Some(last) => self.pipeline.metrics.next_token(arrived - last),
        }
        let piece = self.text.push(&token);
        let mut text = piece.text;
        relay.stopped = piece.stopped;
        let finish = if piece.stopped { Some(FinishReason::Stop) } else { token.finish };
        if finish.is_some() && !piece.stopped {
            text.push_str(&self.text.finish());
        }
        self.finish = finish;
        if !text.is_empty() || finish.is_some() || self.request.wants_tokens {
            let tokens = if self.request.wants_tokens { vec![token] } else { Vec::new() };
            let delta = ChoiceDelta { index: self.index, text, tokens, finish };
            let limit = self.pipeline.limits.slow_client_time;
            match self.events.send_timeout(ChoiceEvent::Delta { delta, arrived }, limit).await {
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return Err(Ended::ClientGone),
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    tracing::info!("the client takes nothing, giving the request up");
                    self.request.cancel.cancel();
                    return Err(Ended::ClientGone);
                }
            }
        }
        // The time that the client took is not the workers'.
        relay.late = Instant::now() + self.pipeline.limits.next_token_time;
        relay.n_sent += 1;
        Ok(if finish.is_some() { Taken::Finished } else { Taken::GoOn })
    }

    fn sent_in(&self, relay: &Relay) -> bool {
        relay.n_sent > 0
    }

    fn n_sent(&self) -> u32 {
        u32::try_from(self.journal.len()).expect("a choice has at most max_tokens tokens, which is 32 bits wide")
    }
}

/// What the relay does next.
enum Step {
    GoOn,
    Finished,
    /// The attempt is lost, by the fault of that worker as far as one can see.
    Lost(WorkerRef, Failure),
}

/// State of one attempt's relay.
struct Relay {
    /// Decode's second token, while prefill's first one is under way.
    held: Option<Token>,
    /// Decode has finished, before prefill's word came.
    closed: bool,
    /// When the attempt counts as stalled.
    late: Instant,
    /// A stop string ended the choice: the worker does not know.
    stopped: bool,
    /// Tokens sent to the client in this attempt.
    n_sent: usize,
    prefill_phases: PhaseTimes,
    decode_phases: PhaseTimes,
}

impl Relay {
    fn new(first_token_time: Duration) -> Self {
        Self {
            held: None,
            closed: false,
            late: Instant::now() + first_token_time,
            stopped: false,
            n_sent: 0,
            prefill_phases: PhaseTimes::default(),
            decode_phases: PhaseTimes::default(),
        }
    }

    /// The closing event repeats what earlier ones said: a phase counts once.
    fn add_decode_phases(&mut self, phases: &PhaseTimes) {
        for phase in Phase::ALL {
            let known = self.decode_phases.get(phase);
            self.decode_phases.add(phase, phases.get(phase).saturating_sub(known));
        }
    }
}

/// Prefill's word; a task that ended without one was lost.
async fn word(first: &mut Option<oneshot::Receiver<Result<First, NoFirst>>>) -> Result<First, NoFirst> {
    match first {
        Some(receiver) => receiver.await.unwrap_or_else(|_| Err(NoFirst::Lost(Failure::cancelled()))),
        None => std::future::pending().await,
    }
}
