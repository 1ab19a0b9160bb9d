//! The workers, as this router knows them: the registry's view and their own reports, fed into the routing table;
//! one connection to each incarnation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use index::{ApplyError, PrefixIndex};
use kvcache::hash::Secret;
use registry::{Registered, View};
use routing::{
    Ask, Explanation, Health, InFlight, NoPrefill, Observation, Rules, Work, WorkerInfo, WorkerState, WorkerTable,
};
use rpc::worker::{WorkerApi as _, WorkerClient};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{Failure, KvEventBatch, RequestId, Role, WorkerRef};

use crate::cache_events::follow_cache;
use crate::explain::Explanations;
use crate::metrics::Metrics;
use crate::prefixes::{Names, Naming};

/// Workers report at most this often.
const REPORT_INTERVAL: Duration = Duration::from_millis(50);
/// Pauses between attempts to hear a worker's reports again.
pub(crate) const BACKOFF_MIN: Duration = Duration::from_millis(50);
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A worker whose reports broke off is avoided until they are back, checked this much after each attempt.
const SILENCE_SLACK: Duration = Duration::from_millis(500);

/// What a cluster's view is made with.
pub(crate) struct Settings {
    pub(crate) model: String,
    /// A worker that failed is avoided for this long.
    pub(crate) suspicion: Duration,
    pub(crate) rules: Rules,
    pub(crate) prefix_secret: Secret,
    pub(crate) index: index::Config,
}

/// Handle of the table and the connections; lives as long as the router.
pub(crate) struct Cluster {
    origin: Instant,
    suspicion: Duration,
    rules: Rules,
    prefix_secret: Secret,
    metrics: Metrics,
    pub(crate) explanations: Explanations,
    view: watch::Receiver<Arc<View>>,
    state: Mutex<State>,
    /// Told whenever room may have come free somewhere.
    room: Notify,
}

struct State {
    table: WorkerTable,
    index: PrefixIndex,
    /// Choices made so far.
    turn: u64,
    peers: HashMap<WorkerRef, Peer>,
    /// What carried the last prompt's KV to each decode worker.
    transports: HashMap<WorkerRef, String>,
    /// Longest context seen; survives moments without workers.
    max_context: Option<u32>,
    fingerprint: Arc<str>,
}

/// A connection to one incarnation.
struct Peer {
    client: WorkerClient,
    gone: CancellationToken,
    naming: Option<Naming>,
}

/// Workers that may serve a choice.
pub(crate) struct Pair {
    pub(crate) decode: Worker,
    /// `Err`: the decode worker computes the prompt.
    pub(crate) prefill: Result<Worker, NoPrefill>,
    /// Tokens of the prompt that whoever computes it is thought to hold.
    pub(crate) cached: u32,
}

/// What is to be placed.
pub(crate) struct Wanted<'a> {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
    pub(crate) work: Work,
    pub(crate) names: &'a Names,
    pub(crate) avoid: &'a [WorkerRef],
    /// Numerics of the part of the answer that was sent.
    pub(crate) begun: Option<&'a str>,
}

/// A worker to call.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) info: Arc<WorkerInfo>,
    pub(crate) client: WorkerClient,
}

impl Worker {
    pub(crate) fn name(&self) -> String {
        self.info.worker.id.to_string()
    }
}

/// Counts work at a worker until dropped. If the worker had taken it, room may have come free then.
pub(crate) struct Occupancy {
    cluster: Arc<Cluster>,
    taken: bool,
    _in_flight: Option<InFlight>,
}

impl Occupancy {
    /// The worker has taken the work.
    pub(crate) fn taken(&mut self) {
        self.taken = true;
    }
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        if self.taken {
            self.cluster.room.notify_one();
        }
    }
}

