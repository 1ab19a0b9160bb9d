//! Reads tokenizers and templates from the files of a model.

pub(crate) mod gguf;
pub(crate) mod hf;
mod pre;
mod settings;
