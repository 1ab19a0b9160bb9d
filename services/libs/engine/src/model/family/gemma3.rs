//! Gemma 3, text: as Gemma 2 with norms on query and key heads, most layers with a window and a rotary base of their
//! own. Source: arXiv:2503.19786.

use kernels::cpu::Activation;

use super::{Defaults, Family, attention_bias, cap, only_causal, sliding_window, windows};
use crate::LoadError;
use crate::model::checks::{CONTEXT_MAX, LAYERS_MAX, unsupported};
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::gguf as gguf_rope;
use crate::model::rope::huggingface::{self as rope, RopeShape};
use crate::model::rope::{Rope, Scaling};
use crate::model::{HeadNorm, ModelConfig, Norms, score_scale};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    model_type: "gemma3_text",
    gguf: Some(("gemma3", gguf)),
    defaults: Defaults {
        n_kv: Some(4),
        head_dim: Some(256),
        norm_eps: 1e-6,
        max_context: 131_072,
        tied: true,
        activation: Activation::GeluTanh,
    },
    huggingface,
};

/// Every so many layers one has no window.
const PATTERN: usize = 6;
const THETA: f64 = 1_000_000.0;
const THETA_LOCAL: f64 = 10_000.0;
/// Layers of the model whose scores are scaled by another number than the head's elements, which GGUF files do not say.
const LAYERS_27B: usize = 62;

fn huggingface(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    only_causal(config)?;
    model.storage.gains_less_one = true;
    model.score_scale = score_scale(config.positive_or("query_pre_attn_scalar", Some(256.0))?);
    model.score_cap = cap(config, "attn_logit_softcapping", None)?;
    model.logit_cap = cap(config, "final_logit_softcapping", None)?;
    attention_bias(config, model)?;
    let field = ["sliding_window_pattern", "_sliding_window_pattern"].into_iter().find(|f| config.get(f).is_some());
    let pattern = field.map_or(Ok(PATTERN), |field| config.size(field, LAYERS_MAX))?;
    let window = sliding_window(config, Some(4096))?;
    windows(config, model, window, |layer| !(layer + 1).is_multiple_of(pattern))?;
    model.ropes = ropes(config, model)?;
    structure(model);
    Ok(())
}

/// The rotary embeddings of layers without and with a window: two objects in `rope_parameters`, or the older
/// `rope_theta` with `rope_scaling`, and `rope_local_base_freq`.
fn ropes(config: &Fields, model: &ModelConfig) -> Result<Vec<Rope>, LoadError> {
    let shape = |theta| RopeShape { rotated: model.head_dim, max_context: model.max_context, theta };
    let section = rope::section(config)?;
    if section.get("full_attention").is_some() || section.get("sliding_attention").is_some() {
        let one = |field, theta| rope::read(&config.empty(), &section.section(field)?, shape(theta));
        return Ok(vec![one("full_attention", THETA)?, one("sliding_attention", THETA_LOCAL)?]);
    }
    let theta_local = config.positive_or("rope_local_base_freq", Some(THETA_LOCAL))?;
    if theta_local <= 1.0 {
        return Err(unsupported(&config.file, "rope_local_base_freq", theta_local.to_string()));
    }
    let local = Rope::new(model.head_dim, theta_local, &Scaling::Default);
    Ok(vec![rope::of_heads(config, shape(THETA))?, local])
}

/// Norms are stored whole.
fn gguf(keys: &Keys<'_>, model: &mut ModelConfig) -> Result<(), LoadError> {
    if model.layers.len() == LAYERS_27B {
        model.score_scale = score_scale((model.dim / model.n_q) as f64);
    }
    model.score_cap = keys.cap("attn_logit_softcapping", None)?;
    model.logit_cap = keys.cap("final_logit_softcapping", None)?;
    let pattern = keys.size_or("attention.sliding_window_pattern", LAYERS_MAX, PATTERN)?;
    let window = keys.size("attention.sliding_window", CONTEXT_MAX)?;
    for (index, layer) in model.layers.iter_mut().enumerate() {
        layer.window = (!(index + 1).is_multiple_of(pattern)).then_some(window);
    }
    let theta_local = keys.positive_or("rope.freq_base_swa", Some(THETA_LOCAL))?;
    if theta_local <= 1.0 {
        return Err(unsupported(keys.file, &keys.name("rope.freq_base_swa"), theta_local.to_string()));
    }
    let local = Rope::new(model.head_dim, theta_local, &Scaling::Default);
    model.ropes = vec![gguf_rope::of_heads(keys, model)?, local];
    structure(model);
    Ok(())
}

fn structure(model: &mut ModelConfig) {
    model.norms = Norms::Both;
    model.head_norm = Some(HeadNorm::PerHead);
    model.embedding_scale = Some((model.dim as f32).sqrt());
    for layer in &mut model.layers {
        layer.rope = usize::from(layer.window.is_some());
    }
}
