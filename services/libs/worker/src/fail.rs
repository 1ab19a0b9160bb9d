//! The failures a worker gives, each worded once.

use scheduler::Refusal;
use types::{Code, Failure, Fault, InvalidParam, Retry};

/// The driver has ended.
pub(crate) fn stopped() -> Failure {
    Failure::new(Code::Unavailable, "WORKER_STOPPED", "the worker has stopped")
}

pub(crate) fn draining() -> Failure {
    Failure::new(Code::Unavailable, "WORKER_DRAINING", "the worker takes no new work")
}

/// The engine panicked: nothing is computed here any more.
pub(crate) fn poisoned() -> Failure {
    Failure::new(Code::Unavailable, "WORKER_POISONED", "the worker's engine crashed")
}

pub(crate) fn deadline() -> Failure {
    Failure::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", "the request's time is over").with_fault(Fault::Client)
}

/// A step failed in the engine; another worker may do better.
pub(crate) fn engine(error: &engine::EngineError) -> Failure {
    Failure::new(Code::Internal, "ENGINE_FAILED", error.to_string()).with_retry(Retry::Safe(None))
}

pub(crate) fn sampling(error: &engine::sampling::SamplingError) -> Failure {
    Failure::new(Code::Internal, "SAMPLING_FAILED", error.to_string())
}

pub(crate) fn unknown_reservation() -> Failure {
    let message = "no such reservation: it expired, was claimed, or is of an earlier incarnation";
    Failure::new(Code::NotFound, "RESERVATION_NOT_FOUND", message).with_retry(Retry::Safe(None))
}

/// The KV or the record that came from prefill does not fit the request.
pub(crate) fn handoff(message: impl Into<String>) -> Failure {
    Failure::new(Code::DataLoss, "HANDOFF_MISMATCH", message).with_fault(Fault::Peer)
}

pub(crate) fn events_lost(lost: kvcache::Lost) -> Failure {
    Failure::new(Code::Aborted, "KV_EVENTS_LOST", lost.to_string()).with_retry(Retry::Safe(None))
}

pub(crate) fn too_many_followers() -> Failure {
    Failure::new(Code::ResourceExhausted, "TOO_MANY_FOLLOWERS", "enough others follow the prefix cache")
}

pub(crate) fn invalid(error: InvalidParam) -> Failure {
    Failure::invalid(error.param, error.message)
}

pub(crate) fn refusal(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::TooLong { .. } => {
            Failure { reason: "SEQUENCE_TOO_LONG", ..Failure::invalid("max_tokens", refusal.to_string()) }
        }
        Refusal::NoRoom { .. } => Failure::new(Code::ResourceExhausted, "NO_KV_BLOCKS", refusal.to_string()),
        Refusal::QueueFull { .. } => Failure::new(Code::ResourceExhausted, "QUEUE_FULL", refusal.to_string()),
    }
}
