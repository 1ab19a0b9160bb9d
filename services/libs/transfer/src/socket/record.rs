//! Records of the socket transports: how a byte stream becomes asks, cells, manifests and notes.
//!
//! A record is a prelude of [`PRELUDE_BYTES`], a control part, and (cells over TCP) payloads. All little endian:
//! `BKV1`, kind u8, three zero bytes, count u32, control length u32, extent u64, the control part's xxh3-64, and the
//! xxh3-64 of all that. The control part of cells is `count` headers of [`HEAD_BYTES`]; of others a protobuf message.
//! A stream with a damaged prelude or control part has lost its rhythm and is given up; a damaged payload costs its
//! cell only. Every length is bounded before anything is allocated for it.

use kernels::checksum::xxh3_64;

use crate::frame::{Expected, FrameFault, Head};

/// Bytes of a prelude.
pub const PRELUDE_BYTES: usize = 40;
/// Bytes of a cell's header.
pub(crate) const HEAD_BYTES: usize = 88;

const MAGIC: [u8; 4] = *b"BKV1";
/// Most cells of a record, and most bytes of their payloads.
const CELLS_MAX: usize = 1 << 14;
const PAYLOAD_MAX: u64 = 1 << 30;
/// Longest control parts: of what asks (hashes, cells to repair) and closes, and of what says a few words.
const LONG_MAX: usize = 4 << 20;
const SHORT_MAX: usize = 64 << 10;

/// What a record is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Reader: a `FetchRequest`.
    Ask = 1,
    /// Source: headers; payloads follow, or lie in shared memory.
    Cells = 2,
    /// Source: nothing to send yet.
    Beat = 3,
    /// Source: a `Manifest`.
    Manifest = 4,
    /// Source: a `FetchRefused`.
    Refused = 5,
    /// Reader: a `FetchNote`.
    Note = 6,
    /// Reader: shared memory up to the position in `extent` may be written again.
    Taken = 7,
    /// Source: the last word was heard; the connection may be used again.
    Ended = 8,
}

/// Why bytes are no record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a record: {0}")]
pub struct RecordFault(pub &'static str);

/// A prelude that makes sense.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Prelude {
    /// What the record is.
    pub kind: Kind,
    /// Cells; 0 otherwise.
    pub count: usize,
    /// Bytes of the control part, within what the kind allows.
    pub control_bytes: usize,
    /// Cells over TCP: bytes of all payloads. Over shared memory: position after them. Taken: such a position.
    pub extent: u64,
    control_sum: u64,
}

impl Prelude {
    /// Reads and checks a prelude.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(bytes: &[u8; PRELUDE_BYTES]) -> Result<Self, RecordFault> {
        let check = |what, holds: bool| if holds { Ok(()) } else { Err(RecordFault(what)) };
        check("prelude checksum", u64_at(bytes, 32) == xxh3_64(&bytes[..32]))?;
        check("magic", bytes[..4] == MAGIC && bytes[5..8] == [0; 3])?;
        let kinds =
            [Kind::Ask, Kind::Cells, Kind::Beat, Kind::Manifest, Kind::Refused, Kind::Note, Kind::Taken, Kind::Ended];
        let kind = kinds.into_iter().find(|&kind| kind as u8 == bytes[4]).ok_or(RecordFault("kind"))?;
        let (count, control_bytes) = (u32_at(bytes, 8) as usize, u32_at(bytes, 12) as usize);
        let extent = u64_at(bytes, 16);
        let control_max = match kind {
            Kind::Cells => CELLS_MAX * HEAD_BYTES,
            Kind::Ask | Kind::Manifest => LONG_MAX,
            Kind::Refused | Kind::Note => SHORT_MAX,
            Kind::Beat | Kind::Taken | Kind::Ended => 0,
        };
        check("control length", control_bytes <= control_max)?;
        check("count", if kind == Kind::Cells { count * HEAD_BYTES == control_bytes } else { count == 0 })?;
        check("extent", matches!(kind, Kind::Cells | Kind::Taken) || extent == 0)?;
        Ok(Self { kind, count, control_bytes, extent, control_sum: u64_at(bytes, 24) })
    }

    /// Checks the control part.
    ///
    /// # Errors
    /// If its checksum is another.
    pub fn check_control(&self, control: &[u8]) -> Result<(), RecordFault> {
        if xxh3_64(control) == self.control_sum { Ok(()) } else { Err(RecordFault("control checksum")) }
    }
}

