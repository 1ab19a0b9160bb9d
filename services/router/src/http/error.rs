//! Failures as OpenAI's clients read them.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use types::{Code, Failure, Retry};

/// Clients of OpenAI's library obey it over the status.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
/// When no time is given to a client that may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A failure and its status line.
#[derive(Clone, Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    failure: Failure,
    /// Tokens had been computed: a retry costs as much again.
    worked: bool,
}

impl ApiError {
    /// With a status that the failure's class does not give.
    pub(super) fn with_status(status: StatusCode, failure: Failure) -> Self {
        Self { status, failure, worked: false }
    }

    /// After tokens had been computed.
    pub(super) fn after_work(failure: Failure) -> Self {
        Self { worked: true, ..failure.into() }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        let status = match failure.code {
            Code::InvalidArgument | Code::Unimplemented => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unavailable | Code::FailedPrecondition => StatusCode::SERVICE_UNAVAILABLE,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::Cancelled => StatusCode::from_u16(499).expect("three digits"),
            Code::Aborted => StatusCode::BAD_GATEWAY,
            Code::DataLoss | Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::with_status(status, failure)
    }
}

/// `{"error": {…}}`
#[derive(Serialize)]
struct Envelope<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: String,
}

/// The error's body.
pub(super) fn json(failure: &Failure) -> Vec<u8> {
    let r#type = match failure.code {
        Code::InvalidArgument | Code::NotFound | Code::Unimplemented => "invalid_request_error",
        Code::ResourceExhausted => "rate_limit_error",
        Code::Unavailable | Code::FailedPrecondition => "service_unavailable_error",
        Code::DeadlineExceeded => "timeout_error",
        Code::Cancelled | Code::Aborted | Code::DataLoss | Code::Internal => "server_error",
    };
    let code = failure.reason.to_ascii_lowercase();
    let error = Inner { message: &failure.message, r#type, param: failure.param.as_deref(), code };
    serde_json::to_vec(&Envelope { error }).expect("strings are always JSON")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&self.failure)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            let after = match self.failure.retry {
                Retry::Safe(Some(after)) => after,
                Retry::Safe(None) | Retry::Never => RETRY_AFTER,
            };
            let seconds = after.as_millis().div_ceil(1000) as u64;
            headers.insert(header::RETRY_AFTER, seconds.into());
            headers.insert(RETRY_AFTER_MS, (after.as_millis() as u64).into());
        }
        if self.worked {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        response
    }
}
