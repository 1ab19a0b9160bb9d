//! The request bodies of chat and text completions, and their translation into calls.

use std::collections::BTreeMap;

use rpc::inference::{ChatMessage, GenerationOptions, Input};
use serde::Deserialize;
use types::{Failure, SamplingParams, StopParams, TokenId};

use super::fields::{Content, Logprobs, Prompt, Seed, Stop, Used};
use crate::config::Limits;
use crate::request::{Call, Layout};

/// Tokens of a text completion when the client does not say, as OpenAI has it.
const COMPLETION_TOKENS: u32 = 16;
/// Most logprobs of one position.
const LOGPROBS_MAX: u32 = 20;

/// Fields of both endpoints; unknown ones are ignored, known ones that are not offered are refused if used.
#[derive(Deserialize, Debug, Default)]
#[serde(default)]
pub(super) struct Body {
    model: Option<String>,
    messages: Option<Vec<MessageBody>>,
    prompt: Option<Prompt>,

    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<Seed>,
    logprobs: Option<Logprobs>,
    top_logprobs: Option<u32>,

    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    min_tokens: Option<u32>,
    ignore_eos: Option<bool>,
    stop: Option<Stop>,
    stop_token_ids: Option<Vec<TokenId>>,
    include_stop_str_in_output: Option<bool>,
    skip_special_tokens: Option<bool>,
    n: Option<u64>,

    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    return_token_ids: Option<bool>,
    add_generation_prompt: Option<bool>,
    add_special_tokens: Option<bool>,
    user: Option<String>,

    best_of: Option<u64>,
    echo: Option<bool>,
    suffix: Option<Used>,
    tools: Option<Used>,
    functions: Option<Used>,
    function_call: Option<Used>,
    response_format: Option<ResponseFormat>,
    audio: Option<Used>,
    chat_template: Option<Used>,
    chat_template_kwargs: Option<Used>,
    continue_final_message: Option<Used>,
    prompt_logprobs: Option<Used>,
    structured_outputs: Option<Used>,
    guided_json: Option<Used>,
    guided_regex: Option<Used>,
    guided_choice: Option<Used>,
    guided_grammar: Option<Used>,
    use_beam_search: Option<Used>,
}

/// One message of a conversation.
#[derive(Deserialize, Debug)]
pub(super) struct MessageBody {
    role: String,
    #[serde(default)]
    content: Option<Content>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    tool_calls: Option<Used>,
    #[serde(default)]
    function_call: Option<Used>,
}

#[derive(Deserialize, Debug)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Deserialize, Debug)]
struct ResponseFormat {
    r#type: String,
}

/// How the answer is to be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Style {
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    /// Alternatives per position.
    pub(super) logprobs: Option<u32>,
    pub(super) return_token_ids: bool,
}

/// What a body asks for: one call per prompt.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) calls: Vec<Call>,
    /// Choices of each call.
    pub(super) n: u32,
    pub(super) style: Style,
}

impl Body {
    /// The chat completion that is asked for.
    ///
    /// # Errors
    /// The parameter that is missing, wrong or not offered.
    pub(super) fn chat(mut self, limits: &Limits) -> Result<Asked, Failure> {
        let messages = self.messages.take().ok_or_else(|| Failure::invalid("messages", "messages must be given"))?;
        if messages.len() > limits.n_messages {
            return Err(Failure::invalid("messages", format!("at most {} messages are accepted", limits.n_messages)));
        }
        let input = Input::Chat(chat_messages(messages)?);
        let wants = match self.logprobs {
            None | Some(Logprobs::Flag(false)) => false,
            Some(Logprobs::Flag(true)) => true,
            Some(Logprobs::Count(_)) => return Err(Failure::invalid("logprobs", "logprobs must be true or false")),
        };
        let logprobs = match (wants, self.top_logprobs) {
            (true, n) => Some(checked_logprobs(n.unwrap_or(0), "top_logprobs")?),
            (false, None | Some(0)) => None,
            (false, Some(_)) => return Err(Failure::invalid("top_logprobs", "top_logprobs needs logprobs to be true")),
        };
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        self.asked(vec![input], logprobs, max_tokens, None, limits)
    }

    /// The text completion that is asked for.
    ///
    /// # Errors
    /// The parameter that is missing, wrong or not offered.
    pub(super) fn completions(mut self, limits: &Limits) -> Result<Asked, Failure> {
        let prompt = self.prompt.take().ok_or_else(|| Failure::invalid("prompt", "prompt must be given"))?;
        let inputs = prompt.0;
        if inputs.is_empty() {
            return Err(Failure::invalid("prompt", "prompt must not be empty"));
        }
        if inputs.len() > limits.n_prompts {
            return Err(Failure::invalid("prompt", format!("at most {} prompts are accepted", limits.n_prompts)));
        }
        let logprobs = match self.logprobs {
            None | Some(Logprobs::Flag(false)) => None,
            Some(Logprobs::Count(n)) => Some(checked_logprobs(n, "logprobs")?),
            Some(Logprobs::Flag(true)) => {
                return Err(Failure::invalid("logprobs", "logprobs must be a number of alternatives"));
            }
        };
        let max_tokens = self.max_tokens.or(self.max_completion_tokens);
        self.asked(inputs, logprobs, max_tokens, Some(COMPLETION_TOKENS), limits)
    }

