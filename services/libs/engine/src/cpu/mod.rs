//! The CPU engine: a llama-family model over packed weights.

mod embedding;
mod forward;
mod load;
mod scratch;

use std::ops::ControlFlow;
use std::sync::Arc;

use kernels::cpu::{Cpu, Heads, Linear};
use kernels::kv::KvArena;

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
    rope: Rope,
    norm_eps: f32,
    dim: usize,
    ff_dim: usize,
    n_vocab: usize,
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Linear,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Query, key and value side by side.
    qkv: Linear,
    attention_output: Linear,
    feed_forward_norm: Vec<f32>,
    /// Gate and up side by side.
    gate_up: Linear,
    down: Linear,
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
}
