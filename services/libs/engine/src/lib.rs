//! Weights, the forward pass, and sampling: token ids in, logits out.
//!
//! Not here: requests, queues, block allocation (the caller names the blocks), networks, text.
//! The main type is the [`Engine`] trait with its one operation [`Engine::forward`], which serves prompt chunks,
//! decode batches and scoring alike. [`open`] loads a model for the CPU; [`sim`] has an engine without weights.
//! [`offline`] runs whole prompts without a server, [`sampling`] draws tokens from logits.
//! Begin with `api.rs`, then `cpu/forward.rs`.

mod api;
mod config;
pub mod cpu;
mod model;
pub mod offline;
pub mod sampling;
pub mod sim;
mod source;
mod step;

pub use api::{Engine, EngineError, LogitRows, Mask, ModelInfo, Slice, SliceProblem};
pub use config::{Compute, EngineConfig};
pub use kernels::Isa;
pub use kernels::affinity::{self, PinError};
pub use source::{LoadError, LoadProgress, ModelSource, open};
