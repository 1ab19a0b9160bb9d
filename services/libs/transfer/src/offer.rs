//! An offer: one prompt's KV, held for one reader.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use types::{BlockHash, BlockIdx, Code, Epoch, Failure, Handoff, RequestId, WorkerRef};

use crate::source::Source;

/// Ownership of the blocks that are read. Dropping it gives them back.
pub trait KvHold: Send {
    /// The prompt's blocks, in order.
    fn blocks(&self) -> &[BlockIdx];
    /// Changes whenever more rows of the blocks were published; closes when nothing more will be.
    fn progress(&self) -> watch::Receiver<u64>;
}

/// What is offered, to whom.
pub struct Offer {
    /// Whose KV.
    pub request: RequestId,
    /// Which of the request's choices.
    pub choice: u32,
    /// The incarnation of this worker that accepted the request.
    pub worker: WorkerRef,
    /// Fencing epoch of the request's owner.
    pub owner_epoch: Epoch,
    /// The only worker that may fetch.
    pub reader: WorkerRef,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Hash of every block, the last partial one included.
    pub hashes: Vec<BlockHash>,
    /// Keeps the blocks.
    pub hold: Box<dyn KvHold>,
    /// The offer ends when nobody opened a fetch this long after [`OfferHandle::finish`].
    pub hold_for: Duration,
}

/// How an offer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ended {
    /// Why.
    pub cause: EndCause,
    /// Payload bytes sent.
    pub bytes: u64,
}

/// Why an offer ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EndCause {
    /// The reader said that everything arrived and matched.
    Fetched,
    /// The reader gave up, left without a word, or stopped reading.
    Abandoned,
    /// The reader said nothing for too long, and its connection was closed.
    Fenced,
    /// Nobody opened a fetch in time.
    Expired,
}

/// The offering side's end. Dropping it withdraws the offer: an open fetch then fails with a typed error.
pub struct OfferHandle {
    source: Arc<Source>,
    offered: Arc<Offered>,
}

impl OfferHandle {
    /// The first token was sampled: the manifest can be sent.
    pub fn finish(&self, handoff: Handoff) {
        self.offered.set_state(State::Ready(Arc::new(handoff)));
    }

    /// Computing failed: the reader is told. Dropping the handle then ends the offer.
    pub fn fail(&self, failure: Failure) {
        self.offered.set_state(State::Failed(failure));
    }

    /// Waits until the reader is done, or did not come. Call it after [`Self::finish`]: the time that the reader
    /// has to open its fetch starts now. The hold has been given back when this returns, unless a fetch that was
    /// cut off is still closing.
    pub async fn ended(self) -> Ended {
        let mut done = self.offered.done.subscribe();
        let expired = async {
            tokio::time::sleep(self.offered.hold_for).await;
            if !self.offered.expire() {
                // A reader is at work: its own limits end it.
                std::future::pending::<()>().await;
            }
        };
        let cause = tokio::select! {
            // The sender lives in `offered`, so this cannot fail.
            done = done.wait_for(Option::is_some) => done.ok().and_then(|cause| *cause).unwrap_or(EndCause::Abandoned),
            () = expired => EndCause::Expired,
        };
        self.source.metrics().count_offer(match cause {
            EndCause::Fetched => "fetched",
            EndCause::Abandoned => "abandoned",
            EndCause::Fenced => "fenced",
            EndCause::Expired => "expired",
        });
        Ended { cause, bytes: self.offered.bytes.load(Ordering::Relaxed) }
    }

    pub(crate) fn new(source: Arc<Source>, offered: Arc<Offered>) -> Self {
        Self { source, offered }
    }
}

impl Drop for OfferHandle {
    fn drop(&mut self) {
        let message = "the prefill worker withdrew its offer";
        let withdrawn = Failure::new(Code::Aborted, "KV_WITHDRAWN", message);
        // Does not replace an earlier failure.
        self.offered.set_state(State::Failed(withdrawn.clone()));
        let failure = match &*self.offered.state.borrow() {
            State::Failed(failure) => failure.clone(),
            State::Computing | State::Ready(_) => withdrawn,
        };
        self.source.withdraw(&self.offered, failure);
    }
}

