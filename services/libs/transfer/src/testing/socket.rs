//! The man in the middle of a socket transport. Over shared memory it has a ring of its own for each reader, in which
//! payloads lie where they lie in the source's.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kernels::shared::{SharedReader, SharedWriter};
use proto::v1 as wire;
use proto::v1::fetch_response::Item;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Damage, Fault, Plan};
use crate::frame::Head;
use crate::socket::record::{Kind, encode, heads, put_head};
use crate::socket::shm::{receive_file, send_file};
use crate::socket::stream::{Record, bytes_of, read_record};

/// Forwards fetches; `plan` chooses the fault of the n-th.
#[derive(Clone)]
pub struct SocketProxy {
    plan: Plan,
    seed: u64,
    stop: CancellationToken,
    n_fetches: Arc<AtomicU64>,
}

impl SocketProxy {
    /// `seed` decides which bits and frames are hit; `stop` ends all.
    pub fn new(plan: Plan, seed: u64, stop: CancellationToken) -> Self {
        Self { plan, seed, stop, n_fetches: Arc::default() }
    }

    /// Between a reader and `upstream` (`host:port`) of raw TCP.
    pub async fn tcp(self, listener: TcpListener, upstream: String) {
        while let Some(Ok((reader, _))) = self.stop.run_until_cancelled(listener.accept()).await {
            let (proxy, upstream) = (self.clone(), upstream.clone());
            tokio::spawn(async move {
                let Ok(source) = TcpStream::connect(upstream).await else { return };
                let ((from_reader, to_reader), (from_source, to_source)) = (reader.into_split(), source.into_split());
                proxy.forward(from_reader, to_source, from_source, to_reader, None).await;
            });
        }
    }

    /// Between a reader and the unix socket `upstream` of shared memory.
    pub async fn shm(self, listener: UnixListener, upstream: String) {
        while let Some(Ok((reader, _))) = self.stop.run_until_cancelled(listener.accept()).await {
            let (proxy, upstream) = (self.clone(), PathBuf::from(upstream.clone()));
            tokio::spawn(async move {
                let Ok(source) = UnixStream::connect(upstream).await else { return };
                let Ok(file) = source.async_io(Interest::READABLE, || receive_file(&source)).await else { return };
                let theirs = SharedReader::open(&file).expect("our own source seals its memory");
                let ours = SharedWriter::new(theirs.len()).expect("memory for a ring");
                if reader.async_io(Interest::WRITABLE, || send_file(&reader, &ours)).await.is_err() {
                    return;
                }
                let ((from_reader, to_reader), (from_source, to_source)) = (reader.into_split(), source.into_split());
                proxy.forward(from_reader, to_source, from_source, to_reader, Some((theirs, ours))).await;
            });
        }
    }

    async fn forward(
        self,
        mut from_reader: impl AsyncRead + Unpin,
        mut to_source: impl AsyncWrite + Unpin,
        mut from_source: impl AsyncRead + Unpin,
        mut to_reader: impl AsyncWrite + Unpin,
        mut rings: Option<(SharedReader, SharedWriter)>,
    ) {
        let mut damage = Damage::new(&self.plan, self.seed, self.n_fetches.fetch_add(1, Ordering::Relaxed));
        let up = tokio::io::copy(&mut from_reader, &mut to_source);
        let down = async {
            while let Ok(Some(record)) = read_record(&mut from_source).await {
                let Some(bytes) = pass(record, &mut from_source, &mut rings, &mut damage).await else { return };
                if to_reader.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            _ = up => {}
            () = down => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// What the reader gets of a record; `None`: its connection ends here.
async fn pass(
    record: Record,
    from_source: &mut (impl AsyncRead + Unpin),
    rings: &mut Option<(SharedReader, SharedWriter)>,
    damage: &mut Damage,
) -> Option<Vec<u8>> {
    let (kind, extent) = (record.prelude.kind, record.prelude.extent);
    let (item, places) = match kind {
        Kind::Cells => {
            let mut frames = Vec::new();
            let mut places = Vec::new();
            for (head, at) in heads(&record.control) {
                let mut payload = vec![0; head.payload_bytes as usize];
                match rings {
                    Some((theirs, _)) => drop(theirs.read(at as usize, &mut payload)),
                    None => drop(from_source.read_exact(&mut payload).await.ok()?),
                }
                frames.push(frame(&head, payload));
                places.push(at);
            }
            (Item::Frames(wire::FrameBatch { frames }), places)
        }
        Kind::Manifest => (Item::Manifest(record.decode().ok()?), Vec::new()),
        _ => return Some(encode(kind, 0, &record.control, extent)),
    };
    let damages_wire = damage.fault == Some(Fault::WireBit) && !damage.done && kind == Kind::Cells;
    let item = if damages_wire { item } else { damage.apply(wire::FetchResponse { item: Some(item) })?.item? };
    let (mut bytes, n_framing) = match item {
        Item::Manifest(manifest) => {
            let bytes = encode(Kind::Manifest, 0, &bytes_of(&manifest), 0);
            let n = bytes.len();
            (bytes, n)
        }
        Item::Frames(batch) => write_cells(&batch.frames, &places, rings, extent),
    };
    if damages_wire {
        damage.done = true;
        let at = damage.random.below(n_framing);
        bytes[at] ^= 1 << damage.random.below(8);
    }
    Some(bytes)
}

/// A record of frames, and how much of it is not payload.
fn write_cells(
    frames: &[wire::Frame],
    places: &[u64],
    rings: &mut Option<(SharedReader, SharedWriter)>,
    extent: u64,
) -> (Vec<u8>, usize) {
    let mut control = Vec::new();
    let mut payloads = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        let place = match (rings.as_mut(), places.get(i)) {
            (None, _) => {
                payloads.extend_from_slice(&frame.payload);
                0
            }
            (Some((_, ours)), Some(&place)) => {
                ours.write(place as usize, &frame.payload);
                place
            }
            // One more than there were: the same as one of them.
            (Some(_), None) => {
                let same = frames.iter().position(|other| other.payload == frame.payload);
                places[same.expect("it is there itself").min(places.len() - 1)]
            }
        };
        put_head(&mut control, &Head::of(frame), place);
    }
    let extent = if rings.is_some() { extent } else { payloads.len() as u64 };
    let mut bytes = encode(Kind::Cells, frames.len(), &control, extent);
    let n_framing = bytes.len();
    bytes.extend_from_slice(&payloads);
    (bytes, n_framing)
}

fn frame(head: &Head<'_>, payload: Vec<u8>) -> wire::Frame {
    wire::Frame {
        request_id: Some(wire::RequestId { value: head.request.to_vec().into() }),
        owner_epoch: head.owner_epoch,
        worker_epoch: head.worker_epoch,
        layer_begin: head.layers.0,
        layer_end: head.layers.1,
        block_index: head.block,
        n_tokens: head.n_tokens,
        block_hash: head.hash.to_vec().into(),
        payload: payload.into(),
        checksum: head.checksum,
    }
}
