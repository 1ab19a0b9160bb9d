//! The relay of one attempt: the words of two workers, in whatever order they come, as one sequence of tokens.

use std::time::Duration;

use futures::StreamExt as _;
use routing::Observation;
use rpc::worker::DecodeEvent;
use tokio::sync::oneshot;
use tokio::time::Instant;
use types::{Failure, Phase, PhaseTimes, Token, WorkerRef};

use super::attempt::{Attempt, First, NoFirst};
use super::choice::{Choice, Ended, Outcome, Taken};
use crate::failure::{is_lost, is_retryable, out_of_order, stalled};

/// A decode worker that has sent its last token has this long for its closing event.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// Tokens from which a pace is learned, at least.
const N_GAPS_MIN: usize = 4;

/// State of one attempt's relay.
pub(super) struct Relay {
    /// Decode's second token, while prefill's first one is under way.
    held: Option<Token>,
    /// Decode has finished, before prefill's word came.
    closed: bool,
    /// When the attempt counts as stalled.
    pub(super) late: Instant,
    /// A stop string ended the choice: the worker does not know.
    pub(super) stopped: bool,
    /// Tokens sent to the client in this attempt.
    pub(super) n_sent: usize,
    /// When the first of them came, and the last.
    pub(super) came: Option<(Instant, Instant)>,
    pub(super) prefill_phases: PhaseTimes,
    pub(super) decode_phases: PhaseTimes,
}

impl Relay {
    pub(super) fn new(first_token_time: Duration) -> Self {
        Self {
            held: None,
            closed: false,
            late: Instant::now() + first_token_time,
            stopped: false,
            n_sent: 0,
            came: None,
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

/// What the relay waits for.
enum Wake {
    First(Result<First, NoFirst>),
    Decode(Option<Result<DecodeEvent, Failure>>),
    Late,
}

/// What the relay does next.
enum Step {
    GoOn,
    Finished,
    /// The attempt is lost, by the fault of that worker as far as one can see.
    Lost(WorkerRef, Failure),
}

impl Choice {
    /// Relays what the workers send until the choice is complete or the attempt is lost.
    pub(super) async fn relay(
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
        let Some(prefill_worker) = attempt.prefill_worker.clone() else {
            return Ok(Step::GoOn);
        };
        let prefill = prefill_worker.info.worker.clone();
        match word {
            Ok(First { token, cached, phases }) => {
                // Decode may have computed the first token before.
                if self.journal.is_empty() {
                    self.served_by(&prefill_worker);
                }
                relay.prefill_phases = phases;
                self.summary.cached = cached;
                let (cost, time) = (attempt.work.prompt_cost(cached), phases.get(Phase::Prefill));
                self.pipeline.cluster.observe(&prefill, Observation::Prompt { cost, time });
                for token in std::iter::once(token).chain(relay.held.take()) {
                    let from_prefill = token.position == 0;
                    match self.take(token, relay).await? {
                        Taken::GoOn => {}
                        Taken::Finished if !from_prefill && !relay.stopped => {
                            relay.late = Instant::now() + CLOSING_TIME;
                            return Ok(Step::GoOn);
                        }
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
            Err(_) if relay.n_sent > 0 => Ok(Step::GoOn),
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
                } else if let Some(prefill) = &attempt.prefill_worker {
                    self.served_by(prefill);
                    self.pipeline.cluster.handed_over(&attempt.decode_worker.info.worker, &transport);
                    let tokens = u64::from(n_blocks) * u64::from(prefill.info.block_tokens());
                    let seen = Observation::Transfer { tokens, time: phases.get(Phase::Handoff) };
                    self.pipeline.cluster.observe(&attempt.decode_worker.info.worker, seen);
                    self.summary.timeline.transport = transport;
                    attempt.legs.handed_over();
                }
                Ok(Step::GoOn)
            }
            Some(Ok(DecodeEvent::Token(_))) if self.finish.is_some() => {
                lost(out_of_order("a token came after the last one"))
            }
            Some(Ok(DecodeEvent::Token(token))) => {
                attempt.own_prompt = None;
                self.served_by(&attempt.decode_worker);
                match self.take(token, relay).await? {
                    Taken::GoOn => Ok(Step::GoOn),
                    Taken::Finished if relay.stopped => Ok(Step::Finished),
                    Taken::Finished => {
                        relay.late = Instant::now() + CLOSING_TIME;
                        Ok(Step::GoOn)
                    }
                    // The word of prefill is under way on another connection.
                    Taken::Early(token)
                        if attempt.first.is_some() && self.journal.is_empty() && token.position == 1 =>
                    {
                        relay.held = Some(token);
                        Ok(Step::GoOn)
                    }
                    Taken::Early(_) => lost(out_of_order("tokens are missing")),
                }
            }
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
                self.learn(attempt, relay, cached);
                Ok(Step::Finished)
            }
        }
    }

    /// Learns from a choice that came to its end how fast its decode worker is.
    fn learn(&self, attempt: &Attempt, relay: &Relay, cached: u32) {
        let worker = &attempt.decode_worker.info.worker;
        let observe = |seen| self.pipeline.cluster.observe(worker, seen);
        if attempt.prefill_worker.is_none() {
            let time = relay.decode_phases.get(Phase::Prefill);
            observe(Observation::Prompt { cost: attempt.work.prompt_cost(cached), time });
        }
        if let Some((first, last)) = relay.came.filter(|_| relay.n_sent >= N_GAPS_MIN) {
            observe(Observation::Step { time: (last - first) / (relay.n_sent as u32 - 1) });
        }
    }

    /// Nothing came in time. While prefill has not spoken it is the one to doubt.
    fn late(&self, attempt: &Attempt) -> Step {
        let prefill = attempt.first.as_ref().and(attempt.prefill_worker.as_ref());
        let worker = prefill.unwrap_or(&attempt.decode_worker).info.worker.clone();
        Step::Lost(worker, stalled("no token came in time"))
    }
}

/// Prefill's word; a task that ended without one was lost.
async fn word(first: &mut Option<oneshot::Receiver<Result<First, NoFirst>>>) -> Result<First, NoFirst> {
    match first {
        Some(receiver) => receiver.await.unwrap_or_else(|_| Err(NoFirst::Lost(Failure::cancelled()))),
        None => std::future::pending().await,
    }
}
