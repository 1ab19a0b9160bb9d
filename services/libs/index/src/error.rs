//! Why events were not taken.

use types::{Epoch, WorkerRef};

/// A batch that was not applied.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The worker must send a snapshot: a batch that begins with [`types::KvEvent::Cleared`].
    #[error("a snapshot of {worker} is wanted: {why}")]
    ResyncWanted {
        /// Whose.
        worker: WorkerRef,
        /// Why.
        why: Resync,
    },
    /// It comes from an incarnation that is gone.
    #[error("{worker} is gone, its name is at epoch {}", present.0)]
    OlderEpoch {
        /// Who sent it.
        worker: WorkerRef,
        /// The incarnation that is known.
        present: Epoch,
    },
}

/// Why a snapshot is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Resync {
    /// Nothing of this incarnation has been heard yet.
    #[error("none has been heard yet")]
    First,
    /// The connection was lost in the middle of a snapshot.
    #[error("the connection was lost in the middle of one")]
    Reconnected,
    /// Batches are missing.
    #[error("batch {got} came after {last}")]
    Gap {
        /// The last one applied.
        last: u64,
        /// The one that came.
        got: u64,
    },
}
