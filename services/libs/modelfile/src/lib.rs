//! Model file containers, GGUF and safetensors: mapped into memory, every range checked before use.
//!
//! Files are somebody else's input. Opening one either proves that every count, length, offset and
//! shape in it fits the file, or returns a [`FileError`] naming the file and the field; it never
//! panics, and never allocates more than the file's own size plus a small constant.
//!
//! Not here: arithmetic on the numbers (dequantisation is in `kernels`) and any idea of what a
//! tensor or a metadata key means (that is `engine` and `text`).
//!
//! Begin with [`Gguf`] and [`SafeTensors`]; both give [`TensorView`]s.

mod bytes;
mod dtype;
mod error;
mod gguf;
mod safetensors;
mod tensor;

pub use dtype::DType;
pub use error::FileError;
pub use gguf::{Array, FromValue, Gguf, GgufWriter, Metadata, Strings, Value, ValueType};
pub use safetensors::{SafeTensors, SafeTensorsWriter};
pub use tensor::TensorView;
