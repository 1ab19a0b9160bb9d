//! What can go wrong with text, and whose fault it is.

use std::path::PathBuf;

use types::Failure;

/// Longest message taken over from a template, in characters.
const MESSAGE_CHARS_MAX: usize = 200;

/// A tokenizer that cannot be had, or text it does not take.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The model comes without a tokenizer.
    #[error("no tokenizer at {}: {message}", path.display())]
    NoTokenizer {
        /// Where it was looked for.
        path: PathBuf,
        /// What was expected there.
        message: String,
    },
    /// A field of a tokenizer file makes no sense.
    #[error("{field}: {message}")]
    Malformed {
        /// Which field, with its file where there are several.
        field: String,
        /// What is wrong with it.
        message: String,
    },
    /// A field of a tokenizer file asks for something this crate cannot do.
    #[error("{field}: {value} is not supported")]
    Unsupported {
        /// Which field.
        field: String,
        /// What it asks for.
        value: String,
    },
    /// The GGUF container is damaged.
    #[error(transparent)]
    File(#[from] modelfile::FileError),
    /// The chat template does not compile.
    #[error("chat template: {0}")]
    Template(#[from] TemplateError),
    /// Text is longer than the tokenizer takes.
    #[error("input of {bytes} bytes is longer than the limit of {max}")]
    InputTooLong {
        /// Length of the text.
        bytes: usize,
        /// Longest that is taken.
        max: usize,
    },
    /// Text surely has more tokens than allowed.
    #[error("input has more than {max} tokens")]
    TooManyTokens {
        /// Most that are taken.
        max: usize,
    },
    /// The tokenizer itself refused the text.
    #[error("cannot encode: {0}")]
    Encode(String),
}

impl TextError {
    pub(crate) fn malformed(field: impl Into<String>, message: impl ToString) -> Self {
        Self::Malformed { field: field.into(), message: message.to_string() }
    }

    pub(crate) fn unsupported(field: impl Into<String>, value: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), value: value.into() }
    }
}

impl From<TextError> for Failure {
    fn from(error: TextError) -> Self {
        match error {
            TextError::InputTooLong { .. } | TextError::TooManyTokens { .. } => {
                Self { reason: "CONTEXT_LENGTH_EXCEEDED", ..Self::invalid("input", error.to_string()) }
            }
            TextError::Template(error) => error.into(),
            _ => Self::internal(error.to_string()),
        }
    }
}

/// A conversation that its template does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The template is not valid Jinja, or uses what is not supported.
    #[error("does not compile: {0}")]
    Compile(String),
    /// The template refused the conversation through `raise_exception`.
    #[error("refused by the chat template: {0}")]
    Refused(String),
    /// Rendering stopped at an error.
    #[error("chat template failed: {0}")]
    Render(String),
    /// Rendering took more work, depth or output than allowed.
    #[error("chat template exceeded its limit of {0}")]
    Limit(&'static str),
    /// A message's role is none that templates know.
    #[error("unknown role at message {index}")]
    UnknownRole {
        /// Which message, from 0.
        index: usize,
    },
    /// The rendered prompt is longer than the tokenizer takes.
    #[error("rendered prompt: {0}")]
    TooLong(String),
    /// The rendered prompt cannot be encoded.
    #[error("rendered prompt: {0}")]
    Encode(String),
}

impl TemplateError {
    pub(crate) fn encoding(error: &TextError) -> Self {
        match error {
            TextError::InputTooLong { .. } | TextError::TooManyTokens { .. } => Self::TooLong(error.to_string()),
            _ => Self::Encode(error.to_string()),
        }
    }
}

impl From<TemplateError> for Failure {
    fn from(error: TemplateError) -> Self {
        if matches!(error, TemplateError::Compile(_)) {
            return Self::internal(error.to_string());
        }
        let reason =
            if matches!(error, TemplateError::TooLong(_)) { "CONTEXT_LENGTH_EXCEEDED" } else { "CHAT_TEMPLATE" };
        Self { reason, ..Self::invalid("messages", error.to_string()) }
    }
}

/// One line of at most [`MESSAGE_CHARS_MAX`] characters.
pub(crate) fn short(message: &str) -> String {
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    if message.chars().nth(MESSAGE_CHARS_MAX).is_some() { format!("{line}…") } else { line }
}