impl Cluster {
    /// A table that follows `view` by a task of `tracker` until `shutdown`.
    pub(crate) fn start(
        settings: Settings,
        metrics: Metrics,
        view: watch::Receiver<Arc<View>>,
        tracker: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let state = State {
            table: WorkerTable::new(settings.model, settings.rules),
            index: PrefixIndex::new(settings.index),
            turn: 0,
            peers: HashMap::new(),
            transports: HashMap::new(),
            max_context: None,
            fingerprint: "fp_unknown".into(),
        };
        let cluster = Arc::new(Self {
            origin: Instant::now(),
            suspicion: settings.suspicion,
            rules: settings.rules,
            prefix_secret: settings.prefix_secret,
            metrics,
            explanations: Explanations::default(),
            view: view.clone(),
            state: Mutex::new(state),
            room: Notify::new(),
        });
        tracker.spawn(follow_view(cluster.clone(), view, tracker.clone(), shutdown));
        cluster
    }

    /// The registry's last view.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Every worker, and why it is not used.
    pub(crate) fn states(&self) -> Vec<WorkerState> {
        self.lock().table.states(self.now())
    }

    /// Notes what carried a prompt's KV to a decode worker.
    pub(crate) fn handed_over(&self, decode: &WorkerRef, transport: &str) {
        let mut state = self.lock();
        if state.peers.contains_key(decode) && state.transports.get(decode).is_none_or(|last| last != transport) {
            state.transports.insert(decode.clone(), transport.to_owned());
        }
    }

    /// Transports of a worker's KV: those that it serves, or the one that carried the last prompt to it.
    pub(crate) fn transport(&self, info: &WorkerInfo) -> String {
        if let Some(last) = self.lock().transports.get(&info.worker) {
            return last.clone();
        }
        let endpoints = &info.kv_endpoints;
        let served = [("shm", &endpoints.shm), ("tcp", &endpoints.tcp), ("grpc", &info.kv_address)];
        let served: Vec<_> = served.into_iter().filter(|(_, at)| !at.is_empty()).map(|(name, _)| name).collect();
        served.join(",")
    }

    /// Whether somebody could generate now.
    pub(crate) fn is_ready(&self) -> bool {
        self.states().iter().any(|s| s.info.role == Role::Decode && s.health == Health::Up)
    }

    /// Longest context of the model, tokens; `None` until a worker has been seen.
    pub(crate) fn max_context(&self) -> Option<u32> {
        let mut state = self.lock();
        state.max_context = state.table.max_context().or(state.max_context);
        state.max_context
    }

    /// Names the weights and the numerics behind the answers.
    pub(crate) fn fingerprint(&self) -> Arc<str> {
        self.lock().fingerprint.clone()
    }

    /// How the workers name blocks; none if nobody looks at them.
    pub(crate) fn namings(&self) -> Vec<Naming> {
        let mut namings = Vec::new();
        if self.rules.policy.is_prefix_aware() || self.rules.local_tokens > 0 {
            for naming in self.lock().peers.values().filter_map(|peer| peer.naming.as_ref()) {
                if !namings.contains(naming) {
                    namings.push(naming.clone());
                }
            }
        }
        namings
    }

    /// Pairs of workers for a choice, best first, and why in this order.
    pub(crate) fn choose(&self, wanted: &Wanted<'_>) -> (Vec<Pair>, Explanation) {
        let now = self.now();
        let mut state = self.lock();
        let mut cached = BTreeMap::new();
        for (naming, hashes) in wanted.names.iter() {
            for found in state.index.lookup(hashes, now) {
                let tokens = found.n_blocks.saturating_mul(naming.block_tokens());
                cached.insert(found.worker.clone(), tokens);
            }
        }
        let turn = state.turn;
        state.turn += 1;
        let Wanted { request, choice, work, avoid, begun, .. } = *wanted;
        let ask = Ask { request, choice, work, cached: &cached, avoid, begun, turn };
        let chosen = state.table.choose(&ask, now);
        let pairs = chosen.pairs.into_iter().filter_map(|pair| {
            let prefill = pair.prefill.and_then(|info| state.worker(info).ok_or(NoPrefill::Absent));
            Some(Pair { decode: state.worker(pair.decode)?, prefill, cached: pair.cached })
        });
        (pairs.collect(), chosen.explanation)
    }

