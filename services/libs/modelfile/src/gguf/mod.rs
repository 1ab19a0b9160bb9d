//! GGUF, versions 2 and 3, little-endian: metadata, then a tensor table, then aligned tensor data.
//!
//! Source: the format's description in ggml, docs/gguf.md. Stricter than that text where it leaves
//! room: names are unique, dimensions are not 0, tensors do not overlap, booleans are 0 or 1.

mod cursor;
mod metadata;
mod parse;
mod value;
mod write;

use std::path::Path;

pub use metadata::{FromValue, Metadata};
pub use value::{Array, Strings, Value, ValueType};
pub use write::GgufWriter;

use crate::bytes::{FileBytes, digest};
use crate::error::{Blame, FileError};
use crate::tensor::{TensorTable, TensorView, tensor_field};

/// An open GGUF file whose every range has been checked.
#[derive(Debug)]
pub struct Gguf {
    blame: Blame,
    bytes: [FileBytes; 1],
    version: u32,
    alignment: usize,
    metadata: Metadata,
    tensors: TensorTable,
}

impl Gguf {
    /// Maps and checks the file at `path`.
    ///
    /// # Errors
    /// [`FileError`] naming the field, if the file cannot be read or anything in it does not fit.
    pub fn open(path: &Path) -> Result<Gguf, FileError> {
        let blame = Blame::path(path);
        let bytes = FileBytes::open(path, &blame)?;
        Gguf::read(blame, bytes)
    }

    /// Checks a file held in memory; `name` stands for the file name in messages.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Gguf, FileError> {
        Gguf::read(Blame::new(name), FileBytes::Memory(bytes))
    }

    /// The format version, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in the file, in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter(&self.bytes)
    }

    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`FileError::Missing`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, FileError> {
        self.tensors.get(name, &self.bytes).ok_or_else(|| self.blame.missing(tensor_field(name)))
    }

    /// Identity of the file's contents, as 32 hex digits: xxh3-128 of all its bytes. It tells files
    /// apart; it is no defence against somebody who makes two files collide on purpose.
    pub fn digest(&self) -> String {
        digest(&self.bytes)
    }

    /// Gives back the pages of the file that this process has read: they no longer count as its memory, and come
    /// back when they are read again.
    pub fn release(&self) {
        self.bytes[0].release_all();
    }

    /// Size of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.bytes[0].as_slice().len() as u64
    }

    fn read(blame: Blame, bytes: FileBytes) -> Result<Gguf, FileError> {
        let parsed = parse::parse(bytes.as_slice(), &blame)?;
        let parse::Parsed { version, alignment, metadata, tensors } = parsed;
        Ok(Gguf { blame, bytes: [bytes], version, alignment, metadata, tensors })
    }
}
