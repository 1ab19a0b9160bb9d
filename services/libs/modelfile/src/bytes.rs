//! The bytes of a file: mapped, or held in memory for tests and fuzzing.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Blame, FileError};

/// Read-only bytes of a whole file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Memory(Vec<u8>),
}

impl FileBytes {
    /// Maps a regular file; an empty one is held as no bytes.
    pub(crate) fn open(path: &Path, blame: &Blame) -> Result<FileBytes, FileError> {
        // asked before opening, because opening a pipe would wait for its writer
        let found = std::fs::metadata(path).map_err(|e| blame.io(e))?;
        if !found.is_file() {
            return Err(blame.format("is not a regular file"));
        }
        if found.len() == 0 {
            return Ok(FileBytes::Memory(Vec::new()));
        }
        let file = File::open(path).map_err(|e| blame.io(e))?;
        map(&file).map(FileBytes::Mapped).map_err(|e| blame.io(e))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Memory(bytes) => bytes,
        }
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is private to this process, read-only, and lives as long as every slice taken
    // from it (`FileBytes` owns it and lends by reference). What the type system cannot see is another
    // process writing to or truncating the file meanwhile: model files are installed whole, by rename,
    // and never changed in place; the deployment documents that. Checked ranges are stored as numbers,
    // not read again from the map, so a change of contents yields wrong numbers, not a wrong range.
    unsafe { Mmap::map(file) }
}

/// xxh3-128 over the parts in order, each preceded by its length, as 32 hex digits.
pub(crate) fn digest<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    format!("{:032x}", hash.digest128())
}
