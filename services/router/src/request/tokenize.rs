//! Second stage: the prompt as token ids, and what depends on its length.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rpc::inference::{GenerationOptions, Input};
use text::{Message, TemplateOptions, TextModel};
use tokio::time::Instant;
use types::{Code, Failure, Phase, TokenId};

use super::accept::{self, Accepted};
use super::{INLINE_BYTES, Layout, Origin, PhaseClock, Pipeline};

/// A request whose prompt fits the model.
pub(crate) struct Tokenized {
    pub(super) prompt: Arc<[TokenId]>,
    /// The answer goes on where the prompt's text ends.
    pub(super) continues_text: bool,
    /// Valid, `max_tokens` at least 1.
    pub(super) options: GenerationOptions,
    pub(super) origin: Origin,
    pub(super) deadline: Instant,
    pub(super) clock: PhaseClock,
}

impl Accepted {
    /// Lays the input out and tokenizes it.
    ///
    /// # Errors
    /// A template that refuses the conversation, an empty prompt, or one that is longer than the context.
    pub(super) async fn tokenize(self, pipeline: &Pipeline) -> Result<Tokenized, Failure> {
        let Self { input, layout, max_tokens_default, mut options, origin, deadline, mut clock } = self;
        let continues_text = !matches!(input, Input::Chat(_));
        let param = if continues_text { "prompt" } else { "messages" };
        let context = pipeline.cluster.max_context().ok_or_else(no_worker)?;
        let prompt = pipeline.tokenize(input, layout, param, Some(context)).await?;
        if prompt.is_empty() {
            return Err(Failure::invalid(param, format!("{param} must not be empty")));
        }
        let n_prompt = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let room = context.saturating_sub(n_prompt);
        if room == 0 {
            return Err(over_context(param, context, &format!("the prompt has {n_prompt}")));
        }
        let stop = &mut options.stop;
        if stop.max_tokens == 0 {
            stop.max_tokens = max_tokens_default.map_or(room, |n| n.min(room));
        } else if stop.max_tokens > room {
            let have = format!("the prompt has {n_prompt}, and {} are asked for", stop.max_tokens);
            return Err(over_context(param, context, &have));
        }
        stop.validate(pipeline.text.tokenizer.n_vocab()).map_err(accept::invalid)?;
        clock.lap(Phase::Tokenize);
        Ok(Tokenized { prompt: prompt.into(), continues_text, options, origin, deadline, clock })
    }
}

impl Pipeline {
    /// Token ids of an input. Long inputs are tokenized off the async threads, as many at a time as there are
    /// processors. `context`: refuse early what cannot fit so many tokens.
    ///
    /// # Errors
    /// Inputs that the template or the tokenizer refuses, or that cannot fit.
    pub(crate) async fn tokenize(
        &self,
        input: Input,
        layout: Layout,
        param: &'static str,
        context: Option<u32>,
    ) -> Result<Vec<TokenId>, Failure> {
        accept::check_input(&input, self.text.tokenizer.n_vocab(), &self.limits)?;
        let n_bytes = match &input {
            Input::Ids(_) => 0,
            Input::Text(text) => text.len(),
            Input::Chat(messages) => messages.iter().map(|m| m.content.len()).sum(),
        };
        let n_tokens_min = n_bytes / self.longest_token;
        if let Some(context) = context.filter(|&context| n_tokens_min > context as usize) {
            return Err(over_context(param, context, &format!("the prompt has at least {n_tokens_min}")));
        }
        if n_bytes <= INLINE_BYTES {
            return encode(&self.text, input, layout, param);
        }
        let permit = self.tokenizing.clone().acquire_owned().await.expect("the semaphore is never closed");
        let text = self.text.clone();
        let work = move || {
            let _permit = permit;
            encode(&text, input, layout, param)
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Failure::internal("the tokenizer failed")))
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// Ids that are not in the vocabulary.
    pub(crate) fn detokenize(&self, ids: &[TokenId], param: &str) -> Result<String, Failure> {
        accept::check_ids(ids, self.text.tokenizer.n_vocab(), param)?;
        Ok(self.text.tokenizer.decode(ids, true))
    }
}

fn encode(text: &TextModel, input: Input, layout: Layout, param: &'static str) -> Result<Vec<TokenId>, Failure> {
    let named = |failure: Failure| match failure.code {
        Code::InvalidArgument => Failure { param: Some(param.into()), ..failure },
        _ => failure,
    };
    match input {
        Input::Ids(ids) => Ok(ids),
        Input::Text(prompt) => {
            text.tokenizer.encode(&prompt, layout.add_special_tokens).map_err(|error| named(error.into()))
        }
        Input::Chat(messages) => {
            let Some(template) = &text.template else {
                return Err(Failure::invalid(param, "this model has no chat template; use completions"));
            };
            let messages: Vec<Message> =
                messages.into_iter().map(|m| Message { role: m.role, content: m.content, name: m.name }).collect();
            let options = TemplateOptions {
                add_generation_prompt: layout.add_generation_prompt,
                now: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO),
                ..TemplateOptions::default()
            };
            template.encode(&text.tokenizer, &messages, &options).map_err(|error| named(error.into()))
        }
    }
}

fn over_context(param: &str, context: u32, have: &str) -> Failure {
    let message = format!("this model's context has {context} tokens, answer included; {have}");
    Failure { reason: "CONTEXT_LENGTH_EXCEEDED", ..Failure::invalid(param, message) }
}

/// The failure while nobody could generate.
pub(super) fn no_worker() -> Failure {
    Failure::new(Code::Unavailable, "NO_WORKER", "no decode worker is available")
        .with_retry(types::Retry::Safe(Some(Duration::from_secs(1))))
}
