//! Phi-3 and Phi-4: fused tensors, LongRoPE, heads that may be rotated in part. Source: Abdin et al., arXiv:2404.14219.

use kernels::cpu::Activation;

use super::{Defaults, Family, sliding_window, windows};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::rope::huggingface::{self as rope, RopeShape};
use crate::model::{Biases, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "phi3",
    model_type: "phi3",
    gguf: Some(("phi3", gguf)),
    defaults: Defaults {
        n_kv: None,
        head_dim: None,
        norm_eps: 1e-5,
        max_context: 4096,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.storage.fused = true;
    let window = sliding_window(config, None)?;
    windows(config, model, window, |_| window.is_some())?;
    let rotated = rope::rotated(config, model.head_dim)?;
    let shape = RopeShape { rotated, max_context: model.max_context, theta: 10_000.0 };
    model.ropes = vec![rope::read(config, &rope::section(config)?, shape)?];
    Ok(())
}

fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.storage.fused = true;
    (model.storage.qkv_bias, model.storage.mlp_bias) = (Biases::None, Biases::None);
    let window = keys.window()?;
    model.layers.iter_mut().for_each(|layer| layer.window = window);
    let rotated = gguf_rope::rotated(keys, model)?;
    model.ropes = vec![gguf_rope::read(keys, model, rotated)?];
    Ok(())
}
