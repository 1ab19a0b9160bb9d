//! The error that crosses processes: what happened, whose fault it is, whether a retry is safe.

use std::fmt;
use std::time::Duration;

/// Class of a failure; `rpc` maps it to a gRPC status, the router's HTTP side to a status line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// The input is wrong.
    InvalidArgument,
    /// A named thing (a model, a request) does not exist.
    NotFound,
    /// A queue, a pool or a limit is full.
    ResourceExhausted,
    /// The receiver cannot serve now: draining, starting, no worker.
    Unavailable,
    /// The request's time is over.
    DeadlineExceeded,
    /// The caller gave up.
    Cancelled,
    /// The two sides do not fit: compatibility, epoch.
    FailedPrecondition,
    /// Work was cut off in the middle.
    Aborted,
    /// Bytes arrived damaged and could not be had intact.
    DataLoss,
    /// A fault of ours.
    Internal,
    /// Not offered here.
    Unimplemented,
}

/// Whose fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The caller's.
    Client,
    /// The process that answered.
    Server,
    /// A process that the answering one depended on.
    Peer,
}

/// Whether the same call may be made again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// It cannot help, or it would repeat an effect.
    Never,
    /// Nothing happened; try elsewhere now or here after the given time.
    Safe(Option<Duration>),
}

/// A failure as its receiver needs it.
#[derive(Clone, PartialEq, Debug)]
pub struct Failure {
    /// Class.
    pub code: Code,
    /// Stable upper-snake reason for programs, e.g. `MODEL_NOT_FOUND`.
    pub reason: &'static str,
    /// For people; lower case, no prompt text.
    pub message: String,
    /// Whose fault.
    pub fault: Fault,
    /// Whether to try again.
    pub retry: Retry,
    /// The request's field that is wrong.
    pub param: Option<String>,
}

impl Failure {
    /// A failure of the answering process that must not be retried; refine with the `with_` methods.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        let fault = match code {
            Code::InvalidArgument | Code::NotFound | Code::Cancelled | Code::Unimplemented => Fault::Client,
            _ => Fault::Server,
        };
        let retry = match code {
            Code::Unavailable | Code::ResourceExhausted => Retry::Safe(None),
            _ => Retry::Never,
        };
        Self { code, reason, message: message.into(), fault, retry, param: None }
    }

    /// Wrong input, naming the field.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(Code::InvalidArgument, "INVALID_ARGUMENT", message) }
    }

    /// A fault of ours.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "INTERNAL", message)
    }

    /// The caller gave up.
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "CANCELLED", "request was cancelled")
    }

    /// Sets whose fault it is.
    pub fn with_fault(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// Sets whether to try again.
    pub fn with_retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Failure {}
