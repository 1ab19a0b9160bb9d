//! Where a model comes from, and opening it.

use std::io;
use std::path::{Path, PathBuf};

use kernels::affinity::PinError;
use kernels::kv::ArenaError;
use modelfile::FileError;

use crate::cpu::CpuEngine;
use crate::{Engine, EngineConfig};

/// Files of a model.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ModelSource {
    /// A directory in Hugging Face layout: `config.json` and safetensors.
    Directory(PathBuf),
    /// One `.gguf` file.
    Gguf(PathBuf),
}

impl ModelSource {
    /// Tells by what is at `path`.
    ///
    /// # Errors
    /// [`LoadError::NotAModel`] if it is neither.
    pub fn detect(path: &Path) -> Result<Self, LoadError> {
        if path.join("config.json").is_file() {
            return Ok(Self::Directory(path.to_owned()));
        }
        if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        Err(LoadError::NotAModel { path: path.to_owned() })
    }

    /// The directory or file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(path) | Self::Gguf(path) => path,
        }
    }
}

/// How far loading is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LoadProgress {
    /// Bytes of weights converted.
    pub done_bytes: u64,
    /// Bytes of weights in the files.
    pub total_bytes: u64,
}

/// Why a model cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Neither a directory with a `config.json` nor a `.gguf` file.
    #[error("{}: neither a directory with config.json nor a .gguf file", path.display())]
    NotAModel {
        /// What was given.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A model file is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// A setting of the model is missing, has a wrong type or a value that cannot be.
    #[error("{file}: {field}: {reason}")]
    Config {
        /// Which file.
        file: String,
        /// Which setting.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// A setting of the model asks for what this engine does not compute.
    #[error("{file}: {field} = {value} is not supported")]
    Unsupported {
        /// Which file.
        file: String,
        /// Which setting.
        field: String,
        /// Its value.
        value: String,
    },
    /// A tensor that the model needs is not there.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// Tensors that the model would not use: the files are of another model than their configuration says.
    #[error("{count} tensors have no place in this model, the first is {first:?}")]
    UnusedTensors {
        /// Name of the first.
        first: String,
        /// How many.
        count: usize,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A tensor is stored in a format that cannot be used there.
    #[error("tensor {name:?} is stored as {found}, expected {expected}")]
    Format {
        /// Its name.
        name: String,
        /// What could be used.
        expected: &'static str,
        /// Format in the file.
        found: String,
    },
    /// Settings of the engine that cannot be.
    #[error("{field}: {reason}")]
    Settings {
        /// Which.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The threads cannot be bound to their cores.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No room for the KV cache.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// Loads a model for the CPU. `progress` is called now and then.
///
/// # Errors
/// [`LoadError`], naming the file and the field or tensor at fault.
pub fn open(
    source: &ModelSource,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Engine>, LoadError> {
    Ok(Box::new(CpuEngine::open(source, config, progress)?))
}
