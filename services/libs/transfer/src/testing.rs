//! A man in the middle for tests: forwards fetches and damages what passes.
//!
//! Put it between reader and source by giving readers its address. It runs in the test's own process, also when
//! the workers are processes of their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prost::Message as _;
use proto::v1 as wire;
use proto::v1::fetch_response::Item;
use proto::v1::kv_service_client::KvServiceClient;
use proto::v1::kv_service_server::{KvService, KvServiceServer};
use rpc::net::{Limits, channel};
use rpc::{ServeError, ServeOptions};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

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
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 13] = [
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
    ];
}

/// Chooses the fault of the n-th fetch, counted from 0 over the proxy's life.
pub type Plan = Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>;

/// Forwards to `upstream` (`host:port`) until `shutdown`. `seed` decides which bits and frames are hit.
///
/// # Errors
/// The transport broke.
pub async fn corrupting_proxy(
    listener: TcpListener,
    upstream: String,
    plan: Plan,
    seed: u64,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let limits = Limits::kv();
    let bytes = limits.message_bytes;
    let channel = channel(&upstream, &limits)
        .map_err(|failure| std::io::Error::new(std::io::ErrorKind::InvalidInput, failure.to_string()))?;
    let upstream = KvServiceClient::new(channel).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let proxy = Proxy { upstream, plan, seed, n_fetches: AtomicU64::new(0) };
    let service = KvServiceServer::new(proxy).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let options = ServeOptions::new(limits);
    rpc::net::serve_routes(Routes::new(service), &["baton.v1.KvService"], listener, options, shutdown).await
}

struct Proxy {
    upstream: KvServiceClient<Channel>,
    plan: Plan,
    seed: u64,
    n_fetches: AtomicU64,
}

type Messages = futures::stream::BoxStream<'static, Result<wire::FetchResponse, Status>>;

#[tonic::async_trait]
impl KvService for Proxy {
    type FetchStream = Messages;

    async fn fetch(&self, request: Request<wire::FetchRequest>) -> Result<Response<Messages>, Status> {
        let n = self.n_fetches.fetch_add(1, Ordering::Relaxed);
        let fault = (self.plan)(n);
        let stream = self.upstream.clone().fetch(request.into_inner()).await?.into_inner();
        let damage = Damage {
            fault,
            random: Random(self.seed.wrapping_add(n.wrapping_mul(0x9E37_79B9))),
            done: false,
            block: None,
        };
        let state = Some((stream, damage, VecDeque::new()));
        let messages = futures::stream::unfold(state, forward);
        Ok(Response::new(Box::pin(messages)))
    }
}

type Forward = (Streaming<wire::FetchResponse>, Damage, VecDeque<wire::FetchResponse>);

async fn forward(state: Option<Forward>) -> Option<(Result<wire::FetchResponse, Status>, Option<Forward>)> {
    let (mut stream, mut damage, mut ready) = state?;
    loop {
        if let Some(message) = ready.pop_front() {
            return Some((Ok(message), Some((stream, damage, ready))));
        }
        match stream.message().await {
            Ok(Some(message)) => match damage.apply(message) {
                Some(message) => ready.push_back(message),
                None if damage.fault == Some(Fault::Disconnect) => {
                    return Some((Err(Status::unknown("connection closed")), None));
                }
                None => return None,
            },
            Ok(None) => return None,
            Err(status) => return Some((Err(status), None)),
        }
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
            Fault::ChecksumBit => frames[at].checksum ^= 1 << random.below(64),
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
            Fault::ManifestBit | Fault::Truncate | Fault::NoiseBlock => {}
            Fault::Disconnect => {}
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
