//! The latest events, numbered, for subscribers that follow at their own pace.

use std::collections::VecDeque;
use std::sync::Arc;

use types::{KvEvent, KvEventBatch};

/// A bounded piece of the history of a pool's content. Subscribers keep a number, not a queue: who is too slow finds
/// its place gone.
#[derive(Debug)]
pub struct EventLog {
    batches: VecDeque<Arc<KvEventBatch>>,
    /// Weight of `batches`.
    n_kept: usize,
    n_max: usize,
    last: u64,
}

/// The events that follow are not here (any more): begin again, with a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("events after {after} are not kept, the last one is {last}")]
pub struct Lost {
    /// What was to be continued after.
    pub after: u64,
    /// Id of the last batch.
    pub last: u64,
}

impl EventLog {
    /// Keeps batches of `n_max` events and hashes altogether.
    pub fn new(n_max: usize) -> Self {
        Self { batches: VecDeque::new(), n_kept: 0, n_max, last: 0 }
    }

    /// Id of the last batch; 0: there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Adds a batch, if there are events, and forgets the oldest ones. Says whether there were.
    pub fn push(&mut self, events: Vec<KvEvent>) -> bool {
        if events.is_empty() {
            return false;
        }
        self.last += 1;
        let batch = KvEventBatch { id: self.last, events };
        self.n_kept += weight(&batch);
        self.batches.push_back(Arc::new(batch));
        while self.n_kept > self.n_max
            && let Some(oldest) = self.batches.pop_front()
        {
            self.n_kept -= weight(&oldest);
        }
        true
    }

    /// The batch that follows the one with id `after`; `None`: there is none yet.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn after(&self, after: u64) -> Result<Option<Arc<KvEventBatch>>, Lost> {
        let lost = Lost { after, last: self.last };
        let n_behind = self.last.checked_sub(after).ok_or(lost)?;
        let Some(back) = n_behind.checked_sub(1) else { return Ok(None) };
        let at = usize::try_from(back).ok().and_then(|back| self.batches.len().checked_sub(back + 1));
        Ok(Some(self.batches[at.ok_or(lost)?].clone()))
    }
}

fn weight(batch: &KvEventBatch) -> usize {
    batch.events.iter().map(|event| 1 + event.n_hashes()).sum()
}

#[cfg(test)]
mod tests {
    use types::BlockHash;

    use super::*;

    fn removed(n: usize) -> Vec<KvEvent> {
        vec![KvEvent::Removed { hashes: vec![BlockHash([1; 16]); n] }]
    }

    #[test]
    fn a_subscriber_continues_where_it_was_until_its_place_is_gone() {
        let mut log = EventLog::new(10);
        assert_eq!(log.after(0), Ok(None));
        assert!(!log.push(vec![]));
        assert_eq!(log.after(1), Err(Lost { after: 1, last: 0 }), "of another history");
        for n in 1..=3 {
            assert!(log.push(removed(2)));
            assert_eq!(log.last(), n);
        }
        for after in 0..3 {
            assert_eq!(log.after(after).unwrap().unwrap().id, after + 1);
        }
        assert_eq!(log.after(3), Ok(None));
        log.push(removed(3));
        assert_eq!(log.after(0), Err(Lost { after: 0, last: 4 }), "memory is bounded");
        assert_eq!(log.after(2).unwrap().unwrap().id, 3);
        log.push(removed(10));
        assert_eq!(log.after(4), Err(Lost { after: 4, last: 5 }), "one that is too large is not kept");
        assert_eq!(log.after(5), Ok(None));
        assert_eq!(log.after(u64::MAX), Err(Lost { after: u64::MAX, last: 5 }));
    }
}
