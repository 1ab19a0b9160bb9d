//! An architecture's metadata, with types and ranges checked.

use modelfile::{FromValue, Gguf};

use crate::LoadError;
use crate::model::checks::{self, CONTEXT_MAX, bad};

/// The architecture's keys.
pub(in crate::model) struct Keys<'a> {
    pub(in crate::model) gguf: &'a Gguf,
    pub(in crate::model) file: &'a str,
    pub(in crate::model) prefix: &'a str,
}

impl<'a> Keys<'a> {
    pub(in crate::model) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub(in crate::model) fn find<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, LoadError> {
        Ok(self.gguf.metadata().find(&self.name(key))?)
    }

    pub(in crate::model) fn need<T: FromValue<'a>>(&self, key: &str) -> Result<T, LoadError> {
        Ok(self.gguf.metadata().need(&self.name(key))?)
    }

    pub(in crate::model) fn size(&self, key: &str, max: u64) -> Result<usize, LoadError> {
        checks::in_range(self.file, &self.name(key), self.need::<u64>(key)?, max)
    }

    pub(in crate::model) fn size_or(&self, key: &str, max: u64, default: usize) -> Result<usize, LoadError> {
        if self.find::<u64>(key)?.is_some() { self.size(key, max) } else { Ok(default) }
    }

    pub(in crate::model) fn positive_or(&self, key: &str, default: Option<f64>) -> Result<f64, LoadError> {
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

    /// Rows of a window; 0 means none.
    pub(in crate::model) fn window(&self) -> Result<Option<usize>, LoadError> {
        const KEY: &str = "attention.sliding_window";
        if self.find::<u64>(KEY)?.is_none_or(|n| n == 0) { Ok(None) } else { self.size(KEY, CONTEXT_MAX).map(Some) }
    }

    /// A soft cap.
    pub(in crate::model) fn cap(&self, key: &str, default: Option<f64>) -> Result<Option<f32>, LoadError> {
        let there = self.find::<f32>(key)?.is_some() || default.is_some();
        there.then(|| Ok(self.positive_or(key, default)? as f32)).transpose()
    }
}
