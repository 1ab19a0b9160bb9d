//! Chat templates: a conversation to a prompt.

mod engine;
mod guard;
mod json;
mod time;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use types::TokenId;

use crate::{TemplateError, Tokenizer};
use engine::Engine;
use guard::Guard;

/// One message of a conversation. All three are the user's: never a source of control tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// One of [`ROLES`].
    pub role: String,
    /// Plain text.
    pub content: String,
    /// Who speaks, for templates that show it.
    pub name: Option<String>,
}

/// Roles that templates know. Others are refused: some templates build control tokens out of the role.
pub const ROLES: [&str; 9] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "model"];

/// What a template may ask for besides the messages.
#[derive(Clone, PartialEq, Debug)]
pub struct TemplateOptions {
    /// End the prompt with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Time since the Unix epoch, for `strftime_now` (rendered in UTC).
    pub now: Duration,
    /// Further variables (`chat_template_kwargs`); their strings are the user's too.
    pub variables: Map<String, Value>,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, now: Duration::ZERO, variables: Map::new() }
    }
}

/// Literals of the special tokens a template may name, e.g. `bos_token`.
pub type SpecialTokens = BTreeMap<String, String>;

/// A compiled chat template; cheap to clone.
#[derive(Clone)]
pub struct ChatTemplate {
    engine: Arc<Engine>,
}

impl ChatTemplate {
    /// Compiles Jinja source in the dialect of Hugging Face's `apply_chat_template`.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self, TemplateError> {
        Ok(Self { engine: Arc::new(Engine::new(source, special)?) })
    }

    /// The prompt as text. Not for encoding: user text in it can no longer be told from the template's.
    ///
    /// # Errors
    /// What the template refuses, and limits.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String, TemplateError> {
        check_roles(messages)?;
        let messages = messages.iter().map(|m| message_value(m, &mut str::to_owned)).collect();
        self.engine.render(messages, options, &options.variables)
    }

    /// The prompt as token ids. Control tokens come from the template alone: those spelled out in
    /// messages are encoded as ordinary text.
    ///
    /// # Errors
    /// What the template refuses, and limits.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &TemplateOptions,
    ) -> Result<Vec<TokenId>, TemplateError> {
        check_roles(messages)?;
        let guard = Guard::new(tokenizer.literals(), self.engine.source(), messages, &options.variables);
        let mut protect = |text: &str| guard.protect(text);
        let guarded = messages.iter().map(|m| message_value(m, &mut protect)).collect();
        let variables = options.variables.iter().map(|(k, v)| (k.clone(), map_strings(v, &mut protect))).collect();
        let rendered = self.engine.render(guarded, options, &variables)?;
        let (text, fragments) = guard.fragments(&rendered);
        let encoded = tokenizer.check_length(&text).and_then(|()| tokenizer.encode_fragments(&text, &fragments));
        encoded.map_err(|e| TemplateError::encoding(&e))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("source_bytes", &self.engine.source().len()).finish()
    }
}

fn check_roles(messages: &[Message]) -> Result<(), TemplateError> {
    match messages.iter().position(|m| !ROLES.contains(&m.role.as_str())) {
        Some(index) => Err(TemplateError::UnknownRole { index }),
        None => Ok(()),
    }
}

fn message_value(message: &Message, change: &mut impl FnMut(&str) -> String) -> Value {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    fields.insert("content".into(), change(&message.content).into());
    if let Some(name) = &message.name {
        fields.insert("name".into(), change(name).into());
    }
    fields.into()
}

/// Changes every string in `value`, keys excepted.
fn map_strings(value: &Value, change: &mut impl FnMut(&str) -> String) -> Value {
    match value {
        Value::String(text) => change(text).into(),
        Value::Array(items) => items.iter().map(|v| map_strings(v, change)).collect(),
        Value::Object(fields) => fields.iter().map(|(k, v)| (k.clone(), map_strings(v, change))).collect(),
        other => other.clone(),
    }
}
