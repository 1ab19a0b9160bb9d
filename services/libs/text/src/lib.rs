//! Between text and token ids: tokenizers, chat templates and streaming detokenisation.
//!
//! [`TextModel::open`] reads what a model directory (`tokenizer.json` and its companions) or a GGUF
//! file says about text. [`Tokenizer`] encodes and decodes, [`ChatTemplate`] turns a conversation
//! into a prompt, [`TextStream`] turns generated tokens into text piece by piece.
//!
//! One rule runs through the crate: control tokens come from the model's template or from token
//! ids, never from text. Text that looks like a control token is encoded as ordinary characters.
//!
//! Not here: weights, sampling, requests, clocks (the time a template may ask for is passed in).
//! Begin with [`Tokenizer`]; `source` reads files, `template` renders conversations.

mod byte_level;
mod encoder;
mod error;
mod model;
mod source;
mod spm;
mod stops;
mod stream;
mod template;
mod tokenizer;
mod utf8;
mod vocab;

pub use error::{TemplateError, TextError};
pub use model::TextModel;
pub use stream::{Piece, TextStream};
pub use template::{ChatTemplate, Message, ROLES, SpecialTokens, TemplateOptions};
pub use tokenizer::{INPUT_BYTES_MAX, Tokenizer};
