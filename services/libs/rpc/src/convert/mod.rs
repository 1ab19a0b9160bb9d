//! Wire messages to domain values, checked, and back.
//!
//! `read_*` takes what a peer sent and refuses what is out of range, naming the field; `write_*` cannot fail.
//! Ranges that need the model (vocabulary, context) are checked by whoever has it.

mod compat;
mod identity;
mod inference;
mod kv_events;
mod sampling;
mod token;
mod worker;

pub use compat::{read_compatibility, write_compatibility};
pub use identity::{
    read_context, read_duration_ms, read_hash, read_request_id, read_worker_ref, write_context, write_duration_ms,
    write_request_id, write_worker_ref,
};
pub(crate) use inference::*;
pub(crate) use kv_events::*;
pub use sampling::{read_sampling, read_stop, write_sampling, write_stop};
pub use token::{read_handoff, read_phases, read_token, write_handoff, write_phases, write_token};
pub(crate) use worker::*;

use types::Failure;

/// Most token ids in one message.
pub(crate) const TOKENS_MAX: usize = 1 << 20;
/// Most entries of other lists.
pub(crate) const LIST_MAX: usize = 4096;
/// Longest name (worker, address, digest, role), bytes.
pub(crate) const NAME_BYTES_MAX: usize = 1024;

/// The message that must be there.
pub(crate) fn required<T>(value: Option<T>, param: &str) -> Result<T, Failure> {
    value.ok_or_else(|| Failure::invalid(param, format!("{param} is missing")))
}

/// The list, if it is not longer than `max`.
pub(crate) fn bounded<T>(list: Vec<T>, max: usize, param: &str) -> Result<Vec<T>, Failure> {
    if list.len() > max {
        return Err(Failure::invalid(param, format!("{param} must have at most {max} entries")));
    }
    Ok(list)
}

/// The text, if it is not longer than a name may be.
pub(crate) fn name(text: String, param: &str) -> Result<String, Failure> {
    if text.len() > NAME_BYTES_MAX {
        return Err(Failure::invalid(param, format!("{param} must have at most {NAME_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// The number, if it is one.
pub(crate) fn finite(value: f32, param: &str) -> Result<f32, Failure> {
    if !value.is_finite() {
        return Err(Failure::invalid(param, format!("{param} must be a finite number")));
    }
    Ok(value)
}
