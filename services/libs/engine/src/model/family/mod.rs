//! The families: what each reads from its settings, one file each.
//!
//! A family starts from what all share (`huggingface::common`, `gguf::common`): norms before attention and before a
//! gated feed-forward part, full attention, no biases. It says what it does otherwise. Defaults are those of the
//! family's configuration class in Hugging Face transformers: checkpoints leave out what equals them.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
#[cfg(test)]
mod tests;

use kernels::cpu::Activation;

use crate::LoadError;
use crate::model::checks::{CONTEXT_MAX, unsupported};
use crate::model::gguf::Keys;
use crate::model::huggingface::Fields;
use crate::model::rope::huggingface::{self as rope, RopeShape};
use crate::model::{Biases, ModelConfig};

/// A family of models.
pub(super) struct Family {
    /// What [`crate::ModelInfo`] calls it.
    pub(super) name: &'static str,
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// `general.architecture` in a GGUF file, and what reads the rest of its metadata.
    gguf: Option<(&'static str, ReadGguf)>,
    /// What `config.json` may leave out.
    pub(super) defaults: Defaults,
    /// Reads the rest of `config.json`.
    pub(super) huggingface: fn(&Fields, &mut ModelConfig) -> Result<(), LoadError>,
}

type ReadGguf = fn(&Keys<'_>, &mut ModelConfig) -> Result<(), LoadError>;

/// Settings where `config.json` has none.
pub(super) struct Defaults {
    /// Key and value heads; `None`: as many as query heads.
    pub(super) n_kv: Option<usize>,
    /// Elements of a head; `None`: the residual stream's over the heads.
    pub(super) head_dim: Option<usize>,
    pub(super) norm_eps: f64,
    pub(super) max_context: usize,
    pub(super) tied: bool,
    /// The only activation that is computed.
    pub(super) activation: Activation,
}

const FAMILIES: [&Family; 8] = [
    &llama::FAMILY,
    &mistral::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &olmo2::FAMILY,
];

/// The family of a `config.json`.
pub(super) fn of_model_type(name: &str) -> Option<&'static Family> {
    FAMILIES.into_iter().find(|family| family.model_type == name)
}

/// The family of a GGUF file.
pub(super) fn of_architecture(name: &str) -> Option<(&'static Family, ReadGguf)> {
    FAMILIES.into_iter().find_map(|family| family.gguf.filter(|(n, _)| *n == name).map(|(_, read)| (family, read)))
}

/// One rotary embedding for all layers, over whole heads.
fn one_rope(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    let shape = RopeShape { rotated: model.head_dim, max_context: model.max_context, theta: 10_000.0 };
    model.ropes = vec![rope::of_heads(config, shape)?];
    Ok(())
}

/// `attention_bias`: of all four projections.
fn attention_bias(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    let biases = if config.flag("attention_bias")? { Biases::All } else { Biases::None };
    (model.storage.qkv_bias, model.storage.output_bias) = (biases, biases);
    Ok(())
}

/// Gives `window` to the layers that `layer_types` names, or else to those that the family's rule does.
fn windows(
    config: &Fields,
    model: &mut ModelConfig,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<(), LoadError> {
    let n_layers = model.layers.len();
    let sliding = config.sliding_layers(n_layers)?.unwrap_or_else(|| (0..n_layers).map(rule).collect());
    for (layer, sliding) in model.layers.iter_mut().zip(sliding) {
        if sliding {
            layer.window = Some(window.ok_or_else(|| config.missing("sliding_window"))?);
        }
    }
    Ok(())
}

/// `sliding_window`, `null` for none.
fn sliding_window(config: &Fields, absent: Option<usize>) -> Result<Option<usize>, LoadError> {
    config.size_or_none("sliding_window", CONTEXT_MAX, absent)
}

/// Qwen's windows: used only if `use_sliding_window`, then in the layers from `max_window_layers` on.
fn qwen_windows(config: &Fields, model: &mut ModelConfig) -> Result<(), LoadError> {
    let window = if config.flag("use_sliding_window")? { sliding_window(config, Some(4096))? } else { None };
    let first = match config.number_or("max_window_layers", 28.0)? {
        first if first >= 0.0 => first as usize,
        first => return Err(unsupported(&config.file, "max_window_layers", first.to_string())),
    };
    windows(config, model, window, |layer| window.is_some() && layer >= first)
}

/// A soft cap that a family may switch off with `null`.
fn cap(config: &Fields, field: &str, absent: Option<f64>) -> Result<Option<f32>, LoadError> {
    Ok(config.positive_or_none(field, absent)?.map(|cap| cap as f32))
}

/// Refuses attention that looks ahead.
fn only_causal(config: &Fields) -> Result<(), LoadError> {
    const FIELD: &str = "use_bidirectional_attention";
    if config.flag(FIELD)? { Err(unsupported(&config.file, FIELD, "true")) } else { Ok(()) }
}
