//! What a worker says about its prefix cache.

use crate::BlockHash;

/// One change of a worker's prefix cache.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KvEvent {
    /// Blocks that follow one another can be reused from now on.
    Stored {
        /// The block that the first one follows; `None`: it begins a sequence.
        parent: Option<BlockHash>,
        /// In the order of the sequence.
        hashes: Vec<BlockHash>,
    },
    /// Blocks that are gone.
    Removed {
        /// In any order.
        hashes: Vec<BlockHash>,
    },
    /// Every block is gone. Also the beginning of a snapshot.
    Cleared,
}

/// Changes in the order in which they happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvEventBatch {
    /// Grows by one from batch to batch of an incarnation.
    pub id: u64,
    /// At least one, as a rule.
    pub events: Vec<KvEvent>,
}
