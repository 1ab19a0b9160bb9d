//! The gRPC side of a router.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use proto::v1 as wire;
use proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use proto::v1::inference_service_server::{InferenceService, InferenceServiceServer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::{Code, Failure, RequestId};

use super::{CallMeta, GenerateCall, Generation, InferenceApi, InferenceEvent, TENANT_HEADER, read_tenant};
use crate::net::{ServeError, ServeOptions, serve_routes};
use crate::status::{cut_off, deadline_exceeded, to_status};
use crate::{TraceContext, convert};

const SERVICES: &[&str] = &["baton.v1.InferenceService", "baton.v1.AdminService"];

/// Names the request in the response's metadata.
pub(super) const REQUEST_ID_HEADER: &str = "x-request-id";

/// The transport's own timer says "cancelled" when the client's time is over. Ours is earlier by this much, and
/// says what happened.
const EARLIER: Duration = Duration::from_millis(5);

/// Most choices that a unary answer collects.
const CHOICES_MAX: usize = 1024;

/// Serves `api`, the cluster's state, health and reflection until `shutdown`.
///
/// # Errors
/// The transport broke.
pub async fn serve(
    listener: TcpListener,
    api: Arc<dyn InferenceApi>,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let bytes = options.limits.message_bytes;
    let inference = InferenceServiceServer::new(Server(api.clone()))
        .max_decoding_message_size(bytes)
        .max_encoding_message_size(bytes);
    let admin = AdminServiceServer::new(Server(api)).max_decoding_message_size(bytes);
    serve_routes(Routes::new(inference).add_service(admin), SERVICES, listener, options, shutdown).await
}

struct Server(Arc<dyn InferenceApi>);

type Reply<T> = Result<Response<T>, Status>;
type Events<T> = BoxStream<'static, Result<T, Status>>;

impl Server {
    async fn start(&self, call: Result<GenerateCall, Failure>, meta: CallMeta) -> Result<Generation, Status> {
        within(meta.deadline, self.0.generate(call.map_err(status)?, meta.clone())).await
    }

    async fn stream<T: 'static>(
        &self,
        call: Result<GenerateCall, Failure>,
        meta: CallMeta,
        write: fn(RequestId, InferenceEvent) -> T,
    ) -> Reply<Events<T>> {
        let Generation { request, events } = self.start(call, meta).await?;
        let events = events.map(move |event| event.map(|event| write(request, event)).map_err(status));
        Ok(named(events.boxed(), request))
    }
}

#[tonic::async_trait]
impl InferenceService for Server {
    type GenerateStreamStream = Events<wire::GenerateStreamResponse>;
    type ChatStreamStream = Events<wire::ChatStreamResponse>;

    async fn generate(&self, request: Request<wire::GenerateRequest>) -> Reply<wire::GenerateResponse> {
        let meta = read_meta(request.metadata()).map_err(status)?;
        let deadline = meta.deadline;
        let call = request.into_inner();
        let model = call.model.clone();
        let call = convert::read_generate(call.model, call.prompt, call.options);
        let answer = async {
            let generation = self.start(call, meta).await?;
            let request = generation.request;
            Ok(named(collect(generation, model).await.map_err(status)?, request))
        };
        match deadline {
            Some(deadline) => {
                let answer = tokio::time::timeout(deadline.saturating_sub(EARLIER), answer);
                answer.await.unwrap_or_else(|_| Err(status(deadline_exceeded())))
            }
            None => answer.await,
        }
    }

    async fn generate_stream(
        &self,
        request: Request<wire::GenerateStreamRequest>,
    ) -> Reply<Self::GenerateStreamStream> {
        let meta = read_meta(request.metadata()).map_err(status)?;
        let call = request.into_inner();
        let call = convert::read_generate(call.model, call.prompt, call.options);
        self.stream(call, meta, convert::write_generate_event).await
    }

    async fn chat_stream(&self, request: Request<wire::ChatStreamRequest>) -> Reply<Self::ChatStreamStream> {
        let meta = read_meta(request.metadata()).map_err(status)?;
        self.stream(convert::read_chat(request.into_inner()), meta, convert::write_chat_event).await
    }

    async fn tokenize(&self, request: Request<wire::TokenizeRequest>) -> Reply<wire::TokenizeResponse> {
        let deadline = read_meta(request.metadata()).map_err(status)?.deadline;
        let (model, input, add_special) = convert::read_tokenize(request.into_inner()).map_err(status)?;
        let (token_ids, max_model_len) = within(deadline, self.0.tokenize(model, input, add_special)).await?;
        Ok(Response::new(wire::TokenizeResponse { token_ids, max_model_len }))
    }

