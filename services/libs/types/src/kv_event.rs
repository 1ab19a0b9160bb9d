//! What changes in a worker's prefix cache, as it tells its routers.

use crate::BlockHash;

/// One change of the set of blocks that a worker can share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KvEvent {
    /// These blocks can be shared from now on: one chain, each the parent of the next.
    Stored {
        /// In sequence order, at least one.
        hashes: Vec<BlockHash>,
        /// The block that the first one follows; `None`: it is a sequence's first.
        parent: Option<BlockHash>,
    },
    /// These cannot be shared any more. Children come before their parents.
    Removed {
        /// At least one.
        hashes: Vec<BlockHash>,
    },
    /// Nothing can be shared any more.
    Cleared,
}

/// Changes in the order in which they happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEventBatch {
    /// What a subscriber that has applied this batch (and all before it) may continue after. Grows by one from batch
    /// to batch within an epoch, from 1. 0: a piece of a snapshot that is not complete yet, nothing to continue after.
    pub id: u64,
    /// At least one.
    pub events: Vec<KvEvent>,
}

impl KvEvent {
    /// Hashes that it names.
    pub fn n_hashes(&self) -> usize {
        match self {
            Self::Stored { hashes, .. } | Self::Removed { hashes } => hashes.len(),
            Self::Cleared => 0,
        }
    }
}
