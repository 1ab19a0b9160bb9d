//! Identities, durations, request context.

use std::time::Duration;

use proto::v1 as wire;
use types::{BlockHash, Epoch, Failure, RequestId, WorkerId, WorkerRef};

use super::{name, required};
use crate::status::deadline_exceeded;
use crate::{RequestContext, TraceContext};

/// No call lives longer.
const DEADLINE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest trace header, bytes (W3C: 512 for `tracestate`).
const TRACE_BYTES_MAX: usize = 512;

/// A request's name: exactly 16 bytes.
///
/// # Errors
/// It is missing or has another length.
pub fn read_request_id(id: Option<wire::RequestId>, param: &str) -> Result<RequestId, Failure> {
    let bytes: [u8; 16] = (&*required(id, param)?.value)
        .try_into()
        .map_err(|_| Failure::invalid(param, format!("{param} must have 16 bytes")))?;
    Ok(RequestId(u128::from_be_bytes(bytes)))
}

/// To the wire.
pub fn write_request_id(id: RequestId) -> wire::RequestId {
    wire::RequestId { value: id.0.to_be_bytes().to_vec().into() }
}

/// A block's hash: exactly 16 bytes.
///
/// # Errors
/// It has another length.
pub fn read_hash(bytes: &[u8], param: &str) -> Result<BlockHash, Failure> {
    bytes.try_into().map(BlockHash).map_err(|_| Failure::invalid(param, format!("{param} must have 16 bytes")))
}

/// An incarnation of a worker.
///
/// # Errors
/// It is missing or its name is empty or too long.
pub fn read_worker_ref(worker: Option<wire::WorkerRef>, param: &str) -> Result<WorkerRef, Failure> {
    let worker = required(worker, param)?;
    let id = name(worker.worker_id, param)?;
    if id.is_empty() {
        return Err(Failure::invalid(param, format!("{param} must name a worker")));
    }
    Ok(WorkerRef { id: WorkerId::new(id), epoch: Epoch(worker.epoch) })
}

/// To the wire.
pub fn write_worker_ref(worker: &WorkerRef) -> wire::WorkerRef {
    wire::WorkerRef { worker_id: worker.id.as_str().to_owned(), epoch: worker.epoch.0 }
}

/// Milliseconds, a day at most.
pub fn read_duration_ms(millis: u64) -> Duration {
    Duration::from_millis(millis).min(DEADLINE_MAX)
}

/// Whole milliseconds, rounded up.
pub fn write_duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

/// What travels on every call.
///
/// # Errors
/// A malformed part, or `DeadlineExceeded` if no time is left.
pub fn read_context(context: Option<wire::RequestContext>) -> Result<RequestContext, Failure> {
    let context = required(context, "context")?;
    if context.deadline_remaining_us == 0 {
        return Err(deadline_exceeded());
    }
    if context.traceparent.len() > TRACE_BYTES_MAX || context.tracestate.len() > TRACE_BYTES_MAX {
        return Err(Failure::invalid("context.traceparent", "trace context is too long"));
    }
    Ok(RequestContext {
        request: read_request_id(context.request_id, "context.request_id")?,
        worker: read_worker_ref(context.worker, "context.worker")?,
        owner_epoch: Epoch(context.owner_epoch),
        deadline: Duration::from_micros(context.deadline_remaining_us).min(DEADLINE_MAX),
        trace: TraceContext { traceparent: context.traceparent, tracestate: context.tracestate },
        choice: context.choice,
    })
}

/// To the wire.
pub fn write_context(context: &RequestContext) -> wire::RequestContext {
    wire::RequestContext {
        request_id: Some(write_request_id(context.request)),
        worker: Some(write_worker_ref(&context.worker)),
        owner_epoch: context.owner_epoch.0,
        deadline_remaining_us: u64::try_from(context.deadline.as_micros()).unwrap_or(u64::MAX),
        traceparent: context.trace.traceparent.clone(),
        tracestate: context.trace.tracestate.clone(),
        choice: context.choice,
    }
}
