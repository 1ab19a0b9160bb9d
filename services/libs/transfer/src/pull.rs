//! The reading side: one prompt's KV from a peer into blocks of our own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernels::kv::{ArenaError, KvArena};
use proto::v1 as wire;
use proto::v1::fetch_response::Item;
use proto::v1::kv_service_client::KvServiceClient;
use rpc::convert::{write_compatibility, write_context, write_worker_ref};
use rpc::net::{Limits, channel};
use rpc::status::from_status;
use rpc::{RequestContext, TraceContext, reason};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use types::{BlockHash, BlockIdx, Code, Compatibility, Epoch, Failure, Fault, Handoff, RequestId, WorkerRef};

use crate::assembly::{Assembly, Round};
use crate::frame::{Checksum, Expected, FrameFault};
use crate::metrics::{Direction, Metrics, TRANSPORT_GRPC};
use crate::service::ONLY_MAX;

/// Peers whose connections are kept.
const CHANNELS_MAX: usize = 256;

/// What to pull, and where to.
#[derive(Clone, Debug)]
pub struct Pull {
    /// `host:port` of the peer's KV service.
    pub address: String,
    /// The incarnation that computes the prompt.
    pub peer: WorkerRef,
    /// This worker, as the peer was told.
    pub reader: WorkerRef,
    /// Whose KV.
    pub request: RequestId,
    /// Which of the request's choices.
    pub choice: u32,
    /// Fencing epoch of the request's owner.
    pub owner_epoch: Epoch,
    /// Trace context.
    pub trace: TraceContext,
    /// What this worker is.
    pub compatibility: Compatibility,
    /// Whether frames carry checksums.
    pub checksum: Checksum,
    /// Blocks of ours, empty, in order; at least as many as the prompt takes.
    pub blocks: Vec<BlockIdx>,
    /// Tokens of the prompt.
    pub n_tokens: usize,
    /// Hash of every block, the last partial one included.
    pub hashes: Vec<BlockHash>,
    /// The first so many blocks are here already and full; fewer than the prompt takes.
    pub n_blocks_here: usize,
    /// Memory of the blocks.
    pub arena: Arc<KvArena>,
    /// The pull fails afterwards.
    pub deadline: Instant,
    /// A peer from which nothing is heard for this long has failed; it has a heartbeat of a second.
    pub progress_timeout: Duration,
}

/// A prompt's KV, complete and checked.
#[derive(Clone, PartialEq, Debug)]
pub struct Pulled {
    /// The handoff record.
    pub handoff: Handoff,
    /// Payload bytes received, repairs included.
    pub bytes: u64,
    /// Cells that had to be asked for a second time.
    pub refetched: u32,
    /// From the last of the cells (of the first fetch) to the end: what the pull took beyond prefill's own time.
    pub closing: Duration,
    /// What carried them.
    pub transport: &'static str,
}

/// The blocks are not usable; they may hold some of the prompt's cells, and are to be reset.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The peer said no, or that it failed.
    #[error("peer refused: {0}")]
    Refused(Failure),
    /// The peer cannot be reached, or its stream broke.
    #[error("peer was lost: {0}")]
    PeerLost(Failure),
    /// What arrived is damaged, incomplete or not what was asked for, and a repair did not help.
    #[error("corrupt transfer: {0}")]
    Corrupt(String),
    /// Nothing was heard of the peer for the progress timeout.
    #[error("peer stopped sending")]
    Stalled,
    /// The request's time is over.
    #[error("deadline exceeded")]
    Deadline,
    /// Our own blocks did not take the bytes.
    #[error("cannot store a cell")]
    Arena(#[source] ArenaError),
}

impl PullError {
    /// Value of the label `outcome` of the metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::PeerLost(_) => "peer_lost",
            Self::Corrupt(_) => "corrupt",
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
            Self::Arena(_) => "arena",
        }
    }
}

impl From<PullError> for Failure {
    fn from(error: PullError) -> Self {
        let message = error.to_string();
        match error {
            PullError::Refused(failure) | PullError::PeerLost(failure) => failure.with_fault(Fault::Peer),
            PullError::Corrupt(_) => Failure::new(Code::DataLoss, "KV_CORRUPT", message).with_fault(Fault::Peer),
            PullError::Stalled => Failure::new(Code::Aborted, "KV_STALLED", message).with_fault(Fault::Peer),
            PullError::Deadline => rpc::status::deadline_exceeded(),
            PullError::Arena(_) => Failure::internal(message),
        }
    }
}

