//! How far one worker's events have been heard.

use types::{KvEvent, KvEventBatch};

use crate::error::Resync;

/// Of one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stream {
    /// It has sent nothing that could be used.
    Silent,
    /// `last` was applied.
    Following { last: u64 },
    /// A snapshot has begun; its last piece will have an id.
    Snapshot,
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
            _ if snapshot => return self.go_on(batch.id),
            Self::Snapshot => return self.go_on(batch.id),
            Self::Following { last } if batch.id.checked_sub(1) == Some(last) => return self.go_on(batch.id),
            Self::Following { last } if batch.id > 0 && batch.id <= last => return Verdict::Seen,
            Self::Following { last } => Resync::Gap { last, got: batch.id },
            Self::Silent => Resync::First,
            Self::Broken(why) => why,
        };
        *self = Self::Broken(why);
        Verdict::Refuse(why)
    }

    fn go_on(&mut self, id: u64) -> Verdict {
        *self = if id == 0 { Self::Snapshot } else { Self::Following { last: id } };
        Verdict::Apply
    }

    /// The connection was lost. What is whole can be gone on with; half a snapshot cannot.
    pub(crate) fn reconnected(&mut self) {
        if *self == Self::Snapshot {
            *self = Self::Broken(Resync::Reconnected);
        }
    }

    /// The batch to go on after; `None`: a snapshot is wanted.
    pub(crate) fn last(&self) -> Option<u64> {
        match *self {
            Self::Following { last } => Some(last),
            Self::Silent | Self::Snapshot | Self::Broken(_) => None,
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
        assert_eq!(take(0, false), Verdict::Refuse(Resync::Gap { last: u64::MAX, got: 0 }), "a piece of nothing");
    }

    #[test]
    fn a_snapshot_may_come_in_pieces_and_half_of_one_is_none() {
        let mut stream = Stream::Silent;
        assert_eq!(stream.take(&batch(0, true)), Verdict::Apply);
        assert_eq!(stream.take(&batch(0, false)), Verdict::Apply);
        assert_eq!(stream.last(), None);
        stream.reconnected();
        assert_eq!(stream.take(&batch(5, false)), Verdict::Refuse(Resync::Reconnected));
        assert_eq!(stream.take(&batch(0, true)), Verdict::Apply);
        assert_eq!(stream.take(&batch(5, false)), Verdict::Apply);
        assert_eq!(stream.last(), Some(5));
        stream.reconnected();
        assert_eq!(stream.take(&batch(6, false)), Verdict::Apply, "nothing was missed");
        stream.reconnected();
        assert_eq!(stream.take(&batch(8, false)), Verdict::Refuse(Resync::Gap { last: 6, got: 8 }));
        assert_eq!(stream.last(), None);
    }
}
