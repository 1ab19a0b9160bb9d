//! Metadata by key, with typed access.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::value::{Array, Strings, Value};
use crate::error::{Blame, FileError, quote};

/// The metadata of a GGUF file.
///
/// Typed getters return an error naming the key if it is absent or of another type;
/// [`find`](Self::find) returns `None` if it is absent. Integers are accepted at any width that
/// holds the value, because writers differ.
#[derive(Debug)]
pub struct Metadata {
    blame: Blame,
    values: BTreeMap<String, Value>,
}

/// Types that [`Metadata::find`] and [`Metadata::need`] can return.
pub trait FromValue<'a>: Sized {
    /// What is accepted, in words, for messages.
    const WANTED: &'static str;

    /// The value as this type, if it is one.
    fn from_value(value: &'a Value) -> Option<Self>;
}

impl Metadata {
    pub(super) fn new(blame: Blame) -> Metadata {
        Metadata { blame, values: BTreeMap::new() }
    }

    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<(), FileError> {
        match self.values.entry(key) {
            Entry::Occupied(old) => Err(self.blame.duplicate(key_field(old.key()))),
            Entry::Vacant(slot) => {
                slot.insert(value);
                Ok(())
            }
        }
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All keys and values, by key.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// The value of a key, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The value of a key as `T`, `None` if the key is absent.
    ///
    /// # Errors
    /// [`FileError::WrongType`] if the value is not a `T`.
    pub fn find<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, FileError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(found) => Ok(Some(found)),
            None => Err(self.blame.wrong_type(key_field(key), found(value), T::WANTED)),
        }
    }

    /// The value of a key as `T`.
    ///
    /// # Errors
    /// [`FileError::Missing`] or [`FileError::WrongType`].
    pub fn need<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, FileError> {
        self.find(key)?.ok_or_else(|| self.blame.missing(key_field(key)))
    }

    /// An integer that fits u32.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn u32(&self, key: &str) -> Result<u32, FileError> {
        self.need(key)
    }

    /// An integer that fits u64.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn u64(&self, key: &str) -> Result<u64, FileError> {
        self.need(key)
    }

    /// A float (a binary64 is rounded).
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn f32(&self, key: &str) -> Result<f32, FileError> {
        self.need(key)
    }

    /// A boolean.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn bool(&self, key: &str) -> Result<bool, FileError> {
        self.need(key)
    }

    /// A string.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn str(&self, key: &str) -> Result<&str, FileError> {
        self.need(key)
    }

    /// An array of any element type.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn array(&self, key: &str) -> Result<&Array, FileError> {
        self.need(key)
    }

    /// An array of strings.
    ///
    /// # Errors
    /// As [`need`](Self::need).
    pub fn strings(&self, key: &str) -> Result<&Strings, FileError> {
        self.need(key)
    }

    /// The error for a key whose value has the right type but cannot be right.
    pub fn invalid(&self, key: &str, reason: impl Into<String>) -> FileError {
        self.blame.invalid(key_field(key), reason)
    }
}

/// How messages name a key.
pub(super) fn key_field(key: &str) -> String {
    format!("metadata {}", quote(key))
}

fn found(value: &Value) -> String {
    match value.integer() {
        Some(number) => format!("the {} {number}", value.describe()),
        None => value.describe(),
    }
}

macro_rules! from_value {
    ($($type:ty, $wanted:literal, $value:ident => $body:expr;)*) => {$(
        impl<'a> FromValue<'a> for $type {
            const WANTED: &'static str = $wanted;
            fn from_value($value: &'a Value) -> Option<Self> {
                $body
            }
        }
    )*};
}

from_value! {
    u32, "an integer from 0 to 2^32 - 1", value => value.integer()?.try_into().ok();
    i32, "an integer of 32 bits", value => value.integer()?.try_into().ok();
    u64, "an integer from 0 to 2^64 - 1", value => value.integer()?.try_into().ok();
    f32, "a float", value => match value { Value::F32(v) => Some(*v), Value::F64(v) => Some(*v as f32), _ => None };
    bool, "a boolean", value => match value { Value::Bool(v) => Some(*v), _ => None };
    &'a str, "a string", value => match value { Value::Str(v) => Some(v), _ => None };
    &'a Array, "an array", value => match value { Value::Array(v) => Some(v), _ => None };
    &'a Strings, "an array of strings", value => match value { Value::Array(Array::Str(v)) => Some(v), _ => None };
    &'a [f32], "an array of f32", value => match value { Value::Array(Array::F32(v)) => Some(v), _ => None };
    &'a [i32], "an array of i32", value => match value { Value::Array(Array::I32(v)) => Some(v), _ => None };
    &'a [u32], "an array of u32", value => match value { Value::Array(Array::U32(v)) => Some(v), _ => None };
}
