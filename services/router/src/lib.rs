//! The router: accepts clients over HTTP and gRPC and leads prefill and decode workers.
//!
//! One pipeline serves both interfaces ([`rpc::inference::InferenceApi`] on the one side, OpenAI's HTTP shapes on
//! the other). Not here: the choice of workers (crate `routing`), wire formats (crate `rpc`), computing.
//! Begin with [`run`], then `request`, the stages of a request.

mod cluster;
mod config;
mod failure;
mod grpc;
mod metrics;
mod request;

use std::sync::Arc;

use registry::Registry;

pub use config::{Config, InvalidConfig, Limits};

/// Serves until the runtime's shutdown.
///
/// # Errors
/// If the model's text files cannot be read, an address cannot be bound, or a server breaks.
pub async fn run(
    config: Config,
    runtime: bootstrap::Runtime,
    registry: Arc<dyn Registry>,
) -> anyhow::Result<()> {
    config.validate()?;
    let _ = registry;
    runtime.shutdown().cancelled().await;
    Ok(())
}
