//! Chat and text completions: from a body to an answer, whole or streamed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures::stream::SelectAll;
use futures::{FutureExt as _, Stream, StreamExt as _};
use rpc::TraceContext;
use rpc::inference::{InferenceEvent, TENANT_HEADER, read_tenant};
use tokio::time::Instant;
use types::Failure;

use super::body::{self, Asked};
use super::error::{self, ApiError};
use super::idempotency::{Claim, Ticket};
use super::read::{parse, read};
use super::shape::{End, Kept, Kind, Writer};
use super::{Api, Label};
use crate::grpc::random_request_id;
use crate::metrics::Endpoint;
use crate::request::{Events, Origin, Started};

/// A comment is sent when nothing else was for this long, so that nobody on the way takes the stream for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Chunks that are ready together are written together, bytes.
const WRITE_BYTES: usize = 16 << 10;
/// Seconds the client gives for the whole request.
const TIMEOUT_HEADER: &str = "x-request-timeout";
const IDEMPOTENCY_HEADER: &str = "idempotency-key";
/// Longest header value that is passed on, bytes.
const HEADER_BYTES: usize = 512;

/// `POST /v1/chat/completions`
pub(super) async fn chat(
    State(api): State<Arc<Api>>,
    Extension(label): Extension<Label>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(api, label, headers, body, Kind::Chat).await
}

/// `POST /v1/completions`
pub(super) async fn completions(
    State(api): State<Arc<Api>>,
    Extension(label): Extension<Label>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(api, label, headers, body, Kind::Text).await
}

async fn answer(api: Arc<Api>, label: Label, headers: HeaderMap, body: Body, kind: Kind) -> Result<Response, ApiError> {
    let born = Instant::now();
    let limits = &api.pipeline.limits;
    let body = read(&headers, body, limits).await?;
    let deadline = timeout(&headers)?;
    let parsed: body::Body = parse(&body, limits)?;
    let (asked, endpoint) = match kind {
        Kind::Chat => (parsed.chat(limits)?, Endpoint::Chat),
        Kind::Text => (parsed.completions(limits)?, Endpoint::Completions),
    };
    let tenant = read_tenant(headers.get(TENANT_HEADER).map(HeaderValue::as_bytes))?;
    let origin = Origin { request: label.request, endpoint, born, deadline, trace: trace(&headers), tenant };
    let ticket = match headers.get(IDEMPOTENCY_HEADER) {
        None => None,
        Some(key) => {
            let body = [&[u8::from(kind == Kind::Chat)], &*body].concat();
            match api.idempotency.claim(&origin.tenant, key.as_bytes(), &body, asked.style.stream).await? {
                Claim::Answered(response) => return Ok(response),
                Claim::Yours(ticket) => Some(ticket),
            }
        }
    };
    drop(body);
    serve(&api, kind, asked, origin, ticket).await
}

async fn serve(
    api: &Api,
    kind: Kind,
    asked: Asked,
    origin: Origin,
    ticket: Option<Ticket>,
) -> Result<Response, ApiError> {
    let Asked { calls, n, style } = asked;
    let n_choices = calls.len() * n as usize;
    let prefix = match kind {
        Kind::Chat => "chatcmpl",
        Kind::Text => "cmpl",
    };
    let id = format!("{prefix}-{}", origin.request);
    let mut merged = Merged::default();
    let mut prompts = Vec::with_capacity(calls.len());
    for (index, call) in calls.into_iter().enumerate() {
        // One request a prompt: a prompt's answer does not depend on its neighbours.
        let request = if index == 0 { origin.request } else { random_request_id()? };
        let Started { prompt, events, .. } = api.pipeline.generate(call, Origin { request, ..origin.clone() }).await?;
        prompts.push(prompt);
        merged.push(index, events);
    }
    let writer = Writer {
        kind,
        id,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        model: api.pipeline.model.clone(),
        fingerprint: api.pipeline.cluster.fingerprint(),
        tokenizer: api.pipeline.text.tokenizer.clone(),
        style,
        prompts,
        n,
        choices: vec![Kept::default(); n_choices],
    };
    if style.stream { streamed(writer, merged, ticket).await } else { whole(writer, merged, ticket).await }
}

