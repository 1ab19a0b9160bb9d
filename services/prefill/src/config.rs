//! Settings of the prefill service.

use node::NodeConfig;
use transfer::SourceConfig;
use worker::WorkerConfig;

/// Settings of the prefill service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The process. It needs an address for KV data.
    pub node: NodeConfig,
    /// Steps and queues.
    pub worker: WorkerConfig,
    /// Serving the KV.
    pub source: SourceConfig,
}

impl Config {
    /// On free ports of the loopback interface.
    pub fn loopback(id: impl Into<String>, model: impl Into<String>) -> Self {
        let node = NodeConfig::loopback(id, model);
        let node = NodeConfig { kv_listen: Some(node.rpc_listen), ..node };
        Self { node, worker: WorkerConfig::default(), source: SourceConfig::default() }
    }
}
