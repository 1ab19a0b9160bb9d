//! The simulation: arrivals and ends of prompts, in the order of their times.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use index::{Config, PrefixIndex};
use routing::{Ask, InFlight, Observation, Rules, Work, WorkerInfo, WorkerTable};
use types::{
    Compatibility, Epoch, KvElement, KvEvent, KvEventBatch, KvGeometry, LayerKv, LayerKvKind, RequestId, Role,
    WorkerId, WorkerRef,
};

use crate::cache::Cache;
use crate::outcome::{Outcome, Quantiles};
use crate::setup::{Knowledge, Setup};
use crate::trace::{Arrival, Trace};

const MODEL: &str = "replayed";

/// Replays a trace. The router's side is real; decode is one worker that is never the bottleneck.
pub fn run(trace: &Trace, setup: &Setup) -> Outcome {
    let mut simulation = Simulation::new(trace, setup);
    for (n, arrival) in trace.arrivals.iter().enumerate() {
        let now = arrival.at.div_f64(setup.speed);
        simulation.end_until(now);
        simulation.arrive(n, now);
    }
    simulation.end_until(Duration::MAX);
    simulation.outcome()
}

struct Simulation<'a> {
    trace: &'a Trace,
    setup: &'a Setup,
    table: WorkerTable,
    index: PrefixIndex,
    workers: Vec<Worker>,
    numbers: BTreeMap<WorkerRef, usize>,
    /// Ends of the prompts that are being computed: when, and at which worker.
    ends: BinaryHeap<Reverse<(Duration, usize)>>,
    first_token: Vec<Duration>,
    n_hit: usize,
    n_predicted: usize,
    last_end: Duration,
}

struct Worker {
    who: WorkerRef,
    cache: Cache,
    queue: VecDeque<Queued>,
    /// When the first of the queue was begun, and with how many cached tokens.
    begun: (Duration, u32),
    busy: Duration,
    next_batch: u64,
}

struct Queued {
    arrival: usize,
    came: Duration,
    _in_flight: Option<InFlight>,
}

impl<'a> Simulation<'a> {
    fn new(trace: &'a Trace, setup: &'a Setup) -> Self {
        let mut table = WorkerTable::new(MODEL, Rules { policy: setup.policy, local_tokens: 0 });
        let prefills: Vec<_> = (0..setup.n_workers).map(|n| worker(Role::Prefill, n, trace.block_tokens)).collect();
        table.set_members(prefills.iter().cloned().chain([worker(Role::Decode, 0, trace.block_tokens)]));
        let mut index = PrefixIndex::new(Config::default());
        for info in &prefills {
            index.join(&info.worker);
        }
        let workers = prefills.iter().map(|info| Worker {
            who: info.worker.clone(),
            cache: Cache::new(setup.cache_blocks),
            queue: VecDeque::new(),
            begun: (Duration::ZERO, 0),
            busy: Duration::ZERO,
            next_batch: 1,
        });
        let mut simulation = Self {
            trace,
            setup,
            table,
            index,
            workers: workers.collect(),
            numbers: prefills.iter().enumerate().map(|(n, info)| (info.worker.clone(), n)).collect(),
            ends: BinaryHeap::new(),
            first_token: Vec::with_capacity(trace.arrivals.len()),
            n_hit: 0,
            n_predicted: 0,
            last_end: Duration::ZERO,
        };
        for n in 0..setup.n_workers {
            simulation.tell(n, vec![KvEvent::Cleared]);
        }
        simulation
    }

    fn arrive(&mut self, n: usize, now: Duration) {
        let arrival = &self.trace.arrivals[n];
        let block_tokens = self.trace.block_tokens;
        let cached: BTreeMap<_, _> = if self.setup.policy.is_prefix_aware() {
            let found = self.index.lookup(&arrival.blocks, now);
            found.into_iter().map(|m| (m.worker.clone(), m.n_blocks.saturating_mul(block_tokens))).collect()
        } else {
            BTreeMap::new()
        };
        let work = work(arrival);
        let ask = Ask {
            request: RequestId(n as u128),
            choice: 0,
            work,
            cached: &cached,
            avoid: &[],
            begun: None,
            turn: n as u64,
        };
        let best = self.table.choose(&ask, now).pairs.swap_remove(0);
        let prefill = best.prefill.expect("the prefill workers fit and take work");
        let in_flight = self.table.start_prompt(&prefill.worker, work, best.cached);
        self.index.chosen(&prefill.worker, &arrival.blocks, now);
        self.n_predicted += arrival.blocks.len().min(best.cached.div_ceil(block_tokens) as usize);
        let number = self.numbers[&prefill.worker];
        self.workers[number].queue.push_back(Queued { arrival: n, came: now, _in_flight: in_flight });
        if self.workers[number].queue.len() == 1 {
            self.begin(number, now);
        }
    }

