//! What the router asks of a decode worker.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use node::{Gate, kv_events, load_reports};
use rpc::worker::{DecodeCall, DecodeEvent, PrefillCall, PrefillEvent, Reserve, Reserved, WorkerApi};
use rpc::{EventStream, RequestContext, reason};
use transfer::Puller;
use types::{Accounting, Code, Failure, KvEventBatch, Load, WorkerRef};
use worker::{SeqKey, WorkerHandle};

use crate::config::PullConfig;
use crate::sequence::{Sequence, Tools};

/// Generates sequences.
pub(crate) struct DecodeService {
    gate: Arc<Gate>,
    tools: Arc<Tools>,
}

impl DecodeService {
    pub(crate) fn new(worker: WorkerHandle, gate: Arc<Gate>, puller: Puller, pull: PullConfig) -> Self {
        Self { gate, tools: Arc::new(Tools { worker, puller, pull }) }
    }

    fn worker(&self) -> &WorkerHandle {
        &self.tools.worker
    }
}

#[async_trait]
impl WorkerApi for DecodeService {
    async fn reserve(&self, context: RequestContext, call: Reserve) -> Result<Reserved, Failure> {
        self.gate.check(&context)?;
        self.gate.check_open()?;
        let key = SeqKey { request: context.request, choice: context.choice };
        let (n_prompt, max_new) = (call.n_prompt as usize, call.max_new as usize);
        let reserved = self.worker().reserve(key, n_prompt, max_new, call.hold).await?;
        Ok(Reserved { id: reserved.id, n_blocks: reserved.n_blocks, worker: context.worker })
    }

    async fn run_prefill(&self, _: RequestContext, _: PrefillCall) -> Result<EventStream<PrefillEvent>, Failure> {
        let message = "this worker computes prompts only for what it generates itself";
        Err(Failure::new(Code::Unimplemented, "NOT_A_PREFILL_WORKER", message))
    }

    /// Reservations made before draining began are honoured.
    async fn run_decode(&self, context: RequestContext, call: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        let admitted = self.gate.admit(&context)?;
        if let Some(source) = &call.source {
            let ours = &self.worker().model().compatibility;
            if let Some(first) = ours.mismatches(&source.compatibility).first() {
                let message =
                    format!("{}: {:?} here, {:?} at {}", first.field, first.ours, first.theirs, source.prefill);
                let failure = Failure::new(Code::FailedPrecondition, reason::INCOMPATIBLE, message);
                return Err(Failure { param: Some(first.field.to_owned()), ..failure });
            }
        }
        let key = SeqKey { request: context.request, choice: context.choice };
        let names = self.worker().names(&call.tenant, &call.prompt, call.stop.max_tokens);
        let landing = self.worker().claim(call.reservation, key, Some(&names)).await?;
        if landing.n_prompt() != call.prompt.len() {
            let message = format!("reserved for {} tokens, called with {}", landing.n_prompt(), call.prompt.len());
            return Err(Failure::invalid("prompt", message));
        }
        Ok(Sequence::new(self.tools.clone(), context, call, names, landing).events(admitted))
    }

    async fn cancel(&self, context: RequestContext, all_choices: bool) -> Result<bool, Failure> {
        let n_streams = self.gate.cancel(&context, all_choices).await?;
        // What has no stream: still reserved, or just let go of by one.
        let choice = (!all_choices).then_some(context.choice);
        Ok(self.worker().cancel(context.request, choice).await || n_streams > 0)
    }

    async fn drain(&self, worker: WorkerRef) -> Result<u32, Failure> {
        self.gate.check_worker(&worker)?;
        self.gate.drain();
        Ok(self.worker().load().borrow().n_running)
    }

    async fn load_report(
        &self,
        worker: WorkerRef,
        min_interval: Duration,
    ) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        self.gate.check_worker(&worker)?;
        Ok(load_reports(&self.gate, self.worker().load(), min_interval))
    }

    async fn kv_events(&self, worker: WorkerRef, after: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        self.gate.check_worker(&worker)?;
        kv_events(&self.gate, self.worker(), after)
    }

    async fn accounting(&self) -> Result<Accounting, Failure> {
        Ok(node::accounting(self.worker(), &self.gate).await)
    }
}
