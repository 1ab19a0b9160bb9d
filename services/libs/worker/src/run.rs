//! Running jobs as their callers see them.

use tokio::sync::{mpsc, oneshot};
use types::{Failure, PhaseTimes, Token};

use crate::guard::Guard;
use crate::{Started, fail};

/// A prefill under way. Dropping it cancels what is left to compute; the [`Hold`](crate::Hold) that
/// [`started`](Self::started) gave lives on by itself.
#[derive(Debug)]
pub struct PrefillRun {
    pub(crate) started: Option<oneshot::Receiver<Result<Started, Failure>>>,
    pub(crate) first: Option<oneshot::Receiver<Result<(Token, PhaseTimes), Failure>>>,
    pub(crate) _guard: Guard,
}

impl PrefillRun {
    /// Waits until the prompt's blocks are allocated and its first step begins. Once.
    ///
    /// # Errors
    /// Cancelled, past the deadline, the worker stopped; or it was called before.
    pub async fn started(&mut self) -> Result<Started, Failure> {
        take_once(&mut self.started, "start").await
    }

    /// Waits for the first token, with the times of `prefill_queue` and `prefill`. Once.
    ///
    /// # Errors
    /// Cancelled, past the deadline, engine failure, the worker stopped; or it was called before.
    pub async fn first_token(&mut self) -> Result<(Token, PhaseTimes), Failure> {
        take_once(&mut self.first, "first token").await
    }
}

/// A decode under way. Dropping it cancels.
#[derive(Debug)]
pub struct DecodeRun {
    /// Capacity for every token the sequence may have and a failure, so sending never waits.
    pub(crate) items: mpsc::Receiver<DecodeItem>,
    pub(crate) phases: PhaseTimes,
    pub(crate) n_cached: u32,
    pub(crate) ended: bool,
    pub(crate) _guard: Guard,
}

/// A token, or the end of it, and the times known by then.
#[derive(Debug)]
pub(crate) struct DecodeItem {
    pub(crate) token: Result<Token, Failure>,
    pub(crate) phases: PhaseTimes,
    pub(crate) n_cached: u32,
}

impl DecodeRun {
    /// The next token, in order of position; `None` after the token that has `finish` set, or after a
    /// failure. A stream never ends without one of the two.
    pub async fn next(&mut self) -> Option<Result<Token, Failure>> {
        if self.ended {
            return None;
        }
        let item = match self.items.recv().await {
            Some(item) => item,
            None => DecodeItem { token: Err(fail::stopped()), phases: self.phases, n_cached: self.n_cached },
        };
        (self.phases, self.n_cached) = (item.phases, item.n_cached);
        self.ended = item.token.as_ref().map_or(true, |token| token.finish.is_some());
        Some(item.token)
    }

    /// Tokens of the prompt that were not computed because their KV was here; 0 after a handoff. Known with the first
    /// token.
    pub fn n_cached(&self) -> u32 {
        self.n_cached
    }

    /// Times known so far: `decode_queue` and `first_step` after a handoff, `prefill_queue` and
    /// `prefill` where the prompt was computed here.
    pub fn phases(&self) -> PhaseTimes {
        self.phases
    }
}

async fn take_once<T>(slot: &mut Option<oneshot::Receiver<Result<T, Failure>>>, what: &str) -> Result<T, Failure> {
    let receiver = slot.as_mut().ok_or_else(|| Failure::internal(format!("the {what} was taken before")))?;
    let result = receiver.await.unwrap_or_else(|_| Err(fail::stopped()));
    *slot = None;
    result
}
