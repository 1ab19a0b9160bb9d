//! A [`MemoryStore`] over etcd's v3 wire: key-value, lease and watch services for etcd clients, `etcdctl` included.
//!
//! Not here: persistence, clustering, authentication, locks and elections. It is for processes of one machine and
//! for tests; a cluster uses etcd.

mod convert;
mod kv;
mod lease;
mod maintenance;
mod watch;

use std::time::Duration;

use etcd_client::proto::{PbKvServer, PbLeaseServer, PbMaintenanceServer, PbResponseHeader, PbWatchServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::RegistryError;
use crate::memory::MemoryStore;

/// Largest request, bytes, as in etcd.
const REQUEST_MAX: usize = 3 << 19;
/// Largest answer, bytes.
const RESPONSE_MAX: usize = 64 << 20;
/// Most requests in progress on one connection.
const STREAMS_MAX: u32 = 1024;
/// Longest wait for open calls at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Names of the one cluster and its one member in response headers.
const CLUSTER_ID: u64 = 0xba70;
const MEMBER_ID: u64 = 1;

/// Serves `store` until `shutdown`.
///
/// # Errors
/// If the listener fails.
pub async fn serve(
    listener: TcpListener,
    store: MemoryStore,
    shutdown: CancellationToken,
) -> Result<(), RegistryError> {
    let kv = PbKvServer::new(kv::Service { store: store.clone() });
    let lease = PbLeaseServer::new(lease::Service { store: store.clone(), shutdown: shutdown.clone() });
    let maintenance = PbMaintenanceServer::new(maintenance::Service { store: store.clone() });
    let watch = PbWatchServer::new(watch::Service { store, shutdown: shutdown.clone() });
    let server = Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(kv.max_decoding_message_size(REQUEST_MAX).max_encoding_message_size(RESPONSE_MAX))
        .add_service(lease.max_decoding_message_size(REQUEST_MAX))
        .add_service(maintenance.max_decoding_message_size(REQUEST_MAX))
        .add_service(watch.max_decoding_message_size(REQUEST_MAX).max_encoding_message_size(RESPONSE_MAX))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), shutdown.clone().cancelled_owned());
    let drained = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        result = server => result.map_err(|e| RegistryError::Serve(e.into())),
        () = drained => Ok(()),
    }
}

fn header(revision: i64) -> Option<PbResponseHeader> {
    Some(PbResponseHeader { cluster_id: CLUSTER_ID, member_id: MEMBER_ID, revision, raft_term: 1 })
}
