//! Failures as statuses and back: the only place that knows both.
//!
//! A status carries the google.rpc details that other people's tools read, and our `FailureDetail` with every
//! field of a [`Failure`]. A status without one comes from the transport or from somebody else's code.

use std::error::Error as _;
use std::time::Duration;

use prost::Message as _;
use proto::v1 as wire;
use tonic::{Code as GrpcCode, ConnectError, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, StatusExt as _, pb};
use types::{Code, Failure, Fault, Retry};

use crate::reason::{self, intern};

const DETAIL_TYPE: &str = "type.googleapis.com/baton.v1.FailureDetail";
const DOMAIN: &str = "baton";
/// Details travel in trailers, which are limited: longer texts are cut, bytes.
const MESSAGE_BYTES_MAX: usize = 1024;
const PARAM_BYTES_MAX: usize = 256;

/// The status that tells `failure` to another process.
pub fn to_status(failure: &Failure) -> Status {
    let message = truncated(&failure.message, MESSAGE_BYTES_MAX);
    let param = failure.param.as_deref().map(|param| truncated(param, PARAM_BYTES_MAX));
    let google = Status::with_error_details(grpc_code(failure.code), message, google_details(failure, message, param));
    let detail = wire::FailureDetail {
        reason: failure.reason.to_owned(),
        fault: wire_fault(failure.fault).into(),
        retry: match failure.retry {
            Retry::Never => wire::RetrySafety::Never,
            Retry::Safe(_) => wire::RetrySafety::Safe,
        }
        .into(),
        retry_after_ms: retry_after(failure).map_or(0, whole_millis),
        param: param.unwrap_or_default().to_owned(),
        request_id: None,
        worker: None,
        message: message.to_owned(),
    };
    // Ours goes beside theirs; what was just encoded always decodes.
    let mut status = pb::Status::decode(google.details()).unwrap_or_default();
    status.details.push(prost_types::Any { type_url: DETAIL_TYPE.to_owned(), value: detail.encode_to_vec() });
    Status::with_details(google.code(), message, status.encode_to_vec().into())
}

/// The failure that a status tells.
pub fn from_status(status: &Status) -> Failure {
    match detail_of(status) {
        Some(detail) => {
            let retry_after = (detail.retry_after_ms > 0).then(|| Duration::from_millis(detail.retry_after_ms));
            Failure {
                code: code_of(status.code()),
                reason: intern(&detail.reason),
                message: truncated(&detail.message, MESSAGE_BYTES_MAX).to_owned(),
                fault: match detail.fault() {
                    wire::FaultParty::Client => Fault::Client,
                    wire::FaultParty::Peer => Fault::Peer,
                    wire::FaultParty::Server | wire::FaultParty::Unspecified => Fault::Server,
                },
                retry: match detail.retry() {
                    wire::RetrySafety::Safe => Retry::Safe(retry_after),
                    wire::RetrySafety::Never | wire::RetrySafety::Unspecified => Retry::Never,
                },
                param: (!detail.param.is_empty()).then(|| truncated(&detail.param, PARAM_BYTES_MAX).to_owned()),
            }
        }
        None => foreign(status),
    }
}

/// A failure for a response that breaks the protocol.
pub fn malformed_response(failure: Failure) -> Failure {
    let message = format!("peer sent a malformed message: {}", failure.message);
    Failure { param: failure.param, ..Failure::new(Code::Internal, reason::MALFORMED_RESPONSE, message) }
        .with_fault(Fault::Peer)
}

/// A stream ended before its last event.
pub fn cut_off() -> Failure {
    Failure::new(Code::Aborted, reason::PEER_LOST, "stream ended before its last event").with_fault(Fault::Peer)
}

/// The time that the caller gave is over.
pub fn deadline_exceeded() -> Failure {
    Failure::new(Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED, "the request's time is over")
        .with_fault(Fault::Server)
}

