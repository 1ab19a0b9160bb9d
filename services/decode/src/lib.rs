//! The decode service: takes a prompt's KV over from a prefill worker, or computes it, and generates.
//!
//! Wiring only: `worker` computes and owns blocks, `transfer` pulls, `node` is the process's frame. Not here:
//! which worker is chosen, and what becomes of the tokens (the router). Begin with `service.rs`, then `sequence.rs`.

mod config;
mod sequence;
mod service;

use std::sync::Arc;

use bootstrap::Runtime;
use node::OpenEngine;
use registry::Registry;
use transfer::Puller;
use types::Role;

pub use config::{Config, PullConfig};

use crate::service::DecodeService;

/// Runs a decode worker until shutdown.
///
/// # Errors
/// What kept it from starting, or what broke while it ran.
pub async fn run(
    config: Config,
    open: OpenEngine,
    registry: Arc<dyn Registry>,
    runtime: Runtime,
) -> anyhow::Result<()> {
    let Config { node, worker, pull } = config;
    let build = move |parts: node::Parts| {
        let metrics = transfer::Metrics::default();
        parts.runtime.metrics().register("transfer", |registry| metrics.register(registry));
        let service = DecodeService::new(parts.worker, parts.gate, Puller::new(pull.transport, metrics), pull);
        Ok(Arc::new(service) as Arc<dyn rpc::worker::WorkerApi>)
    };
    node::run(Role::Decode, node, worker, open, registry, runtime, build).await
}
