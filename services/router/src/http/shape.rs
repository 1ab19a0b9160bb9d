//! Answers in OpenAI's shapes: whole, or chunk by chunk.

use std::sync::Arc;

use rpc::inference::{ChoiceDelta, Continuity, StreamEnd, Usage};
use serde::Serialize;
use text::Tokenizer;
use types::{FinishReason, Token, TokenId};

use super::body::Style;
use super::logprobs::{ChatLogprobs, TextLogprobs};

/// Which endpoint's shapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Chat,
    Text,
}

/// Writes the answer to one HTTP request.
pub(super) struct Writer {
    pub(super) kind: Kind,
    pub(super) id: String,
    /// Unix time, seconds.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) fingerprint: Arc<str>,
    pub(super) tokenizer: Tokenizer,
    pub(super) style: Style,
    /// Of each call.
    pub(super) prompts: Vec<Arc<[TokenId]>>,
    /// Choices of each call.
    pub(super) n: u32,
    /// What is kept of each choice over all calls.
    pub(super) choices: Vec<Kept>,
}

/// What has been heard of a choice.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    /// A chunk of it has been written.
    begun: bool,
    /// Characters of the tokens written so far.
    offset: usize,
    text: String,
    tokens: Vec<Token>,
    finish: Option<FinishReason>,
}

#[derive(Serialize)]
struct Envelope<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: C,
    /// `Some(None)`: null, where a client asked for usage and it is not there yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
    system_fingerprint: &'a str,
    /// `identical` or `equivalent`, with the last words: whether workers of unequal numerics took part.
    #[serde(skip_serializing_if = "Option::is_none")]
    continuity: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

#[derive(Serialize)]
struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl<C> Envelope<'_, C> {
    /// With what is known at the end.
    fn ended(self, end: End) -> Self {
        Self { usage: Some(Some(end.usage.into())), continuity: Some(end.continuity.as_str()), ..self }
    }
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens },
        }
    }
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: u32,
    message: ChatMessage<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatChunkChoice<'a> {
    index: u32,
    delta: ChatDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
}

#[derive(Serialize)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The same whole and in chunks.
#[derive(Serialize)]
struct TextChoice<'a> {
    index: u32,
    text: &'a str,
    logprobs: Option<TextLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<TokenId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
}

fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// What is said at the end, over all calls of a body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct End {
    usage: Usage,
    continuity: Continuity,
}

impl End {
    /// Adds a call's end.
    pub(super) fn add(&mut self, end: &StreamEnd) {
        let (total, usage) = (&mut self.usage, end.usage);
        total.prompt_tokens = total.prompt_tokens.saturating_add(usage.prompt_tokens);
        total.completion_tokens = total.completion_tokens.saturating_add(usage.completion_tokens);
        total.cached_tokens = total.cached_tokens.saturating_add(usage.cached_tokens);
        self.continuity = self.continuity.max(end.timeline.continuity);
    }
}

impl Writer {
    /// Keeps a delta of call `call` for [`whole`](Self::whole).
    pub(super) fn keep(&mut self, call: usize, delta: ChoiceDelta) {
        let index = self.index(call, delta.index);
        let kept = &mut self.choices[index as usize];
        kept.text.push_str(&delta.text);
        kept.tokens.extend(delta.tokens);
        kept.finish = delta.finish.or(kept.finish);
    }

    /// Whether anything has been kept.
    pub(super) fn has_kept(&self) -> bool {
        self.choices.iter().any(|kept| !kept.text.is_empty() || !kept.tokens.is_empty())
    }

    /// The whole answer from what was kept.
    pub(super) fn whole(&self, end: End) -> Vec<u8> {
        let choices = (0..).zip(&self.choices);
        match self.kind {
            Kind::Chat => {
                let choices: Vec<_> = choices.map(|(index, kept)| self.chat_choice(index, kept)).collect();
                let prompt = self.style.return_token_ids.then(|| &*self.prompts[0]);
                to_json(&self.envelope("chat.completion", choices, None, prompt).ended(end))
            }
            Kind::Text => {
                let choices: Vec<_> = choices.map(|(index, kept)| self.text_choice(index, kept)).collect();
                to_json(&self.envelope("text_completion", choices, None, None).ended(end))
            }
        }
    }

