//! Qwen2 and Qwen2.5: biases on queries, keys and values. Source: Yang et al., arXiv:2407.10671.

use kernels::cpu::Activation;

use super::{Defaults, Family, one_rope, qwen_windows};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::{Biases, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "qwen2",
    model_type: "qwen2",
    gguf: Some(("qwen2", gguf)),
    defaults: Defaults {
        n_kv: Some(32),
        head_dim: None,
        norm_eps: 1e-6,
        max_context: 32_768,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.storage.qkv_bias = Biases::All;
    qwen_windows(config, model)?;
    one_rope(config, model)
}

fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.storage.qkv_bias = Biases::All;
    model.ropes = vec![gguf_rope::of_heads(keys, model)?];
    Ok(())
}
