//! The bytes of a file: mapped, or held in memory for tests and fuzzing.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

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

    /// Lets the system take the pages of `range` (inside the file) out of this process; a later read finds them
    /// again. Only a mapping has pages to give.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self, range: Range<usize>) {
        if let FileBytes::Mapped(map) = self
            && !range.is_empty()
        {
            // SAFETY: the mapping is shared and read-only, so nothing was written that could be lost: the next read
            // of a page brings the file's bytes back, which `map` relies on not to change.
            let released = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
            // A refusal costs memory, nothing else.
            let _ = released;
        }
    }

    /// [`release`](Self::release) of everything.
    pub(crate) fn release_all(&self) {
        self.release(0..self.as_slice().len());
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

/// Bytes hashed before their pages are given back.
const DIGEST_STRIDE: usize = 4 << 20;

/// xxh3-128 over the parts in order, each preceded by its length, as 32 hex digits.
pub(crate) fn digest(parts: &[FileBytes]) -> String {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        let bytes = part.as_slice();
        hash.update(&(bytes.len() as u64).to_le_bytes());
        for (i, stride) in bytes.chunks(DIGEST_STRIDE).enumerate() {
            hash.update(stride);
            part.release(i * DIGEST_STRIDE..i * DIGEST_STRIDE + stride.len());
        }
    }
    format!("{:032x}", hash.digest128())
}
