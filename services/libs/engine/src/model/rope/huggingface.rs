//! Rotary embedding of `config.json`: `rope_parameters`, or the older `rope_scaling` and `rope_theta`.

use crate::LoadError;
use crate::model::Rope;
use crate::model::checks::{bad, unsupported};
use crate::model::huggingface::Fields;
use crate::model::rope::{LongFactors, Scaling, yarn_attention_factor};

/// What a rotary embedding's settings leave open.
#[derive(Clone, Copy)]
pub(in crate::model) struct RopeShape {
    /// Elements of a head that are rotated.
    pub(in crate::model) rotated: usize,
    /// Most tokens of a sequence.
    pub(in crate::model) max_context: usize,
    /// Base where none is given.
    pub(in crate::model) theta: f64,
}

/// The settings' own object; empty where there is none.
pub(in crate::model) fn section(config: &Fields) -> Result<Fields, LoadError> {
    let name = ["rope_parameters", "rope_scaling"].into_iter().find(|name| config.get(name).is_some());
    name.map_or_else(|| Ok(config.empty()), |name| config.section(name))
}

/// Elements of a head that are rotated.
pub(in crate::model) fn rotated(config: &Fields, head_dim: usize) -> Result<usize, LoadError> {
    let section = section(config)?;
    let fields = if section.get(PARTIAL).is_some() { &section } else { config };
    let share = fields.positive_or(PARTIAL, Some(1.0))?;
    let rotated = (head_dim as f64 * share) as usize;
    if rotated > head_dim || rotated < 2 || !rotated.is_multiple_of(2) {
        let reason = format!("is {share}: {rotated} of {head_dim} elements cannot be rotated");
        return Err(bad(&config.file, &fields.name(PARTIAL), reason));
    }
    Ok(rotated)
}

const PARTIAL: &str = "partial_rotary_factor";

/// Rotary embedding of whole heads by the base `theta` where none is given.
pub(in crate::model) fn of_heads(config: &Fields, shape: RopeShape) -> Result<Rope, LoadError> {
    let section = section(config)?;
    for fields in [config, &section] {
        let share = fields.number_or(PARTIAL, 1.0)?;
        if share != 1.0 {
            return Err(unsupported(&config.file, &fields.name(PARTIAL), share.to_string()));
        }
    }
    read(config, &section, shape)
}

/// Rotary embedding that `scaling` describes; what it leaves out stands in `config`.
pub(in crate::model) fn read(config: &Fields, scaling: &Fields, shape: RopeShape) -> Result<Rope, LoadError> {
    let RopeShape { rotated, max_context, theta } = shape;
    let theta =
        if scaling.get("rope_theta").is_some() { scaling } else { config }.positive_or("rope_theta", Some(theta))?;
    if theta <= 1.0 {
        return Err(bad(&config.file, "rope_theta", format!("is {theta}, must be above 1")));
    }
    let kind_field = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = scaling.text(kind_field)?.unwrap_or("default");
    let original = || scaling.positive_or("original_max_position_embeddings", Some(max_context as f64));
    let scaling = match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: scaling.positive_or("factor", None)? },
        "llama3" => {
            let low_freq_factor = scaling.positive_or("low_freq_factor", None)?;
            let high_freq_factor = scaling.positive_or("high_freq_factor", None)?;
            if high_freq_factor <= low_freq_factor {
                let field = scaling.name("high_freq_factor");
                return Err(bad(&config.file, &field, format!("is {high_freq_factor}, must exceed low_freq_factor")));
            }
            let (factor, original_context) = (scaling.positive_or("factor", None)?, original()?);
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
        }
        // Older Phi-3 files say `su`, or `yarn` with longrope's factors.
        "longrope" | "su" => return longrope(config, scaling, shape, theta),
        "yarn" if scaling.get("short_factor").is_some() => return longrope(config, scaling, shape, theta),
        "yarn" => {
            let factor = scaling.positive_or("factor", None)?;
            Scaling::Yarn {
                factor,
                attention_factor: yarn_factor(scaling, factor)?,
                beta_fast: scaling.positive_or("beta_fast", Some(32.0))?,
                beta_slow: scaling.positive_or("beta_slow", Some(1.0))?,
                original_context: original()?,
                truncate: scaling.get("truncate").is_none() || scaling.flag("truncate")?,
            }
        }
        other => return Err(unsupported(&config.file, &scaling.name(kind_field), other)),
    };
    Ok(Rope::new(rotated, theta, &scaling))
}

/// Two sets of factors. The original context stands beside the object or in it; the scale of the attention factor is
/// how much longer the context has become.
fn longrope(config: &Fields, scaling: &Fields, shape: RopeShape, theta: f64) -> Result<Rope, LoadError> {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let RopeShape { rotated, max_context, .. } = shape;
    let fields = if config.get(ORIGINAL).is_some() { config } else { scaling };
    let original_context = fields.size(ORIGINAL, max_context as u64)?;
    let scale = scaling.positive_or("factor", Some(max_context as f64 / original_context as f64))?;
    let default = super::longrope_attention_factor(scale, original_context);
    let factors = LongFactors {
        short: scaling.positives("short_factor", rotated / 2)?,
        long: scaling.positives("long_factor", rotated / 2)?,
        original_context,
        attention_factor: scaling.positive_or("attention_factor", Some(default))?,
    };
    Ok(Rope::long(rotated, theta, &factors))
}

fn yarn_factor(scaling: &Fields, factor: f64) -> Result<f64, LoadError> {
    if scaling.get("attention_factor").is_some() {
        return scaling.positive_or("attention_factor", None);
    }
    if scaling.get("mscale").is_some() && scaling.get("mscale_all_dim").is_some() {
        let (mscale, all) = (scaling.number_or("mscale", 1.0)?, scaling.number_or("mscale_all_dim", 1.0)?);
        if mscale > 0.0 && all > 0.0 {
            return Ok(yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, all));
        }
    }
    Ok(yarn_attention_factor(factor, 1.0))
}
