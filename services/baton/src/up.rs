//! `baton up`: a whole cluster on this machine, each role a process of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rpc::inference::InferenceApi as _;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::{EngineArgs, UpArgs};
use crate::cluster::{ChildRecord, ClusterFile};
use crate::cores::{PinArg, Workers};
use crate::engines::Model;
use crate::roles::say_ready;
use crate::supervise::{ChildSpec, Supervisor};

/// Longest time until every worker serves.
const START_TIMEOUT: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(50);

pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let stop = bootstrap::shutdown_signal()?;
    let cluster = Cluster::start(args, stop.clone()).await?;
    cluster.announce_ready();
    tokio::select! {
        () = stop.cancelled() => {}
        error = cluster.failed() => {
            stop.cancel();
            cluster.ended().await;
            return Err(error);
        }
    }
    cluster.ended().await;
    Ok(())
}

/// A running local cluster.
pub(crate) struct Cluster {
    file: Arc<ClusterFile>,
    supervisor: Supervisor,
    stop: CancellationToken,
    http: SocketAddr,
    grpc: SocketAddr,
}

impl Cluster {
    /// Starts every child and waits until the router can use all workers.
    ///
    /// # Errors
    /// If a child cannot start, or not within the start timeout; children are stopped then.
    pub(crate) async fn start(args: UpArgs, stop: CancellationToken) -> anyhow::Result<Self> {
        anyhow::ensure!(args.decode > 0, "--decode must be at least 1: decode workers write the answers");
        anyhow::ensure!(args.routers > 0, "--routers must be at least 1");
        args.engine.validate()?;
        let model = Model::resolve(&args.model)?;
        let file = Arc::new(ClusterFile::create(&bootstrap::env::run_dir()?)?);
        let supervisor = Supervisor::new(file.clone(), stop.clone());
        let registry = match args.registry.as_str() {
            "memory" => serve_memory_registry(&stop).await?,
            url => url.to_owned(),
        };
        for spec in children(&args, &model, &registry)? {
            supervisor.spawn(spec);
        }
        let cluster = Self { file, supervisor, stop, http: args.http, grpc: args.grpc };
        let outcome = tokio::select! {
            outcome = cluster.wait_until_all_serve(args.prefill + args.decode, args.routers) => outcome,
            error = cluster.failed() => Err(error),
            () = cluster.stop.cancelled() => Err(anyhow::anyhow!("stopped before every worker served")),
        };
        if let Err(error) = outcome {
            cluster.stop.cancel();
            cluster.ended().await;
            return Err(error);
        }
        cluster.supervisor.started();
        Ok(cluster)
    }

    pub(crate) fn children(&self) -> Vec<ChildRecord> {
        self.file.children()
    }

    pub(crate) async fn failed(&self) -> anyhow::Error {
        self.supervisor.failed().await
    }

    pub(crate) async fn ended(&self) {
        self.supervisor.ended().await;
    }

    pub(crate) fn http_url(&self) -> String {
        format!("http://{}", self.public_address("http", self.http))
    }

    pub(crate) fn grpc_address(&self) -> SocketAddr {
        self.public_address("grpc", self.grpc)
    }

