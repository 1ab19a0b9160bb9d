//! Everything but generation: models, health, version, and text to tokens and back.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use rpc::inference::Input;
use serde::{Deserialize, Serialize};
use types::{Failure, TokenId};

use super::Api;
use super::body::{MessageBody, chat_messages};
use super::error::ApiError;
use super::generate::json;
use super::read::{parse, read};
use crate::request::{Layout, Pipeline};

#[derive(Serialize)]
struct Models<'a> {
    object: &'static str,
    data: [Model<'a>; 1],
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: &'a str,
    parent: Option<()>,
    /// `null` until a worker has been seen.
    max_model_len: Option<u32>,
}

fn model(pipeline: &Pipeline) -> Model<'_> {
    Model {
        id: &pipeline.model,
        object: "model",
        created: pipeline.created,
        owned_by: "baton",
        root: &pipeline.model,
        parent: None,
        max_model_len: pipeline.cluster.max_context(),
    }
}

/// `GET /v1/models`
pub(super) async fn models(State(api): State<Arc<Api>>) -> Response {
    to_json(&Models { object: "list", data: [model(&api.pipeline)] })
}

/// `GET /v1/models/{id}`; a name may contain slashes.
pub(super) async fn one_model(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    api.pipeline.check_model(&id)?;
    Ok(to_json(&model(&api.pipeline)))
}

/// `GET /health` and `/ping`: whether a request could be served now.
pub(super) async fn health(State(api): State<Arc<Api>>) -> Response {
    let (status, text) = if api.pipeline.cluster.is_ready() {
        (StatusCode::OK, r#"{"status":"ok"}"#)
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, r#"{"status":"no decode worker"}"#)
    };
    (status, json(text)).into_response()
}

/// `GET /version`
pub(super) async fn version() -> Response {
    json(concat!(r#"{"version":""#, env!("CARGO_PKG_VERSION"), r#""}"#))
}

#[derive(Deserialize)]
struct TokenizeBody {
    model: Option<String>,
    prompt: Option<String>,
    messages: Option<Vec<MessageBody>>,
    add_special_tokens: Option<bool>,
    add_generation_prompt: Option<bool>,
    return_token_strs: Option<bool>,
}

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: Option<u32>,
    tokens: Vec<TokenId>,
    token_strs: Option<Vec<String>>,
}

/// `POST /tokenize`
pub(super) async fn tokenize(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let pipeline = &api.pipeline;
    let body: TokenizeBody = parse(&read(&headers, body, &pipeline.limits).await?, &pipeline.limits)?;
    check_model(pipeline, body.model.as_deref())?;
    let (input, param) = match (body.prompt, body.messages) {
        (Some(prompt), None) => (Input::Text(prompt), "prompt"),
        (None, Some(messages)) => (Input::Chat(chat_messages(messages)?), "messages"),
        _ => return Err(Failure::invalid("prompt", "either prompt or messages must be given").into()),
    };
    let layout = Layout {
        add_generation_prompt: body.add_generation_prompt.unwrap_or(true),
        add_special_tokens: body.add_special_tokens.unwrap_or(true),
    };
    let tokens = pipeline.tokenize(input, layout, param, None).await?;
    let text = |&id: &TokenId| String::from_utf8_lossy(&pipeline.text.tokenizer.token_bytes(id)).into_owned();
    Ok(to_json(&Tokenized {
        count: tokens.len(),
        max_model_len: pipeline.cluster.max_context(),
        token_strs: body.return_token_strs.unwrap_or(false).then(|| tokens.iter().map(text).collect()),
        tokens,
    }))
}

#[derive(Deserialize)]
struct DetokenizeBody {
    model: Option<String>,
    tokens: Vec<TokenId>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// `POST /detokenize`
pub(super) async fn detokenize(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let pipeline = &api.pipeline;
    let body: DetokenizeBody = parse(&read(&headers, body, &pipeline.limits).await?, &pipeline.limits)?;
    check_model(pipeline, body.model.as_deref())?;
    Ok(to_json(&Detokenized { prompt: pipeline.detokenize(&body.tokens, "tokens")? }))
}

/// A model that is not named is the served one.
fn check_model(pipeline: &Pipeline, model: Option<&str>) -> Result<(), Failure> {
    model.map_or(Ok(()), |model| pipeline.check_model(model))
}

fn to_json(value: &impl Serialize) -> Response {
    json(serde_json::to_vec(value).expect("the shapes have text keys only"))
}
