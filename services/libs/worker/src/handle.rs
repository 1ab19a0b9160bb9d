//! The handle: cheap to clone, talks to the driver by commands.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::{Engine, ModelInfo};
use kernels::kv::KvArena;
use kvcache::hash::{Chain, PrefixKey, PrefixScope, Secret};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::{Accounting, Failure, KvEvent, Load, RequestId, TokenId};

use crate::command::{Command, Reply, ReserveAsk};
use crate::driver::Driver;
use crate::events::{Feed, KvFollower};
use crate::metrics::Metrics;
use crate::{ConfigError, DecodeJob, DecodeRun, Landing, PrefillJob, PrefillRun, Reserved, SeqKey, WorkerConfig, fail};

/// Commands on their way to the driver, which never waits for anything while it has some.
const COMMANDS_MAX: usize = 1024;

/// Talks to one worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) model: Arc<ModelInfo>,
    pub(crate) arena: Arc<KvArena>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) load: watch::Receiver<Load>,
    pub(crate) health: watch::Receiver<Health>,
    pub(crate) metrics: Metrics,
    /// Goes into the names of blocks.
    pub(crate) secret: Secret,
    pub(crate) events: Feed,
    /// Set when the driver ends.
    pub(crate) last: Arc<OnceLock<Accounting>>,
}

/// Whether a worker can be given work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Health {
    /// It can.
    Ready,
    /// It finishes what it has.
    Draining,
    /// The running step takes longer than it should.
    Stalled,
    /// The engine crashed; nothing is computed any more.
    Poisoned,
    /// The driver has ended.
    Stopped,
}

/// Starts a worker: the driver's task (returned, ends after `shutdown` is cancelled or when every
/// handle is gone and nothing is left to do) and the engine's thread.
///
/// Must be called inside a tokio runtime.
///
/// # Errors
/// A limit that cannot be, or the thread cannot be started.
pub fn spawn(
    engine: Box<dyn Engine>,
    config: WorkerConfig,
    shutdown: CancellationToken,
) -> Result<(WorkerHandle, JoinHandle<()>), ConfigError> {
    let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
    let (driver, shared) = Driver::new(engine, config, commands, inbox)?;
    let task = tokio::spawn(driver.run(shutdown));
    Ok((WorkerHandle { shared: Arc::new(shared) }, task))
}

impl WorkerHandle {
    /// The model that is served.
    pub fn model(&self) -> &Arc<ModelInfo> {
        &self.shared.model
    }

    /// The KV cache's memory.
    pub fn arena(&self) -> &Arc<KvArena> {
        &self.shared.arena
    }

    /// Tokens that one sequence can have here, prompt and answer: the model's context, or what the
    /// whole pool holds if that is less.
    pub fn max_sequence(&self) -> usize {
        let arena = &self.shared.arena;
        self.shared.model.max_context.min(arena.n_blocks().saturating_mul(arena.block_tokens()))
    }

    /// Keeps room for a sequence of `n_prompt` tokens and at most `max_new` new ones for the time
    /// `hold`, at most an hour. It expires by itself.
    ///
    /// # Errors
    /// `ResourceExhausted` (retry is safe) when there is no room now; `InvalidArgument` when there never will be.
    pub async fn reserve(
        &self,
        key: SeqKey,
        n_prompt: usize,
        max_new: usize,
        hold: Duration,
    ) -> Result<Reserved, Failure> {
        let ask = ReserveAsk { key, n_prompt, max_new, hold };
        self.call(|reply| Command::Reserve { ask, reply }).await
    }

