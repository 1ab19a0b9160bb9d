//! From sockets to the last goodbye.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use bootstrap::{AdminHooks, AdminServer, Ports, Runtime};
use engine::Engine;
use futures::FutureExt as _;
use registry::{Member, Membership, Registry};
use rpc::worker::WorkerApi;
use rpc::{Limits, ServeOptions};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::{Accounting, Epoch, Role, WorkerId, WorkerRef};
use worker::{WorkerConfig, WorkerHandle};

use crate::{Gate, NodeConfig, ready};

/// Loads the engine. Runs on a thread where it may block.
pub type OpenEngine = Box<dyn FnOnce() -> anyhow::Result<Box<dyn Engine>> + Send>;

/// Streams that were cut off at the end of the grace time get this long to end.
const CUT_OFF_TIME: Duration = Duration::from_secs(2);

/// What a service is made from.
pub struct Parts {
    /// Computes.
    pub worker: WorkerHandle,
    /// Admits.
    pub gate: Arc<Gate>,
    /// For KV data, if the configuration says so.
    pub kv_listener: Option<TcpListener>,
    /// The process's metrics, log and tasks.
    pub runtime: Runtime,
    servers: Servers,
}

impl Parts {
    /// Runs a server beside the control plane's. It ends when the token that `serve` is given is cancelled, which
    /// happens when the last request has ended; if it ends before, so does the process.
    pub fn spawn_server<F, E>(&self, name: &'static str, serve: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<anyhow::Error>,
    {
        self.servers.spawn(name, serve(self.servers.stop.clone()));
    }

    /// How that server is to run: with these limits, its health following this process's readiness.
    pub fn serve_options(&self, limits: Limits) -> ServeOptions {
        ServeOptions::new(limits).with_ready(self.servers.ready.subscribe())
    }
}

/// Runs a worker process until shutdown: binds, loads, serves, joins; at the end refuses new work, lets what runs
/// end within the grace time, leaves.
///
/// `build` makes the service from its parts.
///
/// # Errors
/// What kept it from starting, or what broke while it ran.
pub async fn run(
    role: Role,
    config: NodeConfig,
    worker_config: WorkerConfig,
    open: OpenEngine,
    registry: Arc<dyn Registry>,
    runtime: Runtime,
    build: impl FnOnce(Parts) -> anyhow::Result<Arc<dyn WorkerApi>>,
) -> anyhow::Result<()> {
    config.validate()?;
    let (rpc_listener, rpc_bound) = bind(config.rpc_listen).await?;
    let (kv_listener, kv_bound) = bind_optional(config.kv_listen).await?;
    let (admin_listener, admin_bound) = bind_optional(config.admin_listen).await?;

    let (servers, mut failures) = Servers::new();
    // However this function ends, so do they.
    let _stop_servers = servers.stop.clone().drop_guard();
    let loaded: Arc<OnceLock<(WorkerHandle, Arc<Gate>)>> = Arc::default();
    if let Some(listener) = admin_listener {
        let admin = AdminServer::new(runtime.metrics().clone(), admin_hooks(&servers, loaded.clone()));
        servers.spawn("admin", admin.serve(listener, servers.stop.clone()));
    }
    runtime.announce(Ports { grpc: Some(rpc_bound), kv: kv_bound, admin: admin_bound, ..Ports::default() });

    let opening = tokio::task::spawn_blocking(open);
    let engine = tokio::select! {
        engine = opening => engine.context("loading the model was interrupted")??,
        () = runtime.shutdown().cancelled() => {
            servers.stop().await;
            return Ok(());
        }
    };
    let model = engine.model().clone();
    let compute = CancellationToken::new();
    let _stop_computing = compute.clone().drop_guard();
    let (worker, driver) = worker::spawn(engine, worker_config, compute.clone())?;
    runtime.metrics().register("", |registry| worker.register_metrics(registry));

    let id = WorkerId::new(config.id.as_str());
    let identity = watch::Sender::new(WorkerRef { id: id.clone(), epoch: Epoch(0) });
    let gate = Gate::new(identity.subscribe());
    // Set once: this function runs once per cell.
    let _ = loaded.set((worker.clone(), gate.clone()));
    let parts = Parts {
        worker: worker.clone(),
        gate: gate.clone(),
        kv_listener,
        runtime: runtime.clone(),
        servers: servers.clone(),
    };
    let options = parts.serve_options(Limits::internal());
    let api = build(parts)?;
    servers.spawn("control plane", rpc::worker::serve(rpc_listener, api, options, servers.stop.clone()));

    let member = Member {
        id,
        role,
        rpc_address: config.rpc_advertise.clone().unwrap_or_else(|| rpc_bound.to_string()),
        kv_address: config.kv_advertise.clone().or(kv_bound.map(|bound| bound.to_string())).unwrap_or_default(),
        kv_endpoints: config.kv_endpoints.clone(),
        admin_address: admin_bound.map(|bound| bound.to_string()).unwrap_or_default(),
        http_address: String::new(),
        model: config.model.clone(),
        max_context: u32::try_from(worker.max_sequence()).unwrap_or(u32::MAX),
        compatibility: Some(model.compatibility.clone()),
        device: model.device.clone(),
        draining: false,
    };
    let membership = registry.join(member.clone()).await?;
    tracing::info!(%role, id = config.id, model = config.model, n_blocks = worker.arena().n_blocks(), "serving");

    let result = tokio::select! {
        () = runtime.shutdown().cancelled() => Ok(()),
        () = ready::follow(&worker, &gate, &servers.ready) => Ok(()),
        () = follow_epoch(&membership, &identity) => Ok(()),
        () = say_draining(&worker, &membership, &gate, member.clone()) => Ok(()),
        health = ready::broken(&worker) => Err(anyhow::anyhow!("the worker can compute nothing any more: {health:?}")),
        failure = failures.recv() => Err(failure.unwrap_or_else(|| anyhow::anyhow!("every server has ended"))),
    };

    servers.ready.send_replace(false);
    gate.drain();
    if let Err(error) = membership.update(Member { draining: true, ..member }).await {
        tracing::debug!(%error, "cannot say that this worker is draining");
    }
    if result.is_ok() {
        drain(&worker, &gate, config.drain_grace).await;
    }
    gate.cancel_all();
    membership.leave().await;
    if tokio::time::timeout(CUT_OFF_TIME, gate.idle()).await.is_err() {
        tracing::warn!(n_streams = gate.n_streams(), "streams did not end, cutting their connections");
    }
    // Ends the load reports too, so that the servers need not cut them.
    compute.cancel();
    if driver.await.is_err() {
        tracing::error!("the worker's task panicked");
    }
    servers.stop().await;
    result
}

/// Waits until nothing runs, for the grace time at most.
async fn drain(worker: &WorkerHandle, gate: &Gate, grace: Duration) {
    let drained = async {
        worker.drain().await;
        gate.idle().await;
    };
    if tokio::time::timeout(grace, drained).await.is_err() {
        tracing::warn!(n_streams = gate.n_streams(), ?grace, "requests outlive the grace time, ending them");
    }
}

/// Takes over each incarnation that the registry names; never returns.
async fn follow_epoch(membership: &Membership, identity: &watch::Sender<WorkerRef>) {
    let mut epoch = membership.epoch();
    loop {
        let now = *epoch.borrow_and_update();
        if identity.send_if_modified(|worker| std::mem::replace(&mut worker.epoch, now) != now) {
            tracing::info!(worker = %*identity.borrow(), "registered");
        }
        if epoch.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Once this worker is told to drain, says so: to the registry, and by its load; never returns.
async fn say_draining(worker: &WorkerHandle, membership: &Membership, gate: &Gate, member: Member) {
    let mut draining = gate.draining();
    if draining.wait_for(|draining| *draining).await.is_ok() {
        if let Err(error) = membership.update(Member { draining: true, ..member }).await {
            tracing::warn!(%error, "cannot say that this worker is draining");
        }
        worker.drain().await;
    }
    std::future::pending().await
}

fn admin_hooks(servers: &Servers, loaded: Arc<OnceLock<(WorkerHandle, Arc<Gate>)>>) -> AdminHooks {
    let ready = servers.ready.subscribe();
    AdminHooks {
        ready: Arc::new(move || *ready.borrow()),
        accounting: Some(Arc::new(move || {
            let loaded = loaded.clone();
            async move {
                match loaded.get() {
                    Some((worker, gate)) => accounting(worker, gate).await,
                    None => Accounting::default(),
                }
            }
            .boxed()
        })),
        explain: None,
    }
}

/// The worker's blocks and requests, and the streams that are open here.
pub async fn accounting(worker: &WorkerHandle, gate: &Gate) -> Accounting {
    Accounting { n_streams: gate.n_streams(), ..worker.accounting().await }
}

/// Servers of the process: they stop together, and the first that fails ends it.
#[derive(Clone)]
struct Servers {
    stop: CancellationToken,
    tasks: TaskTracker,
    ready: watch::Sender<bool>,
    failures: mpsc::Sender<anyhow::Error>,
}

impl Servers {
    fn new() -> (Self, mpsc::Receiver<anyhow::Error>) {
        let (failures, failed) = mpsc::channel(8);
        let ready = watch::Sender::new(false);
        (Self { stop: CancellationToken::new(), tasks: TaskTracker::new(), ready, failures }, failed)
    }

    fn spawn<E: Into<anyhow::Error>>(
        &self,
        name: &'static str,
        server: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let (stop, failures) = (self.stop.clone(), self.failures.clone());
        self.tasks.spawn(async move {
            let result: anyhow::Result<()> = server.await.map_err(Into::into);
            if !stop.is_cancelled() {
                let error = result.err().unwrap_or_else(|| anyhow::anyhow!("it ended by itself"));
                // A full channel holds failures enough.
                let _ = failures.try_send(error.context(format!("the {name} server failed")));
            }
        });
    }

    async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let bound = listener.local_addr().with_context(|| format!("cannot tell where {address} was bound"))?;
    Ok((listener, bound))
}

async fn bind_optional(address: Option<SocketAddr>) -> anyhow::Result<(Option<TcpListener>, Option<SocketAddr>)> {
    match address {
        Some(address) => bind(address).await.map(|(listener, bound)| (Some(listener), Some(bound))),
        None => Ok((None, None)),
    }
}
