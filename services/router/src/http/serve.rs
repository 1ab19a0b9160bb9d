//! Accepting HTTP connections: bounded in number, headers and waiting time, and ended in order.

use std::time::Duration;

use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;

/// Most headers of a request.
const HEADERS: usize = 64;
/// Longest head of a request, bytes; also the size of a connection's read buffer.
const HEAD_BYTES: usize = 64 << 10;
/// Pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves until `shutdown`; open requests then have the limits' grace time to end.
pub(crate) async fn serve(listener: TcpListener, routes: Router, limits: &Limits, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(limits.n_connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    // Whatever ends this future also ends its connections.
    let _cut_on_drop = cut.clone().drop_guard();
    loop {
        let accept = async {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (routes, shutdown, cut, read_time) = (routes.clone(), shutdown.clone(), cut.clone(), limits.read_time);
        connections.spawn(async move {
            let _permit = permit;
            tokio::select! {
                () = connection(stream, routes, read_time, shutdown) => {}
                () = cut.cancelled() => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(limits.grace, connections.wait()).await.is_err() {
        tracing::info!(n_connections = connections.len(), "cutting connections that outlived the grace time");
    }
}

async fn connection(stream: TcpStream, routes: Router, read_time: Duration, shutdown: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set nodelay");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(read_time)
        .max_headers(HEADERS)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
