//! Lists a model file: `cargo run -p modelfile --example list -- PATH` (a .gguf, a .safetensors, or a directory).

use std::path::Path;

use modelfile::{Gguf, SafeTensors, TensorView, Value};

#[allow(clippy::print_stdout, reason = "printing is what this program is for")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: list PATH")?;
    let path = Path::new(&path);
    if path.extension().is_some_and(|extension| extension == "gguf") {
        let gguf = Gguf::open(path)?;
        println!("GGUF {}, alignment {}, digest {}", gguf.version(), gguf.alignment(), gguf.digest());
        for (key, value) in gguf.metadata().iter() {
            match value {
                Value::Str(text) => println!("{key} = {text:?}"),
                Value::Array(_) => println!("{key} = {}", value.describe()),
                other => println!("{key} = {other:?}"),
            }
        }
        gguf.tensors().for_each(|tensor| print_tensor(&tensor));
    } else {
        let model = if path.is_dir() { SafeTensors::open_dir(path)? } else { SafeTensors::open_file(path)? };
        println!("safetensors, digest {}", model.digest());
        model.metadata().iter().for_each(|(key, value)| println!("{key} = {value:?}"));
        model.tensors().for_each(|tensor| print_tensor(&tensor));
    }
    Ok(())
}

#[allow(clippy::print_stdout, reason = "printing is what this program is for")]
fn print_tensor(tensor: &TensorView<'_>) {
    println!("{} {} {:?} {} bytes", tensor.name, tensor.dtype, tensor.shape, tensor.data.len());
}
