//! etcd's data model in memory: revisions, leases, transactions, watches, bounded history.

mod history;
mod range;
mod state;
#[cfg(test)]
mod tests;
mod txn;
mod watcher;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

pub use self::history::{Event, EventKind};
pub use self::range::KeyRange;
use self::state::State;
pub use self::txn::{Compare, CompareOp, CompareTarget, Op, OpResult, Put, TxnResult};
pub use self::watcher::{Batch, Watcher};

/// A key with its value and history.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KeyValue {
    /// Key.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Revision at which the key appeared.
    pub create_revision: i64,
    /// Revision of its last change.
    pub mod_revision: i64,
    /// Number of changes since it appeared, from 1.
    pub version: i64,
    /// Lease that it goes with; 0: none.
    pub lease: i64,
}

/// A lease as it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseStatus {
    /// Granted time to live.
    pub granted: Duration,
    /// What is left of it.
    pub remaining: Duration,
    /// Keys that go with it.
    pub keys: Vec<Vec<u8>>,
}

/// Why an operation was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision is no longer kept; the oldest kept one is named.
    #[error("required revision has been compacted, the oldest is {0}")]
    Compacted(i64),
    /// The revision is still to come.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// The time to live is out of range.
    #[error("lease time to live is out of range")]
    LeaseTtl,
    /// The key is empty.
    #[error("key is not provided")]
    EmptyKey,
    /// A put that keeps the old value or lease of an absent key.
    #[error("key not found")]
    KeyNotFound,
    /// A transaction puts one key twice.
    #[error("duplicate key given in transaction")]
    DuplicateKey,
    /// A key, a value or a transaction is too long.
    #[error("request is too large")]
    TooLarge,
    /// No room for more keys or leases.
    #[error("store is full")]
    Full,
}

/// The store. Cheap to clone; clones share one state, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    revision: watch::Sender<i64>,
    reachable: watch::Sender<bool>,
    leases_changed: Arc<Notify>,
    _reaper: AbortOnDropHandle<()>,
}