    fn chat_choice<'a>(&self, index: u32, kept: &'a Kept) -> ChatChoice<'a> {
        ChatChoice {
            index,
            message: ChatMessage { role: "assistant", content: &kept.text, refusal: None },
            logprobs: self.style.logprobs.map(|_| ChatLogprobs::new(&self.tokenizer, &kept.tokens)),
            finish_reason: kept.finish.map(finish_reason),
            token_ids: self.token_ids(&kept.tokens),
        }
    }

    fn text_choice<'a>(&'a self, index: u32, kept: &'a Kept) -> TextChoice<'a> {
        TextChoice {
            index,
            text: &kept.text,
            logprobs: self.text_logprobs(&kept.tokens, &mut 0),
            finish_reason: kept.finish.map(finish_reason),
            token_ids: self.token_ids(&kept.tokens),
            prompt_token_ids: self.prompt_of(index),
        }
    }

    /// Adds the chunks of a delta of call `call`, as server-sent events.
    pub(super) fn chunk(&mut self, out: &mut Vec<u8>, call: usize, delta: &ChoiceDelta) {
        let index = self.index(call, delta.index);
        let kept = &mut self.choices[index as usize];
        let first = !std::mem::replace(&mut kept.begun, true);
        let mut offset = kept.offset;
        let finish_reason = delta.finish.map(finish_reason);
        let usage = self.style.include_usage.then_some(None);
        match self.kind {
            Kind::Chat => {
                if first {
                    let choice = ChatChunkChoice {
                        index,
                        delta: ChatDelta { role: Some("assistant"), content: Some("") },
                        logprobs: None,
                        finish_reason: None,
                        token_ids: None,
                    };
                    let prompt = self.style.return_token_ids.then(|| &*self.prompts[0]);
                    event(out, &self.envelope("chat.completion.chunk", [choice], usage, prompt));
                }
                let usage = self.style.include_usage.then_some(None);
                let content = (!delta.text.is_empty()).then_some(&*delta.text);
                let choice = ChatChunkChoice {
                    index,
                    delta: ChatDelta { role: None, content },
                    logprobs: self.style.logprobs.map(|_| ChatLogprobs::new(&self.tokenizer, &delta.tokens)),
                    finish_reason,
                    token_ids: self.token_ids(&delta.tokens),
                };
                event(out, &self.envelope("chat.completion.chunk", [choice], usage, None));
            }
            Kind::Text => {
                let choice = TextChoice {
                    index,
                    text: &delta.text,
                    logprobs: self.text_logprobs(&delta.tokens, &mut offset),
                    finish_reason,
                    token_ids: self.token_ids(&delta.tokens),
                    prompt_token_ids: if first { self.prompt_of(index) } else { None },
                };
                event(out, &self.envelope("text_completion", [choice], usage, None));
            }
        }
        self.choices[index as usize].offset = offset;
    }

    /// Adds what closes a stream that came to its end.
    pub(super) fn end(&self, out: &mut Vec<u8>, end: End) {
        if self.style.include_usage {
            let object = match self.kind {
                Kind::Chat => "chat.completion.chunk",
                Kind::Text => "text_completion",
            };
            let choices: [(); 0] = [];
            event(out, &self.envelope(object, choices, None, None).ended(end));
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    fn envelope<'a, C>(
        &'a self,
        object: &'static str,
        choices: C,
        usage: Option<Option<UsageBody>>,
        prompt_token_ids: Option<&'a [TokenId]>,
    ) -> Envelope<'a, C> {
        Envelope {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
            system_fingerprint: &self.fingerprint,
            continuity: None,
            prompt_token_ids,
        }
    }

    fn index(&self, call: usize, choice: u32) -> u32 {
        u32::try_from(call).expect("prompts are limited") * self.n + choice
    }

    fn prompt_of(&self, index: u32) -> Option<&[TokenId]> {
        self.style.return_token_ids.then(|| &*self.prompts[(index / self.n) as usize])
    }

    fn token_ids(&self, tokens: &[Token]) -> Option<Vec<TokenId>> {
        self.style.return_token_ids.then(|| tokens.iter().map(|token| token.id).collect())
    }

    fn text_logprobs(&self, tokens: &[Token], offset: &mut usize) -> Option<TextLogprobs> {
        self.style.logprobs.map(|n| TextLogprobs::new(&self.tokenizer, tokens, n, offset))
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the shapes have text keys only")
}

fn event(out: &mut Vec<u8>, value: &impl Serialize) {
    out.extend_from_slice(b"data: ");
    serde_json::to_writer(&mut *out, value).expect("the shapes have text keys only, and memory takes any bytes");
    out.extend_from_slice(b"\n\n");
}
