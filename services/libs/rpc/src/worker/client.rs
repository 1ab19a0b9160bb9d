//! A worker as its router sees it.

use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use proto::v1 as wire;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::worker_service_client::WorkerServiceClient;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use types::{Accounting, Failure, KvEventBatch, Load, WorkerRef};

use super::{DecodeCall, DecodeEvent, PrefillCall, PrefillEvent, Reserve, Reserved, WorkerApi};
use crate::net::{Limits, channel};
use crate::status::{cut_off, deadline_exceeded, from_status, malformed_response};
use crate::{EventStream, RequestContext, convert};

/// Calls that belong to no request end after this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The far side ends a call at its deadline and says why; this side waits so much longer for it.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// A connection to one worker; made at the first call, made anew after a loss. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerClient {
    worker: WorkerServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
}

impl WorkerClient {
    /// To `address` (`host:port`). Nothing is sent yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn new(address: &str) -> Result<Self, Failure> {
        let limits = Limits::internal();
        let channel = channel(address, &limits)?;
        Ok(Self {
            worker: WorkerServiceClient::new(channel.clone())
                .max_decoding_message_size(limits.message_bytes)
                .max_encoding_message_size(limits.message_bytes),
            admin: AdminServiceClient::new(channel).max_decoding_message_size(limits.message_bytes),
        })
    }
}

#[async_trait]
impl WorkerApi for WorkerClient {
    async fn reserve(&self, context: RequestContext, call: Reserve) -> Result<Reserved, Failure> {
        let request = within(convert::write_reserve(&context, &call), context.deadline);
        let reserved = self.worker.clone().reserve(request).await.map_err(failure)?;
        convert::read_reserved(reserved.into_inner()).map_err(malformed_response)
    }

    async fn run_prefill(
        &self,
        context: RequestContext,
        call: PrefillCall,
    ) -> Result<EventStream<PrefillEvent>, Failure> {
        let deadline = Instant::now() + context.deadline + DEADLINE_SLACK;
        let request = within(convert::write_prefill_call(&context, &call), context.deadline);
        let stream = self.worker.clone().run_prefill(request).await.map_err(failure)?.into_inner();
        let last = |event: &PrefillEvent| matches!(event, PrefillEvent::HoldEnded { .. });
        Ok(events(stream, Some(deadline), convert::read_prefill_event, last))
    }

    async fn run_decode(&self, context: RequestContext, call: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        let deadline = Instant::now() + context.deadline + DEADLINE_SLACK;
        let request = within(convert::write_decode_call(&context, &call), context.deadline);
        let stream = self.worker.clone().run_decode(request).await.map_err(failure)?.into_inner();
        let last = |event: &DecodeEvent| matches!(event, DecodeEvent::Finished { .. });
        Ok(events(stream, Some(deadline), convert::read_decode_event, last))
    }

    async fn cancel(&self, context: RequestContext, all_choices: bool) -> Result<bool, Failure> {
        let call = wire::CancelRequest { context: Some(convert::write_context(&context)), all_choices };
        let request = within(call, context.deadline);
        Ok(self.worker.clone().cancel(request).await.map_err(failure)?.into_inner().found)
    }

    async fn drain(&self, worker: WorkerRef) -> Result<u32, Failure> {
        let call = wire::DrainRequest { worker: Some(convert::write_worker_ref(&worker)) };
        Ok(self.worker.clone().drain(within(call, CALL_TIMEOUT)).await.map_err(failure)?.into_inner().n_running)
    }

    async fn load_report(
        &self,
        worker: WorkerRef,
        min_interval: Duration,
    ) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        let call = wire::LoadReportRequest {
            worker: Some(convert::write_worker_ref(&worker)),
            min_interval_ms: u32::try_from(min_interval.as_millis()).unwrap_or(u32::MAX),
        };
        // The timeout holds for the answer's beginning, not for the reports.
        let stream = self.worker.clone().load_report(within(call, CALL_TIMEOUT)).await.map_err(failure)?.into_inner();
        Ok(events(stream, None, convert::read_load, |_| false))
    }

    async fn kv_events(&self, worker: WorkerRef, after: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        let call = wire::KvEventsRequest { worker: Some(convert::write_worker_ref(&worker)), after_id: after };
        // The timeout holds for the answer's beginning, not for the events.
        let stream = self.worker.clone().kv_events(within(call, CALL_TIMEOUT)).await.map_err(failure)?.into_inner();
        Ok(events(stream, None, convert::read_kv_events, |_| false))
    }

    async fn accounting(&self) -> Result<Accounting, Failure> {
        let request = within(wire::GetAccountingRequest {}, CALL_TIMEOUT);
        let accounting = self.admin.clone().get_accounting(request).await.map_err(failure)?;
        Ok(convert::read_accounting(accounting.into_inner()))
    }
}

/// A request whose answer must begin within `timeout`.
fn within<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn failure(status: Status) -> Failure {
    from_status(&status)
}

/// Domain events of a stream: up to the one that is `last`, or to a failure.
pub(crate) fn events<W, D>(
    stream: Streaming<W>,
    deadline: Option<Instant>,
    read: fn(W) -> Result<D, Failure>,
    last: fn(&D) -> bool,
) -> EventStream<D>
where
    W: Send + 'static,
    D: Send + 'static,
{
    let next = move |stream: Option<Streaming<W>>| async move {
        let mut stream = stream?;
        let message = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, stream.message()).await,
            None => Ok(stream.message().await),
        };
        let event = match message {
            Err(_) => Err(deadline_exceeded()),
            Ok(Err(status)) => Err(failure(status)),
            Ok(Ok(None)) => Err(cut_off()),
            Ok(Ok(Some(message))) => read(message).map_err(malformed_response),
        };
        let over = event.as_ref().map_or(true, last);
        Some((event, (!over).then_some(stream)))
    };
    futures::stream::unfold(Some(stream), next).boxed()
}
