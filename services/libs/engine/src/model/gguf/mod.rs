//! Metadata of a GGUF file.

mod keys;

use modelfile::{Gguf, Metadata};
use types::TokenId;

use crate::LoadError;
use crate::model::checks::{
    self, CONTEXT_MAX, DIM_MAX, FieldNames, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, bad, unsupported,
};
use crate::model::family::{self, Family};
use crate::model::{Biases, LayerConfig, ModelConfig, Norms, Storage, score_scale};

pub(super) use keys::Keys;

/// Reads a file's configuration.
pub(super) fn read(gguf: &Gguf, file: &str) -> Result<ModelConfig, LoadError> {
    let architecture = gguf.metadata().str("general.architecture")?;
    let family = family::of_architecture(architecture);
    let (family, read_family) = family.ok_or_else(|| unsupported(file, "general.architecture", architecture))?;
    let keys = Keys { gguf, file, prefix: architecture };
    let mut model = common(&keys, family)?;
    read_family(&keys, &mut model)?;
    let names = FieldNames {
        file,
        n_q: &keys.name("attention.head_count"),
        n_kv: &keys.name("attention.head_count_kv"),
        head_dim: &keys.name("attention.key_length"),
        norm_eps: &keys.name("attention.layer_norm_rms_epsilon"),
        eos: "tokenizer.ggml.eos_token_id",
        bos: "tokenizer.ggml.bos_token_id",
    };
    checks::check(&model, &names)?;
    Ok(model)
}

/// What all families share; the rotary embeddings are left to the family.
fn common(keys: &Keys<'_>, family: &Family) -> Result<ModelConfig, LoadError> {
    refuse_what_is_not_computed(keys)?;
    let (gguf, file) = (keys.gguf, keys.file);
    let embedding = gguf.tensor("token_embd.weight")?;
    let n_vocab = embedding.shape.first().copied().unwrap_or(0);
    let n_vocab = checks::in_range(file, "token_embd.weight rows", n_vocab as u64, VOCAB_MAX)?;
    let dim = keys.size("embedding_length", DIM_MAX)?;
    let n_q = keys.size("attention.head_count", HEADS_MAX)?;
    let head_dim = head_dim(keys, dim, n_q)?;
    Ok(ModelConfig {
        architecture: family.name,
        n_vocab,
        dim,
        n_q,
        n_kv: keys.size_or("attention.head_count_kv", HEADS_MAX, n_q)?,
        head_dim,
        ff_dim: keys.size("feed_forward_length", DIM_MAX)?,
        norm_eps: keys.need::<f32>("attention.layer_norm_rms_epsilon")?,
        max_context: keys.size("context_length", CONTEXT_MAX)?,
        layers: vec![LayerConfig::default(); keys.size("block_count", LAYERS_MAX)?],
        ropes: Vec::new(),
        norms: Norms::Before,
        head_norm: None,
        activation: family.defaults.activation,
        embedding_scale: None,
        score_scale: score_scale(head_dim as f64),
        score_cap: None,
        logit_cap: None,
        storage: Storage {
            tied: !gguf.has_tensor("output.weight"),
            qkv_bias: Biases::Present,
            output_bias: Biases::Present,
            mlp_bias: Biases::Present,
            fused: false,
            gains_less_one: false,
            interleaved: false,
        },
        bos: gguf.metadata().find("tokenizer.ggml.bos_token_id")?,
        eos: eos(gguf.metadata())?,
    })
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
    let values = keys.find::<u64>("attention.value_length")?.unwrap_or(head_dim as u64);
    if values != head_dim as u64 {
        let found = format!("{values} (heads have {head_dim})");
        return Err(unsupported(keys.file, &keys.name("attention.value_length"), found));
    }
    Ok(head_dim)
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
