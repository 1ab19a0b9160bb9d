//! What a handle asks of the driver.

use std::time::Duration;

use tokio::sync::oneshot;
use types::{Accounting, BlockHash, Failure, KvEvent, RequestId};

use crate::{DecodeJob, DecodeRun, Landing, PrefillJob, PrefillRun, Reserved, SeqKey};

pub(crate) type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// If a caller has gone before its answer, the answer is dropped here and gives itself back.
pub(crate) enum Command {
    Reserve {
        ask: ReserveAsk,
        reply: Reply<Reserved>,
    },
    Claim {
        id: [u8; 16],
        key: SeqKey,
        /// Names of the prompt's full blocks.
        hashes: Vec<BlockHash>,
        reply: Reply<Landing>,
    },
    Prefill {
        job: PrefillJob,
        reply: Reply<PrefillRun>,
    },
    Decode {
        job: Box<DecodeJob>,
        reply: Reply<DecodeRun>,
    },
    Cancel {
        request: RequestId,
        choice: Option<u32>,
        reply: oneshot::Sender<bool>,
    },
    Accounting {
        reply: oneshot::Sender<Accounting>,
    },
    /// The prefix cache as it is now, and the id of the batch of events that led there.
    Snapshot {
        reply: oneshot::Sender<(u64, Vec<KvEvent>)>,
    },
    /// Answered when the worker is empty.
    Drain {
        reply: oneshot::Sender<()>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ReserveAsk {
    pub(crate) key: SeqKey,
    pub(crate) n_prompt: usize,
    pub(crate) max_new: usize,
    pub(crate) hold: Duration,
}
