//! The gRPC door: the pipeline behind [`rpc::inference::InferenceApi`].

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt as _;
use rpc::inference::{
    CallMeta, ClusterState, GenerateCall, Generation, InferenceApi, Input, MemberState, ModelCard, TokenizeInput,
};
use tokio::time::Instant;
use types::{Failure, RequestId, TokenId};

use crate::metrics::Endpoint;
use crate::request::{Call, Layout, Origin, Pipeline};

/// What [`rpc::inference::serve`] serves.
pub(crate) struct Grpc(pub(crate) Arc<Pipeline>);

#[async_trait]
impl InferenceApi for Grpc {
    async fn generate(&self, call: GenerateCall, meta: CallMeta) -> Result<Generation, Failure> {
        let origin = Origin {
            request: random_request_id()?,
            endpoint: Endpoint::Grpc,
            born: Instant::now(),
            deadline: meta.deadline,
            trace: meta.trace,
            tenant: meta.tenant,
        };
        let GenerateCall { model, input, options } = call;
        let call = Call { model, input, options, layout: Layout::default(), max_tokens_default: None };
        let started = self.0.generate(call, origin).await?;
        Ok(Generation { request: started.request, events: started.events.boxed() })
    }

    async fn tokenize(
        &self,
        model: String,
        input: TokenizeInput,
        add_special: bool,
    ) -> Result<(Vec<TokenId>, u32), Failure> {
        self.0.check_model(&model)?;
        let (input, param) = match input {
            TokenizeInput::Text(text) => (Input::Text(text), "text"),
            TokenizeInput::Chat(messages) => (Input::Chat(messages), "messages"),
        };
        let layout = Layout { add_special_tokens: add_special, ..Layout::default() };
        let ids = self.0.tokenize(input, layout, param, None).await?;
        Ok((ids, self.0.cluster.max_context().unwrap_or(0)))
    }

    async fn detokenize(&self, model: String, ids: Vec<TokenId>) -> Result<String, Failure> {
        self.0.check_model(&model)?;
        self.0.detokenize(&ids, "token_ids")
    }

    async fn models(&self) -> Result<Vec<ModelCard>, Failure> {
        Ok(vec![ModelCard {
            id: self.0.model.clone(),
            max_model_len: self.0.cluster.max_context().unwrap_or(0),
            created_unix_s: self.0.created,
        }])
    }

    async fn cluster_state(&self) -> Result<ClusterState, Failure> {
        let view = self.0.cluster.view();
        let members = self.0.cluster.states().into_iter().map(|state| {
            let load = state.load.unwrap_or_default();
            let info = &state.info;
            MemberState {
                worker: info.worker.clone(),
                role: info.role.to_string(),
                rpc_address: info.rpc_address.clone(),
                kv_address: info.kv_address.clone(),
                admin_address: info.admin_address.clone(),
                model: info.model.clone(),
                health: state.health.as_str().into(),
                n_running: load.n_running,
                n_waiting: load.n_waiting,
                blocks_total: load.blocks_total,
                blocks_free: load.blocks_free,
                transport: self.0.cluster.transport(info),
                numerics: info.compatibility.as_ref().map(|c| c.numerics.clone()).unwrap_or_default(),
                device: info.device.clone(),
                reason: state.reason,
            }
        });
        Ok(ClusterState {
            members: members.collect(),
            registry_age: view.updated.elapsed(),
            registry_connected: view.connected,
            n_requests: u32::try_from(self.0.metrics.in_flight.get()).unwrap_or(0),
        })
    }
}

/// A new request's name.
pub(crate) fn random_request_id() -> Result<RequestId, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Failure::internal("the system's randomness is not available"))?;
    Ok(RequestId(u128::from_be_bytes(bytes)))
}
