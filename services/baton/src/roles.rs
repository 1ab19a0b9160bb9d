//! `baton router`, `prefill`, `decode`, `registry`: one role in this process.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bootstrap::Runtime;
use node::{NodeConfig, OpenEngine};
use prefill::TransportConfig;
use registry::Registry;
use tokio::net::TcpListener;
use transfer::{Checksum, TransportChoice, TransportKind};
use types::Role;
use worker::WorkerConfig;

use crate::cli::{EngineArgs, ProcessArgs, RegistryArgs, RouterArgs, Switch, TransportArg, WorkerArgs};
use crate::engines::{self, Model};

pub(crate) async fn router(args: RouterArgs) -> anyhow::Result<()> {
    let model = Model::resolve(&args.model)?;
    let (runtime, registry) = process(Role::Router, &args.process)?;
    let mut config = router::Config::new(runtime.id(), model.path, model.name);
    (config.http, config.grpc, config.admin) = (args.http, args.grpc, Some(args.admin));
    args.routing.apply(&mut config);
    config.prefix_secret = args.names.secret();
    router::run(config, runtime, registry).await
}

pub(crate) async fn prefill(args: WorkerArgs) -> anyhow::Result<()> {
    let model = Model::resolve(&args.model)?;
    let (runtime, registry) = process(Role::Prefill, &args.process)?;
    args.engine.validate()?;
    let mut config = prefill::Config::loopback(runtime.id(), model.name.as_str());
    config.node = node_config(&args, config.node);
    config.worker = worker_config(&args.engine);
    config.transports = transports(&args, runtime.id())?;
    prefill::run(config, opener(model, args.engine), registry, runtime).await
}

pub(crate) async fn decode(args: WorkerArgs) -> anyhow::Result<()> {
    let model = Model::resolve(&args.model)?;
    let (runtime, registry) = process(Role::Decode, &args.process)?;
    args.engine.validate()?;
    let mut config = decode::Config::loopback(runtime.id(), model.name.as_str());
    // A decode worker pulls; it serves no KV itself.
    config.node = NodeConfig { kv_listen: None, kv_advertise: None, ..node_config(&args, config.node) };
    config.worker = worker_config(&args.engine);
    config.pull.checksum = checksum(args.engine.kv_checksum);
    config.pull.transport = transport(args.engine.transport);
    decode::run(config, opener(model, args.engine), registry, runtime).await
}

pub(crate) async fn registry(args: RegistryArgs) -> anyhow::Result<()> {
    let runtime = Runtime::new("registry", "registry", bootstrap::shutdown_signal()?);
    if args.exit_on_stdin_eof {
        runtime.exit_on_stdin_eof();
    }
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot bind {}", args.listen))?;
    say_ready(&format!("ready registry=etcd://{}", listener.local_addr()?));
    registry::wire::serve(listener, registry::memory::MemoryStore::new(), runtime.shutdown().clone()).await?;
    Ok(())
}

/// The step and queue limits of a worker.
pub(crate) fn worker_config(args: &EngineArgs) -> WorkerConfig {
    WorkerConfig {
        max_step_tokens: args.step_tokens,
        // Every running sequence has its token in every step.
        max_running: args.max_running.min(args.step_tokens),
        prefix_cache: args.prefix_cache == Switch::On,
        prefix_secret: args.names.secret(),
        tenant_percent: args.tenant_cache_percent,
        ..WorkerConfig::default()
    }
}

/// Loads the engine on the thread that it is called on.
pub(crate) fn opener(model: Model, args: EngineArgs) -> OpenEngine {
    Box::new(move || engines::open(&model, &args))
}

pub(crate) fn checksum(switch: Switch) -> Checksum {
    match switch {
        Switch::On => Checksum::On,
        Switch::Off => Checksum::Off,
    }
}

pub(crate) fn transport(arg: TransportArg) -> TransportChoice {
    match arg {
        TransportArg::Auto => TransportChoice::Auto,
        TransportArg::Shm => TransportChoice::Only(TransportKind::Shm),
        TransportArg::Tcp => TransportChoice::Only(TransportKind::Tcp),
        TransportArg::Grpc => TransportChoice::Only(TransportKind::Grpc),
    }
}

/// Where a prefill worker serves KV besides gRPC.
fn transports(args: &WorkerArgs, id: &str) -> anyhow::Result<TransportConfig> {
    let choice = transport(args.engine.transport);
    let tcp = args.kv_tcp.unwrap_or_else(|| SocketAddr::new(args.kv.ip(), 0));
    // Another process of that name may be there, or have been killed.
    let socket = || anyhow::Ok(bootstrap::env::run_dir()?.join(format!("kv-{id}-{}.sock", std::process::id())));
    Ok(TransportConfig {
        tcp_listen: choice.offers(TransportKind::Tcp).then_some(tcp),
        tcp_advertise: args.kv_tcp_advertise.clone(),
        shm_path: if choice.offers(TransportKind::Shm) { Some(socket()?) } else { None },
    })
}

#[allow(clippy::print_stdout, reason = "the ready line is this command's interface")]
pub(crate) fn say_ready(line: &str) {
    println!("{line}");
}

fn node_config(args: &WorkerArgs, defaults: NodeConfig) -> NodeConfig {
    NodeConfig {
        rpc_listen: args.grpc,
        kv_listen: Some(args.kv),
        admin_listen: Some(args.admin),
        rpc_advertise: args.grpc_advertise.clone(),
        kv_advertise: args.kv_advertise.clone(),
        ..defaults
    }
}

/// What every role process begins with.
fn process(role: Role, args: &ProcessArgs) -> anyhow::Result<(Runtime, Arc<dyn Registry>)> {
    let id = args.id.clone().map_or_else(|| random_id(role), Ok)?;
    let runtime = Runtime::new(role.as_str(), &id, bootstrap::shutdown_signal()?).announcing_on_stdout();
    if args.exit_on_stdin_eof {
        runtime.exit_on_stdin_eof();
    }
    Ok((runtime, registry::connect(&args.registry)?))
}

fn random_id(role: Role) -> anyhow::Result<String> {
    let mut bytes = [0; 4];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no randomness for a name: {error}"))?;
    Ok(format!("{role}-{:08x}", u32::from_be_bytes(bytes)))
}
