//! The engine trait over the simulated model.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kernels::kv::{CellShape, KvArena};
use types::{Compatibility, KvElement, KvGeometry, LayerKv, LayerKvKind, PROTOCOL_MAX, PROTOCOL_MIN};

use crate::sim::hash::{Path, State, state};
use crate::sim::{SimConfig, Speedup};
use crate::{Engine, EngineError, LoadError, LogitRows, Mask, ModelInfo, Slice, step};

/// An engine whose model is a hash.
pub struct SimEngine {
    config: SimConfig,
    model: Arc<ModelInfo>,
    arena: Arc<KvArena>,
}

impl SimEngine {
    /// An engine for `config`.
    ///
    /// # Errors
    /// [`LoadError::Settings`] for values that cannot be, [`LoadError::Arena`] without memory for the KV cache.
    pub fn new(config: SimConfig) -> Result<Self, LoadError> {
        validate(&config)?;
        // Half of a state is the key, half the value: 16 bytes a token.
        let cell = CellShape { planes: 2, row_bytes: 8 };
        let arena = Arc::new(KvArena::with_cells(&[cell], config.kv_blocks, config.block_tokens)?);
        let model = Arc::new(model_info(&config));
        Ok(Self { config, model, arena })
    }

    /// How long the step takes.
    fn duration(&self, slices: &[Slice<'_>]) -> Duration {
        let timing = &self.config.timing;
        let mut time = timing.step;
        let mut n_rows = 0;
        for slice in slices {
            let n_tokens = slice.tokens.len() as u32;
            if n_tokens == 1 {
                time += timing.decode_per_sequence;
                n_rows += slice.first_row + 1;
            } else {
                time += timing.prefill_per_token * n_tokens;
            }
        }
        time += timing.decode_per_thousand_rows.mul_f64(f64::from(n_rows) / 1000.0);
        match self.config.speedup {
            Speedup::Times(x) => time.div_f64(x),
            Speedup::Infinite => Duration::ZERO,
        }
    }

    /// States of the sequence's rows before `n_rows`, read through the block table.
    fn read(&self, slice: &Slice<'_>, n_rows: usize) -> Vec<State> {
        let block_tokens = self.config.block_tokens;
        let mut states = Vec::with_capacity(n_rows + slice.tokens.len());
        for (i, block) in slice.blocks[..n_rows.div_ceil(block_tokens)].iter().enumerate() {
            let n = block_tokens.min(n_rows - i * block_tokens);
            let pin = self.arena.pin(block.0);
            let halves = pin.plane(0, 0, n).chunks_exact(8).zip(pin.plane(0, 1, n).chunks_exact(8));
            for (low, high) in halves {
                let mut state = [0; 16];
                state[..8].copy_from_slice(low);
                state[8..].copy_from_slice(high);
                states.push(state);
            }
        }
        states
    }

    fn write(&self, slice: &Slice<'_>, states: &[State]) -> Result<(), EngineError> {
        let block_tokens = self.config.block_tokens;
        let mut row = slice.first_row as usize;
        let mut rest = states;
        while !rest.is_empty() {
            let (block, first) = (slice.blocks[row / block_tokens].0, row % block_tokens);
            let (now, later) = rest.split_at(rest.len().min(block_tokens - first));
            let mut append = self.arena.append(0, block, first, now.len())?;
            for plane in 0..2 {
                for (out, state) in append.plane_mut(plane).chunks_exact_mut(8).zip(now) {
                    out.copy_from_slice(&state[plane * 8..plane * 8 + 8]);
                }
            }
            append.publish();
            row += now.len();
            rest = later;
        }
        Ok(())
    }

    /// States of the slice's tokens, from those before it in the cache.
    fn compute(&self, slice: &Slice<'_>) -> Vec<State> {
        let before = self.read(slice, slice.first_row as usize).last().copied().unwrap_or([0; 16]);
        let mut new: Vec<State> = Vec::with_capacity(slice.tokens.len());
        for (i, (&token, &position)) in slice.tokens.iter().zip(slice.positions).enumerate() {
            let parent = match slice.mask {
                Mask::Causal => i.checked_sub(1),
                Mask::Ancestors(parents) => parents[i].map(|p| p as usize),
            };
            let before = parent.map_or(before, |p| new[p]);
            new.push(state(self.config.key, before, token, position));
        }
        new
    }

    /// Logits of the wanted rows, over states read back from the arena.
    fn logits(&self, slice: &Slice<'_>, logits: &mut Vec<f32>) {
        let n_tokens = slice.tokens.len();
        let first_wanted = match slice.logits {
            LogitRows::None => return,
            LogitRows::Last => n_tokens - 1,
            LogitRows::All => 0,
        };
        let first_row = slice.first_row as usize;
        let states = self.read(slice, first_row + n_tokens);
        let mut before = Path::new(self.config.key);
        states[..first_row].iter().for_each(|&s| before.push(s));
        let mut paths: Vec<Path> = Vec::with_capacity(n_tokens);
        for (i, &state) in states[first_row..].iter().enumerate() {
            let parent = match slice.mask {
                Mask::Causal => i.checked_sub(1),
                Mask::Ancestors(parents) => parents[i].map(|p| p as usize),
            };
            let mut path = parent.map_or(&before, |p| &paths[p]).clone();
            path.push(state);
            if i >= first_wanted {
                path.logits(&self.config, logits);
            }
            paths.push(path);
        }
    }
}

impl Engine for SimEngine {
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
        let time = self.duration(slices);
        if !time.is_zero() {
            std::thread::sleep(time);
        }
        for slice in slices {
            self.write(slice, &self.compute(slice))?;
        }
        if on_layer(0).is_break() {
            return Err(EngineError::Aborted);
        }
        for slice in slices {
            self.logits(slice, logits);
        }
        Ok(())
    }
}

