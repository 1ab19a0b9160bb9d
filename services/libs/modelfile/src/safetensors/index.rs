//! `model.safetensors.index.json`: which file of a split model holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Blame, FileError, quote};

/// Bytes of an index.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Files of a model.
const MAX_SHARDS: usize = 4096;
/// Tensors of a model.
const MAX_TENSORS: usize = 1 << 20;
/// Bytes of a file name.
const MAX_FILE_NAME_BYTES: usize = 255;

/// Tensor names by file name; every file name is a plain one, in the directory of the index.
pub(super) type Shards = BTreeMap<String, BTreeSet<String>>;

pub(super) fn parse(bytes: &[u8], blame: &Blame) -> Result<Shards, FileError> {
    if bytes.len() as u64 > MAX_INDEX_BYTES {
        return Err(blame.limit("size", bytes.len() as u64, MAX_INDEX_BYTES));
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|e| blame.invalid("index", e.to_string()))?;
    let shards = index.weight_map.0;
    for file in shards.keys() {
        if !is_plain_file_name(file) {
            let reason = format!("{} is not the name of a .safetensors file beside the index", quote(file));
            return Err(blame.invalid("weight_map", reason));
        }
    }
    Ok(shards)
}

/// Nothing that could lead out of the directory.
fn is_plain_file_name(file: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    file.len() <= MAX_FILE_NAME_BYTES
        && file.ends_with(".safetensors")
        && !file.starts_with('.')
        && file.chars().all(plain)
}

#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
    #[serde(rename = "metadata")]
    _metadata: Option<IgnoredAny>,
}

struct WeightMap(Shards);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut shards = Shards::new();
                let mut n_tensors = 0;
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    let names = shards.entry(file).or_default();
                    if names.contains(&tensor) {
                        return Err(A::Error::custom(format!("tensor {} occurs twice", quote(&tensor))));
                    }
                    names.insert(tensor);
                    n_tensors += 1;
                    if n_tensors > MAX_TENSORS || shards.len() > MAX_SHARDS {
                        let limits = format!("{MAX_TENSORS} tensors or {MAX_SHARDS} files");
                        return Err(A::Error::custom(format!("weight_map is over the limit of {limits}")));
                    }
                }
                Ok(WeightMap(shards))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, want: Result<&str, &str>) {
        let got = parse(json.as_bytes(), &Blame::new("i.json")).map_err(|e| e.to_string());
        let got = got.map(|shards| format!("{shards:?}"));
        match want {
            Ok(want) => assert_eq!(got.as_deref(), Ok(want)),
            Err(want) => assert!(got.as_ref().is_err_and(|e| e.contains(want)), "{got:?} lacks {want:?}"),
        }
    }

    #[test]
    fn an_index_lists_files_and_their_tensors() {
        let json = r#"{"metadata":{"total_size":8},"weight_map":{"b":"m-1.safetensors","a":"m-1.safetensors"}}"#;
        check(json, Ok(r#"{"m-1.safetensors": {"a", "b"}}"#));
        check(r#"{"weight_map":{}}"#, Ok("{}"));
    }

    #[test]
    fn a_bad_index_is_refused() {
        check("", Err("i.json: index: "));
        check("[]", Err("i.json: index: "));
        check(r#"{"metadata":{}}"#, Err("weight_map"));
        check(r#"{"weight_map":{"a":1}}"#, Err("i.json: index: "));
        check(r#"{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}"#, Err("tensor \"a\" occurs twice"));
        check(&format!(r#"{{"metadata":{}"#, "[".repeat(100_000)), Err("i.json: index: EOF while parsing"));
    }

    #[test]
    fn one_change_anywhere_is_survived() {
        let json = br#"{"metadata":{"total_size":8},"weight_map":{"b":"m-1.safetensors","a":"m-2.safetensors"}}"#;
        for at in 0..json.len() {
            for byte in 0..=255 {
                let mut changed = json.to_vec();
                changed[at] = byte;
                if let Ok(shards) = parse(&changed, &Blame::new("i.json")) {
                    assert!(shards.keys().all(|file| is_plain_file_name(file)));
                }
            }
            assert!(parse(&json[..at], &Blame::new("i.json")).is_err());
        }
    }

    #[test]
    fn file_names_stay_in_the_directory() {
        for file in [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            "a\\b.safetensors",
            "C:x.safetensors",
            "..safetensors",
            "x.bin",
            "x\0.safetensors",
            "",
        ] {
            let json = serde_json::json!({ "weight_map": { "a": file } }).to_string();
            check(&json, Err("is not the name of a .safetensors file beside the index"));
        }
    }
}
