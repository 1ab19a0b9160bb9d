//! Llama. Source: Touvron et al., arXiv:2302.13971; Grattafiori et al., arXiv:2407.21783.

use kernels::cpu::Activation;

use super::{Defaults, Family, attention_bias, one_rope};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::{Biases, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "llama",
    model_type: "llama",
    gguf: Some(("llama", gguf)),
    defaults: Defaults {
        n_kv: None,
        head_dim: None,
        norm_eps: 1e-6,
        max_context: 2048,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    attention_bias(config, model)?;
    model.storage.mlp_bias = if config.flag("mlp_bias")? { Biases::All } else { Biases::None };
    one_rope(config, model)
}

/// Mistral's files are of this architecture too, with or without a window.
fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    let window = keys.window()?;
    model.layers.iter_mut().for_each(|layer| layer.window = window);
    model.storage.interleaved = true;
    model.ropes = vec![gguf_rope::of_heads(keys, model)?];
    Ok(())
}
