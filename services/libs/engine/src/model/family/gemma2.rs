//! Gemma 2: norms around both parts, soft caps, a window in every other layer. Source: arXiv:2408.00118.

use kernels::cpu::Activation;

use super::{Defaults, Family, attention_bias, cap, one_rope, only_causal, sliding_window, windows};
use crate::LoadError;
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::{ModelConfig, Norms, score_scale};

pub(super) const FAMILY: Family = Family {
    name: "gemma2",
    model_type: "gemma2",
    gguf: Some(("gemma2", gguf)),
    defaults: Defaults {
        n_kv: Some(4),
        head_dim: Some(256),
        norm_eps: 1e-6,
        max_context: 8192,
        tied: true,
        activation: Activation::GeluTanh,
    },
    huggingface,
};

const WINDOW: usize = 4096;
const SCORE_CAP: f64 = 50.0;
const LOGIT_CAP: f64 = 30.0;
/// Layers of the model whose scores are scaled by another number than the head's elements, which GGUF files do not say.
const LAYERS_27B: usize = 46;

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    only_causal(config)?;
    structure(model);
    model.storage.gains_less_one = true;
    model.score_scale = score_scale(config.positive_or("query_pre_attn_scalar", Some(256.0))?);
    model.score_cap = cap(config, "attn_logit_softcapping", Some(SCORE_CAP))?;
    model.logit_cap = cap(config, "final_logit_softcapping", Some(LOGIT_CAP))?;
    attention_bias(config, model)?;
    windows(config, model, sliding_window(config, Some(WINDOW))?, slides)?;
    one_rope(config, model)
}

/// Norms are stored whole.
fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    structure(model);
    if model.layers.len() == LAYERS_27B {
        model.score_scale = score_scale((model.dim / model.n_q) as f64);
    }
    model.score_cap = keys.cap("attn_logit_softcapping", Some(SCORE_CAP))?;
    model.logit_cap = keys.cap("final_logit_softcapping", Some(LOGIT_CAP))?;
    let window = keys.window()?.unwrap_or(WINDOW);
    for (index, layer) in model.layers.iter_mut().enumerate() {
        layer.window = slides(index).then_some(window);
    }
    model.ropes = vec![gguf_rope::of_heads(keys, model)?];
    Ok(())
}

fn slides(layer: usize) -> bool {
    layer.is_multiple_of(2)
}

fn structure(model: &mut ModelConfig) {
    model.norms = Norms::Both;
    model.embedding_scale = Some((model.dim as f32).sqrt());
}
