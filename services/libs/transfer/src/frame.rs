//! One cell on its way: header, checksum, and the check that stands between a peer's bytes and the arena.

use kernels::checksum::xxh3_64;
use prost::Message as _;
use proto::v1 as wire;
use types::{BlockHash, Epoch, RequestId};

/// Whether frames carry a checksum. Off is for links that have one of their own, and for tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Checksum {
    /// xxh3-64 over header and payload.
    #[default]
    On,
    /// None: damage goes unnoticed.
    Off,
}

/// One block of one layer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CellId {
    /// Ordinal of the block in its sequence.
    pub block: u32,
    /// Layer.
    pub layer: u32,
}

/// What the reader of a sequence's cells expects of each frame.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Whose KV.
    pub request: RequestId,
    /// Fencing epoch of the request's owner.
    pub owner_epoch: Epoch,
    /// Incarnation of the sender.
    pub worker_epoch: Epoch,
    /// Tokens of the sequence.
    pub n_tokens: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Bytes of a cell, per layer.
    pub cell_bytes: &'a [usize],
    /// Hash of every block, the last partial one included.
    pub hashes: &'a [BlockHash],
    /// Whether frames carry a checksum.
    pub checksum: Checksum,
}

/// Why a frame is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameFault {
    /// Not a frame at all.
    #[error("bytes do not decode")]
    Encoding,
    /// Header or payload was damaged.
    #[error("checksum does not match")]
    Checksum,
    /// A field that is not what the reader expects.
    #[error("{0} is not the expected one")]
    Field(&'static str),
}

impl Expected<'_> {
    /// Blocks of the sequence.
    pub fn n_blocks(&self) -> usize {
        self.n_tokens.div_ceil(self.block_tokens)
    }

    /// Valid rows of block `block`.
    pub fn rows(&self, block: usize) -> usize {
        rows_of_block(self.n_tokens, self.block_tokens, block)
    }
}

/// Rows of block `block` of a sequence of `n_tokens`.
pub(crate) fn rows_of_block(n_tokens: usize, block_tokens: usize, block: usize) -> usize {
    n_tokens.saturating_sub(block * block_tokens).min(block_tokens)
}

/// A frame's header as a transport delivered it; nothing about it is checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Head<'a> {
    /// 16 bytes, if it is sound.
    pub(crate) request: &'a [u8],
    pub(crate) owner_epoch: u64,
    pub(crate) worker_epoch: u64,
    /// Begin and end.
    pub(crate) layers: (u32, u32),
    pub(crate) block: u32,
    pub(crate) n_tokens: u32,
    /// 16 bytes, if it is sound.
    pub(crate) hash: &'a [u8],
    pub(crate) payload_bytes: u64,
    pub(crate) checksum: u64,
}

impl<'a> Head<'a> {
    /// Of a message of the gRPC transport.
    pub(crate) fn of(frame: &'a wire::Frame) -> Self {
        Self {
            request: frame.request_id.as_ref().map_or(&[], |id| &id.value[..]),
            owner_epoch: frame.owner_epoch,
            worker_epoch: frame.worker_epoch,
            layers: (frame.layer_begin, frame.layer_end),
            block: frame.block_index,
            n_tokens: frame.n_tokens,
            hash: &frame.block_hash,
            payload_bytes: frame.payload.len() as u64,
            checksum: frame.checksum,
        }
    }

    /// xxh3-64 over the canonical header.
    ///
    /// Canonical header: `batonkv2`, request (16 bytes as they are), then little endian owner epoch u64, worker epoch
    /// u64, layer begin u32, layer end u32, block index u32, token count u32, then the block hash behind its length
    /// u64, then the payload's length u64, then the payload's xxh3-64.
    pub(crate) fn sum(&self, payload_sum: u64) -> u64 {
        let mut header = Vec::with_capacity(112);
        header.extend_from_slice(b"batonkv2");
        header.extend_from_slice(self.request);
        header.extend_from_slice(&self.owner_epoch.to_le_bytes());
        header.extend_from_slice(&self.worker_epoch.to_le_bytes());
        for field in [self.layers.0, self.layers.1, self.block, self.n_tokens] {
            header.extend_from_slice(&field.to_le_bytes());
        }
        header.extend_from_slice(&(self.hash.len() as u64).to_le_bytes());
        header.extend_from_slice(self.hash);
        header.extend_from_slice(&self.payload_bytes.to_le_bytes());
        header.extend_from_slice(&payload_sum.to_le_bytes());
        xxh3_64(&header)
    }

    /// Checks every field; who has the payload checks the checksum.
    ///
    /// # Errors
    /// The first field that is not the expected one.
    pub(crate) fn validate(&self, expected: &Expected<'_>) -> Result<CellId, FrameFault> {
        let check = |field, holds: bool| if holds { Ok(()) } else { Err(FrameFault::Field(field)) };
        check("request", self.request == expected.request.0.to_be_bytes())?;
        check("owner epoch", self.owner_epoch == expected.owner_epoch.0)?;
        check("worker epoch", self.worker_epoch == expected.worker_epoch.0)?;
        // This version of the protocol sends one layer a frame: a cell is readable as soon as its layer is.
        let (layer, end) = self.layers;
        check("layer range", (layer as usize) < expected.cell_bytes.len() && layer.checked_add(1) == Some(end))?;
        let block = self.block as usize;
        check("block index", block < expected.n_blocks() && block < expected.hashes.len())?;
        check("token count", self.n_tokens as usize == expected.rows(block))?;
        check("block hash", self.hash == expected.hashes[block].0)?;
        check("payload length", self.payload_bytes == expected.cell_bytes[layer as usize] as u64)?;
        Ok(CellId { block: self.block, layer })
    }
}

