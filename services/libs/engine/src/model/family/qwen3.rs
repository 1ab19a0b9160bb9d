//! Qwen3: a norm on each query and key head, heads of a size of their own. Source: Yang et al., arXiv:2505.09388.

use kernels::cpu::Activation;

use super::{Defaults, Family, attention_bias, one_rope, qwen_windows};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::{HeadNorm, ModelConfig};

pub(super) const FAMILY: Family = Family {
    name: "qwen3",
    model_type: "qwen3",
    gguf: Some(("qwen3", gguf)),
    defaults: Defaults {
        n_kv: Some(32),
        head_dim: Some(128),
        norm_eps: 1e-6,
        max_context: 32_768,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.head_norm = Some(HeadNorm::PerHead);
    attention_bias(config, model)?;
    qwen_windows(config, model)?;
    one_rope(config, model)
}

fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    model.head_norm = Some(HeadNorm::PerHead);
    model.ropes = vec![gguf_rope::of_heads(keys, model)?];
    Ok(())
}
