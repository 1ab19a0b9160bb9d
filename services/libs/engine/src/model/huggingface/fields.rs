//! Settings of a JSON file, with their types and ranges checked.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use types::TokenId;

use crate::LoadError;
use crate::model::checks::{self, bad, unsupported};

/// Largest configuration file read.
const FILE_MAX: u64 = 4 << 20;

/// An object of a configuration file; `null` counts as absent.
pub(in crate::model) struct Fields {
    pub(in crate::model) file: String,
    prefix: String,
    values: Map<String, Value>,
}

impl Fields {
    pub(in crate::model) fn read(path: &Path) -> Result<Self, LoadError> {
        let file = path.display().to_string();
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let mut text = String::new();
        fs::File::open(path).map_err(io)?.take(FILE_MAX + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > FILE_MAX {
            return Err(bad(&file, "the file", format!("is larger than {FILE_MAX} bytes")));
        }
        Self::parse(file, &text)
    }

    pub(in crate::model) fn parse(file: String, text: &str) -> Result<Self, LoadError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(values)) => Ok(Self { file, prefix: String::new(), values }),
            Ok(_) => Err(bad(&file, "the file", "is not a JSON object")),
            Err(error) => Err(bad(&file, "the file", format!("is not JSON: {error}"))),
        }
    }

    pub(in crate::model) fn get(&self, field: &str) -> Option<&Value> {
        self.values.get(field).filter(|v| !v.is_null())
    }

    pub(in crate::model) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    pub(in crate::model) fn missing(&self, field: &str) -> LoadError {
        bad(&self.file, &self.name(field), "is missing")
    }

    pub(in crate::model) fn wrong(&self, field: &str, found: &Value, wanted: &str) -> LoadError {
        let mut found = found.to_string();
        if found.len() > 80 {
            found = found.chars().take(80).chain("...".chars()).collect();
        }
        bad(&self.file, &self.name(field), format!("is {found}, must be {wanted}"))
    }

    pub(in crate::model) fn size(&self, field: &str, max: u64) -> Result<usize, LoadError> {
        let value = self.get(field).ok_or_else(|| self.missing(field))?;
        let number = value.as_u64().ok_or_else(|| self.wrong(field, value, &format!("between 1 and {max}")))?;
        checks::in_range(&self.file, &self.name(field), number, max)
    }

    pub(in crate::model) fn size_or(&self, field: &str, max: u64, default: usize) -> Result<usize, LoadError> {
        if self.get(field).is_some() { self.size(field, max) } else { Ok(default) }
    }

    /// A size whose absence means something else than `null`, which is none.
    pub(in crate::model) fn size_or_none(
        &self,
        field: &str,
        max: u64,
        absent: Option<usize>,
    ) -> Result<Option<usize>, LoadError> {
        match self.values.get(field) {
            None => Ok(absent),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size(field, max).map(Some),
        }
    }

    pub(in crate::model) fn number_or(&self, field: &str, default: f64) -> Result<f64, LoadError> {
        let Some(value) = self.get(field) else { return Ok(default) };
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(field, value, "a number"))
    }

    pub(in crate::model) fn positive_or(&self, field: &str, default: Option<f64>) -> Result<f64, LoadError> {
        let Some(value) = self.get(field) else { return default.ok_or_else(|| self.missing(field)) };
        let number = value.as_f64().filter(|&x| (1e-6..=1e12).contains(&x));
        number.ok_or_else(|| self.wrong(field, value, "a number above 0"))
    }

    /// A number above 0 whose absence means something else than `null`, which is none.
    pub(in crate::model) fn positive_or_none(
        &self,
        field: &str,
        absent: Option<f64>,
    ) -> Result<Option<f64>, LoadError> {
        match self.values.get(field) {
            None => Ok(absent),
            Some(Value::Null) => Ok(None),
            Some(_) => self.positive_or(field, None).map(Some),
        }
    }

    /// Numbers above 0.
    pub(in crate::model) fn positives(&self, field: &str, len: usize) -> Result<Vec<f64>, LoadError> {
        let value = self.get(field).ok_or_else(|| self.missing(field))?;
        let wrong = || self.wrong(field, value, &format!("a list of {len} numbers above 0"));
        let list = value.as_array().filter(|list| list.len() == len).ok_or_else(wrong)?;
        let number = |v: &Value| v.as_f64().filter(|x| (1e-6..=1e12).contains(x));
        list.iter().map(number).collect::<Option<_>>().ok_or_else(wrong)
    }

    pub(in crate::model) fn flag(&self, field: &str) -> Result<bool, LoadError> {
        let Some(value) = self.get(field) else { return Ok(false) };
        value.as_bool().ok_or_else(|| self.wrong(field, value, "true or false"))
    }

    pub(in crate::model) fn text(&self, field: &str) -> Result<Option<&str>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(field, value, "a string"))
    }

    /// A token id or a list of them.
    pub(in crate::model) fn tokens(&self, field: &str) -> Result<Vec<TokenId>, LoadError> {
        let Some(value) = self.get(field) else { return Ok(Vec::new()) };
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let token = |v: &Value| v.as_u64().and_then(|t| TokenId::try_from(t).ok());
        list.iter().map(token).collect::<Option<_>>().ok_or_else(|| self.wrong(field, value, "token ids"))
    }

    /// Which layers have a window, where `layer_types` says so.
    pub(in crate::model) fn sliding_layers(&self, n_layers: usize) -> Result<Option<Vec<bool>>, LoadError> {
        const FIELD: &str = "layer_types";
        let Some(value) = self.get(FIELD) else { return Ok(None) };
        let list = value.as_array().filter(|list| list.len() == n_layers);
        let list = list.ok_or_else(|| self.wrong(FIELD, value, &format!("a list of {n_layers} layers")))?;
        let sliding = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(unsupported(&self.file, &self.name(FIELD), kind.to_string())),
        };
        list.iter().map(sliding).collect::<Result<_, _>>().map(Some)
    }

    /// An object without fields.
    pub(in crate::model) fn empty(&self) -> Self {
        Self { file: self.file.clone(), prefix: String::new(), values: Map::new() }
    }

    pub(in crate::model) fn section(&self, field: &str) -> Result<Self, LoadError> {
        match self.get(field) {
            Some(Value::Object(values)) => {
                Ok(Self { file: self.file.clone(), prefix: format!("{}.", self.name(field)), values: values.clone() })
            }
            Some(other) => Err(self.wrong(field, other, "an object")),
            None => Err(self.missing(field)),
        }
    }
}
