//! Ownership in callers' hands: given back on drop.

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use types::BlockIdx;

use scheduler::{HoldId, LandingId, SeqId};

use crate::SeqKey;

/// Sent by a guard that was dropped.
///
/// The channel has no bound of its own: every guard sends at most one, and guards stand for admitted
/// sequences, which are bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Release {
    /// Nobody wants the sequence's tokens any more.
    Sequence(SeqId),
    /// The transfer has ended.
    Hold(HoldId),
    /// The blocks will not be decoded from.
    Landing(LandingId),
}

/// Sends its release when dropped, unless disarmed.
#[derive(Debug)]
pub(crate) struct Guard {
    release: Option<Release>,
    releases: mpsc::UnboundedSender<Release>,
}

impl Guard {
    pub(crate) fn new(release: Release, releases: &mpsc::UnboundedSender<Release>) -> Self {
        Self { release: Some(release), releases: releases.clone() }
    }

    pub(crate) fn disarm(&mut self) {
        self.release = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            // A driver that is gone has freed everything.
            let _ = self.releases.send(release);
        }
    }
}

/// A transfer's ownership of a prompt's blocks on the worker that computes them. Dropping it gives
/// them back: only when nobody reads them any more.
#[derive(Debug)]
pub struct Hold {
    pub(crate) blocks: Vec<BlockIdx>,
    pub(crate) progress: watch::Receiver<u64>,
    pub(crate) _guard: Guard,
}

impl Hold {
    /// The prompt's blocks, in order.
    pub fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }

    /// Changes whenever more KV of these blocks was published (the arena's watermarks say how much).
    /// Closes when computing has ended, for whatever reason: nothing more will be published.
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }
}

/// Blocks for a prompt's KV that is on its way here, owned by the request and by the transfer: those at the
/// beginning that were here already, which are shared, and empty ones.
/// Dropping it gives both up: only when nobody writes into them any more.
#[derive(Debug)]
pub struct Landing {
    pub(crate) id: LandingId,
    pub(crate) key: SeqKey,
    pub(crate) n_prompt: usize,
    pub(crate) blocks: Vec<BlockIdx>,
    pub(crate) n_cached: usize,
    pub(crate) cancelled: CancellationToken,
    pub(crate) request: Guard,
    pub(crate) _transfer: Guard,
}

impl Landing {
    /// Blocks for the prompt, in order.
    pub fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }

    /// How many of the first blocks are here already: full, under their names, not to be written into. Never all.
    pub fn n_cached(&self) -> usize {
        self.n_cached
    }

    /// Tokens of the prompt that was reserved for.
    pub fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Resolves when the request was cancelled or the worker stops: the pull is to end. The blocks stay
    /// out of use until this is dropped.
    pub fn cancelled(&self) -> WaitForCancellationFuture<'_> {
        self.cancelled.cancelled()
    }
}
