//! Serving: limits, health, reflection, bounded shutdown.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::channel::HEADER_LIST_MAX;
use super::incoming::incoming;
use super::{ServeError, ServeOptions};

const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A cut connection is gone after this time, whatever its tasks do.
const CUT_WAIT: Duration = Duration::from_secs(1);

/// Serves `routes`, health and reflection until `shutdown`, then lets open streams end within the grace time.
///
/// `services`: full names of the services in `routes`, e.g. `baton.v1.WorkerService`.
///
/// # Errors
/// The transport broke, or the descriptors do not load.
pub async fn serve_routes(
    routes: Routes,
    services: &'static [&'static str],
    listener: TcpListener,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let limits = &options.limits;
    let (reporter, health) = tonic_health::server::health_reporter();
    let routes = routes
        .add_service(health)
        .add_service(descriptors(services).build_v1()?)
        .add_service(descriptors(services).build_v1alpha()?);

    let cut = CancellationToken::new();
    let server = Server::builder()
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_concurrent_streams(limits.n_streams)
        .max_frame_size(limits.frame_bytes)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_LIST_MAX)
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            incoming(listener, limits.n_connections, cut.clone()),
            shutdown.clone().cancelled_owned(),
        );
    // Whatever ends this future also ends its connections.
    let cut_on_drop = cut.clone().drop_guard();
    let bound = async {
        shutdown.cancelled().await;
        tokio::time::sleep(limits.grace).await;
        tracing::info!("cutting connections that outlived the grace time");
        cut.cancel();
        tokio::time::sleep(CUT_WAIT).await;
    };
    let result = tokio::select! {
        result = server => result.map_err(ServeError::from),
        () = bound => Ok(()),
        () = report_health(reporter, services, options.ready, &shutdown) => Ok(()),
    };
    drop(cut_on_drop);
    result
}

fn descriptors(services: &[&'static str]) -> tonic_reflection::server::Builder<'static> {
    let builder = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name("grpc.health.v1.Health");
    services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
}

/// Keeps the health service true; never returns.
async fn report_health(
    reporter: HealthReporter,
    services: &[&str],
    ready: Option<watch::Receiver<bool>>,
    shutdown: &CancellationToken,
) {
    let set = async |serving: bool| {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in services.iter().chain(&[""]) {
            reporter.set_service_status(*service, status).await;
        }
    };
    let follow = async {
        let Some(mut ready) = ready else {
            set(true).await;
            return std::future::pending().await;
        };
        loop {
            let now = *ready.borrow_and_update();
            set(now).await;
            if ready.changed().await.is_err() {
                set(false).await;
                return std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = follow => {}
        () = shutdown.cancelled() => {}
    }
    set(false).await;
    std::future::pending().await
}
