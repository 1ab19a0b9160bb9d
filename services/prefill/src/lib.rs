//! The prefill service: computes prompts and offers their KV to decode workers.
//!
//! Wiring only: `worker` computes and owns blocks, `transfer` serves them, `node` is the process's frame. Not here:
//! decoding, and which worker is chosen (the router). Begin with `service.rs`.

mod config;
mod service;
mod transports;

use std::sync::Arc;

use anyhow::Context as _;
use bootstrap::Runtime;
use node::OpenEngine;
use registry::Registry;
use rpc::Limits;
use transfer::Source;
use types::Role;

pub use config::{Config, TransportConfig};

use crate::service::PrefillService;
use crate::transports::Bound;

/// Runs a prefill worker until shutdown.
///
/// # Errors
/// What kept it from starting, or what broke while it ran.
pub async fn run(
    config: Config,
    open: OpenEngine,
    registry: Arc<dyn Registry>,
    runtime: Runtime,
) -> anyhow::Result<()> {
    let Config { mut node, worker, source, transports } = config;
    let bound = Bound::new(transports, node.kv_advertise.as_deref())?;
    node.kv_endpoints = bound.endpoints().clone();
    let build = move |mut parts: node::Parts| {
        let listener = parts.kv_listener.take().context("a prefill worker needs an address for KV data")?;
        let metrics = transfer::Metrics::default();
        parts.runtime.metrics().register("transfer", |registry| metrics.register(registry));
        let compatibility = parts.worker.model().compatibility.clone();
        let source = Source::new(parts.worker.arena().clone(), compatibility, parts.gate.worker(), source, metrics);
        let options = parts.serve_options(Limits::kv());
        let served = source.clone();
        parts.spawn_server("KV data", move |stop| transfer::serve(listener, served, options, stop));
        bound.serve(&parts, &source);
        Ok(Arc::new(PrefillService::new(parts.worker, parts.gate, source)) as Arc<dyn rpc::worker::WorkerApi>)
    };
    node::run(Role::Prefill, node, worker, open, registry, runtime, build).await
}
