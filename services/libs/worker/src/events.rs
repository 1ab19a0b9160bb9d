//! What changes in the prefix cache, for those who follow from afar.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvcache::{EventLog, Lost};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use types::{BlockHash, Failure, KvEvent, KvEventBatch};

use crate::{WorkerHandle, fail};

/// Events and hashes that are kept for followers.
const LOG_MAX: usize = 1 << 16;
/// Hashes in one batch of a snapshot.
const BATCH_HASHES: usize = 1024;
/// Followers at a time: each may hold a snapshot.
const FOLLOWERS_MAX: usize = 64;

type Log = Arc<Mutex<EventLog>>;

/// The driver's end.
#[derive(Debug)]
pub(crate) struct Events {
    log: Log,
    last: watch::Sender<u64>,
}

/// The handles' end.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    log: Log,
    /// Closes when the driver ends.
    last: watch::Receiver<u64>,
    places: Arc<Semaphore>,
}

impl Events {
    pub(crate) fn new() -> (Self, Feed) {
        let log = Arc::new(Mutex::new(EventLog::new(LOG_MAX)));
        let (last, seen) = watch::channel(0);
        let feed = Feed { log: log.clone(), last: seen, places: Arc::new(Semaphore::new(FOLLOWERS_MAX)) };
        (Self { log, last }, feed)
    }

    pub(crate) fn publish(&self, events: Vec<KvEvent>) {
        if lock(&self.log).push(events) {
            self.last.send_replace(self.last());
        }
    }

    /// Id of the last batch.
    pub(crate) fn last(&self) -> u64 {
        lock(&self.log).last()
    }
}

/// Follows the prefix cache of a worker; see [`WorkerHandle::kv_events`]. It keeps a place in the worker's log, not a
/// queue: who does not ask for a long time finds its place gone.
#[derive(Debug)]
pub struct KvFollower {
    worker: WorkerHandle,
    feed: Feed,
    /// Id of the last batch that was given out.
    after: u64,
    begun: bool,
    snapshot: VecDeque<KvEventBatch>,
    _place: OwnedSemaphorePermit,
}

impl KvFollower {
    pub(crate) fn new(worker: WorkerHandle, feed: Feed, after: u64) -> Result<Self, Failure> {
        let place = feed.places.clone().try_acquire_owned().map_err(|_| fail::too_many_followers())?;
        Ok(Self { worker, feed, after, begun: false, snapshot: VecDeque::new(), _place: place })
    }

    /// The next batch, when it is there.
    ///
    /// # Errors
    /// `KV_EVENTS_LOST`, safe to retry, if what follows is not kept any more: a new follower begins with everything.
    /// `WORKER_STOPPED`.
    pub async fn next(&mut self) -> Result<KvEventBatch, Failure> {
        loop {
            // Before looking, so that what comes after it wakes the wait below.
            self.feed.last.borrow_and_update();
            if let Some(batch) = self.snapshot.pop_front() {
                self.after = batch.id;
                return Ok(batch);
            }
            match self.look() {
                Ok(Some(batch)) => {
                    (self.after, self.begun) = (batch.id, true);
                    return Ok(batch.as_ref().clone());
                }
                Ok(None) => {
                    self.begun = true;
                    self.feed.last.changed().await.map_err(|_| fail::stopped())?;
                }
                Err(lost) if self.begun => return Err(fail::events_lost(lost)),
                Err(_) => {
                    let (id, events) = self.worker.snapshot().await?;
                    self.snapshot = in_batches(id, events);
                    self.begun = true;
                }
            }
        }
    }

    /// Nothing is known at 0, so there is nothing that could be continued.
    fn look(&self) -> Result<Option<Arc<KvEventBatch>>, Lost> {
        let log = lock(&self.feed.log);
        if self.after == 0 && !self.begun { Err(Lost { after: 0, last: log.last() }) } else { log.after(self.after) }
    }
}

/// A snapshot in pieces, the first of which clears; only the last has an id.
fn in_batches(id: u64, events: Vec<KvEvent>) -> VecDeque<KvEventBatch> {
    let mut batches = VecDeque::new();
    let (mut batch, mut n_hashes) = (vec![KvEvent::Cleared], 0);
    for (hashes, parent) in events.into_iter().filter_map(stored) {
        let mut parent = parent;
        let mut rest = hashes.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(BATCH_HASHES - n_hashes));
            batch.push(KvEvent::Stored { hashes: piece.to_vec(), parent });
            (parent, rest) = (piece.last().copied(), after);
            n_hashes += piece.len();
            if n_hashes == BATCH_HASHES {
                batches.push_back(KvEventBatch { id: 0, events: std::mem::take(&mut batch) });
                n_hashes = 0;
            }
        }
    }
    if !batch.is_empty() {
        batches.push_back(KvEventBatch { id, events: batch });
    } else if let Some(last) = batches.back_mut() {
        last.id = id;
    }
    batches
}

fn stored(event: KvEvent) -> Option<(Vec<BlockHash>, Option<BlockHash>)> {
    match event {
        KvEvent::Stored { hashes, parent } => Some((hashes, parent)),
        KvEvent::Removed { .. } | KvEvent::Cleared => None,
    }
}

fn lock(log: &Log) -> MutexGuard<'_, EventLog> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(n: usize) -> Vec<BlockHash> {
        (0..n as u128).map(|n| BlockHash(n.to_be_bytes())).collect()
    }

    #[test]
    fn a_snapshot_is_cut_into_pieces_of_which_only_the_last_can_be_continued() {
        for n in [0, 1, BATCH_HASHES - 1, BATCH_HASHES, BATCH_HASHES + 1, 3 * BATCH_HASHES + 7] {
            let all = hashes(n);
            let (one, two) = all.split_at(n / 3);
            let chains = [one, two].into_iter().filter(|chain| !chain.is_empty());
            let events = chains.map(|chain| KvEvent::Stored { hashes: chain.to_vec(), parent: None }).collect();
            let batches = in_batches(9, events);
            let ids: Vec<u64> = batches.iter().map(|batch| batch.id).collect();
            let expected = [vec![0; n.div_ceil(BATCH_HASHES).max(1) - 1], vec![9]].concat();
            assert_eq!(ids, expected, "{n} hashes");
            assert_eq!(batches[0].events[0], KvEvent::Cleared);
            let mut found = Vec::new();
            for event in batches.iter().flat_map(|batch| &batch.events).skip(1) {
                let KvEvent::Stored { hashes, parent } = event else { panic!("{event:?}") };
                let begins = found.len() == n / 3 || found.is_empty();
                assert_eq!(*parent, if begins { None } else { found.last().copied() });
                found.extend(hashes);
            }
            assert_eq!(found, all);
        }
    }
}
