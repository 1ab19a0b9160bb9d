//! One sequence: take its KV over or compute it, then generate to the end.

use std::sync::Arc;

use futures::StreamExt as _;
use kvcache::hash::Chain;
use node::Admitted;
use rpc::worker::{DecodeCall, DecodeEvent, PullFrom};
use rpc::{EventStream, RequestContext, reason};
use tokio::time::Instant;
use tracing::Instrument as _;
use transfer::{Checksum, Pull, PullError, Pulled, Puller};
use types::{Code, Failure, Fault, Phase, PhaseTimes};
use worker::{DecodeJob, DecodeRun, DecodeStart, Landing, SeqKey, WorkerHandle};

use crate::config::PullConfig;

/// What sequences are made with.
pub(crate) struct Tools {
    pub(crate) worker: WorkerHandle,
    pub(crate) puller: Puller,
    pub(crate) pull: PullConfig,
}

/// A sequence whose room was claimed.
pub(crate) struct Sequence {
    tools: Arc<Tools>,
    context: RequestContext,
    call: DecodeCall,
    /// Of the prompt's blocks; prefill workers give them the same.
    names: Chain,
    landing: Landing,
    deadline: Instant,
}

/// What came of trying to take the prompt's KV over.
enum TakenOver {
    /// It is in the landing.
    Here(Box<Pulled>),
    /// The pull failed; the prompt is to be computed here.
    Not,
    /// Prefill's first token was the choice's last.
    Finished,
}

impl Sequence {
    pub(crate) fn new(
        tools: Arc<Tools>,
        context: RequestContext,
        call: DecodeCall,
        names: Chain,
        landing: Landing,
    ) -> Self {
        let deadline = Instant::now() + context.deadline;
        Self { tools, context, call, names, landing, deadline }
    }

    /// Dropping the stream cancels: it owns pull, blocks and run, and lets go of them in that order.
    pub(crate) fn events(mut self, admitted: Admitted) -> EventStream<DecodeEvent> {
        let RequestContext { request, choice, .. } = self.context;
        let span = tracing::info_span!("decode", %request, choice, n_tokens = self.call.prompt.len());
        async_stream::try_stream! {
            let n_generated = self.call.generated.len();
            // A sequence that was resumed is computed here: prefill's offer ends after its prompt.
            let source = if n_generated == 0 { self.call.source.take() } else { None };
            let mut n_tokens = n_generated;
            let mut phases = PhaseTimes::default();
            let mut handoff = None;
            let mut shared = true;
            if let Some(source) = source {
                let foreign = source.compatibility.numerics != self.tools.worker.model().compatibility.numerics;
                let handing_over = tracing::info_span!(parent: &span, "handoff", peer = %source.prefill);
                let taken = admitted.unless_cancelled(self.take_over(source)).instrument(handing_over).await?;
                if let TakenOver::Finished = taken {
                    yield DecodeEvent::Finished { n_tokens: 1, cached: 0, phases };
                    return;
                }
                let n_blocks = self.n_blocks();
                match taken {
                    TakenOver::Here(pulled) => {
                        let Pulled { handoff: record, bytes, transport, closing, .. } = *pulled;
                        phases.add(Phase::Handoff, closing);
                        n_tokens = 1;
                        handoff = Some(record);
                        // What nobody checked, or what this worker would have computed otherwise, serves this sequence
                        // alone.
                        shared = self.tools.pull.checksum == Checksum::On && !foreign;
                        let transport = transport.as_str().to_owned();
                        yield DecodeEvent::Handoff { bytes, n_blocks, transport, recomputed: false, phases };
                    }
                    TakenOver::Not | TakenOver::Finished => {
                        let transport = String::new();
                        yield DecodeEvent::Handoff { bytes: 0, n_blocks, transport, recomputed: true, phases };
                    }
                }
            }
            let mut run = admitted.unless_cancelled(self.decode(handoff, shared)).instrument(span.clone()).await?;
            loop {
                let next = admitted.unless_cancelled(async { run.next().await.transpose() }).await?;
                let Some(token) = next else { break };
                n_tokens = token.position as usize + 1;
                yield DecodeEvent::Token(token);
            }
            phases.merge(&run.phases());
            tracing::debug!(parent: &span, n_tokens, "finished");
            let n_tokens = u32::try_from(n_tokens).unwrap_or(u32::MAX);
            yield DecodeEvent::Finished { n_tokens, cached: run.n_cached(), phases };
            drop(admitted);
        }
        .boxed()
    }

    /// Pulls the prompt's KV into the landing while prefill computes it.
    async fn take_over(&self, source: PullFrom) -> Result<TakenOver, Failure> {
        let (tools, context) = (&self.tools, &self.context);
        let model = tools.worker.model();
        let pull = Pull {
            address: source.address,
            endpoints: source.endpoints,
            peer: source.prefill,
            reader: context.worker.clone(),
            request: context.request,
            choice: context.choice,
            owner_epoch: context.owner_epoch,
            trace: context.trace.clone(),
            compatibility: model.compatibility.clone(),
            checksum: tools.pull.checksum,
            blocks: self.landing.blocks().to_vec(),
            n_tokens: self.call.prompt.len(),
            hashes: self.names.with_tail(&self.call.prompt),
            n_blocks_here: self.landing.n_cached(),
            arena: tools.worker.arena().clone(),
            deadline: self.deadline,
            progress_timeout: tools.pull.progress_timeout,
            keep_alive: transfer::KEEP_ALIVE,
        };
        let pulled = tokio::select! {
            pulled = tools.puller.pull(&pull) => pulled,
            () = self.landing.cancelled() => return Err(Failure::cancelled()),
        };
        match pulled {
            Ok(pulled) if pulled.handoff.first.finish.is_some() => Ok(TakenOver::Finished),
            Ok(pulled) if pulled.handoff.seed == self.call.sampling.seed => Ok(TakenOver::Here(Box::new(pulled))),
            Ok(_) => {
                let message = "prefill sampled with another seed";
                Err(Failure::new(Code::DataLoss, "HANDOFF_MISMATCH", message).with_fault(Fault::Peer))
            }
            Err(PullError::Refused(failure)) if failure.reason == reason::CHOICE_FINISHED => Ok(TakenOver::Finished),
            Err(error @ PullError::Deadline) => Err(error.into()),
            Err(error) => {
                tracing::warn!(request = %context.request, peer = %pull.peer, %error, "handoff failed, computing here");
                tools.puller.metrics().count_downgrade(error.label());
                Ok(TakenOver::Not)
            }
        }
    }

    /// `shared`: its blocks may serve other sequences too.
    async fn decode(self, handoff: Option<types::Handoff>, shared: bool) -> Result<DecodeRun, Failure> {
        let Self { tools, context, call, names, landing, deadline } = self;
        let start = match handoff {
            Some(handoff) => DecodeStart::Handoff { landing, handoff },
            None => DecodeStart::Recompute { landing, generated: call.generated },
        };
        let job = DecodeJob {
            key: SeqKey { request: context.request, choice: context.choice },
            prompt: call.prompt,
            sampling: call.sampling,
            stop: call.stop,
            names: shared.then_some(names),
            deadline,
            start,
        };
        tools.worker.decode(job).await
    }

    fn n_blocks(&self) -> u32 {
        u32::try_from(self.call.prompt.len().div_ceil(self.tools.worker.arena().block_tokens())).unwrap_or(u32::MAX)
    }
}
