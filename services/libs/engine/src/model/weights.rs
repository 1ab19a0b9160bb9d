//! Tensors of a model by what they are for, with their shapes checked and their use recorded.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use kernels::quant::{QuantFormat, dequantize};
use modelfile::{DType, Gguf, SafeTensors, TensorView};

use crate::model::rope::gguf as rope_factors;
use crate::model::{Biases, HeadNorm, ModelConfig, Role, gguf, huggingface};
use crate::{LoadError, ModelSource};

/// A model's open files.
pub(crate) enum ModelFiles {
    /// A directory's shards.
    HuggingFace(SafeTensors),
    /// One file.
    Gguf(Gguf),
}

impl ModelFiles {
    /// Opens the files and reads the configuration.
    pub(crate) fn open(source: &ModelSource) -> Result<(Self, ModelConfig), LoadError> {
        match source {
            ModelSource::Directory(dir) => {
                let config = huggingface::read(dir)?;
                Ok((Self::HuggingFace(SafeTensors::open_dir(dir)?), config))
            }
            ModelSource::Gguf(path) => {
                let file = Gguf::open(path)?;
                let config = gguf::read(&file, &file_name(path))?;
                Ok((Self::Gguf(file), config))
            }
        }
    }

    /// Hash of all content.
    pub(crate) fn digest(&self) -> String {
        match self {
            Self::HuggingFace(files) => files.digest(),
            Self::Gguf(file) => file.digest(),
        }
    }

    /// Gives back the memory of what has been read so far.
    pub(crate) fn release(&self) {
        match self {
            Self::HuggingFace(files) => files.release(),
            Self::Gguf(file) => file.release(),
        }
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>, LoadError> {
        if !self.has(name) {
            return Err(LoadError::MissingTensor { name: name.to_owned() });
        }
        match self {
            Self::HuggingFace(files) => Ok(files.tensor(name)?),
            Self::Gguf(file) => Ok(file.tensor(name)?),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::HuggingFace(files) => files.has_tensor(name),
            Self::Gguf(file) => file.has_tensor(name),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::HuggingFace(files) => files.tensors().map(|t| t.name).collect(),
            Self::Gguf(file) => file.tensors().map(|t| t.name).collect(),
        }
    }

    /// Bytes of all tensors.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        match self {
            Self::HuggingFace(files) => files.tensors().map(|t| t.data.len() as u64).sum(),
            Self::Gguf(file) => file.tensors().map(|t| t.data.len() as u64).sum(),
        }
    }
}

/// Gives out a model's tensors and remembers which.
pub(crate) struct Weights<'a> {
    files: &'a ModelFiles,
    config: &'a ModelConfig,
    used: RefCell<BTreeSet<String>>,
    formats: RefCell<BTreeSet<&'static str>>,
}

