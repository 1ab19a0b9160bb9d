//! A router as its clients see it.

use std::time::Duration;

use async_trait::async_trait;
use proto::v1 as wire;
use proto::v1::admin_service_client::AdminServiceClient;
use proto::v1::inference_service_client::InferenceServiceClient;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{Failure, RequestId, TokenId};

use super::server::REQUEST_ID_HEADER;
use super::{
    CallMeta, ClusterState, GenerateCall, Generation, InferenceApi, InferenceEvent, Input, ModelCard, TENANT_HEADER,
    TokenizeInput,
};
use crate::convert;
use crate::net::{Limits, channel};
use crate::status::{from_status, malformed_response};
use crate::worker::events;

/// Calls that do not generate end after this time.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// A connection to one router; made at the first call. Cheap to clone.
#[derive(Clone, Debug)]
pub struct InferenceClient {
    inference: InferenceServiceClient<Channel>,
    admin: AdminServiceClient<Channel>,
}

impl InferenceClient {
    /// To `address` (`host:port`). Nothing is sent yet. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// The address is malformed.
    pub fn new(address: &str) -> Result<Self, Failure> {
        let limits = Limits::public();
        let channel = channel(address, &limits)?;
        Ok(Self {
            inference: InferenceServiceClient::new(channel.clone())
                .max_decoding_message_size(limits.message_bytes)
                .max_encoding_message_size(limits.message_bytes),
            admin: AdminServiceClient::new(channel).max_decoding_message_size(limits.message_bytes),
        })
    }
}

#[async_trait]
impl InferenceApi for InferenceClient {
    async fn generate(&self, call: GenerateCall, meta: CallMeta) -> Result<Generation, Failure> {
        let deadline = meta.deadline.map(|left| Instant::now() + left + DEADLINE_SLACK);
        let mut client = self.inference.clone();
        let options = Some(convert::write_options(&call.options));
        let last = |event: &InferenceEvent| matches!(event, InferenceEvent::End(_));
        let prompt = match call.input {
            Input::Chat(messages) => {
                let messages = convert::write_messages(messages);
                let message = wire::ChatStreamRequest { model: call.model, messages, options };
                let response = client.chat_stream(with_meta(message, &meta)).await.map_err(failure)?;
                let request = request_id(response.metadata())?;
                let events = events(response.into_inner(), deadline, convert::read_chat_event, last);
                return Ok(Generation { request, events });
            }
            Input::Text(text) => wire::prompt::Kind::Text(text),
            Input::Ids(ids) => wire::prompt::Kind::TokenIds(wire::TokenIds { ids }),
        };
        let prompt = Some(wire::Prompt { kind: Some(prompt) });
        let message = wire::GenerateStreamRequest { model: call.model, prompt, options };
        let response = client.generate_stream(with_meta(message, &meta)).await.map_err(failure)?;
        let request = request_id(response.metadata())?;
        Ok(Generation { request, events: events(response.into_inner(), deadline, convert::read_generate_event, last) })
    }

    async fn tokenize(
        &self,
        model: String,
        input: TokenizeInput,
        add_special: bool,
    ) -> Result<(Vec<TokenId>, u32), Failure> {
        let request = quick(convert::write_tokenize(model, input, add_special));
        let answer = self.inference.clone().tokenize(request).await.map_err(failure)?.into_inner();
        Ok((answer.token_ids, answer.max_model_len))
    }

    async fn detokenize(&self, model: String, ids: Vec<TokenId>) -> Result<String, Failure> {
        let request = quick(wire::DetokenizeRequest { model, token_ids: ids });
        Ok(self.inference.clone().detokenize(request).await.map_err(failure)?.into_inner().text)
    }

    async fn models(&self) -> Result<Vec<ModelCard>, Failure> {
        let request = quick(wire::ListModelsRequest {});
        let answer = self.inference.clone().list_models(request).await.map_err(failure)?.into_inner();
        Ok(answer.models.into_iter().map(convert::read_model).collect())
    }

    async fn cluster_state(&self) -> Result<ClusterState, Failure> {
        let request = quick(wire::GetClusterStateRequest {});
        let answer = self.admin.clone().get_cluster_state(request).await.map_err(failure)?;
        convert::read_cluster_state(answer.into_inner()).map_err(malformed_response)
    }
}

fn quick<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

fn with_meta<T>(message: T, meta: &CallMeta) -> Request<T> {
    let mut request = Request::new(message);
    if let Some(deadline) = meta.deadline {
        request.set_timeout(deadline);
    }
    for (name, value) in [("traceparent", &meta.trace.traceparent), ("tracestate", &meta.trace.tracestate)] {
        // A trace context that is no header value is dropped: it must not fail a request.
        if let (false, Ok(value)) = (value.is_empty(), value.parse()) {
            request.metadata_mut().insert(name, value);
        }
    }
    if let (false, Ok(tenant)) = (meta.tenant.is_empty(), meta.tenant.parse()) {
        request.metadata_mut().insert(TENANT_HEADER, tenant);
    }
    request
}

fn request_id(metadata: &MetadataMap) -> Result<RequestId, Failure> {
    metadata
        .get(REQUEST_ID_HEADER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .ok_or_else(|| malformed_response(Failure::invalid(REQUEST_ID_HEADER, "request id is missing or malformed")))
}

fn failure(status: Status) -> Failure {
    from_status(&status)
}
