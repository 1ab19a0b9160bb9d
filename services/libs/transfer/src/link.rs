//! What a KV data transport is: how a source and a reader of one fetch speak to each other.
//!
//! A transport gives the source an [`Outlet`] and [`Ears`], and the reader an [`Inlet`]. Everything that must hold
//! for all of them (who may fetch, what is sent when, what is checked, when a hold ends) is in `produce.rs` and
//! `pull.rs`, once.

use async_trait::async_trait;
use proto::v1 as wire;
use types::Failure;

use crate::assembly::{Assembly, Round};
use crate::cells::Batch;
use crate::frame::{CellId, FrameFault};
use crate::pull::PullError;

/// A way for KV to travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TransportKind {
    /// Messages of a gRPC stream: what always works.
    Grpc,
    /// Raw frames on a TCP connection.
    Tcp,
    /// A ring of memory that both processes map: on one machine only.
    Shm,
}

impl TransportKind {
    /// Its name in flags, metrics and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Shm => "shm",
        }
    }
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The reader is gone or its connection broke: there is nobody to tell.
#[derive(Debug)]
pub(crate) struct ReaderGone;

/// A source's way to its reader.
#[async_trait]
pub(crate) trait Outlet: Send {
    fn kind(&self) -> TransportKind;

    /// Sends cells and returns their checksums in the same order. Dropping the future leaves the connection unusable.
    async fn cells(&mut self, batch: Batch) -> Result<Vec<u64>, ReaderGone>;

    /// Says that there is nothing to send yet.
    async fn beat(&mut self) -> Result<(), ReaderGone>;

    /// Closes the fetch.
    async fn manifest(&mut self, manifest: wire::Manifest) -> Result<(), ReaderGone>;

    /// Says why there will be no manifest.
    async fn refuse(&mut self, failure: &Failure) -> Result<(), ReaderGone>;
}

/// What a source hears of its reader.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// It is alive.
    Holding,
    /// It has everything: its last word.
    Sealed,
    /// It gave up: its last word.
    Failed(String),
    /// It closed its end without one.
    Left,
}

#[async_trait]
pub(crate) trait Ears: Send {
    /// The next word of the reader; after a last word or `Left`, not called again.
    async fn hear(&mut self) -> Heard;
}

/// What a reader gets.
pub(crate) enum Arrived {
    /// Cells, landed or rejected; none: the source is alive.
    Cells(Landed),
    /// The closing record.
    Manifest(wire::Manifest),
    /// Bytes that make no sense: nothing more can come of this connection, what is missing may come over another.
    Damaged(String),
}

/// A batch that arrived.
#[derive(Default)]
pub(crate) struct Landed {
    pub(crate) n_cells: u64,
    pub(crate) bytes: u64,
    pub(crate) rejected: Vec<(CellId, FrameFault)>,
}

/// A reader's last word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum LastWord {
    Sealed,
    Failed(String),
}

/// A reader's side of one fetch. While it lives, the source hears every second that the reader does, by a task of its
/// own; dropping it closes the connection.
#[async_trait]
pub(crate) trait Inlet: Send {
    /// Lands what comes next. Dropping the future leaves the connection unusable.
    async fn next(&mut self, assembly: &mut Assembly<'_>, round: &mut Round) -> Result<Arrived, PullError>;

    /// Says the last word, in the background: nobody waits for the other side.
    fn end(self: Box<Self>, word: LastWord);
}

/// A reader's way to open fetches. One transport, all peers.
#[async_trait]
pub(crate) trait Transport: Send + Sync {
    /// Asks for everything, or for the cells in `only`.
    ///
    /// # Errors
    /// [`OpenError::Unreachable`]: nothing was asked, another transport may be tried.
    async fn open(&self, pull: &crate::Pull, only: &[CellId]) -> Result<Box<dyn Inlet>, OpenError>;
}

/// Why a fetch could not be opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// This transport does not reach the peer.
    Unreachable(String),
    /// The peer said no, or was lost after it was asked.
    Failed(PullError),
}

impl From<PullError> for OpenError {
    fn from(error: PullError) -> Self {
        Self::Failed(error)
    }
}
