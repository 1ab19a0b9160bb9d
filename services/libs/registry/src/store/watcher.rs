//! Following changes. A watcher reads the history and holds no queue of its own, so a slow one costs nothing; if it
//! falls behind the history it is told so.

use tokio::sync::watch;

use super::{Event, KeyRange, MemoryStore, StoreError};

/// About how many changes come at once.
const BATCH: usize = 256;

/// Changes of whole revisions, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    /// At least one.
    pub events: Vec<Event>,
    /// The store's revision when they were read.
    pub revision: i64,
}

/// Follows a range of keys from a revision on.
#[derive(Debug)]
pub struct Watcher {
    store: MemoryStore,
    range: KeyRange,
    next: i64,
    changed: watch::Receiver<i64>,
}

impl Watcher {
    pub(super) fn new(store: MemoryStore, range: KeyRange, next: i64, changed: watch::Receiver<i64>) -> Self {
        Self { store, range, next, changed }
    }

    /// The next changes, if there are any now.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if changes are lost to this watcher: read everything anew.
    pub fn poll(&mut self) -> Result<Option<Batch>, StoreError> {
        let state = self.store.lock();
        let events = state.events_since(&self.range, self.next, BATCH)?;
        let revision = state.revision();
        drop(state);
        match events.last() {
            Some(last) => {
                self.next = last.revision + 1;
                Ok(Some(Batch { events, revision }))
            }
            None => {
                // Nothing of ours up to here: a later compaction up to here loses nothing.
                self.next = self.next.max(revision + 1);
                Ok(None)
            }
        }
    }

    /// The next changes, waited for. Cancel-safe.
    ///
    /// # Errors
    /// As [`Watcher::poll`].
    pub async fn next(&mut self) -> Result<Batch, StoreError> {
        loop {
            self.changed.mark_unchanged();
            if let Some(batch) = self.poll()? {
                return Ok(batch);
            }
            self.changed.changed().await.expect("the watcher holds the store");
        }
    }
}