/// The events of a body's calls, as they come.
#[derive(Default)]
struct Merged {
    events: SelectAll<futures::stream::BoxStream<'static, (usize, Result<InferenceEvent, Failure>)>>,
    n_open: usize,
    end: End,
}

/// What comes next.
enum Item {
    Delta(usize, rpc::inference::ChoiceDelta),
    /// Every call has come to its end.
    End(End),
    Failed(Failure),
}

impl Merged {
    fn push(&mut self, call: usize, events: Events) {
        self.events.push(events.map(move |event| (call, event)).boxed());
        self.n_open += 1;
    }

    async fn next(&mut self) -> Item {
        loop {
            match self.events.next().await {
                Some((call, Ok(InferenceEvent::Delta(delta)))) => return Item::Delta(call, delta),
                Some((_, Ok(InferenceEvent::End(end)))) => {
                    self.end.add(&end);
                    self.n_open -= 1;
                    if self.n_open == 0 {
                        return Item::End(self.end);
                    }
                }
                Some((_, Err(failure))) => return Item::Failed(failure),
                None => return Item::Failed(Failure::internal("the events ended before the last one")),
            }
        }
    }
}

async fn whole(mut writer: Writer, mut merged: Merged, ticket: Option<Ticket>) -> Result<Response, ApiError> {
    loop {
        match merged.next().await {
            Item::Delta(call, delta) => writer.keep(call, delta),
            Item::Failed(failure) if writer.has_kept() => return Err(ApiError::after_work(failure)),
            Item::Failed(failure) => return Err(failure.into()),
            Item::End(end) => {
                let body = Bytes::from(writer.whole(end));
                if let Some(ticket) = ticket {
                    ticket.answered(&body);
                }
                return Ok(json(body));
            }
        }
    }
}

/// A JSON answer.
pub(super) fn json(body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.into()).into_response()
}

/// Begins the stream at the first event, so that what fails before it has a status line; or at the first
/// keep-alive, if that is earlier.
async fn streamed(writer: Writer, mut merged: Merged, ticket: Option<Ticket>) -> Result<Response, ApiError> {
    let first = tokio::time::timeout(KEEP_ALIVE, merged.next()).await.ok();
    if let Some(Item::Failed(failure)) = first {
        return Err(failure.into());
    }
    const HEADERS: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    Ok((StatusCode::OK, HEADERS, Body::from_stream(chunks(writer, merged, first, ticket))).into_response())
}

/// The stream's bytes. It holds the events: dropped by a client that leaves, it cancels the request.
fn chunks(
    mut writer: Writer,
    mut merged: Merged,
    mut item: Option<Item>,
    ticket: Option<Ticket>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    async_stream::stream! {
        // A second request with the same key is refused while this one runs.
        let _ticket = ticket;
        loop {
            if item.is_none() {
                item = tokio::time::timeout(KEEP_ALIVE, merged.next()).await.ok();
            }
            let mut out = Vec::with_capacity(512);
            if item.is_none() {
                out.extend_from_slice(b": keep-alive\n\n");
            }
            let mut over = false;
            while let Some(now) = item.take() {
                match now {
                    Item::Delta(call, delta) => {
                        writer.chunk(&mut out, call, &delta);
                        if out.len() < WRITE_BYTES {
                            item = merged.next().now_or_never();
                        }
                        continue;
                    }
                    Item::End(end) => writer.end(&mut out, end),
                    Item::Failed(failure) => {
                        out.extend_from_slice(b"data: ");
                        out.extend_from_slice(&error::json(&failure));
                        out.extend_from_slice(b"\n\n");
                    }
                }
                over = true;
            }
            yield Ok(Bytes::from(out));
            if over {
                return;
            }
        }
    }
}

/// The client's deadline, in seconds.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Failure> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else { return Ok(None) };
    let seconds = value.to_str().ok().and_then(|text| text.trim().parse::<f64>().ok());
    match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(Failure::invalid(TIMEOUT_HEADER, "must be a number of seconds")),
    }
}

fn trace(headers: &HeaderMap) -> TraceContext {
    let text = |name| {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if value.len() <= HEADER_BYTES { value.to_owned() } else { String::new() }
    };
    TraceContext { traceparent: text("traceparent"), tracestate: text("tracestate") }
}
