//! `baton up`: a whole cluster on this machine, each role a process of its own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::{EngineArgs, UpArgs};
use crate::cluster::{ChildRecord, ClusterFile};
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
        let model = crate::model::resolve(&args.model.model)?;
        let file = Arc::new(ClusterFile::create(&bootstrap::env::run_dir()?)?);
        let supervisor = Supervisor::new(file.clone(), stop.clone());
        let registry = match args.registry.as_str() {
            "memory" => serve_memory_registry(&stop).await?,
            url => url.to_owned(),
        };
        for spec in children(&args, &model, &registry) {
            supervisor.spawn(spec);
        }
        let cluster = Self { file, supervisor, stop, http: args.http, grpc: args.grpc };
        let outcome = tokio::select! {
            outcome = cluster.wait_until_usable(args.prefill + args.decode, args.routers) => outcome,
            error = cluster.failed() => Err(error),
        };
        if let Err(error) = outcome {
            cluster.stop.cancel();
            cluster.ended().await;
            return Err(error);
        }
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
    #[allow(clippy::print_stdout, reason = "the ready line is this command's interface")]
    pub(crate) fn announce_ready(&self) {
        println!("ready http={} grpc={} admin={}", self.http_url(), self.grpc_address(), self.admin_url());
    }

    async fn wait_until_usable(&self, n_workers: usize, n_routers: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let progress = bootstrap::progress::spinner("starting");
        loop {
            let children = self.file.children();
            let announced = children.iter().filter(|c| !c.ports.is_empty()).count();
            progress.set_message(format!("starting: {announced} of {} processes listen", n_workers + n_routers));
            if announced == n_workers + n_routers {
                let routers = children.iter().filter(|c| c.role == "router");
                let mut usable = true;
                for router in routers {
                    usable &= usable_workers(router).await.is_some_and(|n| n >= n_workers);
                }
                if usable {
                    return Ok(());
                }
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "not all workers serve after {} s: {announced} of {} processes listen",
                START_TIMEOUT.as_secs(),
                n_workers + n_routers
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

/// How many workers a router would use now; `None` while it does not answer.
async fn usable_workers(router: &ChildRecord) -> Option<usize> {
    let port = router.ports.get("grpc")?;
    let client = rpc::inference::InferenceClient::new(&format!("127.0.0.1:{port}")).ok()?;
    let state = client.cluster_state().await.ok()?;
    Some(state.members.iter().filter(|m| m.health == "UP").count())
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

fn children(args: &UpArgs, model: &Path, registry: &str) -> Vec<ChildSpec> {
    let n_workers = args.prefill + args.decode;
    let threads = args.engine.threads.unwrap_or_else(|| (bootstrap::cpu_count() / n_workers).max(1));
    let model_name = args.model.served_model_name.clone().unwrap_or_else(|| crate::model::served_name(model));
    let common = |role: &'static str, index: usize, flags: Vec<(&str, String)>| {
        let id = format!("{role}-{index}");
        let mut list = vec![role.to_owned(), "--exit-on-stdin-eof".to_owned()];
        let shared = [
            ("--id", id.clone()),
            ("--registry", registry.to_owned()),
            ("--model", model.display().to_string()),
            ("--served-model-name", model_name.clone()),
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
        let flags =
            vec![("--http", address(args.http)), ("--grpc", address(args.grpc)), ("--admin", address(args.admin))];
        specs.push(common("router", index, flags));
    }
    for (role, count) in [("prefill", args.prefill), ("decode", args.decode)] {
        for index in 0..count {
            let mut flags = vec![("--grpc", any()), ("--kv", any()), ("--admin", any())];
            flags.extend(engine_flags(&args.engine, threads));
            specs.push(common(role, index, flags));
        }
    }
    specs
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
    ]
}