/// A record without payloads.
pub(crate) fn encode(kind: Kind, count: usize, control: &[u8], extent: u64) -> Vec<u8> {
    let mut record = Vec::with_capacity(PRELUDE_BYTES + control.len());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&[kind as u8, 0, 0, 0]);
    record.extend_from_slice(&(count as u32).to_le_bytes());
    record.extend_from_slice(&(control.len() as u32).to_le_bytes());
    record.extend_from_slice(&extent.to_le_bytes());
    record.extend_from_slice(&xxh3_64(control).to_le_bytes());
    record.extend_from_slice(&xxh3_64(&record).to_le_bytes());
    record.extend_from_slice(control);
    record
}

/// Appends a cell's header; `at`: where its payload lies in shared memory.
pub(crate) fn put_head(control: &mut Vec<u8>, head: &Head<'_>, at: u64) {
    debug_assert_eq!((head.request.len(), head.hash.len()), (16, 16), "what we send is sound");
    control.extend_from_slice(head.request);
    control.extend_from_slice(&head.owner_epoch.to_le_bytes());
    control.extend_from_slice(&head.worker_epoch.to_le_bytes());
    for field in [head.layers.0, head.layers.1, head.block, head.n_tokens] {
        control.extend_from_slice(&field.to_le_bytes());
    }
    control.extend_from_slice(head.hash);
    for field in [head.payload_bytes, head.checksum, at] {
        control.extend_from_slice(&field.to_le_bytes());
    }
}

/// The headers in a control part of cells, with their places in shared memory.
pub(crate) fn heads(control: &[u8]) -> impl Iterator<Item = (Head<'_>, u64)> {
    control.chunks_exact(HEAD_BYTES).map(|bytes| {
        let head = Head {
            request: &bytes[..16],
            owner_epoch: u64_at(bytes, 16),
            worker_epoch: u64_at(bytes, 24),
            layers: (u32_at(bytes, 32), u32_at(bytes, 36)),
            block: u32_at(bytes, 40),
            n_tokens: u32_at(bytes, 44),
            hash: &bytes[48..64],
            payload_bytes: u64_at(bytes, 64),
            checksum: u64_at(bytes, 72),
        };
        (head, u64_at(bytes, 80))
    })
}

/// Checks that payloads over TCP are as long together as their record says.
///
/// # Errors
/// If they are not, or too long for any cell.
pub(crate) fn check_extent(prelude: &Prelude, control: &[u8]) -> Result<(), RecordFault> {
    let total = heads(control).try_fold(0_u64, |sum, (head, _)| sum.checked_add(head.payload_bytes));
    match total {
        Some(total) if total == prelude.extent && total <= PAYLOAD_MAX => Ok(()),
        _ => Err(RecordFault("payload lengths")),
    }
}

/// Reads a whole stream of records over TCP that is at hand, as a connection would, and counts the cells that would
/// have landed. For fuzzing.
///
/// # Errors
/// Where the stream loses its rhythm; [`RecordFault`] of `end` if it ends inside a record.
pub fn check_stream(mut bytes: &[u8], expected: &Expected<'_>) -> Result<usize, RecordFault> {
    let mut n_good = 0;
    while !bytes.is_empty() {
        let prelude = Prelude::parse(take(&mut bytes, PRELUDE_BYTES)?.try_into().expect("as long as asked"))?;
        let control = take(&mut bytes, prelude.control_bytes)?;
        prelude.check_control(control)?;
        if prelude.kind != Kind::Cells {
            continue;
        }
        check_extent(&prelude, control)?;
        for (head, _) in heads(control) {
            let payload = take(&mut bytes, usize::try_from(head.payload_bytes).map_err(|_| RecordFault("end"))?)?;
            let sum = match expected.checksum {
                crate::Checksum::On => head.sum(xxh3_64(payload)),
                crate::Checksum::Off => head.checksum,
            };
            let valid = head.validate(expected).and_then(|cell| match sum == head.checksum {
                true => Ok(cell),
                false => Err(FrameFault::Checksum),
            });
            if let Ok(cell) = valid {
                assert!((cell.block as usize) < expected.n_blocks(), "a valid cell is one of the sequence");
                n_good += 1;
            }
        }
    }
    Ok(n_good)
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Result<&'a [u8], RecordFault> {
    let (taken, rest) = bytes.split_at_checked(n).ok_or(RecordFault("end"))?;
    *bytes = rest;
    Ok(taken)
}

