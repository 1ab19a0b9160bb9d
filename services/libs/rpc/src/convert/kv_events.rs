//! Messages about the prefix cache.

use proto::v1 as wire;
use types::{BlockHash, Failure, KvEvent, KvEventBatch};

use super::*;

/// Bytes of a block's name.
const HASH_BYTES: usize = 16;

pub(crate) fn read_kv_events(batch: wire::KvEventsResponse) -> Result<KvEventBatch, Failure> {
    use wire::kv_event::Event;
    let read = |event: wire::KvEvent| {
        Ok(match required(event.event, "event")? {
            Event::Stored(stored) => KvEvent::Stored {
                hashes: read_hashes(&stored.hashes)?,
                parent: match &stored.parent[..] {
                    [] => None,
                    parent => Some(read_hash(parent, "parent")?),
                },
            },
            Event::Removed(removed) => KvEvent::Removed { hashes: read_hashes(&removed.hashes)? },
            Event::Cleared(wire::CacheCleared {}) => KvEvent::Cleared,
        })
    };
    Ok(KvEventBatch { id: batch.id, events: batch.events.into_iter().map(read).collect::<Result<_, Failure>>()? })
}

pub(crate) fn write_kv_events(batch: &KvEventBatch) -> wire::KvEventsResponse {
    use wire::kv_event::Event;
    let write = |event: &KvEvent| {
        let event = match event {
            KvEvent::Stored { hashes, parent } => Event::Stored(wire::BlocksStored {
                parent: parent.map_or_else(Vec::new, |parent| parent.0.to_vec()).into(),
                hashes: write_hashes(hashes),
            }),
            KvEvent::Removed { hashes } => Event::Removed(wire::BlocksRemoved { hashes: write_hashes(hashes) }),
            KvEvent::Cleared => Event::Cleared(wire::CacheCleared {}),
        };
        wire::KvEvent { event: Some(event) }
    };
    wire::KvEventsResponse { id: batch.id, events: batch.events.iter().map(write).collect() }
}

/// At least one name. Their number is that of the bytes that arrived, nothing else is believed.
fn read_hashes(bytes: &[u8]) -> Result<Vec<BlockHash>, Failure> {
    let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
    if hashes.is_empty() || !rest.is_empty() {
        return Err(Failure::invalid("hashes", format!("hashes must have a multiple of {HASH_BYTES} bytes")));
    }
    Ok(hashes.iter().map(|&hash| BlockHash(hash)).collect())
}

fn write_hashes(hashes: &[BlockHash]) -> bytes::Bytes {
    hashes.iter().flat_map(|hash| hash.0).collect::<Vec<u8>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_event_is_refused() {
        use wire::kv_event::Event;
        let stored = |parent: &[u8], n: usize| {
            Event::Stored(wire::BlocksStored { parent: parent.to_vec().into(), hashes: vec![7; n].into() })
        };
        let cases = [
            (None, "event"),
            (Some(stored(&[], 0)), "hashes"),
            (Some(stored(&[], 17)), "hashes"),
            (Some(stored(&[1; 15], 16)), "parent"),
            (Some(Event::Removed(wire::BlocksRemoved { hashes: vec![7; 15].into() })), "hashes"),
        ];
        for (event, param) in cases {
            let batch = wire::KvEventsResponse { id: 1, events: vec![wire::KvEvent { event }] };
            assert_eq!(read_kv_events(batch).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
