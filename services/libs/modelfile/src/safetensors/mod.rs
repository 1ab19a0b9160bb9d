//! safetensors: a JSON header that names byte ranges, then the bytes; a model may be many such files.
//!
//! Source: the format's description in huggingface/safetensors, README.md, section "Format", whose
//! rules are all enforced: unique names, no holes, the ranges cover the rest of the file exactly.

mod header;
mod index;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub use write::SafeTensorsWriter;

use crate::bytes::{FileBytes, digest};
use crate::error::{Blame, FileError};
use crate::tensor::{TensorTable, TensorView, tensor_field};

/// The name of a model in one file.
const SINGLE: &str = "model.safetensors";
/// The name of the list of a model's files.
const INDEX: &str = "model.safetensors.index.json";

/// The tensors of one safetensors file, or of a model split over several.
#[derive(Debug)]
pub struct SafeTensors {
    blame: Blame,
    parts: Vec<FileBytes>,
    tensors: TensorTable,
    /// Tensors of types the format has and this reader does not read: name to type.
    unread: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl SafeTensors {
    /// Opens `model.safetensors` in a directory or, if there is none, every file named by its
    /// `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`FileError`] naming the file and field, if a file is missing, cannot be read, or anything in
    /// it does not fit.
    pub fn open_dir(dir: &Path) -> Result<SafeTensors, FileError> {
        let single = dir.join(SINGLE);
        if single.exists() {
            return SafeTensors::open_file(&single);
        }
        let index = dir.join(INDEX);
        if index.exists() {
            return SafeTensors::open_sharded(dir, &index);
        }
        Err(FileError::NoModel { dir: dir.to_owned(), wanted: "model.safetensors nor model.safetensors.index.json" })
    }

    /// Opens one file.
    ///
    /// # Errors
    /// As [`open_dir`](Self::open_dir).
    pub fn open_file(path: &Path) -> Result<SafeTensors, FileError> {
        let blame = Blame::path(path);
        let bytes = FileBytes::open(path, &blame)?;
        SafeTensors::read(blame, bytes)
    }

    /// Checks a file held in memory; `name` stands for the file name in messages.
    ///
    /// # Errors
    /// As [`open_dir`](Self::open_dir).
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<SafeTensors, FileError> {
        SafeTensors::read(Blame::new(name), FileBytes::Memory(bytes))
    }

    /// All tensors of readable types, by name.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = TensorView<'_>> {
        self.tensors.iter(&self.parts)
    }

    /// Whether there is a readable tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// [`FileError::Missing`] if there is none, [`FileError::UnknownType`] if it is of a type that is
    /// not read here (integers, for instance).
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, FileError> {
        if let Some(view) = self.tensors.get(name, &self.parts) {
            return Ok(view);
        }
        Err(match self.unread.get(name) {
            Some(dtype) => self.blame.unknown_type(tensor_field(name), dtype),
            None => self.blame.missing(tensor_field(name)),
        })
    }

    /// The header's `__metadata__` (of a split model: all parts' together, first one wins).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Identity of the contents, as 32 hex digits: xxh3-128 of all bytes of all files, in order. It
    /// tells models apart; it is no defence against somebody who makes two collide on purpose.
    pub fn digest(&self) -> String {
        digest(&self.parts)
    }

    /// Gives back the pages of the files that this process has read: they no longer count as its memory, and come
    /// back when they are read again.
    pub fn release(&self) {
        self.parts.iter().for_each(FileBytes::release_all);
    }

    /// Size of all files in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.as_slice().len() as u64).sum()
    }

    fn read(blame: Blame, bytes: FileBytes) -> Result<SafeTensors, FileError> {
        let parsed = header::parse(bytes.as_slice(), 0, &blame)?;
        let header::Parsed { tensors, unread, metadata } = parsed;
        Ok(SafeTensors { blame, parts: vec![bytes], tensors, unread, metadata })
    }

    /// Opens every shard of an index. Only tensors that the index names are taken, each from the
    /// shard it names.
    fn open_sharded(dir: &Path, index_path: &Path) -> Result<SafeTensors, FileError> {
        let blame = Blame::path(index_path);
        let index_bytes = FileBytes::open(index_path, &blame)?;
        let shards = index::parse(index_bytes.as_slice(), &blame)?;

        let mut model = SafeTensors {
            blame: blame.clone(),
            parts: Vec::new(),
            tensors: TensorTable::default(),
            unread: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        for (part, (file, names)) in shards.into_iter().enumerate() {
            let path = dir.join(&file);
            let shard_blame = Blame::path(&path);
            let bytes = FileBytes::open(&path, &shard_blame)?;
            let mut parsed = header::parse(bytes.as_slice(), part, &shard_blame)?;
            for name in names {
                if let Some(entry) = parsed.tensors.remove(&name) {
                    model.tensors.insert(name, entry, &blame)?;
                } else if let Some(dtype) = parsed.unread.remove(&name) {
                    model.unread.insert(name, dtype);
                } else {
                    return Err(shard_blame.missing(tensor_field(&name)));
                }
            }
            for (key, value) in parsed.metadata {
                model.metadata.entry(key).or_insert(value);
            }
            model.parts.push(bytes);
        }
        Ok(model)
    }
}