/// What a fetch can expect.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Computing,
    Ready(Arc<Handoff>),
    Failed(Failure),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reading {
    NotYet,
    Open,
    Over,
}

/// An offer as fetches see it. The hold ends with the last reference: the handle's, or a fetch's.
pub(crate) struct Offered {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
    pub(crate) worker: WorkerRef,
    pub(crate) owner_epoch: Epoch,
    pub(crate) reader: WorkerRef,
    pub(crate) n_tokens: usize,
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) blocks: Vec<BlockIdx>,
    pub(crate) progress: watch::Receiver<u64>,
    pub(crate) state: watch::Sender<State>,
    /// Payload bytes sent.
    pub(crate) bytes: AtomicU64,
    hold_for: Duration,
    done: watch::Sender<Option<EndCause>>,
    reading: Mutex<(Reading, u32)>,
    /// Only kept; behind a mutex because a hold need not be `Sync`.
    _hold: Mutex<Box<dyn KvHold>>,
}

/// Repairs that one reader may ask for.
const REFETCHES_MAX: u32 = 4;

impl Offered {
    pub(crate) fn new(offer: Offer) -> Self {
        let blocks = offer.hold.blocks().to_vec();
        let progress = offer.hold.progress();
        Self {
            request: offer.request,
            choice: offer.choice,
            worker: offer.worker,
            owner_epoch: offer.owner_epoch,
            reader: offer.reader,
            n_tokens: offer.n_tokens,
            hashes: offer.hashes,
            blocks,
            progress,
            state: watch::Sender::new(State::Computing),
            bytes: AtomicU64::new(0),
            hold_for: offer.hold_for,
            done: watch::Sender::new(None),
            reading: Mutex::new((Reading::NotYet, REFETCHES_MAX)),
            _hold: Mutex::new(offer.hold),
        }
    }

    pub(crate) fn key(&self) -> (RequestId, u32) {
        (self.request, self.choice)
    }

    /// Begins a fetch of everything, once, or a repair beside it.
    ///
    /// # Errors
    /// It was fetched before, or the reader that a repair belongs to has left.
    pub(crate) fn open(self: &Arc<Self>, repair: bool) -> Result<Fetching, Failure> {
        let refuse = |message: &str| Err(Failure::new(Code::FailedPrecondition, "KV_NOT_FETCHABLE", message));
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        match (*reading, repair) {
            ((Reading::NotYet, n), false) => *reading = (Reading::Open, n),
            ((Reading::Open, n), true) if n > 0 => *reading = (Reading::Open, n - 1),
            ((Reading::NotYet, _), true) => return refuse("nothing was fetched yet that could be repaired"),
            ((Reading::Open, _), true) => return refuse("no more repairs"),
            (_, _) => return refuse("fetched before"),
        }
        Ok(Fetching { offered: self.clone(), repair, cause: EndCause::Abandoned })
    }

    /// Ends the offer unless somebody fetches or fetched; whether it did.
    fn expire(&self) -> bool {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let unread = reading.0 == Reading::NotYet;
        if unread {
            reading.0 = Reading::Over;
        }
        unread
    }

    /// The first failure stays.
    fn set_state(&self, state: State) {
        self.state.send_if_modified(|now| {
            let failed = matches!(now, State::Failed(_));
            if !failed {
                *now = state;
            }
            !failed
        });
    }
}

/// A fetch under way: keeps the hold, and says how it ended when dropped.
pub(crate) struct Fetching {
    pub(crate) offered: Arc<Offered>,
    repair: bool,
    cause: EndCause,
}

impl Fetching {
    /// Something else than that the reader was lost.
    pub(crate) fn ended(&mut self, cause: EndCause) {
        self.cause = cause;
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        if !self.repair {
            self.offered.reading.lock().unwrap_or_else(PoisonError::into_inner).0 = Reading::Over;
            self.offered.done.send_replace(Some(self.cause));
        }
    }
}