    async fn detokenize(&self, request: Request<wire::DetokenizeRequest>) -> Reply<wire::DetokenizeResponse> {
        let deadline = read_meta(request.metadata()).map_err(status)?.deadline;
        let call = request.into_inner();
        let ids = convert::bounded(call.token_ids, convert::TOKENS_MAX, "token_ids").map_err(status)?;
        let model = convert::name(call.model, "model").map_err(status)?;
        let text = within(deadline, self.0.detokenize(model, ids)).await?;
        Ok(Response::new(wire::DetokenizeResponse { text }))
    }

    async fn list_models(&self, _: Request<wire::ListModelsRequest>) -> Reply<wire::ListModelsResponse> {
        let models = self.0.models().await.map_err(status)?;
        let models = models.into_iter().map(convert::write_model).collect();
        Ok(Response::new(wire::ListModelsResponse { models }))
    }
}

#[tonic::async_trait]
impl AdminService for Server {
    async fn get_cluster_state(
        &self,
        _: Request<wire::GetClusterStateRequest>,
    ) -> Reply<wire::GetClusterStateResponse> {
        let state = self.0.cluster_state().await.map_err(status)?;
        Ok(Response::new(convert::write_cluster_state(state)))
    }

    async fn get_accounting(&self, _: Request<wire::GetAccountingRequest>) -> Reply<wire::GetAccountingResponse> {
        Err(status(Failure::new(Code::Unimplemented, "NOT_A_WORKER", "a router has no blocks; ask a worker")))
    }
}

/// All of a generation as one answer.
async fn collect(mut generation: Generation, model: String) -> Result<wire::GenerateResponse, Failure> {
    let mut choices: Vec<wire::Choice> = Vec::new();
    while let Some(event) = generation.events.next().await {
        match event? {
            InferenceEvent::Delta(delta) => {
                let index = delta.index as usize;
                if index >= CHOICES_MAX {
                    return Err(Failure::internal(format!("choice {index} is out of range")));
                }
                while choices.len() <= index {
                    let index = u32::try_from(choices.len()).expect("bounded above");
                    choices.push(wire::Choice { index, ..Default::default() });
                }
                let choice = &mut choices[index];
                let delta = convert::write_delta(delta);
                choice.text.push_str(&delta.text);
                choice.tokens.extend(delta.tokens);
                choice.finish_reason = choice.finish_reason.max(delta.finish_reason);
            }
            InferenceEvent::End(end) => {
                let end = convert::write_end(end);
                return Ok(wire::GenerateResponse {
                    request_id: Some(convert::write_request_id(generation.request)),
                    model,
                    choices,
                    usage: end.usage,
                    timeline: end.timeline,
                });
            }
        }
    }
    Err(cut_off())
}

fn read_meta(metadata: &MetadataMap) -> Result<CallMeta, Failure> {
    let header = |name: &str| {
        let value = metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if value.len() <= 512 { value.to_owned() } else { String::new() }
    };
    Ok(CallMeta {
        deadline: read_timeout(&header("grpc-timeout")),
        trace: TraceContext { traceparent: header("traceparent"), tracestate: header("tracestate") },
        tenant: read_tenant(metadata.get(TENANT_HEADER).map(|value| value.as_bytes()))?,
    })
}

/// At most 8 digits and a unit, as the gRPC specification has it; anything else is no deadline.
fn read_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

async fn within<T>(deadline: Option<Duration>, answer: impl Future<Output = Result<T, Failure>>) -> Result<T, Status> {
    let answer = match deadline {
        Some(deadline) => tokio::time::timeout(deadline.saturating_sub(EARLIER), answer)
            .await
            .unwrap_or_else(|_| Err(deadline_exceeded())),
        None => answer.await,
    };
    answer.map_err(status)
}

fn named<T>(message: T, request: RequestId) -> Response<T> {
    let mut response = Response::new(message);
    let id = request.to_string().parse().expect("hex digits are a valid header value");
    response.metadata_mut().insert(REQUEST_ID_HEADER, id);
    response
}

fn status(failure: Failure) -> Status {
    to_status(&failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let cases = [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("1H", Some(Duration::from_secs(3600))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("10u", Some(Duration::from_micros(10))),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("+5S", None),
            ("123456789S", None),
            ("5ß", None),
        ];
        for (text, expected) in cases {
            assert_eq!(read_timeout(text), expected, "{text:?}");
        }
    }
}
