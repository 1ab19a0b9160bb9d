//! The last changes, kept for watches that resume and reads of the past; a bounded number of them.

use std::collections::{BTreeMap, VecDeque};

use super::{KeyRange, KeyValue, StoreError};

/// Most changes kept.
const EVENTS_MAX: usize = 8192;
/// Most bytes of keys and values kept.
const BYTES_MAX: usize = 32 << 20;

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// When.
    pub revision: i64,
    /// What.
    pub kind: EventKind,
    /// The key as it was before; `None` if it was absent.
    pub prev: Option<KeyValue>,
}

/// What changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A key was created or changed to this.
    Put(KeyValue),
    /// This key was deleted.
    Delete(Vec<u8>),
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &[u8] {
        match &self.kind {
            EventKind::Put(kv) => &kv.key,
            EventKind::Delete(key) => key,
        }
    }

    fn bytes(&self) -> usize {
        let size = |kv: &KeyValue| kv.key.len() + kv.value.len();
        let kind = match &self.kind {
            EventKind::Put(kv) => size(kv),
            EventKind::Delete(key) => key.len(),
        };
        kind + self.prev.as_ref().map_or(0, size)
    }
}

#[derive(Debug, Default)]
pub(super) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// Oldest revision that can be read and watched from.
    compacted: i64,
}

impl History {
    pub(super) fn push(&mut self, event: Event) {
        self.bytes += event.bytes();
        self.events.push_back(event);
    }

    /// Drops the oldest revisions until the rest is within the limits.
    pub(super) fn trim(&mut self) {
        while self.events.len() > EVENTS_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.events.front().map(|e| e.revision) else { return };
            self.forget_before(oldest + 1);
        }
    }

    pub(super) fn compact(&mut self, revision: i64, now: i64) -> Result<(), StoreError> {
        if revision <= self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        if revision > now {
            return Err(StoreError::FutureRevision);
        }
        self.forget_before(revision);
        Ok(())
    }

    fn forget_before(&mut self, revision: i64) {
        while self.events.front().is_some_and(|e| e.revision < revision) {
            self.bytes -= self.events.pop_front().map_or(0, |e| e.bytes());
        }
        self.compacted = revision;
    }

    /// Changes in `range` from revision `from` on, whole revisions only: about `max` of them.
    pub(super) fn since(&self, range: &KeyRange, from: i64, max: usize) -> Result<Vec<Event>, StoreError> {
        if from < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let begin = self.events.partition_point(|e| e.revision < from);
        let mut found: Vec<Event> = Vec::new();
        for event in self.events.range(begin..).filter(|e| range.contains(e.key())) {
            if found.len() >= max && found.last().is_some_and(|last| last.revision < event.revision) {
                break;
            }
            found.push(event.clone());
        }
        Ok(found)
    }

    /// Takes `keys`, which are now's, back to what they were at `revision`.
    pub(super) fn rewind(
        &self,
        keys: &mut BTreeMap<Vec<u8>, KeyValue>,
        range: &KeyRange,
        revision: i64,
    ) -> Result<(), StoreError> {
        if revision < self.compacted {
            return Err(StoreError::Compacted(self.compacted));
        }
        let later = self.events.iter().rev().take_while(|e| e.revision > revision);
        for event in later.filter(|e| range.contains(e.key())) {
            match &event.prev {
                Some(kv) => keys.insert(kv.key.clone(), kv.clone()),
                None => keys.remove(event.key()),
            };
        }
        Ok(())
    }
}
