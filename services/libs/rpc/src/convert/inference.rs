//! Messages of the client API.

use std::time::Duration;

use proto::v1 as wire;
use types::{Failure, RequestId};

use super::*;
use crate::inference::{
    ChatMessage, ChoiceDelta, ClusterState, Continuity, GenerateCall, GenerationOptions, InferenceEvent, Input,
    MemberState, ModelCard, StreamEnd, Timeline, TokenizeInput, Usage,
};

pub(crate) fn read_generate(
    model: String,
    prompt: Option<wire::Prompt>,
    options: Option<wire::GenerationOptions>,
) -> Result<GenerateCall, Failure> {
    use wire::prompt::Kind;
    let input = match required(required(prompt, "prompt")?.kind, "prompt")? {
        Kind::Text(text) => Input::Text(text),
        Kind::TokenIds(ids) => Input::Ids(bounded(ids.ids, TOKENS_MAX, "prompt")?),
    };
    Ok(GenerateCall { model: name(model, "model")?, input, options: read_options(options)? })
}

pub(crate) fn read_chat(call: wire::ChatStreamRequest) -> Result<GenerateCall, Failure> {
    Ok(GenerateCall {
        model: name(call.model, "model")?,
        input: Input::Chat(read_messages(call.messages)?),
        options: read_options(call.options)?,
    })
}

pub(crate) fn read_tokenize(call: wire::TokenizeRequest) -> Result<(String, TokenizeInput, bool), Failure> {
    use wire::tokenize_request::Input as Kind;
    let input = match required(call.input, "input")? {
        Kind::Text(text) => TokenizeInput::Text(text),
        Kind::Chat(chat) => TokenizeInput::Chat(read_messages(chat.messages)?),
    };
    Ok((name(call.model, "model")?, input, call.add_special_tokens))
}

pub(crate) fn write_tokenize(model: String, input: TokenizeInput, add_special: bool) -> wire::TokenizeRequest {
    use wire::tokenize_request::Input as Kind;
    let input = match input {
        TokenizeInput::Text(text) => Kind::Text(text),
        TokenizeInput::Chat(messages) => Kind::Chat(wire::ChatInput { messages: write_messages(messages) }),
    };
    wire::TokenizeRequest { model, input: Some(input), add_special_tokens: add_special }
}

pub(crate) fn write_messages(messages: Vec<ChatMessage>) -> Vec<wire::ChatMessage> {
    let write = |message: ChatMessage| wire::ChatMessage {
        role: message.role,
        content: message.content,
        name: message.name.unwrap_or_default(),
    };
    messages.into_iter().map(write).collect()
}

pub(crate) fn write_options(options: &GenerationOptions) -> wire::GenerationOptions {
    wire::GenerationOptions {
        sampling: Some(wire::SamplingParams { seed: options.seed, ..write_sampling(&options.sampling) }),
        stop: Some(write_stop(&options.stop)),
        stop_strings: options.stop_strings.clone(),
        include_stop_string: options.include_stop_string,
        n: options.n,
        return_token_ids: options.return_token_ids,
        keep_special_tokens: options.keep_special_tokens,
        user: options.user.clone(),
    }
}

pub(crate) fn read_delta(delta: wire::ChoiceDelta) -> Result<ChoiceDelta, Failure> {
    Ok(ChoiceDelta {
        index: delta.index,
        text: delta.text,
        tokens: delta.tokens.into_iter().map(|t| read_token(Some(t), "tokens")).collect::<Result<_, _>>()?,
        finish: token::read_finish(delta.finish_reason)?,
    })
}

pub(crate) fn write_delta(delta: ChoiceDelta) -> wire::ChoiceDelta {
    wire::ChoiceDelta {
        index: delta.index,
        text: delta.text,
        tokens: delta.tokens.iter().map(write_token).collect(),
        finish_reason: token::write_finish(delta.finish),
    }
}

pub(crate) fn read_end(end: wire::StreamEnd) -> Result<StreamEnd, Failure> {
    let usage = end.usage.unwrap_or_default();
    let timeline = end.timeline.unwrap_or_default();
    Ok(StreamEnd {
        usage: Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        },
        timeline: Timeline {
            phases: read_phases(timeline.phases)?,
            prefill_worker: timeline.prefill_worker,
            decode_worker: timeline.decode_worker,
            kv_bytes: timeline.kv_bytes,
            transport: timeline.transport,
            continuity: if timeline.equivalent { Continuity::Equivalent } else { Continuity::Identical },
        },
    })
}

pub(crate) fn write_end(end: StreamEnd) -> wire::StreamEnd {
    let (usage, timeline) = (end.usage, end.timeline);
    wire::StreamEnd {
        usage: Some(wire::Usage {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cached_tokens: usage.cached_tokens,
        }),
        timeline: Some(wire::Timeline {
            phases: write_phases(&timeline.phases),
            prefill_worker: timeline.prefill_worker,
            decode_worker: timeline.decode_worker,
            kv_bytes: timeline.kv_bytes,
            transport: timeline.transport,
            equivalent: timeline.continuity == Continuity::Equivalent,
        }),
    }
}

