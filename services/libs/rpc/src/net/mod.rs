//! Sockets: how every server of ours listens and stops, and how every client connects.
//!
//! For this crate and `transfer`, the two that know gRPC.

mod channel;
mod incoming;
mod server;

use std::time::Duration;

use tokio::sync::watch;

pub use channel::channel;
pub use server::serve_routes;

/// Sizes and times of a server and of the clients that speak to it.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest message accepted and sent, bytes.
    pub message_bytes: usize,
    /// Open streams of one connection.
    pub n_streams: u32,
    /// Open connections.
    pub n_connections: usize,
    /// Flow-control window of a stream, bytes.
    pub stream_window: u32,
    /// Flow-control window of a connection, bytes.
    pub connection_window: u32,
    /// Longest HTTP/2 frame, bytes.
    pub frame_bytes: u32,
    /// Open streams may go on this long after shutdown began; then their connections are cut.
    pub grace: Duration,
}

impl Limits {
    /// Client API.
    pub const fn public() -> Self {
        Self {
            message_bytes: 4 << 20,
            n_streams: 1024,
            n_connections: 4096,
            stream_window: 1 << 20,
            connection_window: 4 << 20,
            frame_bytes: 64 << 10,
            grace: Duration::from_secs(5),
        }
    }

    /// Control plane.
    pub const fn internal() -> Self {
        Self {
            message_bytes: 8 << 20,
            n_streams: 4096,
            n_connections: 1024,
            stream_window: 1 << 20,
            connection_window: 8 << 20,
            frame_bytes: 256 << 10,
            grace: Duration::from_secs(1),
        }
    }

    /// KV data plane.
    pub const fn kv() -> Self {
        Self {
            message_bytes: 16 << 20,
            n_streams: 1024,
            n_connections: 1024,
            stream_window: 8 << 20,
            connection_window: 64 << 20,
            frame_bytes: 4 << 20,
            grace: Duration::from_secs(1),
        }
    }
}

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Sizes and times.
    pub limits: Limits,
    /// Health says `SERVING` while this is true; `None`: until shutdown.
    pub ready: Option<watch::Receiver<bool>>,
}

impl ServeOptions {
    /// With these limits, ready at once.
    pub const fn new(limits: Limits) -> Self {
        Self { limits, ready: None }
    }

    /// Ready while the value is true.
    pub fn with_ready(self, ready: watch::Receiver<bool>) -> Self {
        Self { ready: Some(ready), ..self }
    }
}

/// A server could not start or broke.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The transport failed.
    #[error("grpc server failed")]
    Transport(#[from] tonic::transport::Error),
    /// The listening socket is not usable.
    #[error("listening socket failed")]
    Socket(#[from] std::io::Error),
    /// The embedded descriptors do not load.
    #[error("descriptors do not load")]
    Descriptors(#[from] tonic_reflection::server::Error),
}
