//! The offering side: a table of offers, and who may fetch them.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kernels::kv::KvArena;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::task::TaskTracker;
use types::{Code, Compatibility, Epoch, Failure, RequestId, WorkerRef};

use crate::Metrics;
use crate::offer::{Offer, OfferHandle, Offered};

/// Limits of the offering side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceConfig {
    /// A fetch waits this long for its offer.
    pub offer_wait: Duration,
    /// A reader that takes nothing for this long is cut off.
    pub progress_timeout: Duration,
    /// A fetch that has nothing to send says so this often.
    pub heartbeat: Duration,
    /// A reader of which nothing is heard for this long has its connection closed; it speaks every second.
    pub silence: Duration,
    /// Fetches served or waiting at a time.
    pub n_fetches: usize,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            offer_wait: Duration::from_secs(60),
            progress_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            silence: Duration::from_secs(5),
            n_fetches: 512,
        }
    }
}

/// Ended offers that are remembered, so that a late fetch is told at once instead of waiting.
const ENDED_MAX: usize = 4096;

type Key = (RequestId, u32);

#[derive(Default)]
struct Offers {
    open: HashMap<Key, Arc<Offered>>,
    /// Why there is nothing to fetch any more, for this owner and those before it.
    ended: HashMap<Key, (Epoch, Failure)>,
    /// Keys of `ended`, oldest first; some may have been offered anew.
    order: VecDeque<Key>,
}

/// What a fetch finds.
pub(crate) enum Found {
    /// The offer.
    Offer(Arc<Offered>),
    /// It has ended, or will never be.
    Ended(Failure),
    /// It may come.
    NotYet,
}

/// Serves the KV of one worker's arena.
pub struct Source {
    arena: Arc<KvArena>,
    compatibility: Compatibility,
    worker: watch::Receiver<WorkerRef>,
    config: SourceConfig,
    metrics: Metrics,
    offers: Mutex<Offers>,
    arrived: Notify,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Source {
    /// For an arena. `worker`: the incarnation that this process is registered as.
    pub fn new(
        arena: Arc<KvArena>,
        compatibility: Compatibility,
        worker: watch::Receiver<WorkerRef>,
        config: SourceConfig,
        metrics: Metrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            arena,
            compatibility,
            worker,
            config,
            metrics,
            offers: Mutex::default(),
            arrived: Notify::new(),
            permits: Arc::new(Semaphore::new(config.n_fetches)),
            tasks: TaskTracker::new(),
        })
    }

    /// Offers a prompt's KV from now on; rows may still be computed.
    ///
    /// # Errors
    /// The same choice of the request is on offer already, or hashes and blocks do not fit the prompt.
    pub fn offer(self: &Arc<Self>, offer: Offer) -> Result<OfferHandle, Failure> {
        let n_blocks = offer.n_tokens.div_ceil(self.arena.block_tokens());
        if offer.hashes.len() != n_blocks || offer.hold.blocks().len() < n_blocks {
            let (hashes, blocks) = (offer.hashes.len(), offer.hold.blocks().len());
            let message = format!("{n_blocks} blocks to offer, but {hashes} hashes and {blocks} blocks");
            return Err(Failure::internal(message));
        }
        let offered = Arc::new(Offered::new(offer));
        let mut offers = self.offers();
        match offers.open.entry(offered.key()) {
            Entry::Occupied(_) => {
                let message = "this choice of the request is on offer already";
                return Err(Failure::new(Code::FailedPrecondition, rpc::reason::DUPLICATE_REQUEST, message));
            }
            Entry::Vacant(entry) => entry.insert(offered.clone()),
        };
        offers.ended.remove(&offered.key());
        drop(offers);
        self.arrived.notify_waiters();
        Ok(OfferHandle::new(self.clone(), offered))
    }

    /// There will be no offer: whoever waits for it, or comes later, is told why.
    pub fn refuse(&self, request: RequestId, choice: u32, owner_epoch: Epoch, failure: Failure) {
        self.offers().end((request, choice), owner_epoch, failure);
        self.arrived.notify_waiters();
    }

    /// Offers that have not ended.
    pub fn n_offers(&self) -> usize {
        self.offers().open.len()
    }

    pub(crate) fn find(&self, key: Key, owner_epoch: Epoch) -> Found {
        let offers = self.offers();
        match (offers.open.get(&key), offers.ended.get(&key)) {
            (Some(offered), _) => Found::Offer(offered.clone()),
            (None, Some((owner, failure))) if owner_epoch <= *owner => Found::Ended(failure.clone()),
            (None, _) => Found::NotYet,
        }
    }

    /// Resolves at the next offer after its first poll or `enable`.
    pub(crate) fn arrived(&self) -> tokio::sync::futures::Notified<'_> {
        self.arrived.notified()
    }

    /// Takes an offer out of the table; later fetches are told the failure.
    pub(crate) fn withdraw(&self, offered: &Arc<Offered>, failure: Failure) {
        let mut offers = self.offers();
        if offers.open.get(&offered.key()).is_some_and(|found| Arc::ptr_eq(found, offered)) {
            offers.open.remove(&offered.key());
            offers.end(offered.key(), offered.owner_epoch, failure);
        }
    }

    pub(crate) fn arena(&self) -> &Arc<KvArena> {
        &self.arena
    }

    pub(crate) fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    pub(crate) fn worker(&self) -> WorkerRef {
        self.worker.borrow().clone()
    }

    pub(crate) fn config(&self) -> &SourceConfig {
        &self.config
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn permits(&self) -> &Arc<Semaphore> {
        &self.permits
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Offers {
    fn end(&mut self, key: Key, owner: Epoch, failure: Failure) {
        if self.ended.insert(key, (owner, failure)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > ENDED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }
}
