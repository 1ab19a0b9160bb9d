//! What the router asks of a prefill worker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use node::{Admitted, Gate, kv_events, load_reports};
use rpc::worker::{DecodeCall, DecodeEvent, HoldCause, PrefillCall, PrefillEvent, Reserve, Reserved, WorkerApi};
use rpc::{EventStream, RequestContext};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;
use transfer::{EndCause, KvHold, Offer, OfferHandle, Source};
use types::{Accounting, BlockIdx, Code, Failure, Handoff, KvEventBatch, Load, Phase, PhaseTimes, Token, WorkerRef};
use worker::{Hold, PrefillJob, PrefillRun, SeqKey, WorkerHandle};

/// Blocks are held no longer for a reader that does not come, whatever was asked for.
const HOLD_MAX: Duration = Duration::from_secs(600);

/// Computes prompts and offers their KV.
pub(crate) struct PrefillService {
    worker: WorkerHandle,
    gate: Arc<Gate>,
    source: Arc<Source>,
}

impl PrefillService {
    pub(crate) fn new(worker: WorkerHandle, gate: Arc<Gate>, source: Arc<Source>) -> Self {
        Self { worker, gate, source }
    }
}

#[async_trait]
impl WorkerApi for PrefillService {
    async fn reserve(&self, _: RequestContext, _: Reserve) -> Result<Reserved, Failure> {
        Err(not_decode())
    }

    async fn run_prefill(
        &self,
        context: RequestContext,
        call: PrefillCall,
    ) -> Result<EventStream<PrefillEvent>, Failure> {
        self.gate.check_open()?;
        let admitted = self.gate.admit(&context)?;
        let names = self.worker.names(&call.tenant, &call.prompt, call.stop.max_tokens);
        let hashes = names.with_tail(&call.prompt);
        let run = self
            .worker
            .prefill(PrefillJob {
                key: SeqKey { request: context.request, choice: context.choice },
                prompt: call.prompt.clone(),
                sampling: call.sampling.clone(),
                stop: call.stop.clone(),
                names: Some(names),
                deadline: Instant::now() + context.deadline,
            })
            .await?;
        let prefill = Prefill { hashes, context, call, source: self.source.clone(), run };
        Ok(prefill.events(admitted))
    }

    async fn run_decode(&self, _: RequestContext, _: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        Err(not_decode())
    }

    async fn cancel(&self, context: RequestContext, all_choices: bool) -> Result<bool, Failure> {
        let n_streams = self.gate.cancel(&context, all_choices).await?;
        // What has no stream: still reserved, or just let go of by one.
        let choice = (!all_choices).then_some(context.choice);
        Ok(self.worker.cancel(context.request, choice).await || n_streams > 0)
    }

    async fn drain(&self, worker: WorkerRef) -> Result<u32, Failure> {
        self.gate.check_worker(&worker)?;
        self.gate.drain();
        Ok(self.worker.load().borrow().n_running)
    }

    async fn load_report(
        &self,
        worker: WorkerRef,
        min_interval: Duration,
    ) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        self.gate.check_worker(&worker)?;
        Ok(load_reports(&self.gate, self.worker.load(), min_interval))
    }

    async fn kv_events(&self, worker: WorkerRef, after: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        self.gate.check_worker(&worker)?;
        kv_events(&self.gate, &self.worker, after)
    }

    async fn accounting(&self) -> Result<Accounting, Failure> {
        Ok(node::accounting(&self.worker, &self.gate).await)
    }
}

/// One prompt, from queue to the end of its hold.
struct Prefill {
    context: RequestContext,
    call: PrefillCall,
    hashes: Vec<types::BlockHash>,
    source: Arc<Source>,
    run: PrefillRun,
}

impl Prefill {
    /// Dropping the stream cancels job and offer: it owns both.
    fn events(mut self, admitted: Admitted) -> EventStream<PrefillEvent> {
        let RequestContext { request, choice, .. } = self.context;
        let span = tracing::info_span!("prefill", %request, choice, n_tokens = self.call.prompt.len());
        async_stream::try_stream! {
            let started = admitted.unless_cancelled(self.start()).instrument(span.clone()).await;
            if let Err(failure) = &started {
                self.refuse(failure);
            }
            let (offer, phases, cached) = started?;
            yield PrefillEvent::Started { phases };

            let first = admitted.unless_cancelled(self.run.first_token()).instrument(span.clone()).await;
            if let Err(failure) = &first {
                offer.fail(failure.clone());
            }
            let (token, phases) = first?;
            if token.finish.is_some() {
                let failure = Failure::new(Code::Aborted, rpc::reason::CHOICE_FINISHED, "the first token was the last");
                offer.fail(failure);
                drop(offer);
                yield PrefillEvent::Finished { token, cached, phases };
                yield PrefillEvent::HoldEnded { cause: HoldCause::Fetched, bytes: 0 };
            } else {
                offer.finish(self.handoff(&token));
                yield PrefillEvent::Finished { token, cached, phases };
                let ended = admitted.unless_cancelled(async { Ok(offer.ended().await) }).await?;
                let cause = match ended.cause {
                    EndCause::Fetched => HoldCause::Fetched,
                    EndCause::Abandoned | EndCause::Fenced => HoldCause::Cancelled,
                    EndCause::Expired => HoldCause::Expired,
                };
                tracing::debug!(parent: &span, ?cause, bytes = ended.bytes, "hold ended");
                yield PrefillEvent::HoldEnded { cause, bytes: ended.bytes };
            }
            drop(admitted);
        }
        .boxed()
    }

    /// Waits for the first step, and offers what is there and what it will compute. Also gives the tokens that are there.
    async fn start(&mut self) -> Result<(OfferHandle, PhaseTimes, u32), Failure> {
        let started = self.run.started().await?;
        let offer = Offer {
            request: self.context.request,
            choice: self.context.choice,
            worker: self.context.worker.clone(),
            owner_epoch: self.context.owner_epoch,
            reader: self.call.reader.clone(),
            n_tokens: self.call.prompt.len(),
            hashes: std::mem::take(&mut self.hashes),
            hold: Box::new(PromptHold(started.hold)),
            hold_for: self.call.hold.min(HOLD_MAX),
        };
        let mut phases = PhaseTimes::default();
        phases.add(Phase::PrefillQueue, started.queue_time);
        Ok((self.source.offer(offer)?, phases, started.n_cached))
    }

    /// The reader may be waiting for the offer already.
    fn refuse(&self, failure: &Failure) {
        let context = &self.context;
        self.source.refuse(context.request, context.choice, context.owner_epoch, failure.clone());
    }

    fn handoff(&self, first: &Token) -> Handoff {
        Handoff {
            generated: vec![first.id],
            first: first.clone(),
            // A prompt is bounded far below.
            position: self.call.prompt.len() as u32,
            choice: self.context.choice,
            seed: self.call.sampling.seed,
            hidden_state: Vec::new(),
        }
    }
}

/// The worker's hold, as `transfer` sees it.
struct PromptHold(Hold);

impl KvHold for PromptHold {
    fn blocks(&self) -> &[BlockIdx] {
        self.0.blocks()
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.0.progress()
    }
}

fn not_decode() -> Failure {
    Failure::new(Code::Unimplemented, "NOT_A_DECODE_WORKER", "this worker computes prompts only")
}
