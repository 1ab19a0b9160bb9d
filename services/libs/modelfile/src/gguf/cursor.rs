//! Reads numbers and strings one after another, never past the end.

use crate::error::{Blame, FileError};

/// A reading position, and the field that is being read (for messages).
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    pos: usize,
    field: String,
    element: Option<u64>,
    blame: &'a Blame,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8], blame: &'a Blame) -> Self {
        Cursor { bytes, pos: 0, field: "header".to_owned(), element: None, blame }
    }

    /// Names the field that the next reads belong to.
    pub(super) fn enter(&mut self, field: String) {
        self.field = field;
        self.element = None;
    }

    /// Names the element of an array that the next reads belong to.
    pub(super) fn enter_element(&mut self, element: Option<u64>) {
        self.element = element;
    }

    /// The current field, for messages.
    pub(super) fn field(&self) -> String {
        match self.element {
            Some(element) => format!("{}[{element}]", self.field),
            None => self.field.clone(),
        }
    }

    /// The current field and a part of it, for messages.
    pub(super) fn part(&self, part: &str) -> String {
        format!("{}: {part}", self.field())
    }

    /// Bytes read so far.
    pub(super) fn pos(&self) -> usize {
        self.pos
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.pos
    }

    /// The next `n` bytes.
    pub(super) fn take(&mut self, n: usize, part: &str) -> Result<&'a [u8], FileError> {
        if n > self.remaining() {
            return Err(self.blame.past_end(self.part(part), self.pos as u64, n as u64, self.bytes.len()));
        }
        let taken = &self.bytes[self.pos..self.pos + n];
        self.pos += n;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self, part: &str) -> Result<[u8; N], FileError> {
        let bytes = self.take(N, part)?;
        Ok(bytes.try_into().expect("take returned N bytes"))
    }

    pub(super) fn u32(&mut self, part: &str) -> Result<u32, FileError> {
        self.array(part).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, part: &str) -> Result<u64, FileError> {
        self.array(part).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `min_bytes` each in the rest of the file, at most `limit`.
    /// What this returns may be allocated for.
    pub(super) fn count(&mut self, part: &str, min_bytes: usize, limit: usize) -> Result<usize, FileError> {
        let value = self.u64(part)?;
        let n_bytes = value.saturating_mul(min_bytes as u64);
        if n_bytes > self.remaining() as u64 {
            return Err(self.blame.past_end(self.part(part), self.pos as u64, n_bytes, self.bytes.len()));
        }
        if value > limit as u64 {
            return Err(self.blame.limit(self.part(part), value, limit as u64));
        }
        Ok(value as usize) // at most `limit`
    }

    /// A string: its length as u64, then that many bytes of UTF-8.
    pub(super) fn string(&mut self, part: &str, limit: usize) -> Result<&'a str, FileError> {
        let n = self.count(part, 1, limit)?;
        let bytes = self.take(n, part)?;
        std::str::from_utf8(bytes)
            .map_err(|e| self.blame.invalid(self.part(part), format!("is not UTF-8 after {} bytes", e.valid_up_to())))
    }
}