fn validate(config: &SimConfig) -> Result<(), LoadError> {
    let bad = |field, reason: &str| Err(LoadError::Settings { field, reason: reason.to_owned() });
    if config.n_vocab < config.eos.len() + 16 || config.n_vocab > u32::MAX as usize {
        return bad("n_vocab", "must be at least 16 more than there are end-of-sequence tokens");
    }
    if config.eos.iter().any(|&t| t as usize >= config.n_vocab) {
        return bad("eos", "must be in the vocabulary");
    }
    if config.max_context == 0 || config.max_context > u32::MAX as usize {
        return bad("max_context", "must be between 1 and 2^32 - 1");
    }
    if matches!(config.speedup, Speedup::Times(x) if !(x.is_finite() && x > 1e-6)) {
        return bad("speedup", "must be a number above 0");
    }
    Ok(())
}

fn model_info(config: &SimConfig) -> ModelInfo {
    let kind = LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 2 };
    let identity = format!("sim key={} n_vocab={} max_context={}", config.key, config.n_vocab, config.max_context);
    let mut eos = config.eos.clone();
    eos.sort_unstable();
    ModelInfo {
        name: config.name.clone(),
        architecture: "sim".into(),
        n_vocab: config.n_vocab,
        max_context: config.max_context,
        bos: config.bos,
        eos,
        compatibility: Compatibility {
            protocol: (PROTOCOL_MIN, PROTOCOL_MAX),
            model_digest: blake3::hash(identity.as_bytes()).to_hex().to_string(),
            model_revision: String::new(),
            geometry: KvGeometry {
                block_tokens: config.block_tokens as u32,
                element: KvElement::F32,
                layers: vec![LayerKv { kind, window: None }],
            },
            rope: "none".into(),
            attention: "hash".into(),
            quantization: "none".into(),
            adapters: Vec::new(),
            drafter: String::new(),
            numerics: "sim".into(),
        },
        weight_bytes: 0,
        device: "sim".into(),
        rope_switch: None,
    }
}