    fn asked(
        self,
        inputs: Vec<Input>,
        logprobs: Option<u32>,
        max_tokens: Option<u32>,
        max_tokens_default: Option<u32>,
        limits: &Limits,
    ) -> Result<Asked, Failure> {
        self.refuse_what_is_not_offered()?;
        let model = self.model.ok_or_else(|| Failure::invalid("model", "model must be given"))?;
        let n_max = u64::from(limits.n_choices);
        let n = match self.n.unwrap_or(1) {
            n if (1..=n_max).contains(&n) => u32::try_from(n).expect("at most a 32-bit limit"),
            _ => return Err(Failure::invalid("n", format!("n must be between 1 and {n_max}"))),
        };
        if self.best_of.is_some_and(|best_of| best_of != u64::from(n)) {
            return Err(not_offered("best_of", "best_of other than n"));
        }
        if n as usize * inputs.len() > limits.n_choices_in_all {
            let message = format!("n times the number of prompts must be at most {}", limits.n_choices_in_all);
            return Err(Failure::invalid("n", message));
        }
        if max_tokens == Some(0) {
            return Err(Failure::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: match self.top_k.unwrap_or(0) {
                -1 => 0,
                k => u32::try_from(k).map_err(|_| Failure::invalid("top_k", "top_k must be -1, 0 or positive"))?,
            },
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            logit_bias: logit_bias(self.logit_bias.unwrap_or_default())?,
            seed: 0,
            logprobs,
        };
        let style = Style {
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            logprobs,
            return_token_ids: self.return_token_ids.unwrap_or(false),
        };
        let options = GenerationOptions {
            sampling,
            seed: self.seed.map(|seed| seed.0),
            stop: StopParams {
                max_tokens: max_tokens.unwrap_or(0),
                min_tokens: self.min_tokens.unwrap_or(0),
                ignore_eos: self.ignore_eos.unwrap_or(false),
                stop_token_ids: self.stop_token_ids.unwrap_or_default(),
            },
            stop_strings: self.stop.map(|stop| stop.0).unwrap_or_default(),
            include_stop_string: self.include_stop_str_in_output.unwrap_or(false),
            n,
            return_token_ids: style.return_token_ids,
            keep_special_tokens: !self.skip_special_tokens.unwrap_or(true),
            user: self.user.unwrap_or_default(),
        };
        let layout = Layout {
            add_generation_prompt: self.add_generation_prompt.unwrap_or(true),
            add_special_tokens: self.add_special_tokens.unwrap_or(true),
        };
        let call = |input| Call { model: model.clone(), input, options: options.clone(), layout, max_tokens_default };
        Ok(Asked { calls: inputs.into_iter().map(call).collect(), n, style })
    }

    fn refuse_what_is_not_offered(&self) -> Result<(), Failure> {
        let used = [
            ("suffix", &self.suffix),
            ("tools", &self.tools),
            ("functions", &self.functions),
            ("function_call", &self.function_call),
            ("audio", &self.audio),
            ("chat_template", &self.chat_template),
            ("chat_template_kwargs", &self.chat_template_kwargs),
            ("continue_final_message", &self.continue_final_message),
            ("prompt_logprobs", &self.prompt_logprobs),
            ("structured_outputs", &self.structured_outputs),
            ("guided_json", &self.guided_json),
            ("guided_regex", &self.guided_regex),
            ("guided_choice", &self.guided_choice),
            ("guided_grammar", &self.guided_grammar),
            ("use_beam_search", &self.use_beam_search),
        ];
        if let Some((param, _)) = used.into_iter().find(|(_, field)| field.as_ref().is_some_and(|f| f.0)) {
            return Err(not_offered(param, param));
        }
        if self.echo == Some(true) {
            return Err(not_offered("echo", "echo"));
        }
        match &self.response_format {
            Some(format) if format.r#type != "text" => {
                Err(not_offered("response_format", "a response_format other than text"))
            }
            _ => Ok(()),
        }
    }
}

fn not_offered(param: &str, what: &str) -> Failure {
    Failure { reason: "NOT_SUPPORTED", ..Failure::invalid(param, format!("{what} is not supported")) }
}

fn checked_logprobs(n: u32, param: &str) -> Result<u32, Failure> {
    if n > LOGPROBS_MAX {
        return Err(Failure::invalid(param, format!("{param} must be between 0 and {LOGPROBS_MAX}")));
    }
    Ok(n)
}

fn logit_bias(biases: BTreeMap<String, f32>) -> Result<Vec<(TokenId, f32)>, Failure> {
    let token = |(key, bias): (String, f32)| match key.parse::<TokenId>() {
        Ok(token) => Ok((token, bias)),
        Err(_) => Err(Failure::invalid("logit_bias", "keys must be token ids")),
    };
    biases.into_iter().map(token).collect()
}

/// The conversation, with messages that cannot be rendered refused by name.
pub(super) fn chat_messages(messages: Vec<MessageBody>) -> Result<Vec<ChatMessage>, Failure> {
    let message = |(index, message): (usize, MessageBody)| {
        let used = |field: &Option<Used>| field.as_ref().is_some_and(|f| f.0);
        if used(&message.tool_calls) || used(&message.function_call) {
            return Err(not_offered(&format!("messages[{index}].tool_calls"), "tool_calls"));
        }
        let Some(content) = message.content else {
            let param = format!("messages[{index}].content");
            return Err(Failure::invalid(param, "content must be given"));
        };
        Ok(ChatMessage { role: message.role, content: content.0, name: message.name })
    };
    messages.into_iter().enumerate().map(message).collect()
}
