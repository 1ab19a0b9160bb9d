//! Everything a model's files say about text.

use std::path::Path;

use modelfile::Gguf;

use crate::{ChatTemplate, TextError, Tokenizer, source};

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
        if path.is_dir() { source::hf::open(path) } else { Self::from_gguf(&Gguf::open(path)?) }
    }

    /// Reads the vocabulary and template of an open GGUF file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_gguf(file: &Gguf) -> Result<Self, TextError> {
        source::gguf::read(file)
    }

    /// Reads the contents of a `tokenizer.json`; there is no template in it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_tokenizer_json(json: &[u8]) -> Result<Self, TextError> {
        Ok(Self { tokenizer: source::hf::from_json(json)?, template: None })
    }
}
