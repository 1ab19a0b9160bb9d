//! The table of tensors that both containers fill, and the views it gives out.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use crate::DType;
use crate::bytes::FileBytes;
use crate::error::{Blame, FileError, quote};

/// One tensor of an open file. All ranges were checked when the file was opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TensorView<'a> {
    /// The name in the file.
    pub name: &'a str,
    /// How the numbers are stored.
    pub dtype: DType,
    /// Row-major, outermost first (GGUF's order is reversed on reading); empty for a scalar.
    pub shape: &'a [usize],
    /// The stored bytes, exactly as many as `shape` and `dtype` say. No alignment is promised.
    pub data: &'a [u8],
}

impl TensorView<'_> {
    /// How many numbers the tensor holds.
    pub fn n_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Where a tensor lies: file `part` of the model, byte range in it.
#[derive(Clone, Debug)]
pub(crate) struct TensorEntry {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    pub(crate) part: usize,
    pub(crate) range: Range<usize>,
}

/// Tensors by name. Every range is inside the part it names.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    entries: BTreeMap<String, TensorEntry>,
}

impl TensorTable {
    /// Adds a tensor whose range the caller has checked against its part.
    pub(crate) fn insert(&mut self, name: String, entry: TensorEntry, blame: &Blame) -> Result<(), FileError> {
        match self.entries.entry(name) {
            Entry::Occupied(old) => Err(blame.duplicate(tensor_field(old.key()))),
            Entry::Vacant(slot) => {
                slot.insert(entry);
                Ok(())
            }
        }
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<TensorEntry> {
        self.entries.remove(name)
    }

    pub(crate) fn iter<'a>(&'a self, parts: &'a [FileBytes]) -> impl ExactSizeIterator<Item = TensorView<'a>> {
        self.entries.iter().map(move |(name, entry)| view(name, entry, parts))
    }

    pub(crate) fn get<'a>(&'a self, name: &str, parts: &'a [FileBytes]) -> Option<TensorView<'a>> {
        self.entries.get_key_value(name).map(|(name, entry)| view(name, entry, parts))
    }

    /// Refuses tensors of one part that share bytes.
    pub(crate) fn check_overlap(&self, blame: &Blame) -> Result<(), FileError> {
        // empty ranges share nothing, and would hide a neighbour that does
        let mut order: Vec<_> = self.entries.iter().filter(|(_, entry)| !entry.range.is_empty()).collect();
        order.sort_by_key(|(_, entry)| (entry.part, entry.range.start));
        for pair in order.windows(2) {
            let ((first, a), (second, b)) = (pair[0], pair[1]);
            if a.part == b.part && b.range.start < a.range.end {
                return Err(blame.overlap(tensor_field(second), tensor_field(first)));
            }
        }
        Ok(())
    }
}

/// How messages name a tensor.
pub(crate) fn tensor_field(name: &str) -> String {
    format!("tensor {}", quote(name))
}

fn view<'a>(name: &'a str, entry: &'a TensorEntry, parts: &'a [FileBytes]) -> TensorView<'a> {
    let data = &parts[entry.part].as_slice()[entry.range.clone()];
    TensorView { name, dtype: entry.dtype, shape: &entry.shape, data }
}
