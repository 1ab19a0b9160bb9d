//! Men in the middle for tests: forward fetches and damage what passes.
//!
//! Put one between reader and source by giving readers its address. It runs in the test's own process, also when
//! the workers are processes of their own. What it does to a fetch is the same on every transport.

mod grpc;
#[cfg(target_os = "linux")]
mod socket;

use std::sync::Arc;

use kernels::checksum::xxh3_64;
use prost::Message as _;
use proto::v1 as wire;
use proto::v1::fetch_response::Item;

pub use grpc::corrupting_proxy;
#[cfg(target_os = "linux")]
pub use socket::SocketProxy;

use crate::frame::Head;

/// What happens to a fetch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// One bit of a frame's payload is flipped.
    PayloadBit,
    /// One bit of a frame's header is flipped.
    HeaderBit,
    /// One bit of a frame's block hash is flipped.
    HashBit,
    /// One bit of a frame's checksum is flipped.
    ChecksumBit,
    /// One bit of the manifest is flipped.
    ManifestBit,
    /// Two frames exchange their payloads.
    SwapPayloads,
    /// Two frames exchange everything but their payloads.
    SwapHeaders,
    /// A frame is lost.
    DropFrame,
    /// A frame comes twice.
    DuplicateFrame,
    /// Frames come in the opposite order.
    Reorder,
    /// The stream ends before the manifest.
    Truncate,
    /// Every cell of one block is overwritten with noise; checksums stay as they were.
    NoiseBlock,
    /// The connection is closed after the first frames.
    Disconnect,
    /// A frame of an earlier incarnation or owner, sound in itself.
    StaleEpoch,
    /// A frame of another request, sound in itself.
    ForeignRequest,
    /// One bit of what frames a message is flipped; over gRPC, of a frame's checksum.
    WireBit,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::PayloadBit,
        Self::HeaderBit,
        Self::HashBit,
        Self::ChecksumBit,
        Self::ManifestBit,
        Self::SwapPayloads,
        Self::SwapHeaders,
        Self::DropFrame,
        Self::DuplicateFrame,
        Self::Reorder,
        Self::Truncate,
        Self::NoiseBlock,
        Self::Disconnect,
        Self::StaleEpoch,
        Self::ForeignRequest,
        Self::WireBit,
    ];
}

/// Chooses the fault of the n-th fetch, counted from 0 over the proxy's life.
pub type Plan = Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>;

impl Damage {
    /// Of the n-th fetch.
    fn new(plan: &Plan, seed: u64, n: u64) -> Self {
        let random = Random(seed.wrapping_add(n.wrapping_mul(0x9E37_79B9)));
        Self { fault: plan(n), random, done: false, block: None }
    }
}

struct Damage {
    fault: Option<Fault>,
    random: Random,
    /// The fault has happened; only some go on.
    done: bool,
    block: Option<u32>,
}

impl Damage {
    /// `None`: the stream ends here.
    fn apply(&mut self, message: wire::FetchResponse) -> Option<wire::FetchResponse> {
        let Some(fault) = self.fault else { return Some(message) };
        let item = match message.item {
            Some(Item::Frames(mut batch)) => {
                if fault == Fault::NoiseBlock {
                    self.noise(&mut batch.frames);
                } else if !self.done && !batch.frames.is_empty() {
                    self.done = self.frames(fault, &mut batch.frames);
                } else if self.done && fault == Fault::Disconnect {
                    return None;
                }
                Item::Frames(batch)
            }
            Some(Item::Manifest(_)) if matches!(fault, Fault::Truncate | Fault::Disconnect) => return None,
            Some(Item::Manifest(manifest)) if fault == Fault::ManifestBit => {
                Item::Manifest(flip_manifest(&manifest, &mut self.random))
            }
            other => return Some(wire::FetchResponse { item: other }),
        };
        Some(wire::FetchResponse { item: Some(item) })
    }

    /// Whether the fault could be done to this batch.
    fn frames(&mut self, fault: Fault, frames: &mut Vec<wire::Frame>) -> bool {
        let at = self.random.below(frames.len());
        let random = &mut self.random;
        match fault {
            Fault::PayloadBit => frames[at].payload = flipped(&frames[at].payload, random),
            Fault::HashBit => frames[at].block_hash = flipped(&frames[at].block_hash, random),
            Fault::ChecksumBit | Fault::WireBit => frames[at].checksum ^= 1 << random.below(64),
            Fault::HeaderBit => {
                let bit = random.below(32);
                let frame = &mut frames[at];
                match random.below(6) {
                    0 => frame.owner_epoch ^= 1 << bit,
                    1 => frame.worker_epoch ^= 1 << bit,
                    2 => frame.layer_begin ^= 1 << bit,
                    3 => frame.layer_end ^= 1 << bit,
                    4 => frame.block_index ^= 1 << bit,
                    _ => frame.n_tokens ^= 1 << bit,
                }
            }
            Fault::SwapPayloads | Fault::SwapHeaders => {
                let differs = |other: &wire::Frame| {
                    other.payload.len() == frames[at].payload.len() && other.payload != frames[at].payload
                };
                let Some(other) = frames.iter().position(differs) else { return false };
                let (a, b) = (frames[at].payload.clone(), frames[other].payload.clone());
                if fault == Fault::SwapHeaders {
                    frames.swap(at, other);
                    (frames[at].payload, frames[other].payload) = (a, b);
                } else {
                    (frames[at].payload, frames[other].payload) = (b, a);
                }
            }
            Fault::DropFrame => drop(frames.remove(at)),
            Fault::DuplicateFrame => frames.push(frames[at].clone()),
            Fault::Reorder => frames.reverse(),
            Fault::StaleEpoch => {
                let frame = &mut frames[at];
                let epoch = if random.below(2) == 0 { &mut frame.owner_epoch } else { &mut frame.worker_epoch };
                *epoch -= 1;
                reseal(frame);
            }
            Fault::ForeignRequest => {
                let other = wire::RequestId { value: vec![7; 16].into() };
                frames[at].request_id = Some(other);
                reseal(&mut frames[at]);
            }
            Fault::ManifestBit | Fault::Truncate | Fault::NoiseBlock | Fault::Disconnect => {}
        }
        true
    }

    fn noise(&mut self, frames: &mut [wire::Frame]) {
        for frame in frames {
            if *self.block.get_or_insert(frame.block_index) == frame.block_index {
                frame.payload = (0..frame.payload.len()).map(|_| self.random.next() as u8).collect();
            }
        }
    }
}

/// Gives a frame the checksum that belongs to it.
fn reseal(frame: &mut wire::Frame) {
    frame.checksum = Head::of(frame).sum(xxh3_64(&frame.payload));
}

fn flipped(bytes: &[u8], random: &mut Random) -> bytes::Bytes {
    let mut bytes = bytes.to_vec();
    let at = random.below(bytes.len());
    bytes[at] ^= 1 << random.below(8);
    bytes.into()
}

/// A manifest that still decodes, and says something else.
fn flip_manifest(manifest: &wire::Manifest, random: &mut Random) -> wire::Manifest {
    let encoded = manifest.encode_to_vec();
    loop {
        let damaged = flipped(&encoded, random);
        match wire::Manifest::decode(damaged) {
            Ok(other) if other != *manifest => return other,
            _ => {}
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