    /// Names of the full blocks of a tenant's prompt that may get `max_new` tokens: equal names are equal KV that the
    /// tenant may see. All workers of a cluster that serve the same model give the same.
    pub fn names(&self, tenant: &str, prompt: &[TokenId], max_new: u32) -> Chain {
        let Shared { model, arena, secret, .. } = &*self.shared;
        let rope_state = model.rope_state(model.max_tokens(prompt.len(), max_new));
        let scope = PrefixScope { secret: &secret.0, tenant, adapter: "", model: &model.compatibility };
        Chain::new(PrefixKey::derive(&scope).of_rope_state(rope_state), prompt, arena.block_tokens())
    }

    /// Turns a reservation into blocks for the prompt; those that are here under one of `names` are shared.
    ///
    /// # Errors
    /// `NotFound` if it expired, was claimed before, or is another sequence's.
    pub async fn claim(&self, id: [u8; 16], key: SeqKey, names: Option<&Chain>) -> Result<Landing, Failure> {
        let hashes = names.map_or_else(Vec::new, |names| names.hashes().to_vec());
        self.call(|reply| Command::Claim { id, key, hashes, reply }).await
    }

    /// Queues a prompt.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the field; `ResourceExhausted` when the queue is full; `Unavailable`.
    pub async fn prefill(&self, job: PrefillJob) -> Result<PrefillRun, Failure> {
        job.check(self.model())?;
        self.call(|reply| Command::Prefill { job, reply }).await
    }

    /// Continues a sequence.
    ///
    /// # Errors
    /// `InvalidArgument`, naming the field; `DataLoss` if the KV in the landing's blocks or the handoff
    /// record is not this prompt's; `Cancelled`; `Unavailable`.
    pub async fn decode(&self, job: DecodeJob) -> Result<DecodeRun, Failure> {
        job.check(self.model())?;
        let job = Box::new(job);
        self.call(|reply| Command::Decode { job, reply }).await
    }

    /// Ends one choice of a request, or all of them, at whatever stage. False: nothing by that name is
    /// here. Holds and landings stay until dropped; landings are told.
    pub async fn cancel(&self, request: RequestId, choice: Option<u32>) -> bool {
        self.ask(|reply| Command::Cancel { request, choice, reply }).await.unwrap_or(false)
    }

    /// The load, whenever it changed.
    pub fn load(&self) -> watch::Receiver<Load> {
        self.shared.load.clone()
    }

    /// Follows the prefix cache: from the batch after the one with id `after`, if it is still kept; else, and from 0,
    /// all that is cached comes first (the first batch clears, and only the last of them has an id).
    ///
    /// # Errors
    /// `ResourceExhausted` if too many follow.
    pub fn kv_events(&self, after: u64) -> Result<KvFollower, Failure> {
        KvFollower::new(self.clone(), self.shared.events.clone(), after)
    }

    /// The prefix cache now, and the id of the batch of events that led there.
    pub(crate) async fn snapshot(&self) -> Result<(u64, Vec<KvEvent>), Failure> {
        self.ask(|reply| Command::Snapshot { reply }).await.ok_or_else(fail::stopped)
    }

    /// The health, whenever it changed.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.clone()
    }

    /// Whether new work is taken.
    pub fn ready(&self) -> bool {
        *self.shared.health.borrow() == Health::Ready
    }

    /// Where every block is now; of a stopped worker, where they were at the end.
    pub async fn accounting(&self) -> Accounting {
        match self.ask(|reply| Command::Accounting { reply }).await {
            Some(accounting) => accounting,
            None => self.shared.last.get().copied().unwrap_or_default(),
        }
    }

    /// Refuses new work from now on (reservations made before are honoured) and waits until nothing is
    /// left: no sequence, no reservation, no landing, no hold.
    pub async fn drain(&self) {
        // No answer: the driver has ended, so nothing is left.
        self.ask(|reply| Command::Drain { reply }).await;
    }

    /// Adds the metrics of worker, scheduler and KV cache.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.shared.metrics.register(registry);
    }

    async fn call<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Failure> {
        self.ask(command).await.unwrap_or_else(|| Err(fail::stopped()))
    }

    /// `None` if the driver has ended.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.shared.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}