fn google_details(failure: &Failure, message: &str, param: Option<&str>) -> ErrorDetails {
    let mut details = ErrorDetails::new();
    details.set_error_info(failure.reason, DOMAIN, std::collections::HashMap::<String, String>::new());
    if let Some(after) = retry_after(failure) {
        details.set_retry_info(Some(after));
    }
    match failure.code {
        Code::InvalidArgument => {
            if let Some(param) = param {
                details.add_bad_request_violation(param, message);
            }
        }
        Code::NotFound => {
            details.set_resource_info(param.unwrap_or("resource"), "", "", message);
        }
        Code::ResourceExhausted => {
            details.add_quota_failure_violation(param.unwrap_or("capacity"), message);
        }
        Code::FailedPrecondition => {
            details.add_precondition_failure_violation(failure.reason, param.unwrap_or_default(), message);
        }
        _ => {}
    }
    details
}

fn detail_of(status: &Status) -> Option<wire::FailureDetail> {
    let details = pb::Status::decode(status.details()).ok()?.details;
    let ours = details.iter().find(|any| any.type_url == DETAIL_TYPE)?;
    wire::FailureDetail::decode(ours.value.as_slice()).ok()
}

/// A status without our detail: from the transport (then it has a source), or from another implementation.
fn foreign(status: &Status) -> Failure {
    let message = truncated(status.message(), MESSAGE_BYTES_MAX);
    let timed_out = status.code() == GrpcCode::Cancelled && message == TimeoutExpired(()).to_string();
    if timed_out || status.code() == GrpcCode::DeadlineExceeded {
        return deadline_exceeded();
    }
    let lost = || {
        Failure::new(Code::Aborted, reason::PEER_LOST, format!("connection broke: {message}")).with_fault(Fault::Peer)
    };
    let mut source = status.source();
    if source.is_some() {
        while let Some(error) = source {
            if error.is::<ConnectError>() {
                return Failure::new(Code::Unavailable, reason::PEER_UNREACHABLE, "cannot connect to peer")
                    .with_fault(Fault::Peer);
            }
            source = error.source();
        }
        return lost();
    }
    match status.code() {
        // What an interrupted connection looks like when its cause did not travel with the status.
        GrpcCode::Unknown | GrpcCode::Unavailable => lost(),
        code => Failure::new(code_of(code), reason::REMOTE_FAILURE, message).with_retry(Retry::Never),
    }
}

fn grpc_code(code: Code) -> GrpcCode {
    match code {
        Code::InvalidArgument => GrpcCode::InvalidArgument,
        Code::NotFound => GrpcCode::NotFound,
        Code::ResourceExhausted => GrpcCode::ResourceExhausted,
        Code::Unavailable => GrpcCode::Unavailable,
        Code::DeadlineExceeded => GrpcCode::DeadlineExceeded,
        Code::Cancelled => GrpcCode::Cancelled,
        Code::FailedPrecondition => GrpcCode::FailedPrecondition,
        Code::Aborted => GrpcCode::Aborted,
        Code::DataLoss => GrpcCode::DataLoss,
        Code::Internal => GrpcCode::Internal,
        Code::Unimplemented => GrpcCode::Unimplemented,
    }
}

fn code_of(code: GrpcCode) -> Code {
    match code {
        GrpcCode::InvalidArgument | GrpcCode::OutOfRange => Code::InvalidArgument,
        GrpcCode::NotFound => Code::NotFound,
        GrpcCode::ResourceExhausted => Code::ResourceExhausted,
        GrpcCode::Unavailable => Code::Unavailable,
        GrpcCode::DeadlineExceeded => Code::DeadlineExceeded,
        GrpcCode::Cancelled => Code::Cancelled,
        GrpcCode::FailedPrecondition
        | GrpcCode::AlreadyExists
        | GrpcCode::PermissionDenied
        | GrpcCode::Unauthenticated => Code::FailedPrecondition,
        GrpcCode::Aborted => Code::Aborted,
        GrpcCode::DataLoss => Code::DataLoss,
        GrpcCode::Unimplemented => Code::Unimplemented,
        GrpcCode::Ok | GrpcCode::Unknown | GrpcCode::Internal => Code::Internal,
    }
}

