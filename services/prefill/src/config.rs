//! Settings of the prefill service.

use std::net::SocketAddr;
use std::path::PathBuf;

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
    /// Transports besides gRPC.
    pub transports: TransportConfig,
}

/// Where KV is served besides gRPC; `None`: not that way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TransportConfig {
    /// Raw TCP.
    pub tcp_listen: Option<SocketAddr>,
    /// `host:port` under which others reach it; `None`: as bound.
    pub tcp_advertise: Option<String>,
    /// Path of the unix socket of shared memory.
    pub shm_path: Option<PathBuf>,
}

impl Config {
    /// On free ports of the loopback interface; without shared memory, which needs a path.
    pub fn loopback(id: impl Into<String>, model: impl Into<String>) -> Self {
        let node = NodeConfig::loopback(id, model);
        let transports = TransportConfig { tcp_listen: Some(node.rpc_listen), ..TransportConfig::default() };
        let node = NodeConfig { kv_listen: Some(node.rpc_listen), ..node };
        Self { node, worker: WorkerConfig::default(), source: SourceConfig::default(), transports }
    }
}
