//! The CPU engine: a dense decoder over packed weights.

mod cost;
mod embedding;
mod forward;
mod load;
mod scratch;

use std::ops::ControlFlow;
use std::sync::Arc;

use kernels::affinity::PinError;
use kernels::cpu::{Activation, Cpu, Heads, Linear};
use kernels::kv::KvArena;

pub use cost::StepCost;

use crate::cpu::embedding::Embedding;
use crate::cpu::scratch::Scratch;
use crate::model::Rope;
use crate::{Engine, EngineConfig, EngineError, LoadError, LoadProgress, ModelInfo, ModelSource, Slice, step};

/// A model on the CPU.
pub struct CpuEngine {
    model: Arc<ModelInfo>,
    arena: Arc<KvArena>,
    cpu: Cpu,
    network: Network,
    scratch: Scratch,
}

/// Weights and constants.
struct Network {
    heads: Heads,
    ropes: Vec<Rope>,
    norm_eps: f32,
    dim: usize,
    ff_dim: usize,
    n_vocab: usize,
    activation: Activation,
    /// Multiplies the embeddings.
    embedding_scale: Option<f32>,
    /// Multiplies attention's scores, and caps them.
    score_scale: f32,
    score_cap: Option<f32>,
    logit_cap: Option<f32>,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Linear,
}

/// A norm that is not there leaves its input as it is.
struct Layer {
    /// Most rows that a query sees.
    window: Option<usize>,
    /// Which rotary embedding.
    rope: usize,
    attention_norm: Option<Vec<f32>>,
    /// Query, key and value side by side.
    qkv: Linear,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    attention_output: Linear,
    attention_post_norm: Option<Vec<f32>>,
    feed_forward_norm: Option<Vec<f32>>,
    /// Gate and up side by side.
    gate_up: Linear,
    down: Linear,
    feed_forward_post_norm: Option<Vec<f32>>,
}

impl CpuEngine {
    /// Loads a model; see [`crate::open`].
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open(
        source: &ModelSource,
        config: &EngineConfig,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        load::load(source, config, progress)
    }
}

impl Engine for CpuEngine {
    fn model(&self) -> &Arc<ModelInfo> {
        &self.model
    }

    fn arena(&self) -> &Arc<KvArena> {
        &self.arena
    }

    fn forward(
        &mut self,
        slices: &[Slice<'_>],
        logits: &mut Vec<f32>,
        on_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        logits.clear();
        step::check(slices, &self.model, &self.arena)?;
        forward::forward(self, slices, logits, on_layer)
    }

    fn bind_thread(&mut self) -> Result<(), PinError> {
        self.cpu.pool().bind_caller()
    }
}
