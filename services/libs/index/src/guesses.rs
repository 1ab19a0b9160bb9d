//! What the router's own choices make likely: a worker that was given a prompt holds its blocks for a while.
//!
//! Two generations, each living half of the time: a guess is forgotten between one half and the whole of it after its
//! last renewal, without a time in each block.

use std::time::Duration;

use types::BlockHash;

use crate::tree::Tree;

/// See the module. Times are since an origin that the caller keeps.
#[derive(Debug)]
pub(crate) struct Guesses {
    young: Tree,
    old: Tree,
    /// When the young generation began.
    since: Duration,
    half: Duration,
}

impl Guesses {
    /// Each generation takes half of `bytes`.
    pub(crate) fn new(bytes: usize, words: usize, seed: u64, lifetime: Duration) -> Self {
        let tree = || Tree::new(bytes / 2, words, seed);
        Self { young: tree(), old: tree(), since: Duration::ZERO, half: (lifetime / 2).max(Duration::from_nanos(1)) }
    }

    /// Forgets what is too old.
    pub(crate) fn age(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.since);
        if passed < self.half {
            return;
        }
        std::mem::swap(&mut self.young, &mut self.old);
        self.young.clear();
        if passed >= 2 * self.half {
            self.old.clear();
        }
        self.since = now;
    }

    pub(crate) fn insert(&mut self, worker: usize, hashes: &[BlockHash]) {
        self.young.insert(worker, None, hashes);
    }

    pub(crate) fn remove_all(&mut self, worker: usize) {
        self.young.remove_all(worker);
        self.old.remove_all(worker);
    }

    /// Raises `counts` to what is likely.
    pub(crate) fn lookup(&self, hashes: &[BlockHash], counts: &mut [u32]) {
        self.young.lookup(hashes, counts);
        self.old.lookup(hashes, counts);
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.young.n_blocks() + self.old.n_blocks()
    }

    pub(crate) fn n_evicted(&self) -> u64 {
        self.young.n_evicted() + self.old.n_evicted()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.young.bytes() + self.old.bytes()
    }
}
