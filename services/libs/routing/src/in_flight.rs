//! Work of ours that a worker has, counted while a guard lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Written by [`InFlight`] guards alone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sequences: AtomicU64,
    tokens: AtomicU64,
    blocks: AtomicU64,
}

/// Counts work at its worker until dropped.
#[derive(Debug)]
pub struct InFlight {
    counters: Arc<Counters>,
    sequences: u64,
    tokens: u64,
    blocks: u64,
}

impl Counters {
    pub(crate) fn sequences(&self) -> u64 {
        self.sequences.load(Ordering::Relaxed)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens.load(Ordering::Relaxed)
    }

    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }
}

impl InFlight {
    /// A sequence with its blocks.
    pub(crate) fn sequence(counters: Arc<Counters>, blocks: u64) -> Self {
        Self::start(counters, 1, 0, blocks)
    }

    /// A prompt to be computed; a sequence of its own where nothing else will come of it.
    pub(crate) fn prompt(counters: Arc<Counters>, tokens: u64, alone: bool) -> Self {
        Self::start(counters, u64::from(alone), tokens, 0)
    }

    fn start(counters: Arc<Counters>, sequences: u64, tokens: u64, blocks: u64) -> Self {
        counters.sequences.fetch_add(sequences, Ordering::Relaxed);
        counters.tokens.fetch_add(tokens, Ordering::Relaxed);
        counters.blocks.fetch_add(blocks, Ordering::Relaxed);
        Self { counters, sequences, tokens, blocks }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counters.sequences.fetch_sub(self.sequences, Ordering::Relaxed);
        self.counters.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        self.counters.blocks.fetch_sub(self.blocks, Ordering::Relaxed);
    }
}
