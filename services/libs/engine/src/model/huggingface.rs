//! `config.json` and `generation_config.json` of a Hugging Face directory.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use types::TokenId;

use crate::LoadError;
use crate::model::checks::{
    self, CONTEXT_MAX, DIM_MAX, FieldNames, HEAD_DIM_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_MAX, bad, unsupported,
};
use crate::model::rope::{Scaling, yarn_attention_factor};
use crate::model::{Biases, ModelConfig, Rope};

/// Largest configuration file read.
const FILE_MAX: u64 = 4 << 20;

/// Reads a directory's configuration.
pub(super) fn read(dir: &Path) -> Result<ModelConfig, LoadError> {
    let config = Fields::read(&dir.join("config.json"))?;
    let generation = dir.join("generation_config.json");
    let generation = if generation.is_file() { Some(Fields::read(&generation)?) } else { None };
    parse(&config, generation.as_ref())
}

fn parse(config: &Fields, generation: Option<&Fields>) -> Result<ModelConfig, LoadError> {
    let model_type = config.text("model_type")?.ok_or_else(|| config.missing("model_type"))?;
    if model_type != "llama" {
        return Err(unsupported(&config.file, "model_type", model_type));
    }
    refuse_what_is_not_computed(config)?;
    let dim = config.size("hidden_size", DIM_MAX)?;
    let n_q = config.size("num_attention_heads", HEADS_MAX)?;
    let n_kv = config.size_or("num_key_value_heads", HEADS_MAX, n_q)?;
    let head_dim = match config.get("head_dim") {
        Some(_) => config.size("head_dim", HEAD_DIM_MAX)?,
        None if dim % n_q == 0 => dim / n_q,
        None => {
            let reason = format!("is {dim}, not a multiple of num_attention_heads = {n_q}");
            return Err(bad(&config.file, "hidden_size", reason));
        }
    };
    let max_context = config.size("max_position_embeddings", CONTEXT_MAX)?;
    let biases = |there| if there { Biases::All } else { Biases::None };
    let mut eos = config.tokens("eos_token_id")?;
    eos.extend(generation.map(|g| g.tokens("eos_token_id")).transpose()?.unwrap_or_default());
    eos.sort_unstable();
    eos.dedup();
    let model = ModelConfig {
        architecture: "llama",
        n_vocab: config.size("vocab_size", VOCAB_MAX)?,
        dim,
        n_layers: config.size("num_hidden_layers", LAYERS_MAX)?,
        n_q,
        n_kv,
        head_dim,
        ff_dim: config.size("intermediate_size", DIM_MAX)?,
        norm_eps: config.number_or("rms_norm_eps", 1e-6)? as f32,
        max_context,
        rope: rope(config, head_dim, max_context)?,
        tied: config.flag("tie_word_embeddings")?,
        attention_bias: biases(config.flag("attention_bias")?),
        mlp_bias: biases(config.flag("mlp_bias")?),
        bos: config.tokens("bos_token_id")?.first().copied(),
        eos,
    };
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

fn refuse_what_is_not_computed(config: &Fields) -> Result<(), LoadError> {
    if let Some(act) = config.text("hidden_act")?.filter(|a| *a != "silu") {
        return Err(unsupported(&config.file, "hidden_act", act));
    }
    if let Some(quantization) = config.get("quantization_config") {
        let method = quantization.get("quant_method").map_or_else(|| "an object".into(), Value::to_string);
        return Err(unsupported(&config.file, "quantization_config", method));
    }
    let rotated = config.number_or("partial_rotary_factor", 1.0)?;
    if rotated != 1.0 {
        return Err(unsupported(&config.file, "partial_rotary_factor", rotated.to_string()));
    }
    Ok(())
}

/// The rotary embedding, from `rope_parameters` or from the older `rope_scaling` and `rope_theta`.
fn rope(config: &Fields, head_dim: usize, max_context: usize) -> Result<Rope, LoadError> {
    let section = ["rope_parameters", "rope_scaling"].into_iter().find(|name| config.get(name).is_some());
    let section = section.map(|name| config.section(name)).transpose()?;
    let empty = Fields { file: config.file.clone(), prefix: String::new(), values: Map::new() };
    let scaling = section.as_ref().unwrap_or(&empty);
    let theta = if scaling.get("rope_theta").is_some() { scaling } else { config };
    let theta = theta.positive_or("rope_theta", Some(10_000.0))?;
    if theta <= 1.0 {
        return Err(bad(&config.file, "rope_theta", format!("is {theta}, must be above 1")));
    }
    let kind_field = if scaling.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = scaling.text(kind_field)?.unwrap_or("default");
    let original = scaling.positive_or("original_max_position_embeddings", Some(max_context as f64));
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
            let (factor, original_context) = (scaling.positive_or("factor", None)?, original?);
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
        }
        "yarn" => {
            let factor = scaling.positive_or("factor", None)?;
            Scaling::Yarn {
                factor,
                attention_factor: yarn_factor(scaling, factor)?,
                beta_fast: scaling.positive_or("beta_fast", Some(32.0))?,
                beta_slow: scaling.positive_or("beta_slow", Some(1.0))?,
                original_context: original?,
                truncate: scaling.get("truncate").is_none() || scaling.flag("truncate")?,
            }
        }
        other => return Err(unsupported(&config.file, &scaling.name(kind_field), other)),
    };
    Ok(Rope::new(head_dim, theta, &scaling))
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

