//! Metadata of a GGUF file.

use modelfile::{FromValue, Gguf, Metadata};
use types::TokenId;

use crate::LoadError;
use crate::model::checks::{
    self, CONTEXT_MAX, DIM_MAX, FieldNames, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, bad, unsupported,
};
use crate::model::rope::{Scaling, yarn_attention_factor};
use crate::model::{Biases, ModelConfig, Rope};

/// Reads a file's configuration.
pub(super) fn read(gguf: &Gguf, file: &str) -> Result<ModelConfig, LoadError> {
    let architecture = gguf.metadata().str("general.architecture")?;
    if architecture != "llama" {
        return Err(unsupported(file, "general.architecture", architecture));
    }
    let keys = Keys { metadata: gguf.metadata(), file, prefix: architecture };
    refuse_what_is_not_computed(&keys)?;
    let embedding = gguf.tensor("token_embd.weight")?;
    let n_vocab = embedding.shape.first().copied().unwrap_or(0);
    let n_vocab = checks::in_range(file, "token_embd.weight rows", n_vocab as u64, VOCAB_MAX)?;
    let dim = keys.size("embedding_length", DIM_MAX)?;
    let n_q = keys.size("attention.head_count", HEADS_MAX)?;
    let n_kv = keys.size_or("attention.head_count_kv", HEADS_MAX, n_q)?;
    let head_dim = head_dim(&keys, dim, n_q)?;
    let max_context = keys.size("context_length", CONTEXT_MAX)?;
    let model = ModelConfig {
        architecture: "llama",
        n_vocab,
        dim,
        n_layers: keys.size("block_count", LAYERS_MAX)?,
        n_q,
        n_kv,
        head_dim,
        ff_dim: keys.size("feed_forward_length", DIM_MAX)?,
        norm_eps: keys.need::<f32>("attention.layer_norm_rms_epsilon")?,
        max_context,
        rope: rope(gguf, &keys, head_dim, max_context)?,
        tied: !gguf.has_tensor("output.weight"),
        attention_bias: Biases::Present,
        mlp_bias: Biases::Present,
        bos: gguf.metadata().find("tokenizer.ggml.bos_token_id")?,
        eos: eos(gguf.metadata())?,
    };
    let names = FieldNames {
        file,
        n_q: "llama.attention.head_count",
        n_kv: "llama.attention.head_count_kv",
        head_dim: "llama.attention.key_length",
        norm_eps: "llama.attention.layer_norm_rms_epsilon",
        eos: "tokenizer.ggml.eos_token_id",
        bos: "tokenizer.ggml.bos_token_id",
    };
    checks::check(&model, &names)?;
    Ok(model)
}

fn refuse_what_is_not_computed(keys: &Keys<'_>) -> Result<(), LoadError> {
    if let Some(n) = keys.find::<u32>("expert_count")?.filter(|&n| n > 0) {
        return Err(unsupported(keys.file, &keys.name("expert_count"), n.to_string()));
    }
    if let Some(scale) = keys.find::<f32>("attention.scale")? {
        return Err(unsupported(keys.file, &keys.name("attention.scale"), scale.to_string()));
    }
    Ok(())
}

fn head_dim(keys: &Keys<'_>, dim: usize, n_q: usize) -> Result<usize, LoadError> {
    let head_dim = if keys.find::<u64>("attention.key_length")?.is_some() {
        keys.size("attention.key_length", HEAD_DIM_MAX)?
    } else if dim.is_multiple_of(n_q) {
        dim / n_q
    } else {
        let reason = format!("is {dim}, not a multiple of attention.head_count = {n_q}");
        return Err(bad(keys.file, &keys.name("embedding_length"), reason));
    };
    for field in ["attention.value_length", "rope.dimension_count"] {
        let found = keys.find::<u64>(field)?.unwrap_or(head_dim as u64);
        if found != head_dim as u64 {
            return Err(unsupported(keys.file, &keys.name(field), format!("{found} (heads have {head_dim})")));
        }
    }
    Ok(head_dim)
}

fn rope(gguf: &Gguf, keys: &Keys<'_>, head_dim: usize, max_context: usize) -> Result<Rope, LoadError> {
    let theta = keys.positive_or("rope.freq_base", Some(10_000.0))?;
    if theta <= 1.0 {
        return Err(bad(keys.file, &keys.name("rope.freq_base"), format!("is {theta}, must be above 1")));
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
                original_context: original.map_or(max_context as f64, f64::from),
                truncate: true,
            }
        }
        Some(other) => return Err(unsupported(keys.file, &keys.name("rope.scaling.type"), other)),
    };
    let mut rope = Rope::new(head_dim, theta, &scaling);
    if gguf.has_tensor("rope_freqs.weight") {
        let factors = super::weights::vector(&gguf.tensor("rope_freqs.weight")?, head_dim / 2)?;
        if let Some(bad_factor) = factors.iter().find(|f| !(f.is_finite() && **f > 0.0)) {
            return Err(bad(keys.file, "rope_freqs.weight", format!("holds {bad_factor}")));
        }
        rope.divide(&factors);
        rope.kind = "factors";
    }
    Ok(rope)
}

/// End of sequence, and end of turn where the file names it.
fn eos(metadata: &Metadata) -> Result<Vec<TokenId>, LoadError> {
    let mut eos = Vec::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        eos.extend(metadata.find::<u32>(key)?);
    }
    eos.sort_unstable();
    eos.dedup();
    Ok(eos)
}

/// The architecture's keys.
struct Keys<'a> {
    metadata: &'a Metadata,
    file: &'a str,
    prefix: &'a str,
}

impl<'a> Keys<'a> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn find<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, LoadError> {
        Ok(self.metadata.find(&self.name(key))?)
    }

    fn need<T: FromValue<'a>>(&self, key: &str) -> Result<T, LoadError> {
        Ok(self.metadata.need(&self.name(key))?)
    }

    fn size(&self, key: &str, max: u64) -> Result<usize, LoadError> {
        checks::in_range(self.file, &self.name(key), self.need::<u64>(key)?, max)
    }

    fn size_or(&self, key: &str, max: u64, default: usize) -> Result<usize, LoadError> {
        if self.find::<u64>(key)?.is_some() { self.size(key, max) } else { Ok(default) }
    }

    fn positive_or(&self, key: &str, default: Option<f64>) -> Result<f64, LoadError> {
        let found = match (self.find::<f32>(key)?, default) {
            (Some(found), _) => f64::from(found),
            (None, Some(default)) => default,
            (None, None) => f64::from(self.need::<f32>(key)?),
        };
        if !(1e-6..=1e12).contains(&found) {
            return Err(bad(self.file, &self.name(key), format!("is {found}, must be a number above 0")));
        }
        Ok(found)
    }
}
