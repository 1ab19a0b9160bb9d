//! `config.json` and `generation_config.json` of a Hugging Face directory.

mod fields;

use std::path::Path;

use kernels::cpu::Activation;
use serde_json::Value;

use crate::LoadError;
use crate::model::checks::{
    self, CONTEXT_MAX, DIM_MAX, FieldNames, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, bad, unsupported,
};
use crate::model::family::{self, Family};
use crate::model::{Biases, LayerConfig, ModelConfig, Norms, Storage, score_scale};

pub(super) use fields::Fields;

/// Reads a directory's configuration.
pub(super) fn read(dir: &Path) -> Result<ModelConfig, LoadError> {
    let config = Fields::read(&dir.join("config.json"))?;
    let generation = dir.join("generation_config.json");
    let generation = if generation.is_file() { Some(Fields::read(&generation)?) } else { None };
    parse(&config, generation.as_ref())
}

fn parse(config: &Fields, generation: Option<&Fields>) -> Result<ModelConfig, LoadError> {
    let model_type = config.text("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    let family = family::of_model_type(model_type);
    let family = family.ok_or_else(|| unsupported(&config.file, "model_type", model_type))?;
    let mut model = common(config, generation, family)?;
    (family.huggingface)(config, &mut model)?;
    let names = FieldNames {
        file: &config.file,
        n_q: "num_attention_heads",
        n_kv: "num_key_value_heads",
        head_dim: "head_dim",
        norm_eps: "rms_norm_eps",
        eos: "eos_token_id",
        bos: "bos_token_id",
    };
    checks::check(&model, &names)?;
    Ok(model)
}

/// What all families share; the rotary embeddings are left to the family.
fn common(config: &Fields, generation: Option<&Fields>, family: &Family) -> Result<ModelConfig, LoadError> {
    let defaults = &family.defaults;
    let (field, name) = match defaults.activation {
        Activation::Silu => ("hidden_act", "silu"),
        Activation::GeluTanh => ("hidden_activation", "gelu_pytorch_tanh"),
    };
    if let Some(other) = config.text(field)?.filter(|found| *found != name) {
        return Err(unsupported(&config.file, field, other));
    }
    if let Some(quantization) = config.get("quantization_config") {
        let method = quantization.get("quant_method").map_or_else(|| "an object".into(), Value::to_string);
        return Err(unsupported(&config.file, "quantization_config", method));
    }
    let dim = config.size("hidden_size", DIM_MAX)?;
    let n_q = config.size("num_attention_heads", HEADS_MAX)?;
    let n_kv = config.size_or_none("num_key_value_heads", HEADS_MAX, defaults.n_kv)?.unwrap_or(n_q);
    let head_dim = match config.size_or_none("head_dim", HEAD_DIM_MAX, defaults.head_dim)? {
        Some(head_dim) => head_dim,
        None if dim % n_q == 0 => dim / n_q,
        None => {
            let reason = format!("is {dim}, not a multiple of num_attention_heads = {n_q}");
            return Err(bad(&config.file, "hidden_size", reason));
        }
    };
    let mut eos = config.tokens("eos_token_id")?;
    eos.extend(generation.map(|g| g.tokens("eos_token_id")).transpose()?.unwrap_or_default());
    eos.sort_unstable();
    eos.dedup();
    Ok(ModelConfig {
        architecture: family.name,
        n_vocab: config.size("vocab_size", VOCAB_MAX)?,
        dim,
        n_q,
        n_kv,
        head_dim,
        ff_dim: config.size("intermediate_size", DIM_MAX)?,
        norm_eps: config.number_or("rms_norm_eps", defaults.norm_eps)? as f32,
        max_context: config.size_or("max_position_embeddings", CONTEXT_MAX, defaults.max_context)?,
        layers: vec![LayerConfig::default(); config.size("num_hidden_layers", LAYERS_MAX)?],
        ropes: Vec::new(),
        norms: Norms::Before,
        head_norm: None,
        activation: defaults.activation,
        embedding_scale: None,
        score_scale: score_scale(head_dim as f64),
        score_cap: None,
        logit_cap: None,
        storage: Storage {
            tied: if config.get(TIED).is_some() { config.flag(TIED)? } else { defaults.tied },
            qkv_bias: Biases::None,
            output_bias: Biases::None,
            mlp_bias: Biases::None,
            fused: false,
            gains_less_one: false,
            interleaved: false,
        },
        bos: config.tokens("bos_token_id")?.first().copied(),
        eos,
    })
}

const TIED: &str = "tie_word_embeddings";

/// Parses a configuration given as text.
#[cfg(test)]
pub(super) fn parse_text(text: &str) -> Result<ModelConfig, LoadError> {
    parse(&Fields::parse("config.json".into(), text)?, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn valid() -> Value {
        json!({
            "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
            "num_hidden_layers": 3, "intermediate_size": 160, "vocab_size": 384, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "eos_token_id": 2, "bos_token_id": 1, "head_dim": null
        })
    }

    fn parse_value(value: &Value) -> Result<ModelConfig, LoadError> {
        parse_text(&value.to_string())
    }

    #[track_caller]
    fn check(change: Value, message: &str) {
        let mut config = valid();
        for (field, value) in change.as_object().unwrap() {
            config[field] = value.clone();
        }
        let error = parse_value(&config).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(message), "{error}");
    }

    #[test]
    fn impossible_settings_are_named() {
        check(json!({"model_type": "gpt2"}), "model_type = gpt2 is not supported");
        check(json!({"model_type": null}), "model_type: is missing");
        check(json!({"hidden_size": null}), "hidden_size: is missing");
        check(json!({"hidden_size": 0}), "hidden_size: is 0");
        check(json!({"hidden_size": -64}), "hidden_size: is -64");
        check(json!({"hidden_size": 64.5}), "hidden_size: is 64.5");
        check(json!({"hidden_size": "64"}), "hidden_size: is \"64\"");
        check(json!({"hidden_size": 66}), "hidden_size: is 66, not a multiple");
        check(json!({"hidden_size": u64::MAX}), "hidden_size: is 18446744073709551615");
        check(json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers");
        check(json!({"num_attention_heads": 0}), "num_attention_heads");
        check(json!({"num_key_value_heads": 0}), "num_key_value_heads");
        check(json!({"num_key_value_heads": 3}), "num_key_value_heads: is 3, does not divide");
        check(json!({"head_dim": 15}), "head_dim: is 15, must be even");
        check(json!({"vocab_size": 0}), "vocab_size");
        check(json!({"intermediate_size": []}), "intermediate_size: is []");
        check(json!({"max_position_embeddings": 0}), "max_position_embeddings");
        check(json!({"rms_norm_eps": -1.0}), "rms_norm_eps");
        check(json!({"rms_norm_eps": "x"}), "rms_norm_eps");
        check(json!({"hidden_act": "gelu"}), "hidden_act = gelu is not supported");
        check(json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config = \"awq\"");
        check(json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5");
        check(json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings");
        check(json!({"eos_token_id": 384}), "eos_token_id: is 384, outside");
        check(json!({"eos_token_id": [2, -1]}), "eos_token_id");
        check(json!({"bos_token_id": 999}), "bos_token_id");
        check(json!({"rope_theta": 0}), "rope_theta: is 0");
        check(json!({"rope_theta": 1}), "rope_theta: is 1");
        check(json!({"rope_scaling": 4}), "rope_scaling: is 4, must be an object");
        check(json!({"rope_scaling": {"type": "dynamic", "factor": 2}}), "rope_scaling.type = dynamic is not");
        check(
            json!({"rope_parameters": {"rope_type": "longrope"}}),
            "rope_parameters.original_max_position_embeddings",
        );
        let longrope = json!({"rope_type": "longrope", "original_max_position_embeddings": 32, "short_factor": [1]});
        check(json!({"rope_parameters": longrope}), "rope_parameters.short_factor: is [1], must be a list of 8");
        check(
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "rope_parameters.partial_rotary_factor = 0.5",
        );
        check(json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor: is missing");
        check(json!({"rope_scaling": {"type": "linear", "factor": 0}}), "rope_scaling.factor: is 0");
        let llama3 = json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4});
        check(json!({"rope_scaling": llama3}), "rope_scaling.high_freq_factor");
    }

    #[test]
    fn both_layouts_of_rope_settings_mean_the_same() {
        let mut older = valid();
        older["rope_theta"] = json!(5_000.0);
        older["rope_scaling"] = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 64});
        let mut newer = valid();
        newer.as_object_mut().unwrap().remove("rope_theta");
        newer["rope_parameters"] = json!({
            "rope_theta": 5_000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64
        });
        assert_eq!(parse_value(&older).unwrap(), parse_value(&newer).unwrap());
        assert_ne!(parse_value(&older).unwrap().ropes, parse_value(&valid()).unwrap().ropes);
    }

    #[test]
    fn end_of_sequence_ids_come_from_both_files() {
        let config = Fields::parse("c".into(), &valid().to_string()).unwrap();
        let generation = Fields::parse("g".into(), r#"{"eos_token_id": [7, 2]}"#).unwrap();
        assert_eq!(parse(&config, Some(&generation)).unwrap().eos, [2, 7]);
        assert_eq!(parse_value(&valid()).unwrap().head_dim, 16);
        assert!(Fields::parse("c".into(), "[1]").is_err() && Fields::parse("c".into(), "{").is_err());
    }
}
