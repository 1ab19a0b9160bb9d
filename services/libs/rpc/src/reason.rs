//! Reasons of failures, as static strings.
//!
//! A [`types::Failure`] names its reason by a `&'static str`. One that comes from another process is looked up
//! here; a reason this build does not know is remembered, but only so many of them, so that no peer can make
//! this process grow.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// Unknown reason of another process, when no more can be remembered.
pub const REMOTE_FAILURE: &str = "REMOTE_FAILURE";
/// No connection could be made: the call did not happen.
pub const PEER_UNREACHABLE: &str = "PEER_UNREACHABLE";
/// The connection broke, or the stream ended before its last event.
pub const PEER_LOST: &str = "PEER_LOST";
/// The other side sent something that breaks the protocol.
pub const MALFORMED_RESPONSE: &str = "MALFORMED_RESPONSE";
/// The request's time is over.
pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
/// The call names an incarnation of the worker that is not this one.
pub const STALE_EPOCH: &str = "STALE_EPOCH";
/// The call comes from an owner of the request that has been replaced.
pub const STALE_OWNER: &str = "STALE_OWNER";
/// The worker takes no new work.
pub const DRAINING: &str = "DRAINING";
/// The choice of the request is already being served here.
pub const DUPLICATE_REQUEST: &str = "DUPLICATE_REQUEST";
/// The choice ended with its first token: there is nothing to hand over.
pub const CHOICE_FINISHED: &str = "CHOICE_FINISHED";
/// The compatibility documents differ.
pub const INCOMPATIBLE: &str = "INCOMPATIBLE";

const KNOWN: [&str; 18] = [
    CHOICE_FINISHED,
    REMOTE_FAILURE,
    PEER_UNREACHABLE,
    PEER_LOST,
    MALFORMED_RESPONSE,
    DEADLINE_EXCEEDED,
    STALE_EPOCH,
    STALE_OWNER,
    DRAINING,
    DUPLICATE_REQUEST,
    INCOMPATIBLE,
    "INVALID_ARGUMENT",
    "INTERNAL",
    "CANCELLED",
    "MODEL_NOT_FOUND",
    "NO_ROOM",
    "QUEUE_FULL",
    "NO_WORKER",
];

/// Most reasons remembered beyond the known ones, and the length of the longest.
const LEARNED_MAX: usize = 256;
const REASON_BYTES_MAX: usize = 64;

static LEARNED: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

/// The static string equal to `reason`; [`REMOTE_FAILURE`] if it is not `UPPER_SNAKE`, too long, or one too many.
pub fn intern(reason: &str) -> &'static str {
    if let Some(known) = KNOWN.iter().find(|known| **known == reason) {
        return known;
    }
    let well_formed = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if reason.is_empty() || reason.len() > REASON_BYTES_MAX || !reason.chars().all(well_formed) {
        return REMOTE_FAILURE;
    }
    let mut learned = LEARNED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = learned.get(reason) {
        return known;
    }
    if learned.len() >= LEARNED_MAX {
        return REMOTE_FAILURE;
    }
    let leaked: &'static str = Box::leak(reason.to_owned().into_boxed_str());
    learned.insert(leaked);
    leaked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_is_well_formed_and_no_more_than_the_limit() {
        for bad in ["", "lower", "WITH SPACE", "ÄRGER", &"X".repeat(65)] {
            assert_eq!(intern(bad), REMOTE_FAILURE);
        }
        assert_eq!(intern("STALE_EPOCH"), STALE_EPOCH);
        let first = intern("A_NEW_REASON");
        assert_eq!(first, "A_NEW_REASON");
        for i in 0..2 * LEARNED_MAX {
            intern(&format!("FLOOD_{i}"));
        }
        assert_eq!(intern("ONE_TOO_MANY"), REMOTE_FAILURE);
        assert!(std::ptr::eq(intern("A_NEW_REASON"), first));
    }
}