pub(crate) fn write_generate_event(request: RequestId, event: InferenceEvent) -> wire::GenerateStreamResponse {
    use wire::generate_stream_response::Event;
    wire::GenerateStreamResponse {
        request_id: Some(write_request_id(request)),
        event: Some(match event {
            InferenceEvent::Delta(delta) => Event::Delta(write_delta(delta)),
            InferenceEvent::End(end) => Event::End(write_end(end)),
        }),
    }
}

pub(crate) fn write_chat_event(request: RequestId, event: InferenceEvent) -> wire::ChatStreamResponse {
    use wire::chat_stream_response::Event;
    wire::ChatStreamResponse {
        request_id: Some(write_request_id(request)),
        event: Some(match event {
            InferenceEvent::Delta(delta) => Event::Delta(write_delta(delta)),
            InferenceEvent::End(end) => Event::End(write_end(end)),
        }),
    }
}

pub(crate) fn read_generate_event(message: wire::GenerateStreamResponse) -> Result<InferenceEvent, Failure> {
    use wire::generate_stream_response::Event;
    match required(message.event, "event")? {
        Event::Delta(delta) => read_delta(delta).map(InferenceEvent::Delta),
        Event::End(end) => read_end(end).map(InferenceEvent::End),
    }
}

pub(crate) fn read_chat_event(message: wire::ChatStreamResponse) -> Result<InferenceEvent, Failure> {
    use wire::chat_stream_response::Event;
    match required(message.event, "event")? {
        Event::Delta(delta) => read_delta(delta).map(InferenceEvent::Delta),
        Event::End(end) => read_end(end).map(InferenceEvent::End),
    }
}

pub(crate) fn write_model(model: ModelCard) -> wire::ModelCard {
    wire::ModelCard { id: model.id, max_model_len: model.max_model_len, created_unix_s: model.created_unix_s }
}

pub(crate) fn read_model(model: wire::ModelCard) -> ModelCard {
    ModelCard { id: model.id, max_model_len: model.max_model_len, created_unix_s: model.created_unix_s }
}

pub(crate) fn read_cluster_state(state: wire::GetClusterStateResponse) -> Result<ClusterState, Failure> {
    let member = |member: wire::MemberState| {
        Ok(MemberState {
            worker: read_worker_ref(member.worker, "members.worker")?,
            role: member.role,
            rpc_address: member.rpc_address,
            kv_address: member.kv_address,
            admin_address: member.admin_address,
            model: member.model,
            health: member.health,
            n_running: member.n_running,
            n_waiting: member.n_waiting,
            blocks_total: member.blocks_total,
            blocks_free: member.blocks_free,
            transport: member.transport,
            numerics: member.numerics,
            device: member.device,
            reason: member.reason,
        })
    };
    Ok(ClusterState {
        members: state.members.into_iter().map(member).collect::<Result<_, Failure>>()?,
        registry_age: Duration::from_millis(state.registry_age_ms),
        registry_connected: state.registry_connected,
        n_requests: state.n_requests,
    })
}

pub(crate) fn write_cluster_state(state: ClusterState) -> wire::GetClusterStateResponse {
    let member = |member: MemberState| wire::MemberState {
        worker: Some(write_worker_ref(&member.worker)),
        role: member.role,
        rpc_address: member.rpc_address,
        kv_address: member.kv_address,
        admin_address: member.admin_address,
        model: member.model,
        health: member.health,
        n_running: member.n_running,
        n_waiting: member.n_waiting,
        blocks_total: member.blocks_total,
        blocks_free: member.blocks_free,
        transport: member.transport,
        numerics: member.numerics,
        device: member.device,
        reason: member.reason,
    };
    wire::GetClusterStateResponse {
        members: state.members.into_iter().map(member).collect(),
        registry_age_ms: write_duration_ms(state.registry_age),
        registry_connected: state.registry_connected,
        n_requests: state.n_requests,
    }
}

fn read_messages(messages: Vec<wire::ChatMessage>) -> Result<Vec<ChatMessage>, Failure> {
    let read = |message: wire::ChatMessage| ChatMessage {
        role: message.role,
        content: message.content,
        name: (!message.name.is_empty()).then_some(message.name),
    };
    Ok(bounded(messages, LIST_MAX, "messages")?.into_iter().map(read).collect())
}

fn read_options(options: Option<wire::GenerationOptions>) -> Result<GenerationOptions, Failure> {
    let options = options.unwrap_or_default();
    let seed = options.sampling.as_ref().and_then(|sampling| sampling.seed);
    Ok(GenerationOptions {
        sampling: read_sampling(options.sampling)?,
        seed,
        stop: read_stop(options.stop)?,
        stop_strings: bounded(options.stop_strings, LIST_MAX, "stop_strings")?,
        include_stop_string: options.include_stop_string,
        n: options.n.max(1),
        return_token_ids: options.return_token_ids,
        keep_special_tokens: options.keep_special_tokens,
        user: name(options.user, "user")?,
    })
}