/// Pulls, over one connection per peer. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Puller {
    channels: Arc<Mutex<HashMap<String, Channel>>>,
    metrics: Metrics,
}

impl Puller {
    /// With these counts.
    pub fn new(metrics: Metrics) -> Self {
        Self { channels: Arc::default(), metrics }
    }

    /// The counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Fills `pull.blocks`. `Ok` only when every cell arrived and matched and the manifest agrees. Dropping the
    /// future ends the pull: nothing is written afterwards.
    ///
    /// # Errors
    /// See [`PullError`]; the blocks' content is then undefined.
    pub async fn pull(&self, pull: &Pull) -> Result<Pulled, PullError> {
        let mut counted = CountOnDrop { metrics: &self.metrics, outcome: "cancelled" };
        let result = match tokio::time::timeout_at(pull.deadline, self.run(pull)).await {
            Ok(result) => result,
            Err(_) => Err(PullError::Deadline),
        };
        counted.outcome = result.as_ref().err().map_or("ok", PullError::label);
        result
    }

    async fn run(&self, pull: &Pull) -> Result<Pulled, PullError> {
        let cell_bytes: Vec<_> = (0..pull.arena.n_layers()).map(|layer| pull.arena.cell_bytes(layer)).collect();
        let expected = Expected {
            request: pull.request,
            owner_epoch: pull.owner_epoch,
            worker_epoch: pull.peer.epoch,
            n_tokens: pull.n_tokens,
            block_tokens: pull.arena.block_tokens(),
            cell_bytes: &cell_bytes,
            hashes: &pull.hashes,
            checksum: pull.checksum,
        };
        let n_blocks = expected.n_blocks();
        let n_here = pull.n_blocks_here;
        if n_blocks <= n_here || pull.hashes.len() != n_blocks || pull.blocks.len() < n_blocks {
            let (blocks, hashes) = (pull.blocks.len(), pull.hashes.len());
            let message = format!("{n_blocks} blocks, {n_here} here, to pull into {blocks}, with {hashes} hashes");
            return Err(PullError::Refused(Failure::internal(message)));
        }
        let mut client = self.client(&pull.address).map_err(PullError::Refused)?;
        let mut assembly = Assembly::new(expected, &pull.arena, &pull.blocks, n_here);

        let mut whole = Fetched { bytes: 0, last_cell: Instant::now() };
        let mut round = assembly.whole();
        // Stays open until all is well: closing it tells the peer that nothing more is wanted.
        let mut stream = open(&mut client, pull, &[]).await?;
        let manifest = self.receive(&mut stream, pull, &mut assembly, &mut round, &mut whole).await?;
        let last_cell = whole.last_cell;
        let done = |handoff, bytes, refetched| Pulled {
            handoff,
            bytes,
            refetched,
            closing: last_cell.elapsed(),
            transport: TRANSPORT_GRPC,
        };
        let problem = match assembly.seal(&round, manifest, pull.choice) {
            Ok(handoff) => return Ok(done(handoff, whole.bytes, 0)),
            Err(problem) => problem,
        };

        let mut round = assembly.repair();
        let n_cells = round.asked().len();
        tracing::warn!(request = %pull.request, peer = %pull.peer, problem, n_cells, "kv damaged, fetching again");
        if n_cells > ONLY_MAX {
            return Err(PullError::Corrupt(problem));
        }
        self.metrics.count_refetched(n_cells as u64);
        let mut again = open(&mut client, pull, round.asked()).await?;
        let manifest = self.receive(&mut again, pull, &mut assembly, &mut round, &mut whole).await?;
        let handoff = assembly.seal(&round, manifest, pull.choice).map_err(PullError::Corrupt)?;
        Ok(done(handoff, whole.bytes, u32::try_from(n_cells).unwrap_or(u32::MAX)))
    }

