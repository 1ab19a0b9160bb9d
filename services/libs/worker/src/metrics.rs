//! Names of all metrics of worker, scheduler and KV cache.

use std::time::Duration;

use engine::ModelInfo;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use scheduler::Stats;
use types::{Failure, KvEvent, Phase};

type Label = [(&'static str, &'static str); 1];
type Info = [(&'static str, String); 2];

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    info: Family<Info, Gauge>,
    pub(crate) steps: Counter,
    step_seconds: Histogram,
    step_tokens: Histogram,
    computed_tokens: Counter,
    generated_tokens: Counter,
    failures: Family<Label, Counter>,
    phase_seconds: Family<Label, Histogram, fn() -> Histogram>,
    ready: Gauge,
    sequences: Family<Label, Gauge>,
    waiting_tokens: Gauge,
    promised_blocks: Gauge,
    preemptions: Counter,
    refusals: Family<Label, Counter>,
    blocks: Family<Label, Gauge>,
    cached_tokens: Counter,
    shared_blocks: Counter,
    stored_blocks: Counter,
    evicted_blocks: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            info: Family::default(),
            steps: Counter::default(),
            step_seconds: seconds(),
            step_tokens: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            computed_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            failures: Family::default(),
            phase_seconds: Family::new_with_constructor(seconds),
            ready: Gauge::default(),
            sequences: Family::default(),
            waiting_tokens: Gauge::default(),
            promised_blocks: Gauge::default(),
            preemptions: Counter::default(),
            refusals: Family::default(),
            blocks: Family::default(),
            cached_tokens: Counter::default(),
            shared_blocks: Counter::default(),
            stored_blocks: Counter::default(),
            evicted_blocks: Counter::default(),
        }
    }
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let r = registry;
        r.register("worker_info", "1: what decides the bits and what computes", self.info.clone());
        r.register("worker_steps", "Steps computed", self.steps.clone());
        r.register("worker_step_seconds", "Time of a step", self.step_seconds.clone());
        r.register("worker_step_tokens", "Tokens in a step", self.step_tokens.clone());
        r.register("worker_computed_tokens", "Tokens whose KV was computed", self.computed_tokens.clone());
        r.register("worker_generated_tokens", "Tokens sampled", self.generated_tokens.clone());
        r.register("worker_failures", "Sequences that failed, by reason", self.failures.clone());
        r.register("worker_phase_seconds", "Time of a sequence's phases", self.phase_seconds.clone());
        r.register("worker_ready", "1 if new work is taken", self.ready.clone());
        r.register("scheduler_sequences", "Sequences and room kept for some, by state", self.sequences.clone());
        r.register("scheduler_waiting_tokens", "Tokens to compute of those waiting", self.waiting_tokens.clone());
        r.register("scheduler_promised_blocks", "Promised, not allocated", self.promised_blocks.clone());
        r.register("scheduler_preemptions", "Sequences that lost their blocks", self.preemptions.clone());
        r.register("scheduler_refusals", "Work refused, by reason", self.refusals.clone());
        r.register("kvcache_blocks", "KV blocks by owner, which may be of two kinds", self.blocks.clone());
        r.register("worker_cached_tokens", "Prompt tokens not computed: their KV was here", self.cached_tokens.clone());
        r.register("kvcache_landed_blocks", "Blocks not transferred: they were here", self.shared_blocks.clone());
        r.register("kvcache_stored_blocks", "Blocks sealed for others to share", self.stored_blocks.clone());
        r.register("kvcache_evicted_blocks", "Cached blocks that gave way", self.evicted_blocks.clone());
    }

    pub(crate) fn info(&self, model: &ModelInfo) {
        let labels = [("numerics", model.compatibility.numerics.clone()), ("device", model.device.clone())];
        self.info.get_or_create(&labels).set(1);
    }

    pub(crate) fn step(&self, elapsed: Duration, n_tokens: usize) {
        self.steps.inc();
        self.step_seconds.observe(elapsed.as_secs_f64());
        self.step_tokens.observe(n_tokens as f64);
        self.computed_tokens.inc_by(n_tokens as u64);
    }

    pub(crate) fn token(&self) {
        self.generated_tokens.inc();
    }

    pub(crate) fn failed(&self, failure: &Failure) {
        self.failures.get_or_create(&[("reason", failure.reason)]).inc();
    }

    pub(crate) fn refused(&self, failure: &Failure) {
        self.refusals.get_or_create(&[("reason", failure.reason)]).inc();
    }

    pub(crate) fn preempted(&self, n: usize) {
        self.preemptions.inc_by(n as u64);
    }

    /// Tokens of a prompt that need not be computed.
    pub(crate) fn cached(&self, n_tokens: u32) {
        self.cached_tokens.inc_by(n_tokens.into());
    }

    /// Blocks of a landing that need not be transferred.
    pub(crate) fn shared(&self, n_blocks: usize) {
        self.shared_blocks.inc_by(n_blocks as u64);
    }

    pub(crate) fn kv_events(&self, events: &[KvEvent]) {
        for event in events {
            match event {
                KvEvent::Stored { hashes, .. } => self.stored_blocks.inc_by(hashes.len() as u64),
                KvEvent::Removed { hashes } => self.evicted_blocks.inc_by(hashes.len() as u64),
                KvEvent::Cleared => 0,
            };
        }
    }

    pub(crate) fn phase(&self, phase: Phase, time: Duration) {
        self.phase_seconds.get_or_create(&[("phase", phase.as_str())]).observe(time.as_secs_f64());
    }

    pub(crate) fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    pub(crate) fn stats(&self, stats: &Stats) {
        let set = |family: &Family<Label, Gauge>, state, n: usize| {
            family.get_or_create(&[("state", state)]).set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(&self.sequences, "waiting", stats.n_waiting);
        set(&self.sequences, "running", stats.n_running);
        set(&self.sequences, "reserved", stats.n_reservations);
        set(&self.sequences, "landing", stats.n_landings);
        set(&self.sequences, "held", stats.n_holds);
        set(&self.blocks, "total", stats.blocks.total as usize);
        set(&self.blocks, "free", stats.blocks.free as usize);
        set(&self.blocks, "request", stats.blocks.request as usize);
        set(&self.blocks, "transfer", stats.blocks.transfer as usize);
        set(&self.blocks, "cached", stats.blocks.cached as usize);
        self.waiting_tokens.set(i64::try_from(stats.n_waiting_tokens).unwrap_or(i64::MAX));
        self.promised_blocks.set(i64::from(stats.promised_blocks));
    }
}

/// 0.5 ms to 65 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 18))
}
