//! The HTTP door: OpenAI's endpoints, and vLLM's for tokens.
//!
//! Bodies are read and refused in [`read`] and [`body`], answers written in [`shape`]; between them lies the same
//! pipeline as behind gRPC. Every answer carries `x-request-id`: the client's own, or the request's name.

mod body;
mod error;
mod fields;
mod generate;
mod idempotency;
mod info;
mod logprobs;
mod read;
mod serve;
mod shape;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use types::{Code, Failure, RequestId};

pub(crate) use serve::serve;

use crate::grpc::random_request_id;
use crate::request::Pipeline;
use error::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest label a client may give its request, bytes.
const LABEL_BYTES: usize = 128;

/// What the handlers share.
struct Api {
    pipeline: Arc<Pipeline>,
    idempotency: idempotency::Idempotency,
}

/// A request's name.
#[derive(Clone, Copy, Debug)]
struct Label {
    request: RequestId,
}

/// All endpoints.
pub(crate) fn routes(pipeline: Arc<Pipeline>) -> Router {
    let api = Arc::new(Api { pipeline, idempotency: idempotency::Idempotency::default() });
    Router::new()
        .route("/v1/chat/completions", post(generate::chat))
        .route("/v1/completions", post(generate::completions))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*id}", get(info::one_model))
        .route("/tokenize", post(info::tokenize))
        .route("/detokenize", post(info::detokenize))
        .route("/health", get(info::health))
        .route("/ping", get(info::health).post(info::health))
        .route("/version", get(info::version))
        .fallback(no_such_endpoint)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(label))
        .with_state(api)
}

/// Names the request and puts the name, or the client's label, on the answer.
async fn label(mut request: Request, next: Next) -> Response {
    let name = match random_request_id() {
        Ok(name) => name,
        Err(failure) => return ApiError::from(failure).into_response(),
    };
    let theirs = request.headers().get(REQUEST_ID).filter(|v| !v.is_empty() && v.len() <= LABEL_BYTES).cloned();
    request.extensions_mut().insert(Label { request: name });
    let mut response = next.run(request).await;
    let label = theirs
        .unwrap_or_else(|| HeaderValue::from_str(&name.to_string()).expect("hex digits are a valid header value"));
    response.headers_mut().insert(REQUEST_ID, label);
    response
}

async fn no_such_endpoint() -> ApiError {
    Failure::new(Code::NotFound, "ENDPOINT_NOT_FOUND", "there is no such endpoint").into()
}

async fn no_such_method() -> ApiError {
    let failure = Failure::new(Code::InvalidArgument, "METHOD_NOT_ALLOWED", "the endpoint does not take this method");
    ApiError::with_status(StatusCode::METHOD_NOT_ALLOWED, failure)
}

/// The panic hook has logged where; the payload may hold anything and goes nowhere.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    ApiError::from(Failure::internal("the request hit a fault of ours")).into_response()
}
