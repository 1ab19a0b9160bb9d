//! The events of a request: its choices' deltas as they come, then one end, or one failure.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use rpc::inference::{ChoiceDelta, InferenceEvent, StreamEnd, Timeline, Usage};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{Failure, Phase, PhaseTimes};

use super::OutcomeGuard;
use crate::metrics::Outcome;

/// What a choice's task says.
pub(super) enum ChoiceEvent {
    Delta {
        delta: ChoiceDelta,
        /// When its token came to the router.
        arrived: Instant,
    },
    Done(Summary),
    Failed(Failure),
}

/// How a choice went.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    pub(super) index: u32,
    pub(super) n_tokens: u32,
    pub(super) timeline: Timeline,
    pub(super) cached: u32,
}

/// What [`Events`] is made from.
pub(super) struct Parts {
    pub(super) n_choices: u32,
    pub(super) n_prompt: usize,
    pub(super) router_phases: PhaseTimes,
    pub(super) cancel: CancellationToken,
    pub(super) ended: OutcomeGuard,
}

/// Events of one request. Nothing follows the end or a failure; dropping it cancels the request.
pub(crate) struct Events {
    receiver: mpsc::Receiver<ChoiceEvent>,
    n_open: u32,
    usage: Usage,
    timeline: Timeline,
    router_phases: PhaseTimes,
    flushed: bool,
    over: bool,
    ended: OutcomeGuard,
    _cancel: DropGuard,
}

impl Events {
    pub(super) fn new(receiver: mpsc::Receiver<ChoiceEvent>, parts: Parts) -> Self {
        let prompt_tokens = u32::try_from(parts.n_prompt).unwrap_or(u32::MAX);
        Self {
            receiver,
            n_open: parts.n_choices,
            usage: Usage { prompt_tokens, ..Usage::default() },
            timeline: Timeline::default(),
            router_phases: parts.router_phases,
            flushed: false,
            over: false,
            ended: parts.ended,
            _cancel: parts.cancel.drop_guard(),
        }
    }

    /// Takes a choice's summary; returns the end after the last one.
    fn done(&mut self, summary: Summary) -> Option<StreamEnd> {
        self.usage.completion_tokens += summary.n_tokens;
        self.usage.cached_tokens = self.usage.cached_tokens.max(summary.cached);
        // One answer that is only equivalent makes all of them so.
        let continuity = self.timeline.continuity.max(summary.timeline.continuity);
        if summary.index == 0 {
            self.timeline = summary.timeline;
        }
        self.timeline.continuity = continuity;
        self.n_open -= 1;
        if self.n_open > 0 {
            return None;
        }
        self.timeline.phases.merge(&self.router_phases);
        self.ended.metrics.phases(&self.timeline.phases);
        self.ended.set(Outcome::Ok);
        Some(StreamEnd { usage: self.usage, timeline: std::mem::take(&mut self.timeline) })
    }
}

impl Stream for Events {
    type Item = Result<InferenceEvent, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.over {
            let failure = match ready!(this.receiver.poll_recv(cx)) {
                Some(ChoiceEvent::Delta { delta, arrived }) => {
                    if !std::mem::replace(&mut this.flushed, true) {
                        this.router_phases.add(Phase::Flush, arrived.elapsed());
                    }
                    return Poll::Ready(Some(Ok(InferenceEvent::Delta(delta))));
                }
                Some(ChoiceEvent::Done(summary)) => match this.done(summary) {
                    Some(end) => {
                        this.over = true;
                        return Poll::Ready(Some(Ok(InferenceEvent::End(end))));
                    }
                    None => continue,
                },
                Some(ChoiceEvent::Failed(failure)) => failure,
                None => Failure::internal("a task that served the request died"),
            };
            this.over = true;
            this.ended.set(Outcome::of(&failure));
            return Poll::Ready(Some(Err(failure)));
        }
        Poll::Ready(None)
    }
}
