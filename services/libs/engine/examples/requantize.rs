//! `requantize FROM.gguf TO.gguf`: the same model with its matrices in Q4_0, for comparisons with programs that are
//! fastest there. Matrices that were not Q4_1 (the embedding, norms) stay as they are.
//!
//! What is rounded twice makes no good model, only one of the same shape and speed.

use std::path::Path;

use kernels::quant::{QuantFormat, dequantize, encode};
use modelfile::{DType, Gguf, GgufWriter, Value};

/// llama.cpp's number for "mostly Q4_0".
const FILE_TYPE_Q4_0: u32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else { return Err("usage: requantize FROM.gguf TO.gguf".into()) };
    let file = Gguf::open(Path::new(from))?;
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata().iter() {
        writer = match key {
            "general.file_type" => writer.metadata(key, Value::U32(FILE_TYPE_Q4_0)),
            // The writer's own is the default.
            "general.alignment" => writer,
            _ => writer.metadata(key, value.clone()),
        };
    }
    for tensor in file.tensors() {
        writer = if tensor.dtype == DType::Q4_1 {
            let mut numbers = vec![0.0; tensor.n_elements()];
            dequantize(QuantFormat::Q4_1, tensor.data, &mut numbers);
            let data = encode::quantize(QuantFormat::Q4_0, &numbers);
            writer.tensor(tensor.name, DType::Q4_0, tensor.shape, data)
        } else {
            writer.tensor(tensor.name, tensor.dtype, tensor.shape, tensor.data.to_vec())
        };
    }
    // Under its name only when whole.
    let part = format!("{to}.part");
    std::fs::write(&part, writer.finish())?;
    Ok(std::fs::rename(&part, to)?)
}
