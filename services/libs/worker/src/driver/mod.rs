//! The driver: one task, one owner of all state, one loop.

mod commands;
mod job;
mod step;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use engine::{Engine, ModelInfo};
use kernels::kv::KvArena;
use scheduler::{LandingId, ReservationId, Scheduler, SeqId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use types::{Accounting, Failure, KvEvent, Load};

use crate::command::Command;
use crate::engine_thread::EngineThread;
use crate::events::Events;
use crate::guard::Release;
use crate::handle::{Health, Shared};
use crate::metrics::Metrics;
use crate::{ConfigError, SeqKey, WorkerConfig, fail};
use job::Job;

pub(crate) struct Driver {
    config: WorkerConfig,
    model: Arc<ModelInfo>,
    arena: Arc<KvArena>,
    scheduler: Scheduler,
    /// The scheduler's time is counted from here.
    start: Instant,
    engine: EngineThread,
    /// The step that the engine computes.
    running: Option<RunningStep>,
    /// Everything whose caller waits for tokens. A sequence cancelled during its step leaves this map at
    /// once and the scheduler when the step ends.
    jobs: BTreeMap<SeqId, Job>,
    reservations: BTreeMap<[u8; 16], (ReservationId, SeqKey)>,
    landings: BTreeMap<LandingId, (SeqKey, CancellationToken)>,
    commands: mpsc::Receiver<Command>,
    releases: mpsc::UnboundedReceiver<Release>,
    /// Given to guards.
    release: mpsc::UnboundedSender<Release>,
    draining: bool,
    poisoned: bool,
    /// Answered when nothing is left.
    drains: Vec<oneshot::Sender<()>>,
    load: watch::Sender<Load>,
    health: watch::Sender<Health>,
    metrics: Metrics,
    events: Events,
    last: Arc<OnceLock<Accounting>>,
}

struct RunningStep {
    /// Set when nobody wants the step any more.
    abort: Arc<AtomicBool>,
    started: Instant,
    /// Longer than it should take.
    stalled: bool,
}

impl Driver {
    pub(crate) fn new(
        engine: Box<dyn Engine>,
        config: WorkerConfig,
        inbox: mpsc::Sender<Command>,
        commands: mpsc::Receiver<Command>,
    ) -> Result<(Self, Shared), ConfigError> {
        let (model, arena) = (engine.model().clone(), engine.arena().clone());
        let block_tokens = u32::try_from(arena.block_tokens()).ok().and_then(NonZeroU32::new);
        let n_blocks = u32::try_from(arena.n_blocks()).ok().filter(|&n| n > 0);
        let (n_blocks, block_tokens) = n_blocks.zip(block_tokens).ok_or(ConfigError::NoBlocks)?;
        let scheduler = Scheduler::new(config.scheduler(), n_blocks, block_tokens)?;
        let engine = EngineThread::start(engine).map_err(|error| ConfigError::Thread(error.to_string()))?;
        let (release, releases) = mpsc::unbounded_channel();
        let (load, load_seen) = watch::channel(Load::default());
        let (health, health_seen) = watch::channel(Health::Ready);
        let (metrics, last) = (Metrics::default(), Arc::new(OnceLock::new()));
        let (events, feed) = Events::new();
        metrics.info(&model);
        let shared = Shared {
            model: model.clone(),
            arena: arena.clone(),
            commands: inbox,
            load: load_seen,
            health: health_seen,
            metrics: metrics.clone(),
            secret: config.prefix_secret.clone(),
            events: feed,
            last: last.clone(),
        };
        let mut driver = Self {
            config,
            model,
            arena,
            scheduler,
            start: Instant::now(),
            engine,
            running: None,
            jobs: BTreeMap::new(),
            reservations: BTreeMap::new(),
            landings: BTreeMap::new(),
            commands,
            releases,
            release,
            draining: false,
            poisoned: false,
            drains: Vec::new(),
            load,
            health,
            metrics,
            events,
            last,
        };
        driver.publish();
        Ok((driver, shared))
    }

    /// Until shutdown, or until every handle is gone and nothing is left.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let mut handles = true;
        loop {
            self.expire();
            if self.running.is_none() {
                self.start_step();
            }
            self.publish();
            if self.draining && self.scheduler.is_empty() {
                for reply in self.drains.drain(..) {
                    let _ = reply.send(());
                }
            }
            if !handles && self.scheduler.is_empty() {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(release) = self.releases.recv() => self.released(release),
                report = self.engine.reports.recv(), if self.running.is_some() => self.finish_step(report),
                command = self.commands.recv(), if handles => match command {
                    Some(command) => self.command(command),
                    None => handles = false,
                },
                () = sleep_until(wake.unwrap_or(self.start)), if wake.is_some() => self.check_stall(),
            }
        }
        self.stop().await;
    }

    /// Time of the scheduler.
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn next_wake(&self) -> Option<Instant> {
        let deadline = self.scheduler.next_deadline().map(|deadline| self.start + deadline);
        let running = self.running.as_ref().filter(|step| !step.stalled);
        let stall = running.map(|step| step.started + self.config.stall_after);
        deadline.into_iter().chain(stall).min()
    }

    fn check_stall(&mut self) {
        let stall_after = self.config.stall_after;
        if let Some(step) = self.running.as_mut().filter(|step| !step.stalled && step.started.elapsed() >= stall_after)
        {
            step.stalled = true;
            tracing::error!(elapsed = ?step.started.elapsed(), "the engine's step does not end");
        }
    }

    fn expire(&mut self) {
        if self.scheduler.next_deadline().is_none_or(|deadline| deadline > self.now()) {
            return;
        }
        let expired = self.scheduler.expire(self.now());
        for seq in expired.sequences {
            self.end(seq, fail::deadline());
        }
        self.reservations.retain(|_, (id, _)| !expired.reservations.contains(id));
    }

    fn released(&mut self, release: Release) {
        match release {
            Release::Sequence(seq) => self.end(seq, Failure::cancelled()),
            Release::Hold(hold) => self.scheduler.release_hold(hold),
            Release::Landing(landing) => {
                self.landings.remove(&landing);
                self.scheduler.cancel_landing(landing);
            }
        }
    }

    /// Ends a sequence at whatever stage; its caller, if it is still there, is told why.
    fn end(&mut self, seq: SeqId, failure: Failure) {
        if let Some(job) = self.jobs.remove(&seq) {
            self.metrics.failed(&failure);
            job.fail(failure);
        }
        self.scheduler.cancel(seq);
        if let Some(step) = self.running.as_ref().filter(|_| self.scheduler.step_is_moot()) {
            step.abort.store(true, Ordering::Relaxed);
        }
    }

    /// Ends everything that callers have not in their hands.
    fn end_all(&mut self, failure: &Failure) {
        for seq in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.end(seq, failure.clone());
        }
        for (id, _) in std::mem::take(&mut self.reservations).into_values() {
            self.scheduler.cancel_reservation(id);
        }
        for (id, (_, cancelled)) in std::mem::take(&mut self.landings) {
            self.scheduler.cancel_landing(id);
            cancelled.cancel();
        }
    }

    /// The engine crashed: everything fails, nothing is taken any more, holds and questions are served.
    fn poison(&mut self) {
        tracing::error!("the engine crashed; this worker computes nothing any more");
        self.poisoned = true;
        self.end_all(&fail::poisoned());
        self.scheduler.clear_cache();
    }

    async fn stop(mut self) {
        self.end_all(&fail::stopped());
        if let Some(step) = self.running.take() {
            step.abort.store(true, Ordering::Relaxed);
            match timeout(self.config.stop_timeout, self.engine.reports.recv()).await {
                Ok(report) => self.finish_step(report),
                Err(_) => tracing::error!("the engine's step did not end; its thread is left behind"),
            }
        }
        while let Ok(release) = self.releases.try_recv() {
            self.released(release);
        }
        self.publish();
        self.last.get_or_init(|| self.accounting());
        self.health.send_replace(Health::Stopped);
        self.metrics.ready(false);
        let EngineThread { work, thread, .. } = self.engine;
        drop(work);
        if !self.scheduler.in_step() {
            // Ends as soon as it sees that no work comes; joined so that the weights are freed by then.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    fn accounting(&self) -> Accounting {
        let blocks = self.scheduler.stats().blocks;
        let jobs = self.jobs.values().map(|job| job.key.request);
        let landings = self.landings.values().map(|(key, _)| key.request);
        let reservations = self.reservations.values().map(|(_, key)| key.request);
        let requests: std::collections::BTreeSet<_> = jobs.chain(landings).chain(reservations).collect();
        Accounting {
            total: blocks.total,
            free: blocks.free,
            request: blocks.request,
            transfer: blocks.transfer,
            cached: blocks.cached,
            n_requests: requests.len() as u32,
            n_streams: self.jobs.len() as u32,
        }
    }

    /// The prefix cache, and the id of the batch of events that led there.
    fn snapshot(&mut self) -> (u64, Vec<KvEvent>) {
        self.publish_events();
        (self.events.last(), self.scheduler.snapshot())
    }

    fn publish_events(&mut self) {
        let events = self.scheduler.take_events();
        self.metrics.kv_events(&events);
        self.events.publish(events);
    }

    /// Shows the state to those who watch.
    fn publish(&mut self) {
        self.publish_events();
        let stats = self.scheduler.stats();
        self.metrics.stats(&stats);
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let load = Load {
            n_waiting: count(stats.n_waiting),
            n_waiting_tokens: count(stats.n_waiting_tokens),
            n_running: count(stats.n_running),
            blocks_total: stats.blocks.total,
            blocks_free: stats.blocks.free + stats.blocks.cached,
            draining: self.draining,
            steps: self.metrics.steps.get(),
        };
        self.load.send_if_modified(|shown| std::mem::replace(shown, load) != load);
        let health = if self.poisoned {
            Health::Poisoned
        } else if self.running.as_ref().is_some_and(|step| step.stalled) {
            Health::Stalled
        } else if self.draining {
            Health::Draining
        } else {
            Health::Ready
        };
        self.metrics.ready(health == Health::Ready);
        self.health.send_if_modified(|shown| std::mem::replace(shown, health) != health);
    }
}
