//! The transports of KV data besides gRPC: bound before the worker says where it is, served once it can.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::{TcpListener, UnixListener};
use transfer::Source;
use types::KvEndpoints;

use crate::config::TransportConfig;

/// Sockets that are bound.
pub(crate) struct Bound {
    tcp: Option<TcpListener>,
    shm: Option<(UnixListener, SocketFile)>,
    endpoints: KvEndpoints,
}

/// Removed when its server has ended.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "cannot remove a socket");
        }
    }
}

impl Bound {
    /// Binds what is asked for. Memory that cannot be shared is no reason not to start: it is said, and the other
    /// transports remain.
    ///
    /// # Errors
    /// The TCP address cannot be bound.
    pub(crate) fn new(config: TransportConfig, kv_advertise: Option<&str>) -> anyhow::Result<Self> {
        let mut endpoints = KvEndpoints::default();
        let tcp = match config.tcp_listen {
            None => None,
            Some(address) => {
                let listener =
                    transfer::bind_tcp(address).with_context(|| format!("cannot listen on {address} for KV"))?;
                let bound = listener.local_addr()?;
                // On all interfaces: under the name by which the gRPC side is known.
                let host = kv_advertise.and_then(|address| address.rsplit_once(':')).map(|(host, _)| host);
                endpoints.tcp = match (config.tcp_advertise, host) {
                    (Some(address), _) => address,
                    (None, Some(host)) if bound.ip().is_unspecified() => format!("{host}:{}", bound.port()),
                    (None, _) => bound.to_string(),
                };
                Some(listener)
            }
        };
        let shm = config.shm_path.and_then(|path| match bind_shm(&path) {
            Ok((listener, host)) => {
                (endpoints.shm, endpoints.host) = (path.display().to_string(), host);
                Some((listener, SocketFile(path)))
            }
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "kv is not served through shared memory");
                None
            }
        });
        Ok(Self { tcp, shm, endpoints })
    }

    /// Where they are.
    pub(crate) fn endpoints(&self) -> &KvEndpoints {
        &self.endpoints
    }

    /// Serves `source` on them, as servers of the process.
    pub(crate) fn serve(self, parts: &node::Parts, source: &Arc<Source>) {
        let grace = rpc::Limits::kv().grace;
        if let Some(listener) = self.tcp {
            let source = source.clone();
            parts.spawn_server("KV data over TCP", move |stop| async move {
                transfer::serve_tcp(listener, source, grace, stop).await;
                anyhow::Ok(())
            });
        }
        #[cfg(target_os = "linux")]
        if let Some((listener, file)) = self.shm {
            let source = source.clone();
            parts.spawn_server("KV data through shared memory", move |stop| async move {
                transfer::serve_shm(listener, source, grace, stop).await;
                drop(file);
                anyhow::Ok(())
            });
        }
    }
}

#[cfg(target_os = "linux")]
fn bind_shm(path: &Path) -> anyhow::Result<(UnixListener, String)> {
    let host = transfer::host_id().context("the system does not tell its name")?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    Ok((transfer::bind_shm(path)?, host))
}

#[cfg(not(target_os = "linux"))]
fn bind_shm(_: &Path) -> anyhow::Result<(UnixListener, String)> {
    anyhow::bail!("only Linux can seal shared memory")
}
