//! Ranges of a configuration's numbers, checked before anything is computed from them.

use crate::LoadError;
use crate::model::ModelConfig;

/// Largest value of each dimension: far above any model, far below where products overflow.
pub(super) const DIM_MAX: u64 = 1 << 20;
pub(super) const LAYERS_MAX: u64 = 1 << 12;
pub(super) const HEADS_MAX: u64 = 1 << 12;
pub(super) const HEAD_DIM_MAX: u64 = 1 << 12;
pub(super) const VOCAB_MAX: u64 = 1 << 24;
pub(super) const CONTEXT_MAX: u64 = 1 << 30;

/// Names of the settings that messages mention.
pub(super) struct FieldNames<'a> {
    pub(super) file: &'a str,
    pub(super) n_q: &'a str,
    pub(super) n_kv: &'a str,
    pub(super) head_dim: &'a str,
    pub(super) norm_eps: &'a str,
    pub(super) eos: &'a str,
    pub(super) bos: &'a str,
}

/// An error that names a setting.
pub(super) fn bad(file: &str, field: &str, reason: impl Into<String>) -> LoadError {
    LoadError::Config { file: file.to_owned(), field: field.to_owned(), reason: reason.into() }
}

/// An error for a setting that asks for something else than this engine computes.
pub(super) fn unsupported(file: &str, field: &str, value: impl Into<String>) -> LoadError {
    LoadError::Unsupported { file: file.to_owned(), field: field.to_owned(), value: value.into() }
}

/// Checks a number against its range.
pub(super) fn in_range(file: &str, field: &str, value: u64, max: u64) -> Result<usize, LoadError> {
    if value == 0 || value > max {
        return Err(bad(file, field, format!("is {value}, must be between 1 and {max}")));
    }
    usize::try_from(value).map_err(|_| bad(file, field, format!("is {value}, too large for this machine")))
}

/// Checks how the numbers fit together.
pub(super) fn check(config: &ModelConfig, names: &FieldNames<'_>) -> Result<(), LoadError> {
    let ModelConfig { n_q, n_kv, head_dim, norm_eps, n_vocab, .. } = *config;
    if n_q % n_kv != 0 {
        return Err(bad(names.file, names.n_kv, format!("is {n_kv}, does not divide {} = {n_q}", names.n_q)));
    }
    if head_dim % 2 != 0 {
        return Err(bad(names.file, names.head_dim, format!("is {head_dim}, must be even")));
    }
    if !(norm_eps.is_finite() && norm_eps >= 0.0) {
        return Err(bad(names.file, names.norm_eps, format!("is {norm_eps}, must be a number of at least 0")));
    }
    for (field, tokens) in [(names.eos, &config.eos[..]), (names.bos, config.bos.as_slice())] {
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= n_vocab) {
            return Err(bad(names.file, field, format!("is {token}, outside the vocabulary of {n_vocab}")));
        }
    }
    Ok(())
}
