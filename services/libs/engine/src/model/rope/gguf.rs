//! Rotary embedding of a GGUF file's metadata.

use crate::LoadError;
use crate::model::checks::{HEAD_DIM_MAX, bad, unsupported};
use crate::model::gguf::Keys;
use crate::model::rope::{LongFactors, Scaling, yarn_attention_factor};
use crate::model::weights::vector;
use crate::model::{ModelConfig, Rope};

/// Rotary embedding of whole heads.
pub(in crate::model) fn of_heads(keys: &Keys<'_>, model: &ModelConfig) -> Result<Rope, LoadError> {
    let rotated = rotated(keys, model)?;
    if rotated != model.head_dim {
        let found = format!("{rotated} (heads have {})", model.head_dim);
        return Err(unsupported(keys.file, &keys.name(DIMENSIONS), found));
    }
    read(keys, model, rotated)
}

const DIMENSIONS: &str = "rope.dimension_count";

/// Elements of a head that are rotated.
pub(in crate::model) fn rotated(keys: &Keys<'_>, model: &ModelConfig) -> Result<usize, LoadError> {
    let rotated = keys.size_or(DIMENSIONS, HEAD_DIM_MAX, model.head_dim)?;
    if rotated > model.head_dim || !rotated.is_multiple_of(2) {
        let reason = format!("is {rotated}, must be even and at most {}", model.head_dim);
        return Err(bad(keys.file, &keys.name(DIMENSIONS), reason));
    }
    Ok(rotated)
}

/// Rotary embedding of the first `rotated` elements of a head.
pub(in crate::model) fn read(keys: &Keys<'_>, model: &ModelConfig, rotated: usize) -> Result<Rope, LoadError> {
    let theta = keys.positive_or("rope.freq_base", Some(10_000.0))?;
    if theta <= 1.0 {
        return Err(bad(keys.file, &keys.name("rope.freq_base"), format!("is {theta}, must be above 1")));
    }
    if keys.gguf.has_tensor(LONG) || keys.gguf.has_tensor(SHORT) {
        return longrope(keys, model, rotated, theta);
    }
    let kind = keys.find::<&str>("rope.scaling.type")?;
    let scaling = match kind {
        None if keys.find::<f32>("rope.scale_linear")?.is_some() => {
            Scaling::Linear { factor: keys.positive_or("rope.scale_linear", None)? }
        }
        None | Some("none") => Scaling::Default,
        Some("linear") => Scaling::Linear { factor: keys.positive_or("rope.scaling.factor", None)? },
        Some("yarn") => {
            let factor = keys.positive_or("rope.scaling.factor", None)?;
            let original = keys.find::<u32>("rope.scaling.original_context_length")?.filter(|&n| n > 0);
            let attention = keys.positive_or("rope.scaling.attn_factor", Some(1.0))?;
            Scaling::Yarn {
                factor,
                attention_factor: attention * yarn_attention_factor(factor, 1.0),
                beta_fast: keys.positive_or("rope.scaling.yarn_beta_fast", Some(32.0))?,
                beta_slow: keys.positive_or("rope.scaling.yarn_beta_slow", Some(1.0))?,
                original_context: original.map_or(model.max_context as f64, f64::from),
                truncate: true,
            }
        }
        Some(other) => return Err(unsupported(keys.file, &keys.name("rope.scaling.type"), other)),
    };
    let mut rope = Rope::new(rotated, theta, &scaling);
    if keys.gguf.has_tensor(FACTORS) {
        rope.divide(&factors(keys, FACTORS, rotated)?);
        rope.kind = "factors";
    }
    Ok(rope)
}

/// Tensors that hold factors; they are part of the configuration, not of the weights.
pub(in crate::model) const FACTORS: &str = "rope_freqs.weight";
pub(in crate::model) const LONG: &str = "rope_factors_long.weight";
pub(in crate::model) const SHORT: &str = "rope_factors_short.weight";

fn longrope(keys: &Keys<'_>, model: &ModelConfig, rotated: usize, theta: f64) -> Result<Rope, LoadError> {
    let list = |name| Ok::<_, LoadError>(factors(keys, name, rotated)?.into_iter().map(f64::from).collect());
    let factors = LongFactors {
        short: list(SHORT)?,
        long: list(LONG)?,
        original_context: keys.size("rope.scaling.original_context_length", model.max_context as u64)?,
        attention_factor: keys.positive_or("rope.scaling.attn_factor", Some(1.0))?,
    };
    Ok(Rope::long(rotated, theta, &factors))
}

fn factors(keys: &Keys<'_>, name: &str, rotated: usize) -> Result<Vec<f32>, LoadError> {
    if !keys.gguf.has_tensor(name) {
        return Err(LoadError::MissingTensor { name: name.to_owned() });
    }
    let factors = vector(&keys.gguf.tensor(name)?, rotated / 2)?;
    match factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
        Some(wrong) => Err(bad(keys.file, name, format!("holds {wrong}"))),
        None => Ok(factors),
    }
}
