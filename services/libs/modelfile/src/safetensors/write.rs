//! Writes safetensors files: logits of the command line, and files for tests.

use std::collections::BTreeMap;

use crate::DType;

/// Collects tensors, then lays out a file.
#[derive(Clone, Debug, Default)]
pub struct SafeTensorsWriter {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, DType, Vec<usize>, Vec<u8>)>,
}

impl SafeTensorsWriter {
    /// A file with nothing in it.
    pub fn new() -> SafeTensorsWriter {
        SafeTensorsWriter::default()
    }

    /// Adds a key to `__metadata__`.
    pub fn metadata(mut self, key: &str, value: &str) -> SafeTensorsWriter {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a tensor; `shape` is row-major, `data` its little-endian bytes.
    ///
    /// # Panics
    /// If `dtype` is not a float format, or `data` is not as long as `shape` says.
    pub fn tensor(mut self, name: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> SafeTensorsWriter {
        assert_eq!(dtype.block_elements(), 1, "safetensors has no {dtype}");
        assert_eq!(dtype.bytes_of(shape.iter().product()), Some(data.len()), "tensor {name:?}");
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), data));
        self
    }

    /// Adds a tensor of f32 numbers.
    ///
    /// # Panics
    /// If there are not as many numbers as `shape` says.
    pub fn tensor_f32(self, name: &str, shape: &[usize], numbers: &[f32]) -> SafeTensorsWriter {
        self.tensor(name, DType::F32, shape, numbers.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// The file's bytes; data begins at a multiple of 8.
    pub fn finish(&self) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        if !self.metadata.is_empty() {
            header.insert("__metadata__".to_owned(), serde_json::json!(self.metadata));
        }
        let mut offset = 0;
        for (name, dtype, shape, data) in &self.tensors {
            let entry = serde_json::json!({
                "dtype": dtype.name(), "shape": shape, "data_offsets": [offset, offset + data.len()],
            });
            header.insert(name.clone(), entry);
            offset += data.len();
        }
        let mut json = serde_json::Value::Object(header).to_string();
        while !json.len().is_multiple_of(8) {
            json.push(' ');
        }
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend(json.as_bytes());
        self.tensors.iter().for_each(|(.., data)| out.extend(data));
        out
    }
}
