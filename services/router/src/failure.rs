//! What a worker's failure means for a request.

use rpc::reason;
use types::{Code, Failure, Fault, Retry};

/// Reason of a worker that lives but does not go on.
const STALLED: &str = "STALLED";

/// A worker did not go on in time.
pub(crate) fn stalled(message: &str) -> Failure {
    Failure::new(Code::Aborted, STALLED, message).with_fault(Fault::Peer)
}

/// A worker broke the order of events.
pub(crate) fn out_of_order(message: &str) -> Failure {
    Failure::new(Code::Aborted, reason::MALFORMED_RESPONSE, message).with_fault(Fault::Peer)
}

/// Whether the worker itself is in doubt, so that others should avoid it for a while.
pub(crate) fn is_lost(failure: &Failure) -> bool {
    const REASONS: [&str; 6] = [
        reason::PEER_LOST,
        reason::PEER_UNREACHABLE,
        reason::MALFORMED_RESPONSE,
        "WORKER_STOPPED",
        "WORKER_POISONED",
        STALLED,
    ];
    REASONS.contains(&failure.reason)
}

/// Whether another attempt may succeed. A request is computed from its prompt and its seed alone, so doing it again
/// elsewhere repeats no effect; what fails by the input or by a fault of ours fails again.
pub(crate) fn is_retryable(failure: &Failure) -> bool {
    if matches!(failure.retry, Retry::Safe(_)) {
        return true;
    }
    match failure.code {
        Code::ResourceExhausted
        | Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::DataLoss => true,
        Code::Internal => failure.reason == reason::MALFORMED_RESPONSE,
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => false,
    }
}