/// A matrix whose rows can be read in the order the engine wants.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    pub(crate) format: QuantFormat,
    pub(crate) n_out: usize,
    pub(crate) k: usize,
    data: &'a [u8],
    /// Elements of a head whose rows are stored in interleaved pairs.
    interleaved: Option<usize>,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(files: &'a ModelFiles, config: &'a ModelConfig) -> Self {
        Self { files, config, used: RefCell::default(), formats: RefCell::default() }
    }

    /// The matrix of that role.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::Shape`], [`LoadError::Format`].
    pub(crate) fn matrix(&self, role: Role) -> Result<Tensor<'a>, LoadError> {
        let (n_out, k) = self.shape(role);
        let (stored, first) = self.stored(role);
        let view = self.take(&format!("{}.weight", self.name(stored)))?;
        expect_shape(&view, &[self.shape(stored).0, k])?;
        let format = format_of(view.dtype);
        if !k.is_multiple_of(format.block_elements()) {
            let expected = "a format whose blocks fit a row";
            return Err(LoadError::Format { name: view.name.to_owned(), expected, found: view.dtype.to_string() });
        }
        self.formats.borrow_mut().insert(view.dtype.name());
        let row_bytes = format.bytes_of(k);
        let data = &view.data[first * row_bytes..(first + n_out) * row_bytes];
        Ok(Tensor { format, n_out, k, data, interleaved: self.interleaved(role).then_some(self.config.head_dim) })
    }

    /// The gains of that norm.
    pub(crate) fn norm(&self, role: Role) -> Result<Vec<f32>, LoadError> {
        let (len, _) = self.shape(role);
        let mut gains = vector(&self.take(&format!("{}.weight", self.name(role)))?, len)?;
        if self.config.storage.gains_less_one {
            gains.iter_mut().for_each(|gain| *gain += 1.0);
        }
        Ok(gains)
    }

    /// The biases of that projection, if it has any.
    pub(crate) fn bias(&self, role: Role) -> Result<Option<Vec<f32>>, LoadError> {
        let name = format!("{}.bias", self.name(role));
        let storage = &self.config.storage;
        let biases = match role {
            Role::Query(_) | Role::Key(_) | Role::Value(_) => storage.qkv_bias,
            Role::AttentionOutput(_) => storage.output_bias,
            Role::Gate(_) | Role::Up(_) | Role::Down(_) => storage.mlp_bias,
            _ => Biases::None,
        };
        let there = match biases {
            Biases::None => false,
            Biases::All => true,
            Biases::Present => self.files.has(&name),
        };
        if !there {
            return Ok(None);
        }
        let (n_out, _) = self.shape(role);
        let bias = vector(&self.take(&name)?, n_out)?;
        let pairs = self.interleaved(role);
        let source = |row| if pairs { source_row(row, self.config.head_dim) } else { row };
        Ok(Some((0..n_out).map(|row| bias[source(row)]).collect()))
    }

    /// Formats of the matrices given out, e.g. `q4_1+q8_0`.
    pub(crate) fn formats(&self) -> String {
        self.formats.borrow().iter().map(|f| f.to_lowercase()).collect::<Vec<_>>().join("+")
    }

    /// Gives back the memory of tensors that have been read.
    pub(crate) fn release(&self) {
        self.files.release();
    }

    /// # Errors
    /// [`LoadError::UnusedTensors`] if the files hold tensors that nobody asked for.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        let used = self.used.into_inner();
        // Constants that older checkpoints carry, a tied head stored once more, and factors that went into the config.
        let known = |name: &str| {
            name.ends_with(".rotary_emb.inv_freq")
                || name == rope_factors::FACTORS
                || (self.config.ropes[0].original_context().is_some()
                    && [rope_factors::LONG, rope_factors::SHORT].contains(&name))
                || (self.config.storage.tied && name == "lm_head.weight")
        };
        let unused: Vec<_> = self.files.names().into_iter().filter(|n| !used.contains(*n) && !known(n)).collect();
        match unused.first() {
            Some(first) => Err(LoadError::UnusedTensors { first: (*first).to_owned(), count: unused.len() }),
            None => Ok(()),
        }
    }

    fn take(&self, name: &str) -> Result<TensorView<'a>, LoadError> {
        self.used.borrow_mut().insert(name.to_owned());
        self.files.tensor(name)
    }

    fn name(&self, role: Role) -> String {
        match self.files {
            ModelFiles::HuggingFace(_) => role.huggingface(self.config.norms),
            ModelFiles::Gguf(_) => role.gguf(),
        }
    }

    /// The tensor that holds a matrix, and which of its rows is the matrix's first.
    fn stored(&self, role: Role) -> (Role, usize) {
        let ModelConfig { n_q, n_kv, head_dim, ff_dim, .. } = *self.config;
        match role {
            Role::Query(l) if self.config.storage.fused => (Role::QueryKeyValue(l), 0),
            Role::Key(l) if self.config.storage.fused => (Role::QueryKeyValue(l), n_q * head_dim),
            Role::Value(l) if self.config.storage.fused => (Role::QueryKeyValue(l), (n_q + n_kv) * head_dim),
            Role::Gate(l) if self.config.storage.fused => (Role::GateUp(l), 0),
            Role::Up(l) if self.config.storage.fused => (Role::GateUp(l), ff_dim),
            whole => (whole, 0),
        }
    }

    /// Whether a matrix's rows are stored in interleaved pairs.
    fn interleaved(&self, role: Role) -> bool {
        self.config.storage.interleaved && matches!(role, Role::Query(_) | Role::Key(_))
    }

    /// Outputs and inputs of a matrix; elements of a norm, and 1.
    fn shape(&self, role: Role) -> (usize, usize) {
        let ModelConfig { n_vocab, dim, n_q, n_kv, head_dim, ff_dim, .. } = *self.config;
        match role {
            Role::Embedding | Role::Head => (n_vocab, dim),
            Role::Query(_) => (n_q * head_dim, dim),
            Role::Key(_) | Role::Value(_) => (n_kv * head_dim, dim),
            Role::QueryKeyValue(_) => ((n_q + 2 * n_kv) * head_dim, dim),
            Role::QueryNorm(_) if self.config.head_norm == Some(HeadNorm::Whole) => (n_q * head_dim, 1),
            Role::KeyNorm(_) if self.config.head_norm == Some(HeadNorm::Whole) => (n_kv * head_dim, 1),
            Role::QueryNorm(_) | Role::KeyNorm(_) => (head_dim, 1),
            Role::AttentionOutput(_) => (dim, n_q * head_dim),
            Role::Gate(_) | Role::Up(_) => (ff_dim, dim),
            Role::GateUp(_) => (2 * ff_dim, dim),
            Role::Down(_) => (dim, ff_dim),
            Role::AttentionNorm(_)
            | Role::AttentionPostNorm(_)
            | Role::FeedForwardNorm(_)
            | Role::FeedForwardPostNorm(_)
            | Role::FinalNorm => (dim, 1),
        }
    }
}