    /// Takes frames until the manifest.
    async fn receive(
        &self,
        stream: &mut Streaming<wire::FetchResponse>,
        pull: &Pull,
        assembly: &mut Assembly<'_>,
        round: &mut Round,
        fetched: &mut Fetched,
    ) -> Result<wire::Manifest, PullError> {
        loop {
            let message = tokio::time::timeout(pull.progress_timeout, stream.message())
                .await
                .map_err(|_| PullError::Stalled)?
                .map_err(|status| stream_error(&status))?
                .ok_or_else(|| PullError::PeerLost(rpc::status::cut_off()))?;
            match message.item {
                Some(Item::Frames(batch)) => {
                    let (n_cells, bytes) = (batch.frames.len() as u64, sum_bytes(&batch.frames));
                    fetched.bytes += bytes;
                    if n_cells > 0 {
                        fetched.last_cell = Instant::now();
                    }
                    self.metrics.count_cells(Direction::Received, n_cells, bytes);
                    for frame in &batch.frames {
                        if let Err(fault) = assembly.accept(round, frame)? {
                            self.rejected(pull, frame, fault);
                        }
                    }
                }
                Some(Item::Manifest(manifest)) => return Ok(manifest),
                None => return Err(PullError::Corrupt("a message that is neither frames nor manifest".into())),
            }
        }
    }

    fn rejected(&self, pull: &Pull, frame: &wire::Frame, fault: FrameFault) {
        self.metrics.count_rejected(fault);
        let (layer, block) = (frame.layer_begin, frame.block_index);
        tracing::warn!(request = %pull.request, peer = %pull.peer, layer, block, %fault, "frame dropped");
    }

    fn client(&self, address: &str) -> Result<KvServiceClient<Channel>, Failure> {
        let limits = Limits::kv();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                if channels.len() >= CHANNELS_MAX {
                    // Rare (more peers than a cluster has): pulls under way keep their own handles.
                    channels.clear();
                }
                let channel = channel(address, &limits)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(KvServiceClient::new(channel)
            .max_decoding_message_size(limits.message_bytes)
            .max_encoding_message_size(limits.message_bytes))
    }
}

struct Fetched {
    bytes: u64,
    last_cell: Instant,
}

struct CountOnDrop<'a> {
    metrics: &'a Metrics,
    outcome: &'static str,
}

impl Drop for CountOnDrop<'_> {
    fn drop(&mut self) {
        self.metrics.count_pull(self.outcome);
    }
}

async fn open(
    client: &mut KvServiceClient<Channel>,
    pull: &Pull,
    only: &[crate::frame::CellId],
) -> Result<Streaming<wire::FetchResponse>, PullError> {
    let context = RequestContext {
        request: pull.request,
        worker: pull.peer.clone(),
        owner_epoch: pull.owner_epoch,
        deadline: pull.deadline.saturating_duration_since(Instant::now()),
        trace: pull.trace.clone(),
        choice: pull.choice,
    };
    let request = wire::FetchRequest {
        context: Some(write_context(&context)),
        reader: Some(write_worker_ref(&pull.reader)),
        compatibility: Some(write_compatibility(&pull.compatibility)),
        only: only.iter().map(|cell| wire::CellRef { layer: cell.layer, block_index: cell.block }).collect(),
        // Bounded by the prompt.
        n_blocks_here: pull.n_blocks_here as u32,
        expected_block_hashes: pull.hashes.iter().map(|hash| hash.0.to_vec().into()).collect(),
        checksum: match pull.checksum {
            Checksum::On => wire::ChecksumKind::Xxh364,
            Checksum::Off => wire::ChecksumKind::None,
        }
        .into(),
    };
    let stream = tokio::time::timeout(pull.progress_timeout, client.fetch(request))
        .await
        .map_err(|_| PullError::Stalled)?
        .map_err(|status| stream_error(&status))?;
    Ok(stream.into_inner())
}

fn stream_error(status: &Status) -> PullError {
    let failure = from_status(status);
    match failure.reason {
        reason::PEER_LOST | reason::PEER_UNREACHABLE => PullError::PeerLost(failure),
        reason::DEADLINE_EXCEEDED => PullError::Deadline,
        _ => PullError::Refused(failure),
    }
}

fn sum_bytes(frames: &[wire::Frame]) -> u64 {
    frames.iter().map(|frame| frame.payload.len() as u64).sum()
}