    /// A worker begins the first prompt of its queue.
    fn begin(&mut self, number: usize, now: Duration) {
        let worker = &mut self.workers[number];
        let Some(first) = worker.queue.front() else { return };
        let arrival = &self.trace.arrivals[first.arrival];
        let n_hit = worker.cache.n_leading(&arrival.blocks);
        self.n_hit += n_hit;
        let cached = (n_hit as u32).saturating_mul(self.trace.block_tokens).min(arrival.n_prompt.saturating_sub(1));
        worker.begun = (now, cached);
        self.ends.push(Reverse((now + self.setup.time.of(arrival.n_prompt, cached), number)));
    }

    fn end_until(&mut self, until: Duration) {
        while let Some(&Reverse((now, number))) = self.ends.peek()
            && now <= until
        {
            self.ends.pop();
            self.end(number, now);
            self.begin(number, now);
        }
    }

    /// A worker has computed the first prompt of its queue.
    fn end(&mut self, number: usize, now: Duration) {
        let worker = &mut self.workers[number];
        let done = worker.queue.pop_front().expect("what ends was begun");
        let (begun, cached) = worker.begun;
        let time = now - begun;
        worker.busy += time;
        self.last_end = now;
        self.first_token.push(now - done.came);
        let arrival = &self.trace.arrivals[done.arrival];
        let n_before = worker.cache.n_leading(&arrival.blocks);
        let gone = worker.cache.insert(&arrival.blocks);
        let n_after = worker.cache.n_leading(&arrival.blocks);
        let seen = Observation::Prompt { cost: work(arrival).prompt_cost(cached), time };
        self.table.observe(&worker.who, seen, now);
        let mut events = Vec::new();
        if !gone.is_empty() {
            events.push(KvEvent::Removed { hashes: gone });
        }
        if n_after > n_before {
            let parent = n_before.checked_sub(1).map(|n| arrival.blocks[n]);
            events.push(KvEvent::Stored { parent, hashes: arrival.blocks[n_before..n_after].to_vec() });
        }
        self.tell(number, events);
    }

    fn tell(&mut self, number: usize, events: Vec<KvEvent>) {
        if self.setup.knowledge == Knowledge::Events && !events.is_empty() {
            let worker = &mut self.workers[number];
            let batch = KvEventBatch { id: worker.next_batch, events };
            worker.next_batch += 1;
            self.index.apply(&worker.who, &batch).expect("batches come in order");
        }
    }

    fn outcome(self) -> Outcome {
        let n_blocks = self.trace.n_blocks().max(1) as f64;
        let busy: Vec<_> = self.workers.iter().map(|w| w.busy.as_secs_f64()).collect();
        let (sum, most) = (busy.iter().sum::<f64>(), busy.iter().copied().fold(0.0, f64::max));
        let n_workers = self.workers.len() as f64;
        let ratio = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        Outcome {
            hit_rate: self.n_hit as f64 / n_blocks,
            predicted_hit_rate: self.n_predicted as f64 / n_blocks,
            first_token: Quantiles::of(self.first_token),
            busiest: ratio(most * n_workers, sum),
            utilization: ratio(sum, n_workers * self.last_end.as_secs_f64()),
        }
    }
}

fn work(arrival: &Arrival) -> Work {
    Work { n_prompt: arrival.n_prompt, n_new: arrival.n_new }
}

fn worker(role: Role, n: usize, block_tokens: u32) -> WorkerInfo {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 1 }, window: None };
    WorkerInfo {
        kv_endpoints: types::KvEndpoints::default(),
        worker: WorkerRef { id: WorkerId::new(format!("{role}-{n:03}")), epoch: Epoch(1) },
        role,
        model: MODEL.into(),
        rpc_address: String::new(),
        kv_address: String::new(),
        admin_address: String::new(),
        max_context: u32::MAX,
        compatibility: Some(Compatibility {
            protocol: (types::PROTOCOL_MIN, types::PROTOCOL_MAX),
            model_digest: String::new(),
            model_revision: String::new(),
            geometry: KvGeometry { block_tokens, element: KvElement::F16, layers: vec![layer] },
            rope: String::new(),
            attention: String::new(),
            quantization: String::new(),
            adapters: Vec::new(),
            drafter: String::new(),
            numerics: String::new(),
        }),
        device: String::new(),
        draining: false,
    }
}
