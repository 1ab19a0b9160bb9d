//! The small JSON files beside a `tokenizer.json`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use types::TokenId;

use super::hf::read_limited;
use crate::TextError;

/// Largest of the files, in bytes.
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Names under which templates know special tokens.
pub(super) const SPECIAL_NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// What `tokenizer_config.json` and its neighbours say.
#[derive(Debug, Default)]
pub(super) struct Settings {
    /// Literals by name, e.g. `bos_token`.
    pub(super) special: BTreeMap<String, String>,
    pub(super) add_bos: Option<bool>,
    pub(super) add_eos: Option<bool>,
    /// Ids at which generation ends.
    pub(super) eos_ids: Vec<TokenId>,
    /// Source of the chat template.
    pub(super) template: Option<String>,
}

impl Settings {
    /// Files that do not exist say nothing.
    pub(super) fn read(directory: &Path) -> Result<Self, TextError> {
        let mut settings = Self::default();
        if let Some(json) = read_json(&directory.join("special_tokens_map.json"))? {
            settings.take_special(&json, "special_tokens_map.json")?;
        }
        if let Some(json) = read_json(&directory.join("tokenizer_config.json"))? {
            settings.take_config(&json)?;
        }
        if let Some(json) = read_json(&directory.join("generation_config.json"))? {
            settings.eos_ids = eos_ids(&json)?;
        }
        settings.take_template_files(directory)?;
        Ok(settings)
    }

    fn take_special(&mut self, json: &Value, file: &str) -> Result<(), TextError> {
        for name in SPECIAL_NAMES {
            // A string, or an added token with its text in `content`.
            let text = match &json[name] {
                Value::Null => continue,
                Value::String(text) => Some(text.as_str()),
                token => token["content"].as_str(),
            };
            let text = text.ok_or_else(|| TextError::malformed(format!("{file}: {name}"), "not a token"))?;
            self.special.insert(name.into(), text.into());
        }
        Ok(())
    }

    fn take_config(&mut self, json: &Value) -> Result<(), TextError> {
        const FILE: &str = "tokenizer_config.json";
        self.take_special(json, FILE)?;
        let flag = |name: &str| match &json[name] {
            Value::Null => Ok(None),
            Value::Bool(value) => Ok(Some(*value)),
            _ => Err(TextError::malformed(format!("{FILE}: {name}"), "not a boolean")),
        };
        self.add_bos = flag("add_bos_token")?;
        self.add_eos = flag("add_eos_token")?;
        self.template = match &json["chat_template"] {
            Value::Null => None,
            Value::String(source) => Some(source.clone()),
            Value::Array(named) => {
                let default = named.iter().find(|t| t["name"] == "default").or(named.first());
                default.and_then(|t| t["template"].as_str()).map(str::to_owned)
            }
            _ => return Err(TextError::malformed(format!("{FILE}: chat_template"), "neither text nor a list")),
        };
        Ok(())
    }

    /// A template in a file of its own wins.
    fn take_template_files(&mut self, directory: &Path) -> Result<(), TextError> {
        if let Some(bytes) = read_limited(&directory.join("chat_template.jinja"), FILE_BYTES_MAX)? {
            let source = String::from_utf8(bytes).map_err(|e| TextError::malformed("chat_template.jinja", e))?;
            self.template = Some(source);
        } else if let Some(json) = read_json(&directory.join("chat_template.json"))? {
            let source = json["chat_template"].as_str();
            self.template = source.map(str::to_owned).or(self.template.take());
        }
        Ok(())
    }
}

fn eos_ids(json: &Value) -> Result<Vec<TokenId>, TextError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        id.ok_or_else(|| TextError::malformed("generation_config.json: eos_token_id", "not a token id"))
    };
    match &json["eos_token_id"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(ids) => ids.iter().map(id).collect(),
        one => Ok(vec![id(one)?]),
    }
}

fn read_json(path: &Path) -> Result<Option<Value>, TextError> {
    let Some(bytes) = read_limited(path, FILE_BYTES_MAX)? else { return Ok(None) };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    serde_json::from_slice(&bytes).map(Some).map_err(|e| TextError::malformed(name, e))
}
