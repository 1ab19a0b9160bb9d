//! Settings of the decode service.

use std::time::Duration;

use node::NodeConfig;
use transfer::{Checksum, TransportChoice};
use worker::WorkerConfig;

/// Settings of the decode service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The process.
    pub node: NodeConfig,
    /// Steps and queues.
    pub worker: WorkerConfig,
    /// Pulling KV.
    pub pull: PullConfig,
}

/// How KV is pulled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PullConfig {
    /// Whether frames carry checksums.
    pub checksum: Checksum,
    /// What is to carry them.
    pub transport: TransportChoice,
    /// A prefill worker from which nothing is heard for this long has failed.
    pub progress_timeout: Duration,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self { checksum: Checksum::On, transport: TransportChoice::Auto, progress_timeout: Duration::from_secs(10) }
    }
}

impl Config {
    /// On free ports of the loopback interface.
    pub fn loopback(id: impl Into<String>, model: impl Into<String>) -> Self {
        Self { node: NodeConfig::loopback(id, model), worker: WorkerConfig::default(), pull: PullConfig::default() }
    }
}