    fn admin_url(&self) -> String {
        format!("http://{}", self.public_address("admin", SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    /// The first router's address with the port that it really got.
    fn public_address(&self, port: &str, asked: SocketAddr) -> SocketAddr {
        let children = self.file.children();
        let router = children.iter().find(|c| c.id == "router-0");
        let got = router.and_then(|r| r.ports.get(port)).copied();
        SocketAddr::new(asked.ip(), got.unwrap_or(asked.port()))
    }

    /// The line that scripts wait for.
    pub(crate) fn announce_ready(&self) {
        say_ready(&format!("ready http={} grpc={} admin={}", self.http_url(), self.grpc_address(), self.admin_url()));
    }

    async fn wait_until_all_serve(&self, n_workers: usize, n_routers: usize) -> anyhow::Result<()> {
        let progress = bootstrap::progress::spinner("starting");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            let children = self.file.children();
            let routers: Vec<u16> =
                children.iter().filter(|c| c.role == "router").filter_map(|c| c.ports.get("grpc").copied()).collect();
            if routers.len() == n_routers {
                for port in routers {
                    wait_until_usable(&format!("127.0.0.1:{port}"), n_workers).await?;
                }
                progress.finish();
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "the routers do not listen after {} s", START_TIMEOUT.as_secs());
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Waits until the router at `grpc` would use `n_workers` workers.
///
/// # Errors
/// If that is not so within the start timeout.
pub(crate) async fn wait_until_usable(grpc: &str, n_workers: usize) -> anyhow::Result<()> {
    let client = rpc::inference::InferenceClient::new(grpc)?;
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let members = client.cluster_state().await.map(|state| state.members).unwrap_or_default();
        let usable = members.iter().filter(|m| m.health == "UP" && m.role != "router").count();
        if usable >= n_workers {
            return Ok(());
        }
        let seen: Vec<_> = members.iter().map(|m| format!("{} {} {}", m.worker, m.health, m.reason)).collect();
        anyhow::ensure!(
            Instant::now() < deadline,
            "{usable} of {n_workers} workers serve after {} s: {}",
            START_TIMEOUT.as_secs(),
            seen.join(", ")
        );
        tokio::time::sleep(POLL).await;
    }
}

async fn serve_memory_registry(stop: &CancellationToken) -> anyhow::Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("cannot bind the registry's port")?;
    let address = listener.local_addr()?;
    let store = registry::memory::MemoryStore::new();
    let stop = stop.clone();
    // Outlives the children's shutdown, so that they can leave in order.
    tokio::spawn(async move {
        let linger = async move {
            stop.cancelled().await;
            tokio::time::sleep(Duration::from_secs(10)).await;
        };
        tokio::select! {
            result = registry::wire::serve(listener, store, CancellationToken::new()) => {
                if let Err(error) = result {
                    tracing::error!(%error, "the registry ended");
                }
            }
            () = linger => {}
        }
    });
    Ok(format!("etcd://{address}"))
}

/// What to start.
///
/// # Errors
/// If threads are to be bound to cores and there are fewer of these.
fn children(args: &UpArgs, model: &Model, registry: &str) -> anyhow::Result<Vec<ChildSpec>> {
    let workers = Workers { prefill: args.prefill, decode: args.decode };
    let share = workers.threads(args.engine.pin.n_cores().unwrap_or_else(bootstrap::cpu_count));
    let (prefill, decode) = args.engine.threads.map_or(share, |threads| (threads, threads));
    let cores = args.engine.pin.cores(args.prefill * prefill + args.decode * decode)?;
    let mut cores = cores.as_slice();
    let common = |role: &'static str, index: usize, flags: Vec<(&str, String)>| {
        let id = format!("{role}-{index}");
        let mut list = vec![role.to_owned(), "--exit-on-stdin-eof".to_owned()];
        let shared = [
            ("--id", id.clone()),
            ("--registry", registry.to_owned()),
            ("--model", model.path.display().to_string()),
            ("--served-model-name", model.name.clone()),
        ];
        for (flag, value) in shared.into_iter().chain(flags) {
            list.extend([flag.to_owned(), value]);
        }
        ChildSpec { role, id, args: list }
    };
    let any = || "127.0.0.1:0".to_owned();
    let mut specs = Vec::new();
    for index in 0..args.routers {
        let address = |asked: SocketAddr| if index == 0 { asked.to_string() } else { any() };
        let mut flags =
            vec![("--http", address(args.http)), ("--grpc", address(args.grpc)), ("--admin", address(args.admin))];
        flags.extend(args.routing.flags());
        flags.push(("--prefix-secret", args.engine.names.prefix_secret.clone()));
        specs.push(common("router", index, flags));
    }
    for (role, count, threads) in [("prefill", args.prefill, prefill), ("decode", args.decode, decode)] {
        for index in 0..count {
            let (own, rest) = cores.split_at(threads.min(cores.len()));
            cores = rest;
            let mut flags = vec![("--grpc", any()), ("--kv", any()), ("--admin", any())];
            flags.extend(engine_flags(&args.engine, threads));
            let pin = if own.is_empty() { PinArg::Off } else { PinArg::Cores(own.to_vec()) };
            flags.push(("--pin", pin.to_string()));
            specs.push(common(role, index, flags));
        }
    }
    Ok(specs)
}

fn engine_flags(engine: &EngineArgs, threads: usize) -> Vec<(&'static str, String)> {
    use clap::ValueEnum as _;
    let name = |value: Option<clap::builder::PossibleValue>| {
        value.map(|v| v.get_name().to_owned()).expect("no value of these enums is skipped")
    };
    vec![
        ("--engine", name(engine.engine.to_possible_value())),
        ("--compute", name(engine.compute.to_possible_value())),
        ("--threads", threads.to_string()),
        ("--kv-blocks", engine.kv_blocks.to_string()),
        ("--step-tokens", engine.step_tokens.to_string()),
        ("--max-running", engine.max_running.to_string()),
        ("--sim-speedup", engine.sim_speedup.to_string()),
        ("--kv-checksum", name(engine.kv_checksum.to_possible_value())),
        ("--transport", name(engine.transport.to_possible_value())),
        ("--prefix-cache", name(engine.prefix_cache.to_possible_value())),
        ("--tenant-cache-percent", engine.tenant_cache_percent.to_string()),
        ("--prefix-secret", engine.names.prefix_secret.clone()),
    ]
}
