//! A job: who waits for a sequence's tokens, and how long things took.

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use types::{Failure, Phase, PhaseTimes, Token};

use crate::metrics::Metrics;
use crate::run::DecodeItem;
use crate::sequence::Sequence;
use crate::{SeqKey, Started};

pub(super) struct Job {
    pub(super) key: SeqKey,
    /// Away while the engine computes with it.
    pub(super) sequence: Option<Box<Sequence>>,
    pub(super) answer: Answer,
    pub(super) clock: PhaseClock,
    /// Tokens of the prompt that were not computed.
    pub(super) n_cached: u32,
}

/// The caller's channels. A caller that has gone hears nothing; its guard ends the sequence.
pub(super) enum Answer {
    Prefill {
        started: Option<oneshot::Sender<Result<Started, Failure>>>,
        first: oneshot::Sender<Result<(Token, PhaseTimes), Failure>>,
    },
    Decode {
        items: mpsc::Sender<DecodeItem>,
    },
}

/// Measures the phases that a worker knows of.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhaseClock {
    /// Began with a handoff, so the first token here is the sequence's second.
    handed_off: bool,
    /// End of the last phase.
    mark: Instant,
    n_tokens: u64,
    pub(super) phases: PhaseTimes,
}

impl Job {
    /// Gives a token out; consumes the job if it is the last one.
    pub(super) fn give(mut self, token: Token, metrics: &Metrics) -> Option<Self> {
        self.clock.token(metrics);
        let phases = self.clock.phases;
        match self.answer {
            Answer::Prefill { first, .. } => {
                let _ = first.send(Ok((token, phases)));
                None
            }
            Answer::Decode { ref items } => {
                let last = token.finish.is_some();
                // Never full: it has room for all tokens.
                let _ = items.try_send(DecodeItem { token: Ok(token), phases, n_cached: self.n_cached });
                (!last).then_some(self)
            }
        }
    }

    pub(super) fn fail(self, failure: Failure) {
        match self.answer {
            Answer::Prefill { started, first } => {
                if let Some(started) = started {
                    let _ = started.send(Err(failure.clone()));
                }
                let _ = first.send(Err(failure));
            }
            Answer::Decode { items } => {
                let _ = items.try_send(DecodeItem {
                    token: Err(failure),
                    phases: self.clock.phases,
                    n_cached: self.n_cached,
                });
            }
        }
    }
}

impl PhaseClock {
    pub(super) fn start(handed_off: bool) -> Self {
        Self { handed_off, mark: Instant::now(), n_tokens: 0, phases: PhaseTimes::default() }
    }

    /// Whether it began with a handoff.
    pub(super) fn handed_off(&self) -> bool {
        self.handed_off
    }

    /// The first step begins.
    pub(super) fn step(&mut self, metrics: &Metrics) {
        self.end(if self.handed_off { Phase::DecodeQueue } else { Phase::PrefillQueue }, metrics);
    }

    /// A token is there.
    fn token(&mut self, metrics: &Metrics) {
        match (self.handed_off, self.n_tokens) {
            (false, 0) => self.end(Phase::Prefill, metrics),
            (true, 0) | (false, 1) => self.end(Phase::FirstStep, metrics),
            _ => {}
        }
        self.n_tokens += 1;
    }

    fn end(&mut self, phase: Phase, metrics: &Metrics) {
        let now = Instant::now();
        let time = now - self.mark;
        self.phases.add(phase, time);
        metrics.phase(phase, time);
        self.mark = now;
    }
}
