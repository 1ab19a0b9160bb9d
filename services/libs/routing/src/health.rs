//! Why a worker is used, or is not.

use std::sync::Arc;

use types::Load;

use crate::WorkerInfo;

/// Whether a worker gets new work.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Health {
    /// Yes.
    Up,
    /// Failed a moment ago; used only where nobody else can.
    Suspect,
    /// It asked for none.
    Draining,
    /// Serves another model, or nobody could take its blocks.
    Incompatible,
}

impl Health {
    /// Upper-case name, as in the cluster state.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Suspect => "SUSPECT",
            Self::Draining => "DRAINING",
            Self::Incompatible => "INCOMPATIBLE",
        }
    }
}

/// All that is known about a worker.
#[derive(Clone, PartialEq, Debug)]
pub struct WorkerState {
    /// What it said when it joined.
    pub info: Arc<WorkerInfo>,
    /// Whether it gets new work.
    pub health: Health,
    /// Why not, empty if it does.
    pub reason: String,
    /// Its last report.
    pub load: Option<Load>,
    /// Sequences of ours that it has.
    pub own_sequences: u64,
}
