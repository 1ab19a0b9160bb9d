//! OLMo 2: norms of the parts' outputs alone, and of all query and all key heads together. Source: arXiv:2501.00656.

use kernels::cpu::Activation;

use super::{Defaults, Family, attention_bias, one_rope};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::{HeadNorm, ModelConfig, Norms};

pub(super) const FAMILY: Family = Family {
    name: "olmo2",
    model_type: "olmo2",
    gguf: Some(("olmo2", gguf)),
    defaults: Defaults {
        n_kv: None,
        head_dim: None,
        norm_eps: 1e-5,
        max_context: 2048,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    structure(model);
    attention_bias(config, model)?;
    one_rope(config, model)
}

fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    structure(model);
    model.ropes = vec![gguf_rope::of_heads(keys, model)?];
    Ok(())
}

fn structure(model: &mut ModelConfig) {
    model.norms = Norms::After;
    model.head_norm = Some(HeadNorm::Whole);
}