    /// Whether a worker that was chosen a moment ago still takes work.
    pub(crate) fn is_usable(&self, worker: &WorkerRef) -> bool {
        self.lock().table.is_usable(worker, self.now())
    }

    /// A prompt went to these workers: they will hold its blocks.
    pub(crate) fn placed(&self, workers: &[&WorkerRef], names: &Names) {
        let now = self.now();
        let mut state = self.lock();
        let State { index, peers, .. } = &mut *state;
        for worker in workers {
            if let Some(naming) = peers.get(*worker).and_then(|peer| peer.naming.as_ref()) {
                index.chosen(worker, names.under(naming), now);
            }
        }
        self.metrics.index(&index.stats());
    }

    /// Takes what a worker says about its cache, in the order of its batches.
    ///
    /// # Errors
    /// A snapshot of that worker is wanted, or its incarnation is gone.
    pub(crate) fn cache_events(&self, worker: &WorkerRef, batch: &KvEventBatch) -> Result<(), ApplyError> {
        let mut state = self.lock();
        let applied = state.index.apply(worker, batch);
        self.metrics.index(&state.index.stats());
        applied.map(|_| ())
    }

    /// After which batch a worker's events are wanted on a new connection; 0: all that it holds, and then the events.
    pub(crate) fn cache_events_after(&self, worker: &WorkerRef) -> u64 {
        let mut state = self.lock();
        state.index.reconnected(worker);
        state.index.resume_after(worker).unwrap_or(0)
    }

    /// Learns how long something took at a worker.
    pub(crate) fn observe(&self, worker: &WorkerRef, seen: Observation) {
        let now = self.now();
        self.lock().table.observe(worker, seen, now);
    }

    /// Counts a sequence at a worker while the guard lives.
    pub(crate) fn occupy(self: &Arc<Self>, worker: &WorkerRef, work: Work) -> Occupancy {
        Occupancy { cluster: self.clone(), taken: false, _in_flight: self.lock().table.start(worker, work) }
    }

    /// Counts a prompt at the worker that computes it while the guard lives.
    pub(crate) fn occupy_prompt(self: &Arc<Self>, worker: &WorkerRef, work: Work, cached: u32) -> Occupancy {
        let in_flight = self.lock().table.start_prompt(worker, work, cached);
        Occupancy { cluster: self.clone(), taken: false, _in_flight: in_flight }
    }

    /// Avoids a worker for a while: a call to it broke or stalled.
    pub(crate) fn suspect(&self, worker: &WorkerRef, failure: &Failure) {
        if self.suspect_for(worker, self.suspicion) {
            tracing::warn!(%worker, %failure, "worker failed, avoiding it for a while");
        }
    }

    /// Returns when room may have come free, or after `limit`.
    pub(crate) async fn room(&self, limit: Duration) {
        // Both outcomes mean the same: look again.
        let _ = tokio::time::timeout(limit, self.room.notified()).await;
    }

