//! The life of one choice: attempts, what goes to the client, text and stop strings, the summary.

use std::sync::Arc;
use std::time::Duration;

use rpc::inference::{ChoiceDelta, Continuity};
use text::TextStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use types::{Code, Epoch, Failure, FinishReason, Phase, Token, WorkerRef};

use super::attempt::Attempt;
use super::events::{ChoiceEvent, Summary};
use super::journal::{Journal, Place};
use super::relay::Relay;
use super::route::Placing;
use super::{Pipeline, Request};
use crate::cluster::Worker;
use crate::metrics::AttemptKind;

/// Pause before another attempt, times the number of fruitless ones.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// One of a request's choices, served by one task.
pub(super) struct Choice {
    pub(super) pipeline: Arc<Pipeline>,
    request: Arc<Request>,
    index: u32,
    events: mpsc::Sender<ChoiceEvent>,
    text: TextStream,
    pub(super) journal: Journal,
    pub(super) finish: Option<FinishReason>,
    last_token: Option<Instant>,
    epoch: u64,
    /// Numerics of the worker that began the answer.
    begun: Option<String>,
    pub(super) summary: Summary,
}

/// Why a choice is over before its end.
pub(super) enum Ended {
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
pub(super) enum Outcome {
    Finished,
    /// It failed in a way that others may not; its workers are avoided from now on.
    Lost(Failure),
}

/// What became of a token.
pub(super) enum Taken {
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
            begun: None,
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
        let begun = self.begun.clone();
        let placing = Placing {
            choice: self.index,
            epoch: Epoch(self.epoch),
            n_generated: self.n_sent(),
            begun: begun.as_deref(),
            avoid: &*avoid,
        };
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

    /// A worker's numbers go into the answer: its token, or KV that it computed.
    pub(super) fn served_by(&mut self, worker: &Worker) {
        let numerics = worker.info.numerics();
        let begun = self.begun.get_or_insert_with(|| numerics.to_owned());
        if *begun != numerics {
            self.summary.timeline.continuity = Continuity::Equivalent;
        }
    }

    /// Sends a token to the client if it is the next one.
    pub(super) async fn take(&mut self, token: Token, relay: &mut Relay) -> Result<Taken, Ended> {
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
        relay.came = Some((relay.came.map_or(arrived, |(first, _)| first), arrived));
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

    fn n_sent(&self) -> u32 {
        u32::try_from(self.journal.len()).expect("a choice has at most max_tokens tokens, which is 32 bits wide")
    }
}