impl MemoryStore {
    /// An empty store whose revisions begin with the wall clock's milliseconds, so that a store that lost its data
    /// to a restart does not repeat revisions or lease ids. Needs a tokio runtime, on which leases expire.
    pub fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::starting_at(i64::try_from(now.as_millis()).unwrap_or(1).clamp(1, 1 << 42))
    }

    /// An empty store at a given revision, for runs that must repeat exactly.
    pub fn starting_at(revision: i64) -> Self {
        let leases_changed = Arc::new(Notify::new());
        let store = Arc::new_cyclic(|weak| Shared {
            state: Mutex::new(State::new(revision)),
            revision: watch::Sender::new(revision),
            reachable: watch::Sender::new(true),
            _reaper: AbortOnDropHandle::new(tokio::spawn(reap(weak.clone(), leases_changed.clone()))),
            leases_changed,
        });
        Self(store)
    }

    /// The current revision.
    pub fn revision(&self) -> i64 {
        self.lock().revision()
    }

    /// Keys in `range` at `revision` (0: now) by key, and the current revision.
    ///
    /// # Errors
    /// If that revision is compacted or still to come.
    pub fn range(&self, range: &KeyRange, revision: i64) -> Result<(Vec<KeyValue>, i64), StoreError> {
        let state = self.lock();
        Ok((state.range(range, revision)?, state.revision()))
    }

    /// The key now.
    pub fn get(&self, key: &[u8]) -> Option<KeyValue> {
        self.lock().get(key).cloned()
    }

    /// Puts a key under a lease (0: none); the new revision.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn put(&self, key: &[u8], value: &[u8], lease: i64) -> Result<i64, StoreError> {
        let put = Put { key: key.to_vec(), value: Some(value.to_vec()), lease: Some(lease) };
        Ok(self.transact(&[], &[Op::Put(put)], &[])?.revision)
    }

    /// Deletes the keys in `range`: the revision afterwards and what was deleted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub fn delete(&self, range: &KeyRange) -> Result<(i64, Vec<KeyValue>), StoreError> {
        let mut done = self.transact(&[], &[Op::Delete(range.clone())], &[])?;
        match done.results.pop() {
            Some(OpResult::Delete(deleted)) => Ok((done.revision, deleted)),
            other => unreachable!("a delete's result is {other:?}"),
        }
    }

    /// Does `success` at one revision if all of `compares` hold, else `failure`.
    ///
    /// # Errors
    /// [`StoreError`]; nothing is done then.
    pub fn transact(&self, compares: &[Compare], success: &[Op], failure: &[Op]) -> Result<TxnResult, StoreError> {
        let mut state = self.lock();
        let done = state.transact(compares, success, failure);
        self.publish(state);
        done
    }

    /// Grants a lease; `id` 0 lets the store choose. The id and the time to live, which is at least a second.
    ///
    /// # Errors
    /// If the id is taken, the time out of range, or the store full.
    pub fn grant(&self, id: i64, ttl: Duration) -> Result<(i64, Duration), StoreError> {
        let granted = self.lock().grant(id, ttl, Instant::now())?;
        self.0.leases_changed.notify_one();
        Ok(granted)
    }

    /// Renews a lease; its time to live.
    ///
    /// # Errors
    /// If there is no such lease.
    pub fn keep_alive(&self, id: i64) -> Result<Duration, StoreError> {
        self.lock().keep_alive(id, Instant::now())
    }

    /// Ends a lease and deletes its keys.
    ///
    /// # Errors
    /// If there is no such lease.
    pub fn revoke(&self, id: i64) -> Result<(), StoreError> {
        let mut state = self.lock();
        let done = state.revoke(id);
        self.publish(state);
        done
    }

    /// A lease as it stands.
    ///
    /// # Errors
    /// If there is no such lease.
    pub fn lease(&self, id: i64) -> Result<LeaseStatus, StoreError> {
        self.lock().lease(id, Instant::now())
    }

    /// Ids of all leases.
    pub fn leases(&self) -> Vec<i64> {
        self.lock().lease_ids()
    }

    /// Forgets history before `revision`.
    ///
    /// # Errors
    /// If that is done already, or the revision is still to come.
    pub fn compact(&self, revision: i64) -> Result<(), StoreError> {
        self.lock().compact(revision)
    }

    /// Follows changes in `range` from revision `from` on (0: from the next one).
    pub fn watch(&self, range: KeyRange, from: i64) -> Watcher {
        // Subscribed first: a change in between is seen twice by the channel, never missed.
        let changed = self.0.revision.subscribe();
        let next = if from > 0 { from } else { self.revision() + 1 };
        Watcher::new(self.clone(), range, next, changed)
    }

    /// Wakes up whenever the revision moves.
    pub fn changes(&self) -> watch::Receiver<i64> {
        self.0.revision.subscribe()
    }

    /// Cuts in-process registries off this store, or lets them back: an outage for tests and simulation. Leases
    /// run on. Served connections (see [`crate::wire`]) are not touched.
    pub fn set_reachable(&self, reachable: bool) {
        self.0.reachable.send_replace(reachable);
    }

    pub(crate) fn reachable(&self) -> watch::Receiver<bool> {
        self.0.reachable.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, state: MutexGuard<'_, State>) {
        self.0.publish(state);
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn publish(&self, state: MutexGuard<'_, State>) {
        let revision = state.revision();
        drop(state);
        self.revision.send_if_modified(|seen| {
            let moved = *seen < revision;
            *seen = revision.max(*seen);
            moved
        });
    }
}

/// Ends leases as they expire, for as long as the store lives.
async fn reap(store: Weak<Shared>, leases_changed: Arc<Notify>) {
    loop {
        let next = {
            let Some(store) = store.upgrade() else {
                // Either the store is gone or it is still being made; the first lease tells.
                leases_changed.notified().await;
                continue;
            };
            let mut state = store.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.expire(Instant::now());
            let next = state.next_expiry();
            store.publish(state);
            next
        };
        let expiry = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expiry => {}
            () = leases_changed.notified() => {}
        }
    }
}
