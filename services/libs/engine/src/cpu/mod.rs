//! The CPU engine.

use std::ops::ControlFlow;
use std::sync::Arc;

use kernels::kv::KvArena;

use crate::{Engine, EngineConfig, EngineError, LoadError, LoadProgress, ModelInfo, ModelSource, Slice};

/// A model on the CPU.
pub struct CpuEngine {
    model: Arc<ModelInfo>,
    arena: Arc<KvArena>,
}

impl CpuEngine {
    /// Loads a model.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn open(
        source: &ModelSource,
        _config: &EngineConfig,
        _progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, LoadError> {
        Err(LoadError::NotAModel { path: source.path().to_owned() })
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
        _slices: &[Slice<'_>],
        _logits: &mut Vec<f32>,
        _on_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        Err(EngineError::Aborted)
    }
}
