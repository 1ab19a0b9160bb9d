//! Client API: clients call, a router answers. The gRPC twin of the HTTP interface.

mod client;
mod server;

use std::time::Duration;

use async_trait::async_trait;
use types::{Failure, FinishReason, PhaseTimes, RequestId, SamplingParams, StopParams, Token, TokenId, WorkerRef};

pub use client::InferenceClient;
pub use server::serve;

use crate::{EventStream, TraceContext};

/// One message of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, ...
    pub role: String,
    /// Text; control tokens in it are text.
    pub content: String,
    /// Name of the participant.
    pub name: Option<String>,
}

/// What to continue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A text, to be tokenized.
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<TokenId>),
    /// A conversation, to be laid out by the model's chat template.
    Chat(Vec<ChatMessage>),
}

/// How to continue.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct GenerationOptions {
    /// Its `seed` is ignored.
    pub sampling: SamplingParams,
    /// `None`: the router draws one.
    pub seed: Option<u64>,
    /// `max_tokens` 0: up to the model's context.
    pub stop: StopParams,
    /// Texts that end a choice.
    pub stop_strings: Vec<String>,
    /// Keep the stop string in the text.
    pub include_stop_string: bool,
    /// Choices, at least 1.
    pub n: u32,
    /// Also return token ids.
    pub return_token_ids: bool,
    /// Keep special tokens in the text.
    pub keep_special_tokens: bool,
    /// The client's label of its user.
    pub user: String,
}

/// A generation request.
#[derive(Clone, PartialEq, Debug)]
pub struct GenerateCall {
    /// Served model.
    pub model: String,
    /// What to continue.
    pub input: Input,
    /// How.
    pub options: GenerationOptions,
}

/// What comes with a call beside its message.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CallMeta {
    /// Time the client gives; `None`: it did not say.
    pub deadline: Option<Duration>,
    /// Trace context.
    pub trace: TraceContext,
    /// Whose it is; see [`TENANT_HEADER`].
    pub tenant: String,
}

/// Names the tenant of a call, as an HTTP header and as gRPC metadata: only sequences of one tenant share KV. Whoever is
/// in front of the router must set or drop it, as it is believed.
pub const TENANT_HEADER: &str = "x-baton-tenant";

/// Longest tenant name, bytes.
const TENANT_BYTES_MAX: usize = 128;

/// A tenant's name from a header's value; without one it is the nameless tenant.
///
/// # Errors
/// `InvalidArgument` if it is empty, too long or not visible ASCII: a name that is cut or dropped would be another's.
pub fn read_tenant(value: Option<&[u8]>) -> Result<String, Failure> {
    let Some(value) = value else { return Ok(String::new()) };
    let good = (1..=TENANT_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    let text = std::str::from_utf8(value).ok().filter(|_| good);
    text.map(str::to_owned).ok_or_else(|| {
        let message = format!("must have 1 to {TENANT_BYTES_MAX} visible ASCII characters");
        Failure::invalid(TENANT_HEADER, message)
    })
}

/// New text and tokens of one choice.
#[derive(Clone, PartialEq, Debug)]
pub struct ChoiceDelta {
    /// Which choice.
    pub index: u32,
    /// New text.
    pub text: String,
    /// The tokens behind it.
    pub tokens: Vec<Token>,
    /// Set on the choice's last delta.
    pub finish: Option<FinishReason>,
}

/// Token counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Of the prompt, once however many choices.
    pub prompt_tokens: u32,
    /// Of all choices.
    pub completion_tokens: u32,
    /// Prompt tokens not computed because their KV was at hand.
    pub cached_tokens: u32,
}

/// How a request went.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Timeline {
    /// Named phases; of the first choice, where choices differ.
    pub phases: PhaseTimes,
    /// Who computed the prompt.
    pub prefill_worker: String,
    /// Who generated.
    pub decode_worker: String,
    /// Bytes of KV that crossed.
    pub kv_bytes: u64,
    /// What carried them, empty if nothing crossed.
    pub transport: String,
    /// Of all choices.
    pub continuity: Continuity,
}