/// An object of a configuration file; `null` counts as absent.
struct Fields {
    file: String,
    prefix: String,
    values: Map<String, Value>,
}

impl Fields {
    fn read(path: &Path) -> Result<Self, LoadError> {
        let file = path.display().to_string();
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        fs::File::open(path).map_err(io)?.take(FILE_MAX + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_MAX {
            return Err(bad(&file, "the file", format!("is larger than {FILE_MAX} bytes")));
        }
        Self::parse(file, &text)
    }

    fn parse(file: String, text: &str) -> Result<Self, LoadError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Ok(Self { file, prefix: String::new(), values }),
            Ok(_) => Err(bad(&file, "the file", "is not a JSON object")),
            Err(error) => Err(bad(&file, "the file", format!("is not JSON: {error}"))),
        }
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.values.get(field).filter(|v| !v.is_null())
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn missing(&self, field: &str) -> LoadError {
        bad(&self.file, &self.name(field), "is missing")
    }

    fn wrong(&self, field: &str, found: &Value, wanted: &str) -> LoadError {
        let mut found = found.to_string();
        if found.len() > 80 {
            found = found.chars().take(80).chain("...".chars()).collect();
        }
        bad(&self.file, &self.name(field), format!("is {found}, must be {wanted}"))
    }

    fn size(&self, field: &str, max: u64) -> Result<usize, LoadError> {
        let value = self.get(field).ok_or_else(|| self.missing(field))?;
        let number = value.as_u64().ok_or_else(|| self.wrong(field, value, &format!("between 1 and {max}")))?;
        checks::in_range(&self.file, &self.name(field), number, max)
    }

    fn size_or(&self, field: &str, max: u64, default: usize) -> Result<usize, LoadError> {
        if self.get(field).is_some() { self.size(field, max) } else { Ok(default) }
    }

    fn number_or(&self, field: &str, default: f64) -> Result<f64, LoadError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(field, value, "a number"))
    }

    fn positive_or(&self, field: &str, default: Option<f64>) -> Result<f64, LoadError> {
        let Some(value) = self.get(field) else { return default.ok_or_else(|| self.missing(field)) };
        let number = value.as_f64().filter(|&x| (1e-6..=1e12).contains(&x));
        number.ok_or_else(|| self.wrong(field, value, "a number above 0"))
    }

    fn flag(&self, field: &str) -> Result<bool, LoadError> {
        let Some(value) = self.get(field) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    fn text(&self, field: &str) -> Result<Option<&str>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(field, value, "a string"))
    }

    /// A token id or a list of them.
    fn tokens(&self, field: &str) -> Result<Vec<TokenId>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let token = |v: &Value| v.as_u64().and_then(|t| TokenId::try_from(t).ok());
        list.iter().map(token).collect::<Option<_>>().ok_or_else(|| self.wrong(field, value, "token ids"))
    }

    fn section(&self, field: &str) -> Result<Self, LoadError> {
        match self.get(field) {
            Some(Value::Object(values)) => {
                Ok(Self { file: self.file.clone(), prefix: format!("{field}."), values: values.clone() })
            }
            Some(other) => Err(self.wrong(field, other, "an object")),
            None => Err(self.missing(field)),
        }
    }
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
        parse(&Fields::parse("config.json".into(), &value.to_string()).unwrap(), None)
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
        check(json!({"rope_parameters": {"rope_type": "longrope"}}), "rope_parameters.rope_type = longrope is not");
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
        assert_ne!(parse_value(&older).unwrap().rope, parse_value(&valid()).unwrap().rope);
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
