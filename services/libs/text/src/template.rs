//! Chat templates.

use std::time::Duration;

use types::TokenId;

use crate::{TemplateError, Tokenizer};

/// One message of a conversation. All three are the user's: never a source of control tokens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, ...
    pub role: String,
    /// Plain text.
    pub content: String,
    /// Who speaks, for templates that show it.
    pub name: Option<String>,
}

/// What a template may ask for besides the messages.
#[derive(Clone, PartialEq, Debug)]
pub struct TemplateOptions {
    /// End the prompt with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Time since the Unix epoch, for `strftime_now` (rendered in UTC).
    pub now: Duration,
    /// Further variables (`chat_template_kwargs`); their strings are the user's too.
    pub variables: serde_json::Map<String, serde_json::Value>,
}

impl Default for TemplateOptions {
    fn default() -> Self {
        Self { add_generation_prompt: true, now: Duration::ZERO, variables: serde_json::Map::new() }
    }
}

/// Literals of the special tokens a template may name, e.g. `bos_token`.
pub type SpecialTokens = std::collections::BTreeMap<String, String>;

/// A compiled chat template; cheap to clone.
#[derive(Clone, Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Compiles Jinja source.
    ///
    /// # Errors
    /// [`TemplateError::Compile`].
    pub fn new(source: &str, special: &SpecialTokens) -> Result<Self, TemplateError> {
        let _ = (source, special);
        Ok(Self {})
    }

    /// The prompt as text; user text is in it as it was given.
    ///
    /// # Errors
    /// What the template refuses, and limits.
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String, TemplateError> {
        let _ = (messages, options);
        Ok(String::new())
    }

    /// The prompt as token ids. Control tokens come from the template alone.
    ///
    /// # Errors
    /// What the template refuses, and limits.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &TemplateOptions,
    ) -> Result<Vec<TokenId>, TemplateError> {
        let _ = (tokenizer, messages, options);
        Ok(Vec::new())
    }
}
