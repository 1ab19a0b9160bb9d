//! The reading side: one prompt's KV from a peer into blocks of our own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kernels::kv::{ArenaError, KvArena};
use proto::v1 as wire;
use rpc::TraceContext;
use tokio::time::Instant;
use types::{
    BlockHash, BlockIdx, Code, Compatibility, Epoch, Failure, Fault, Handoff, KvEndpoints, RequestId, WorkerRef,
};

use crate::ask::ONLY_MAX;
use crate::assembly::{Assembly, Round};
use crate::choice::TransportChoice;
use crate::frame::{CellId, Checksum, Expected};
use crate::grpc::GrpcTransport;
use crate::link::{Arrived, Inlet, LastWord, OpenError, Transport, TransportKind};
use crate::metrics::{Direction, Metrics};

/// What to pull, and where to.
#[derive(Clone, Debug)]
pub struct Pull {
    /// `host:port` of the peer's KV service.
    pub address: String,
    /// Where the peer serves other transports.
    pub endpoints: KvEndpoints,
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
    /// The peer hears this often that this reader is alive; begin with [`crate::KEEP_ALIVE`].
    pub keep_alive: Duration,
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
    pub transport: TransportKind,
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

/// Pulls. Cheap to clone.
#[derive(Clone)]
pub struct Puller {
    transports: Arc<Transports>,
    choice: TransportChoice,
    avoided: Arc<Avoided>,
    metrics: Metrics,
}

struct Transports {
    grpc: GrpcTransport,
    tcp: Arc<dyn Transport>,
    #[cfg(target_os = "linux")]
    shm: Arc<dyn Transport>,
    /// This system's name, without which no memory is shared.
    host: Option<String>,
}

impl Transports {
    fn of(&self, kind: TransportKind) -> &dyn Transport {
        match kind {
            TransportKind::Tcp => &*self.tcp,
            #[cfg(target_os = "linux")]
            TransportKind::Shm => &*self.shm,
            _ => &self.grpc,
        }
    }
}

impl Puller {
    /// With these counts.
    pub fn new(choice: TransportChoice, metrics: Metrics) -> Self {
        let transports = Transports {
            grpc: GrpcTransport::default(),
            tcp: crate::socket::tcp_transport(),
            #[cfg(target_os = "linux")]
            shm: crate::socket::shm_transport(),
            #[cfg(target_os = "linux")]
            host: crate::socket::host_id(),
            #[cfg(not(target_os = "linux"))]
            host: None,
        };
        Self { transports: Arc::new(transports), choice, avoided: Arc::default(), metrics }
    }

    /// The counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Fills `pull.blocks`. `Ok` only when every cell arrived and matched and the manifest agrees. Dropping the
    /// future ends the pull: nothing is written afterwards, and the connection is closed.
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
        let mut assembly = Assembly::new(expected, &pull.arena, &pull.blocks, n_here);
        let (kind, mut inlet) = self.open(pull).await?;
        let result = self.fill(pull, kind, &mut *inlet, &mut assembly).await;
        // The connection stayed open until now: the source keeps the blocks until it has the last word.
        inlet.end(match &result {
            Ok(_) => LastWord::Sealed,
            Err(error) => LastWord::Failed(error.to_string()),
        });
        result
    }

    /// Asks for everything, over the best transport that reaches the peer.
    async fn open(&self, pull: &Pull) -> Result<(TransportKind, Box<dyn Inlet>), PullError> {
        let (plan, lack) = self.choice.plan(&pull.endpoints, self.transports.host.as_deref());
        let wanted = match (self.choice, &lack) {
            (TransportChoice::Only(kind), Some(_)) => kind,
            _ => plan[0],
        };
        let mut why = lack;
        let mut last = None;
        for kind in plan {
            if let Some(error) = self.avoided.why(kind, &pull.peer) {
                why.get_or_insert_with(|| format!("{kind}, a moment ago: {error}"));
                continue;
            }
            match self.transports.of(kind).open(pull, &[]).await {
                Ok(inlet) => {
                    if let Some(why) = why {
                        tracing::warn!(peer = %pull.peer, %wanted, used = %kind, why, "kv transport downgraded");
                        self.metrics.count_step_down(wanted, kind);
                    }
                    return Ok((kind, inlet));
                }
                Err(OpenError::Failed(error)) => return Err(error),
                Err(OpenError::Unreachable(error)) => {
                    self.avoided.add(kind, &pull.peer, &error);
                    why.get_or_insert_with(|| format!("{kind}: {error}"));
                    last = Some(error);
                }
            }
        }
        // Only if gRPC said so, which it does not: it connects lazily.
        Err(PullError::Refused(Failure::internal(last.unwrap_or_default())))
    }