/// # Panics
/// If there are no such bytes: callers have checked lengths.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use types::{BlockHash, Epoch, RequestId};

    use super::*;
    use crate::Checksum;

    const HASHES: [BlockHash; 3] = [BlockHash([1; 16]), BlockHash([2; 16]), BlockHash([3; 16])];
    const EXPECTED: Expected<'static> = Expected {
        request: RequestId(7),
        owner_epoch: Epoch(3),
        worker_epoch: Epoch(4),
        n_tokens: 9,
        block_tokens: 4,
        cell_bytes: &[32, 64],
        hashes: &HASHES,
        checksum: Checksum::On,
    };

    /// Two cells and a beat.
    fn stream() -> Vec<u8> {
        let (mut control, mut payloads) = (Vec::new(), Vec::new());
        for (layer, block) in [(0, 1), (1, 2)] {
            let payload = vec![0xA5 ^ layer as u8; EXPECTED.cell_bytes[layer as usize]];
            let mut head = Head {
                request: &7_u128.to_be_bytes(),
                owner_epoch: 3,
                worker_epoch: 4,
                layers: (layer, layer + 1),
                block,
                n_tokens: EXPECTED.rows(block as usize) as u32,
                hash: &HASHES[block as usize].0,
                payload_bytes: payload.len() as u64,
                checksum: 0,
            };
            head.checksum = head.sum(xxh3_64(&payload));
            put_head(&mut control, &head, 0);
            payloads.extend(payload);
        }
        let mut stream = encode(Kind::Cells, 2, &control, payloads.len() as u64);
        stream.extend(payloads);
        stream.extend(encode(Kind::Beat, 0, &[], 0));
        stream
    }

    #[test]
    fn sound_streams_are_read_to_their_end() {
        assert_eq!(check_stream(&stream(), &EXPECTED), Ok(2));
        assert_eq!(check_stream(&[], &EXPECTED), Ok(0));
        // Written by other code than ours: the format does not change unnoticed.
        let foreign = include_bytes!("../../../../../fuzz/seeds/kv_record/cells");
        assert_eq!((&foreign[..], check_stream(foreign, &EXPECTED)), (&stream()[..], Ok(2)));
    }

    #[test]
    fn lengths_are_bounded_before_anything_is_allocated() {
        let check = |kind, count, control: usize, extent, why| {
            let mut bytes: [u8; PRELUDE_BYTES] = encode(kind, count, &[], extent).try_into().unwrap();
            bytes[12..16].copy_from_slice(&(control as u32).to_le_bytes());
            let sum = xxh3_64(&bytes[..32]).to_le_bytes();
            bytes[32..].copy_from_slice(&sum);
            assert_eq!(Prelude::parse(&bytes).err(), Some(RecordFault(why)), "{kind:?} {count} {control} {extent}");
        };
        check(Kind::Ask, 0, LONG_MAX + 1, 0, "control length");
        check(Kind::Note, 0, SHORT_MAX + 1, 0, "control length");
        check(Kind::Beat, 0, 1, 0, "control length");
        check(Kind::Cells, CELLS_MAX + 1, (CELLS_MAX + 1) * HEAD_BYTES, 0, "control length");
        check(Kind::Cells, 2, HEAD_BYTES, 0, "count");
        check(Kind::Ask, 1, 8, 0, "count");
        check(Kind::Ask, 0, 8, 1, "extent");
        let (prelude, control) = (encode(Kind::Cells, 0, &[], u64::MAX), []);
        let prelude = Prelude::parse(&prelude.try_into().unwrap()).unwrap();
        assert_eq!(check_extent(&prelude, &control), Err(RecordFault("payload lengths")));
    }

    proptest! {
        /// No flipped bit anywhere lets a cell through that is not the one that was sent.
        #[test]
        fn every_flipped_bit_is_caught(at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = stream();
            let n = bytes.len() - PRELUDE_BYTES;
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            let good = check_stream(&bytes, &EXPECTED);
            // In a payload: one cell is lost. Elsewhere the stream is given up.
            prop_assert!(good.is_err() || (at < n && good == Ok(1)), "{:?}", good);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(bytes.is_empty() || check_stream(&bytes, &EXPECTED).is_err());
        }
    }
}
