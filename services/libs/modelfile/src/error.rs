//! What can be wrong with a model file.

use std::io;
use std::path::{Path, PathBuf};

/// Why a model file was refused. Every variant names the file and, where there is one, the field.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused to open, read or map the file.
    #[error("{file}: cannot be read")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A directory holds neither of the files looked for.
    #[error("{}: holds neither {wanted}", dir.display())]
    NoModel {
        /// The directory.
        dir: PathBuf,
        /// File names looked for.
        wanted: &'static str,
    },
    /// The file is not of this format or version at all.
    #[error("{file}: {reason}")]
    Format {
        /// The file.
        file: String,
        /// What was found instead.
        reason: String,
    },
    /// A field says something lies beyond the end of the file.
    #[error("{file}: {field}: offset {offset} + {n_bytes} bytes is past the end of the file ({file_bytes} bytes)")]
    PastEnd {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Where the range begins, in bytes from the start of the file.
        offset: u64,
        /// Length of the range in bytes.
        n_bytes: u64,
        /// Size of the file in bytes.
        file_bytes: u64,
    },
    /// A field holds a value that cannot be right.
    #[error("{file}: {field}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Why not.
        reason: String,
    },
    /// A count or length is over this reader's limit.
    #[error("{file}: {field}: {value} is over the limit of {limit}")]
    Limit {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// The value found.
        value: u64,
        /// The largest value accepted.
        limit: u64,
    },
    /// A type that the format does not have, or that this reader does not read.
    #[error("{file}: {field}: {found} is not a type this reader knows")]
    UnknownType {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// The type found.
        found: String,
    },
    /// The same name twice.
    #[error("{file}: {field}: occurs twice")]
    Duplicate {
        /// The file.
        file: String,
        /// The field.
        field: String,
    },
    /// Two tensors share bytes.
    #[error("{file}: {field}: shares bytes with {other}")]
    Overlap {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// The other field.
        other: String,
    },
    /// A metadata key or tensor that was asked for is not there.
    #[error("{file}: {field}: is not in the file")]
    Missing {
        /// The file.
        file: String,
        /// The field.
        field: String,
    },
    /// A metadata value is of another type than asked for.
    #[error("{file}: {field}: is {found}, not {wanted}")]
    WrongType {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// The type found.
        found: String,
        /// The type asked for.
        wanted: &'static str,
    },
}

/// Makes errors of one file.
#[derive(Clone, Debug)]
pub(crate) struct Blame {
    file: String,
}

impl Blame {
    pub(crate) fn new(file: &str) -> Self {
        Blame { file: file.to_owned() }
    }

    pub(crate) fn path(path: &Path) -> Self {
        Blame { file: path.display().to_string() }
    }

    pub(crate) fn io(&self, source: io::Error) -> FileError {
        FileError::Io { file: self.file.clone(), source }
    }

    pub(crate) fn format(&self, reason: impl Into<String>) -> FileError {
        FileError::Format { file: self.file.clone(), reason: reason.into() }
    }

    pub(crate) fn past_end(&self, field: impl Into<String>, offset: u64, n_bytes: u64, file_bytes: usize) -> FileError {
        let file_bytes = file_bytes as u64;
        FileError::PastEnd { file: self.file.clone(), field: field.into(), offset, n_bytes, file_bytes }
    }

    pub(crate) fn invalid(&self, field: impl Into<String>, reason: impl Into<String>) -> FileError {
        FileError::Invalid { file: self.file.clone(), field: field.into(), reason: reason.into() }
    }

    pub(crate) fn limit(&self, field: impl Into<String>, value: u64, limit: u64) -> FileError {
        FileError::Limit { file: self.file.clone(), field: field.into(), value, limit }
    }

    pub(crate) fn unknown_type(&self, field: impl Into<String>, found: impl Into<String>) -> FileError {
        FileError::UnknownType { file: self.file.clone(), field: field.into(), found: found.into() }
    }

    pub(crate) fn duplicate(&self, field: impl Into<String>) -> FileError {
        FileError::Duplicate { file: self.file.clone(), field: field.into() }
    }

    pub(crate) fn overlap(&self, field: impl Into<String>, other: impl Into<String>) -> FileError {
        FileError::Overlap { file: self.file.clone(), field: field.into(), other: other.into() }
    }

    pub(crate) fn missing(&self, field: impl Into<String>) -> FileError {
        FileError::Missing { file: self.file.clone(), field: field.into() }
    }

    pub(crate) fn wrong_type(&self, field: impl Into<String>, found: String, wanted: &'static str) -> FileError {
        FileError::WrongType { file: self.file.clone(), field: field.into(), found, wanted }
    }
}

/// Characters of a name that a message repeats.
const QUOTED_CHARS: usize = 120;

/// A name from a file, escaped and cut to a sensible length.
pub(crate) fn quote(name: &str) -> String {
    match name.char_indices().nth(QUOTED_CHARS) {
        Some((cut, _)) => format!("{:?}...", &name[..cut]),
        None => format!("{name:?}"),
    }
}
