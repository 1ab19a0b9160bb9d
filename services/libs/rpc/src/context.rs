//! What travels on every call between processes.

use std::time::Duration;

use types::{Epoch, RequestId, WorkerRef};

/// W3C trace context, passed on unread. Empty: none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TraceContext {
    /// `traceparent` header.
    pub traceparent: String,
    /// `tracestate` header.
    pub tracestate: String,
}

/// Identity, fencing and time budget of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestContext {
    /// Which request.
    pub request: RequestId,
    /// The incarnation that the call is meant for; another one refuses it.
    pub worker: WorkerRef,
    /// Fencing epoch of the request's owner; a receiver refuses an older one than it has seen.
    pub owner_epoch: Epoch,
    /// Time left for the whole request.
    pub deadline: Duration,
    /// Trace context.
    pub trace: TraceContext,
    /// Which of the request's choices.
    pub choice: u32,
}
