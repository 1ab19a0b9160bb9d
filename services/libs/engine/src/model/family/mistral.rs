//! Mistral: Llama with a sliding window in every layer. Source: Jiang et al., arXiv:2310.06825.

use kernels::cpu::Activation;

use super::{Defaults, Family, one_rope, sliding_window, windows};
use crate::LoadError;
use crate::model::ModelConfig;
use crate::model::huggingface::Fields;

pub(super) const FAMILY: Family = Family {
    name: "mistral",
    model_type: "mistral",
    gguf: None,
    defaults: Defaults {
        n_kv: Some(8),
        head_dim: None,
        norm_eps: 1e-6,
        max_context: 131_072,
        tied: false,
        activation: Activation::Silu,
    },
    huggingface,
};

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    let window = sliding_window(config, Some(4096))?;
    windows(config, model, window, |_| window.is_some())?;
    one_rope(config, model)
}
