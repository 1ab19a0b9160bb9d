//! The router: accepts clients over HTTP and gRPC and leads prefill and decode workers.
//!
//! One pipeline serves both interfaces ([`rpc::inference::InferenceApi`] on the one side, OpenAI's HTTP shapes on
//! the other). Not here: the choice of workers (crate `routing`), wire formats (crate `rpc`), computing.
//! Begin with [`run`], then `request`, the stages of a request.

mod cache_events;
mod cluster;
mod config;
mod explain;
mod failure;
mod grpc;
mod http;
mod metrics;
mod prefixes;
mod request;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use bootstrap::{AdminHooks, AdminServer, ExplainHook, Ports, Runtime};
use registry::{Member, Registry};
use rpc::{Limits as RpcLimits, ServeOptions};
use text::TextModel;
use tokio::net::TcpListener;
use types::Role;

pub use config::{Config, InvalidConfig, Limits};

use cluster::Cluster;
use metrics::Metrics;
use request::Pipeline;

/// Serves until the runtime's shutdown, then lets open requests end within the grace time.
///
/// # Errors
/// If the model's text files cannot be read, an address cannot be bound, or a server breaks.
pub async fn run(config: Config, runtime: Runtime, registry: Arc<dyn Registry>) -> anyhow::Result<()> {
    config.validate()?;
    let path = config.model.clone();
    let text = tokio::task::spawn_blocking(move || TextModel::open(&path)).await?;
    let text = text.with_context(|| format!("model {}", config.model.display()))?;
    let http = bind(config.http).await?;
    let grpc = bind(config.grpc).await?;
    let admin = match config.admin {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let ports = Ports {
        http: Some(http.local_addr()?),
        grpc: Some(grpc.local_addr()?),
        admin: admin.as_ref().map(TcpListener::local_addr).transpose()?,
        kv: None,
    };

    let metrics = Metrics::new();
    runtime.metrics().register("router", |registry| metrics.register(registry));
    let shutdown = runtime.shutdown().clone();
    let limits = config.limits.clone();
    let cluster = Cluster::start(
        cluster::Settings {
            model: config.model_name.clone(),
            suspicion: limits.suspicion,
            rules: config.rules,
            prefix_secret: config.prefix_secret.clone(),
            index: index::Config { seed: grpc::random_request_id()?.0 as u64, ..config.index },
        },
        metrics.clone(),
        registry.members(),
        runtime.tracker(),
        shutdown.clone(),
    );
    let pipeline = Pipeline::new(
        config.model_name.clone(),
        text,
        cluster.clone(),
        limits.clone(),
        metrics,
        runtime.tracker().clone(),
    );
    let membership = registry.join(member(&config, ports)).await?;
    runtime.announce(ports);

    let routes = http::routes(pipeline.clone());
    let api = Arc::new(grpc::Grpc(pipeline.clone()));
    let options = ServeOptions::new(RpcLimits { grace: limits.grace, ..RpcLimits::public() });
    let http = http::serve(http, routes, &limits, shutdown.clone());
    let grpc = rpc::inference::serve(grpc, api, options, shutdown.clone());
    let admin = async {
        match admin {
            Some(listener) => {
                let ready = {
                    let cluster = cluster.clone();
                    Arc::new(move || cluster.is_ready())
                };
                let explain: ExplainHook = Arc::new(move |request| cluster.explanations.of(request));
                let hooks = AdminHooks { ready, accounting: None, explain: Some(explain) };
                let server = AdminServer::new(runtime.metrics().clone(), hooks);
                server.serve(listener, shutdown.clone()).await.context("admin server failed")
            }
            None => Ok(()),
        }
    };
    let leave = async {
        shutdown.cancelled().await;
        membership.leave().await;
    };
    // The first server that breaks ends the others too.
    let broken = |result: anyhow::Result<()>| {
        if result.is_err() {
            shutdown.cancel();
        }
        result
    };
    let (grpc, admin, (), ()) = tokio::join!(
        async { broken(grpc.await.context("gRPC server failed")) },
        async { broken(admin.await) },
        http,
        leave,
    );
    pipeline.cut();
    grpc.and(admin)
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn member(config: &Config, ports: Ports) -> Member {
    let text = |address: Option<SocketAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    Member {
        id: config.id.clone(),
        role: Role::Router,
        rpc_address: text(ports.grpc),
        kv_address: String::new(),
        kv_endpoints: types::KvEndpoints::default(),
        admin_address: text(ports.admin),
        http_address: text(ports.http),
        model: config.model_name.clone(),
        max_context: 0,
        compatibility: None,
        device: String::new(),
        draining: false,
    }
}