/// Checks everything about a frame. The checksum comes first: a damaged header says nothing.
///
/// # Errors
/// The first thing that is wrong; the frame must then be dropped.
pub fn validate_frame(frame: &wire::Frame, expected: &Expected<'_>) -> Result<CellId, FrameFault> {
    let head = Head::of(frame);
    if expected.checksum == Checksum::On && frame.checksum != head.sum(xxh3_64(&frame.payload)) {
        return Err(FrameFault::Checksum);
    }
    head.validate(expected)
}

/// [`validate_frame`] from the encoded message.
///
/// # Errors
/// As there; [`FrameFault::Encoding`] if the bytes are no message.
pub fn validate_encoded(bytes: &[u8], expected: &Expected<'_>) -> Result<CellId, FrameFault> {
    let frame = wire::Frame::decode(bytes).map_err(|_| FrameFault::Encoding)?;
    validate_frame(&frame, expected)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASHES: [BlockHash; 3] = [BlockHash([1; 16]), BlockHash([2; 16]), BlockHash([3; 16])];

    fn expected(checksum: Checksum) -> Expected<'static> {
        Expected {
            request: RequestId(7),
            owner_epoch: Epoch(3),
            worker_epoch: Epoch(4),
            n_tokens: 9,
            block_tokens: 4,
            cell_bytes: &[32, 64],
            hashes: &HASHES,
            checksum,
        }
    }

    fn checksum(frame: &wire::Frame) -> u64 {
        Head::of(frame).sum(xxh3_64(&frame.payload))
    }

    fn frame(layer: u32, block: u32) -> wire::Frame {
        let expected = expected(Checksum::On);
        let mut frame = wire::Frame {
            request_id: Some(rpc::convert::write_request_id(expected.request)),
            owner_epoch: 3,
            worker_epoch: 4,
            layer_begin: layer,
            layer_end: layer + 1,
            block_index: block,
            n_tokens: expected.rows(block as usize) as u32,
            block_hash: HASHES[block as usize].0.to_vec().into(),
            payload: vec![0xA5; expected.cell_bytes[layer as usize]].into(),
            checksum: 0,
        };
        frame.checksum = checksum(&frame);
        frame
    }

    #[test]
    fn accepts_every_cell_of_the_sequence() {
        for layer in 0..2 {
            for block in 0..3 {
                let cell = validate_frame(&frame(layer, block), &expected(Checksum::On));
                assert_eq!(cell, Ok(CellId { block, layer }));
            }
        }
    }

    #[test]
    fn names_the_field_that_is_wrong_even_if_the_checksum_is_right() {
        type Change = fn(&mut wire::Frame);
        let cases: [(&str, Change); 14] = [
            ("request", |f| f.request_id = None),
            ("request", |f| f.request_id = Some(rpc::convert::write_request_id(RequestId(8)))),
            ("owner epoch", |f| f.owner_epoch = 2),
            ("worker epoch", |f| f.worker_epoch = 5),
            ("layer range", |f| f.layer_begin = 9),
            ("layer range", |f| (f.layer_begin, f.layer_end) = (u32::MAX, 0)),
            ("layer range", |f| f.layer_end = 2),
            ("block index", |f| f.block_index = 3),
            ("block index", |f| f.block_index = u32::MAX),
            ("token count", |f| f.n_tokens = 3),
            ("block hash", |f| f.block_hash = HASHES[1].0.to_vec().into()),
            ("block hash", |f| f.block_hash = vec![1; 15].into()),
            ("payload length", |f| f.payload = vec![0; 31].into()),
            ("payload length", |f| f.payload = vec![0; 33].into()),
        ];
        for (field, change) in cases {
            let mut frame = frame(0, 0);
            change(&mut frame);
            for mode in [Checksum::On, Checksum::Off] {
                if mode == Checksum::On {
                    assert_eq!(validate_frame(&frame, &expected(mode)), Err(FrameFault::Checksum), "{field}");
                    frame.checksum = checksum(&frame);
                }
                assert_eq!(validate_frame(&frame, &expected(mode)), Err(FrameFault::Field(field)));
            }
        }
    }

    proptest! {
        /// I1: no flipped bit anywhere in an encoded frame gets through.
        #[test]
        fn every_flipped_bit_is_caught(layer in 0..2u32, block in 0..3u32, at in any::<prop::sample::Index>(), bit in 0..8) {
            let good = frame(layer, block);
            let mut bytes = good.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            match validate_encoded(&bytes, &expected(Checksum::On)) {
                Err(_) => {}
                // A flip may turn one encoding into another one of the very same frame, or of nothing at all.
                Ok(_) => prop_assert_eq!(wire::Frame::decode(&bytes[..]).unwrap(), good),
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(validate_encoded(&bytes, &expected(Checksum::On)).is_err());
            let _ = validate_encoded(&bytes, &expected(Checksum::Off));
        }
    }
}
