//! The gRPC side of a worker.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use proto::v1::worker_service_server::{WorkerService, WorkerServiceServer};
use proto::v1::{self as wire};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::{Code, Failure};

use super::WorkerApi;
use crate::convert;
use crate::net::{ServeError, ServeOptions, serve_routes};
use crate::status::to_status;

const SERVICES: &[&str] = &["baton.v1.WorkerService", "baton.v1.AdminService"];

/// Serves `api`, block accounting, health and reflection until `shutdown`.
///
/// # Errors
/// The transport broke.
pub async fn serve(
    listener: TcpListener,
    api: Arc<dyn WorkerApi>,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let bytes = options.limits.message_bytes;
    let worker =
        WorkerServiceServer::new(Server(api.clone())).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let admin = AdminServiceServer::new(Server(api)).max_decoding_message_size(bytes);
    serve_routes(Routes::new(worker).add_service(admin), SERVICES, listener, options, shutdown).await
}

struct Server(Arc<dyn WorkerApi>);

type Reply<T> = Result<Response<T>, Status>;
type Events<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl WorkerService for Server {
    type RunPrefillStream = Events<wire::RunPrefillResponse>;
    type RunDecodeStream = Events<wire::RunDecodeResponse>;
    type LoadReportStream = Events<wire::LoadReportResponse>;
    type KvEventsStream = Events<wire::KvEventsResponse>;

    async fn reserve(&self, request: Request<wire::ReserveRequest>) -> Reply<wire::ReserveResponse> {
        let (context, call) = convert::read_reserve(request.into_inner()).map_err(status)?;
        let reserved = self.0.reserve(context, call).await.map_err(status)?;
        Ok(Response::new(convert::write_reserved(&reserved)))
    }

    async fn run_prefill(&self, request: Request<wire::RunPrefillRequest>) -> Reply<Self::RunPrefillStream> {
        let (context, call) = convert::read_prefill_call(request.into_inner()).map_err(status)?;
        let worker = context.worker.clone();
        let events = self.0.run_prefill(context, call).await.map_err(status)?;
        let events =
            events.map(move |event| event.map(|event| convert::write_prefill_event(&worker, &event)).map_err(status));
        Ok(Response::new(events.boxed()))
    }

    async fn run_decode(&self, request: Request<wire::RunDecodeRequest>) -> Reply<Self::RunDecodeStream> {
        let (context, call) = convert::read_decode_call(request.into_inner()).map_err(status)?;
        let events = self.0.run_decode(context, call).await.map_err(status)?;
        let events = events.map(|event| event.map(|event| convert::write_decode_event(&event)).map_err(status));
        Ok(Response::new(events.boxed()))
    }

    async fn cancel(&self, request: Request<wire::CancelRequest>) -> Reply<wire::CancelResponse> {
        let call = request.into_inner();
        let context = convert::read_context(call.context).map_err(status)?;
        let found = self.0.cancel(context, call.all_choices).await.map_err(status)?;
        Ok(Response::new(wire::CancelResponse { found }))
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Reply<wire::DrainResponse> {
        let worker = convert::read_worker_ref(request.into_inner().worker, "worker").map_err(status)?;
        let n_running = self.0.drain(worker).await.map_err(status)?;
        Ok(Response::new(wire::DrainResponse { n_running }))
    }

    async fn load_report(&self, request: Request<wire::LoadReportRequest>) -> Reply<Self::LoadReportStream> {
        let (worker, min_interval) = convert::read_load_request(request.into_inner()).map_err(status)?;
        let reports = self.0.load_report(worker, min_interval).await.map_err(status)?;
        let reports =
            reports.map(|report| report.map(|(worker, load)| convert::write_load(&worker, &load)).map_err(status));
        Ok(Response::new(reports.boxed()))
    }

    async fn kv_events(&self, request: Request<wire::KvEventsRequest>) -> Reply<Self::KvEventsStream> {
        let call = request.into_inner();
        let worker = convert::read_worker_ref(call.worker, "worker").map_err(status)?;
        let events = self.0.kv_events(worker, call.after_id).await.map_err(status)?;
        let events = events.map(|batch| batch.map(|batch| convert::write_kv_events(&batch)).map_err(status));
        Ok(Response::new(events.boxed()))
    }
}

#[tonic::async_trait]
impl AdminService for Server {
    async fn get_cluster_state(
        &self,
        _: Request<wire::GetClusterStateRequest>,
    ) -> Reply<wire::GetClusterStateResponse> {
        let failure =
            Failure::new(Code::Unimplemented, "NOT_A_ROUTER", "a worker does not see the cluster; ask a router");
        Err(to_status(&failure))
    }

    async fn get_accounting(&self, _: Request<wire::GetAccountingRequest>) -> Reply<wire::GetAccountingResponse> {
        let accounting = self.0.accounting().await.map_err(status)?;
        Ok(Response::new(convert::write_accounting(&accounting)))
    }
}

fn status(failure: Failure) -> Status {
    to_status(&failure)
}