    /// Returns whether the worker was trusted until now.
    fn suspect_for(&self, worker: &WorkerRef, time: Duration) -> bool {
        let now = self.now();
        self.lock().table.suspect(worker, now, now + time)
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a view; returns who joined.
    fn update(&self, view: &View) -> Vec<(Worker, CancellationToken)> {
        let mut state = self.lock();
        let changes = state.table.set_members(view.members.values().filter_map(worker_info));
        for worker in &changes.left {
            tracing::info!(%worker, "worker left");
            state.transports.remove(worker);
            state.index.leave(worker);
            if let Some(peer) = state.peers.remove(worker) {
                peer.gone.cancel();
            }
        }
        let mut joined = Vec::new();
        for info in changes.joined {
            tracing::info!(worker = %info.worker, role = %info.role, address = info.rpc_address, "worker joined");
            match WorkerClient::new(&info.rpc_address) {
                Ok(client) => {
                    let gone = CancellationToken::new();
                    let naming = Naming::of(&info, &self.prefix_secret);
                    let peer = Peer { client: client.clone(), gone: gone.clone(), naming };
                    state.peers.insert(info.worker.clone(), peer);
                    state.index.join(&info.worker);
                    joined.push((Worker { info, client }, gone));
                }
                Err(failure) => tracing::warn!(worker = %info.worker, %failure, "worker cannot be called"),
            }
        }
        state.fingerprint = fingerprint(&state.table, self.now()).unwrap_or_else(|| state.fingerprint.clone());
        self.room.notify_one();
        joined
    }
}

impl State {
    fn worker(&self, info: Arc<WorkerInfo>) -> Option<Worker> {
        let client = self.peers.get(&info.worker)?.client.clone();
        Some(Worker { info, client })
    }
}

fn fingerprint(table: &WorkerTable, now: Duration) -> Option<Arc<str>> {
    let states = table.states(now);
    let decode = states.iter().find(|s| s.info.role == Role::Decode && s.health == Health::Up)?;
    let compatibility = decode.info.compatibility.as_ref()?;
    let digest: String = compatibility.model_digest.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    Some(format!("fp_{digest}").into())
}

fn worker_info(registered: &Registered) -> Option<WorkerInfo> {
    let member = &registered.member;
    (member.role != Role::Router).then(|| WorkerInfo {
        worker: registered.worker(),
        role: member.role,
        model: member.model.clone(),
        rpc_address: member.rpc_address.clone(),
        kv_address: member.kv_address.clone(),
        kv_endpoints: member.kv_endpoints.clone(),
        admin_address: member.admin_address.clone(),
        max_context: member.max_context,
        compatibility: member.compatibility.clone(),
        device: member.device.clone(),
        draining: member.draining,
    })
}

async fn follow_view(
    cluster: Arc<Cluster>,
    mut view: watch::Receiver<Arc<View>>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
) {
    loop {
        let now = view.borrow_and_update().clone();
        for (worker, gone) in cluster.update(&now) {
            let reports = follow_reports(cluster.clone(), worker.clone());
            let events = follow_cache(cluster.clone(), worker);
            let shutdown = shutdown.clone();
            tracker.spawn(async move {
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = gone.cancelled() => {}
                    () = reports => {}
                    () = events => {}
                }
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = view.changed() => {
                if changed.is_err() {
                    tracing::warn!("the registry's view has ended; going on with the last one");
                    return;
                }
            }
        }
    }
}

/// Hears one worker's reports, again and again after losses; never returns.
async fn follow_reports(cluster: Arc<Cluster>, Worker { info, client }: Worker) {
    let worker = &info.worker;
    let mut backoff = BACKOFF_MIN;
    let mut silent = false;
    loop {
        let why = match client.load_report(worker.clone(), REPORT_INTERVAL).await {
            Err(failure) => Some(failure),
            Ok(mut reports) => loop {
                match reports.next().await {
                    Some(Ok((from, load))) if from == *worker => {
                        let mut state = cluster.lock();
                        state.table.report(worker, load);
                        if std::mem::take(&mut silent) {
                            state.table.trust(worker);
                            tracing::info!(%worker, "worker reports again");
                        }
                        drop(state);
                        backoff = BACKOFF_MIN;
                        cluster.room.notify_one();
                    }
                    Some(Ok((from, _))) => tracing::warn!(%worker, %from, "report of another worker ignored"),
                    Some(Err(failure)) => break Some(failure),
                    None => break None,
                }
            },
        };
        if !silent {
            let why = why.map_or_else(|| "the reports ended".to_owned(), |failure| failure.to_string());
            tracing::info!(%worker, why, "worker does not report");
        }
        silent = true;
        cluster.lock().table.forget_report(worker);
        cluster.suspect_for(worker, backoff + SILENCE_SLACK);
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