impl<'a> Tensor<'a> {
    /// Stored bytes of row `row`.
    pub(crate) fn row(&self, row: usize) -> &'a [u8] {
        let row = self.interleaved.map_or(row, |head_dim| source_row(row, head_dim));
        let row_bytes = self.format.bytes_of(self.k);
        &self.data[row * row_bytes..(row + 1) * row_bytes]
    }

    /// All stored bytes.
    pub(crate) fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Row `row` as floats.
    pub(crate) fn read_row(&self, row: usize, out: &mut [f32]) {
        dequantize(self.format, self.row(row), out);
    }
}

/// Where a file with interleaved pairs keeps row `row` of query and key projections: its pairs are neighbours, ours half a head apart.
/// Permuting outputs permutes queries and keys alike, so scores are the same.
fn source_row(row: usize, head_dim: usize) -> usize {
    let (head, i) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + if i < half { 2 * i } else { 2 * (i - half) + 1 }
}

/// A float vector of `len` elements.
pub(super) fn vector(view: &TensorView<'_>, len: usize) -> Result<Vec<f32>, LoadError> {
    expect_shape(view, &[len])?;
    if !matches!(view.dtype, DType::F32 | DType::F16 | DType::BF16) {
        let expected = "floats";
        return Err(LoadError::Format { name: view.name.to_owned(), expected, found: view.dtype.to_string() });
    }
    let mut out = vec![0.0; len];
    dequantize(format_of(view.dtype), view.data, &mut out);
    Ok(out)
}

fn expect_shape(view: &TensorView<'_>, expected: &[usize]) -> Result<(), LoadError> {
    if view.shape != expected {
        let (expected, found) = (expected.to_vec(), view.shape.to_vec());
        return Err(LoadError::Shape { name: view.name.to_owned(), expected, found });
    }
    Ok(())
}

fn format_of(dtype: DType) -> QuantFormat {
    match dtype {
        DType::F32 => QuantFormat::F32,
        DType::F16 => QuantFormat::F16,
        DType::BF16 => QuantFormat::BF16,
        DType::Q8_0 => QuantFormat::Q8_0,
        DType::Q4_0 => QuantFormat::Q4_0,
        DType::Q4_1 => QuantFormat::Q4_1,
        DType::Q4K => QuantFormat::Q4K,
        DType::Q5K => QuantFormat::Q5K,
        DType::Q6K => QuantFormat::Q6K,
    }
}

fn file_name(path: &Path) -> String {
    path.display().to_string()
}