    async fn fill(
        &self,
        pull: &Pull,
        kind: TransportKind,
        inlet: &mut dyn Inlet,
        assembly: &mut Assembly<'_>,
    ) -> Result<Pulled, PullError> {
        let mut fetched = Fetched { kind, bytes: 0, last_cell: Instant::now() };
        let mut round = assembly.whole();
        let received = self.receive(inlet, pull, assembly, &mut round, &mut fetched).await?;
        let last_cell = fetched.last_cell;
        let done = |handoff, bytes, refetched| Pulled {
            handoff,
            bytes,
            refetched,
            closing: last_cell.elapsed(),
            transport: kind,
        };
        let sealed = received.and_then(|manifest| assembly.seal(&round, manifest, pull.choice));
        let problem = match sealed {
            Ok(handoff) => return Ok(done(handoff, fetched.bytes, 0)),
            Err(problem) => problem,
        };

        let mut round = assembly.repair();
        let n_cells = round.asked().len();
        tracing::warn!(request = %pull.request, peer = %pull.peer, problem, n_cells, "kv damaged, fetching again");
        if n_cells > ONLY_MAX {
            return Err(PullError::Corrupt(problem));
        }
        self.metrics.count_refetched(n_cells as u64);
        let mut again = match self.transports.of(kind).open(pull, round.asked()).await {
            Ok(again) => again,
            Err(OpenError::Failed(error)) => return Err(error),
            Err(OpenError::Unreachable(error)) => return Err(PullError::Corrupt(format!("{problem}; then {error}"))),
        };
        let received = self.receive(&mut *again, pull, assembly, &mut round, &mut fetched).await?;
        let sealed = received.and_then(|manifest| assembly.seal(&round, manifest, pull.choice));
        let handoff = sealed.map_err(PullError::Corrupt)?;
        again.end(LastWord::Sealed);
        Ok(done(handoff, fetched.bytes, u32::try_from(n_cells).unwrap_or(u32::MAX)))
    }

    /// Takes cells until the manifest, or until nothing more can come of the connection, which is told.
    async fn receive(
        &self,
        inlet: &mut dyn Inlet,
        pull: &Pull,
        assembly: &mut Assembly<'_>,
        round: &mut Round,
        fetched: &mut Fetched,
    ) -> Result<Result<wire::Manifest, String>, PullError> {
        loop {
            match inlet.next(assembly, round).await? {
                Arrived::Cells(landed) => {
                    fetched.bytes += landed.bytes;
                    if landed.n_cells > 0 {
                        fetched.last_cell = Instant::now();
                    }
                    self.metrics.count_cells(Direction::Received, fetched.kind, landed.n_cells, landed.bytes);
                    for (CellId { layer, block }, fault) in landed.rejected {
                        self.metrics.count_rejected(fault);
                        tracing::warn!(request = %pull.request, peer = %pull.peer, layer, block, %fault, "frame dropped");
                    }
                }
                Arrived::Manifest(manifest) => return Ok(Ok(manifest)),
                Arrived::Damaged(what) => {
                    self.metrics.count_rejected(crate::frame::FrameFault::Encoding);
                    return Ok(Err(format!("the stream is damaged: {what}")));
                }
            }
        }
    }
}

/// Transports that did not reach a peer a moment ago: not every pull waits for that anew. gRPC, the last, is never
/// among them.
#[derive(Default)]
struct Avoided(Mutex<HashMap<(TransportKind, WorkerRef), (Instant, String)>>);

/// A transport that did not reach a peer is not tried for this long.
const AVOID_TIME: Duration = Duration::from_secs(30);
/// Peers that are remembered.
const AVOIDED_MAX: usize = 1024;

impl Avoided {
    fn why(&self, kind: TransportKind, peer: &WorkerRef) -> Option<String> {
        let mut avoided = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (kind, peer.clone());
        let (since, why) = avoided.get(&key)?;
        if since.elapsed() < AVOID_TIME {
            return Some(why.clone());
        }
        avoided.remove(&key);
        None
    }

    fn add(&self, kind: TransportKind, peer: &WorkerRef, why: &str) {
        let mut avoided = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if avoided.len() >= AVOIDED_MAX {
            avoided.clear();
        }
        if kind != TransportKind::Grpc {
            avoided.insert((kind, peer.clone()), (Instant::now(), why.to_owned()));
        }
    }
}

struct Fetched {
    kind: TransportKind,
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