fn wire_fault(fault: Fault) -> wire::FaultParty {
    match fault {
        Fault::Client => wire::FaultParty::Client,
        Fault::Server => wire::FaultParty::Server,
        Fault::Peer => wire::FaultParty::Peer,
    }
}

fn retry_after(failure: &Failure) -> Option<Duration> {
    match failure.retry {
        Retry::Safe(after) => after,
        Retry::Never => None,
    }
}

/// At least 1, because 0 says "no advice".
fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn truncated(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: [Code; 11] = [
        Code::InvalidArgument,
        Code::NotFound,
        Code::ResourceExhausted,
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::FailedPrecondition,
        Code::Aborted,
        Code::DataLoss,
        Code::Internal,
        Code::Unimplemented,
    ];

    /// Over the wire form and back.
    fn travel(failure: &Failure) -> Failure {
        let headers = to_status(failure).into_http::<()>();
        from_status(&Status::from_header_map(headers.headers()).expect("has a status"))
    }

    #[test]
    fn every_field_survives_the_wire() {
        let retries = [Retry::Never, Retry::Safe(None), Retry::Safe(Some(Duration::from_millis(1500)))];
        for code in CODES {
            for fault in [Fault::Client, Fault::Server, Fault::Peer] {
                for retry in retries {
                    for param in [None, Some("prompt".to_owned())] {
                        let failure = Failure { param, ..Failure::new(code, reason::INCOMPATIBLE, "ä message") }
                            .with_fault(fault)
                            .with_retry(retry);
                        assert_eq!(travel(&failure), failure);
                    }
                }
            }
        }
    }

    #[test]
    fn carries_the_details_that_others_read() {
        let status = to_status(&Failure::invalid("n", "n must be at most 128"));
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "n");
        assert_eq!(details.error_info().unwrap().reason, "INVALID_ARGUMENT");
        let full = Failure::new(Code::ResourceExhausted, "QUEUE_FULL", "queue is full")
            .with_retry(Retry::Safe(Some(Duration::from_secs(2))));
        let details = to_status(&full).get_error_details();
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(2)));
        assert!(details.quota_failure().is_some());
        assert!(
            to_status(&Failure::new(Code::NotFound, "MODEL_NOT_FOUND", "m"))
                .get_error_details()
                .resource_info()
                .is_some()
        );
        let stale = Failure::new(Code::FailedPrecondition, "STALE_EPOCH", "m");
        assert!(to_status(&stale).get_error_details().precondition_failure().is_some());
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let failure = Failure::internal("ä".repeat(5000));
        let back = travel(&failure);
        assert_eq!(back.message.len(), MESSAGE_BYTES_MAX);
        assert!(failure.message.starts_with(&back.message));
    }

    #[test]
    fn statuses_of_others_are_understood() {
        let cases = [
            (Status::cancelled("Timeout expired"), Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED),
            (Status::unavailable("gone"), Code::Aborted, reason::PEER_LOST),
            (Status::unknown("transport error"), Code::Aborted, reason::PEER_LOST),
            (Status::not_found("x"), Code::NotFound, reason::REMOTE_FAILURE),
            (Status::permission_denied("x"), Code::FailedPrecondition, reason::REMOTE_FAILURE),
            (
                Status::with_details(GrpcCode::Internal, "m", bytes::Bytes::from_static(b"\xff\xff\xff")),
                Code::Internal,
                reason::REMOTE_FAILURE,
            ),
        ];
        for (status, code, reason) in cases {
            let failure = from_status(&status);
            assert_eq!((failure.code, failure.reason, failure.retry), (code, reason, Retry::Never), "{status}");
        }
    }
}
