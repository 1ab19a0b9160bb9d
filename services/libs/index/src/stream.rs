//! How far one worker's events have been heard.

use types::kv_event::{KvEvent, KvEventBatch};

use crate::error::Resync;

/// Of one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    /// It has sent nothing that could be used.
    Silent,
    /// `last` was applied.
    Following { last: u64 },
    /// What is known may be wrong until a snapshot comes.
    Broken(Resync),
}

/// What to do with a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Apply,
    /// It was applied before.
    Seen,
    Refuse(Resync),
}

impl Stream {
    /// Judges the next batch, and goes on to it.
    pub(crate) fn take(&mut self, batch: &KvEventBatch) -> Verdict {
        let snapshot = matches!(batch.events.first(), Some(KvEvent::Cleared));
        let why = match *self {
            _ if snapshot => {
                *self = Self::Following { last: batch.id };
                return Verdict::Apply;
            }
            Self::Following { last } if batch.id <= last => return Verdict::Seen,
            Self::Following { last } if batch.id - 1 == last => {
                *self = Self::Following { last: batch.id };
                return Verdict::Apply;
            }
            Self::Following { last } => Resync::Gap { last, got: batch.id },
            Self::Silent => Resync::First,
            Self::Broken(why) => why,
        };
        *self = Self::Broken(why);
        Verdict::Refuse(why)
    }

    /// The connection was lost: batches may be, too.
    pub(crate) fn reconnected(&mut self) {
        if matches!(self, Self::Following { .. }) {
            *self = Self::Broken(Resync::Reconnected);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(id: u64, snapshot: bool) -> KvEventBatch {
        let event = if snapshot { KvEvent::Cleared } else { KvEvent::Removed { hashes: Vec::new() } };
        KvEventBatch { id, events: vec![event] }
    }

    #[test]
    fn only_a_snapshot_begins_and_mends_a_stream() {
        let mut stream = Stream::Silent;
        let mut take = |id, snapshot| stream.take(&batch(id, snapshot));
        let gap = Resync::Gap { last: 9, got: 11 };
        assert_eq!(take(0, false), Verdict::Refuse(Resync::First));
        assert_eq!(take(1, false), Verdict::Refuse(Resync::First));
        assert_eq!(take(7, true), Verdict::Apply);
        assert_eq!(take(8, false), Verdict::Apply);
        assert_eq!(take(8, false), Verdict::Seen);
        assert_eq!(take(9, false), Verdict::Apply);
        assert_eq!(take(11, false), Verdict::Refuse(gap));
        assert_eq!(take(10, false), Verdict::Refuse(gap), "too late: 11 was refused and may not come again");
        assert_eq!(take(u64::MAX, true), Verdict::Apply);
        assert_eq!(take(u64::MAX, false), Verdict::Seen);
        stream.reconnected();
        assert_eq!(stream.take(&batch(3, false)), Verdict::Refuse(Resync::Reconnected));
        assert_eq!(stream.take(&batch(3, true)), Verdict::Apply);
    }
}