/// Whether an answer's parts are those that one worker would have given.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Continuity {
    /// Bit for bit: all workers that took part have equal numerics.
    #[default]
    Identical,
    /// Workers of unequal numerics took part: each part is right, another run may differ.
    Equivalent,
}

impl Continuity {
    /// Its name in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::Equivalent => "equivalent",
        }
    }
}

/// Last event of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamEnd {
    /// Token counts.
    pub usage: Usage,
    /// Phases and workers.
    pub timeline: Timeline,
}

/// An event of a generation.
#[allow(clippy::large_enum_variant, reason = "one end in a stream: a box would only be in the readers' way")]
#[derive(Clone, PartialEq, Debug)]
pub enum InferenceEvent {
    /// More of a choice.
    Delta(ChoiceDelta),
    /// Everything was sent; a stream without this did not finish.
    End(StreamEnd),
}

/// An accepted request.
pub struct Generation {
    /// Its name.
    pub request: RequestId,
    /// Its events; dropping them cancels it.
    pub events: EventStream<InferenceEvent>,
}

/// What to tokenize.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenizeInput {
    /// A text.
    Text(String),
    /// A conversation.
    Chat(Vec<ChatMessage>),
}

/// A served model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelCard {
    /// Its name in requests.
    pub id: String,
    /// Tokens of its context.
    pub max_model_len: u32,
    /// Unix time, seconds.
    pub created_unix_s: u64,
}

/// A member as a router sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberState {
    /// Who.
    pub worker: WorkerRef,
    /// `router`, `prefill` or `decode`.
    pub role: String,
    /// Control plane, `host:port`.
    pub rpc_address: String,
    /// KV data plane, `host:port`.
    pub kv_address: String,
    /// Admin server, `host:port`.
    pub admin_address: String,
    /// Served model.
    pub model: String,
    /// `UP`, `SUSPECT`, `DRAINING` or `INCOMPATIBLE`.
    pub health: String,
    /// Sequences running.
    pub n_running: u32,
    /// Sequences waiting.
    pub n_waiting: u32,
    /// Blocks in the pool.
    pub blocks_total: u32,
    /// Blocks without an owner.
    pub blocks_free: u32,
    /// Transports of its KV that it serves, or the one that carried the last prompt to it.
    pub transport: String,
    /// Numerics id.
    pub numerics: String,
    /// What computes, for people.
    pub device: String,
    /// Why it is not used, empty when it is.
    pub reason: String,
}

/// The cluster as a router sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterState {
    /// Everyone it knows.
    pub members: Vec<MemberState>,
    /// How old its view of the registry is.
    pub registry_age: Duration,
    /// Whether it hears the registry now.
    pub registry_connected: bool,
    /// Requests it is serving.
    pub n_requests: u32,
}

/// What a router answers to its clients. Implemented by the router and by [`InferenceClient`].
#[async_trait]
pub trait InferenceApi: Send + Sync + 'static {
    /// Starts a generation.
    ///
    /// # Errors
    /// The request is wrong or refused; nothing was started.
    async fn generate(&self, call: GenerateCall, meta: CallMeta) -> Result<Generation, Failure>;

    /// Token ids of a text or a conversation, and the model's context.
    ///
    /// # Errors
    /// Unknown model, or an input that cannot be tokenized.
    async fn tokenize(
        &self,
        model: String,
        input: TokenizeInput,
        add_special: bool,
    ) -> Result<(Vec<TokenId>, u32), Failure>;

    /// Text of token ids.
    ///
    /// # Errors
    /// Unknown model or token.
    async fn detokenize(&self, model: String, ids: Vec<TokenId>) -> Result<String, Failure>;

    /// Served models.
    ///
    /// # Errors
    /// A lost connection.
    async fn models(&self) -> Result<Vec<ModelCard>, Failure>;

    /// The cluster.
    ///
    /// # Errors
    /// A lost connection.
    async fn cluster_state(&self) -> Result<ClusterState, Failure>;
}
