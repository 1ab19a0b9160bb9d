//! A source on every transport, with an arena that rows are published into by hand, and a reader with an arena of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kernels::kv::KvArena;
use rpc::net::Limits;
use rpc::{ServeOptions, TraceContext};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use transfer::testing::{Plan, SocketProxy, corrupting_proxy};
use transfer::{
    Checksum, KvHold, Metrics, Offer, OfferHandle, Pull, Puller, Source, SourceConfig, TransportChoice, TransportKind,
};
use types::{
    BlockHash, BlockIdx, Compatibility, Epoch, Handoff, KvElement, KvEndpoints, KvGeometry, LayerKv, LayerKvKind,
    RequestId, Token, WorkerId, WorkerRef,
};

pub(crate) const BLOCK_TOKENS: usize = 4;
pub(crate) const N_LAYERS: usize = 3;
pub(crate) const REQUEST: RequestId = RequestId(0xABCD);
pub(crate) const CONFIG: SourceConfig = SourceConfig {
    offer_wait: Duration::from_millis(300),
    progress_timeout: Duration::from_millis(400),
    heartbeat: Duration::from_millis(50),
    silence: Duration::from_millis(500),
    n_fetches: 16,
};

/// Runs each function once per transport, as a test of its own.
macro_rules! over_every_transport {
    ($($name:ident),* $(,)?) => {
        over_every_transport!(@over grpc Grpc $($name)*);
        over_every_transport!(@over tcp Tcp $($name)*);
        over_every_transport!(@over shm Shm $($name)*);
    };
    (@over $module:ident $kind:ident $($name:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::$name(transfer::TransportKind::$kind).await;
                }
            )*
        }
    };
}
pub(crate) use over_every_transport;

/// How often something is tried.
pub(crate) struct Trials {
    pub(crate) count: u64,
}

impl Trials {
    /// `full` times where the long version is asked for, a twentieth otherwise.
    pub(crate) fn of(full: u64) -> Self {
        let long = std::env::var("BATON_TRANSFER_TRIALS").is_ok_and(|value| value == "full");
        // A multiple of three: some trials take three faults in turn.
        Self { count: if long { full } else { full.div_ceil(20) }.next_multiple_of(3) }
    }
}

pub(crate) struct Bed {
    pub(crate) source: Arc<Source>,
    pub(crate) arena: Arc<KvArena>,
    pub(crate) address: SocketAddr,
    pub(crate) endpoints: KvEndpoints,
    pub(crate) puller: Puller,
    pub(crate) folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl Bed {
    /// A reader that uses `kind`; cells of `cell_bytes` bytes.
    pub(crate) async fn new(kind: TransportKind, cell_bytes: usize) -> Self {
        Self::with(kind, cell_bytes, CONFIG).await
    }

    pub(crate) async fn with(kind: TransportKind, cell_bytes: usize, config: SourceConfig) -> Self {
        let stop = CancellationToken::new();
        let arena = arena(cell_bytes);
        let (_, worker) = watch::channel(prefill());
        let source = Source::new(arena.clone(), compatibility(), worker, config, Metrics::default());
        let (listener, address) = listen().await;
        let limits = Limits { grace: Duration::from_millis(50), ..Limits::kv() };
        let (grace, folder) = (limits.grace, tempfile::tempdir().expect("a folder"));
        tokio::spawn(transfer::serve(listener, source.clone(), ServeOptions::new(limits), stop.clone()));
        let tcp = transfer::bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("loopback");
        let path = folder.path().join("kv.sock");
        let endpoints = KvEndpoints {
            tcp: tcp.local_addr().expect("bound").to_string(),
            shm: path.display().to_string(),
            host: transfer::host_id().expect("a running system"),
        };
        tokio::spawn(transfer::serve_tcp(tcp, source.clone(), grace, stop.clone()));
        let shm = transfer::bind_shm(&path).expect("a short path");
        tokio::spawn(transfer::serve_shm(shm, source.clone(), grace, stop.clone()));
        let puller = Puller::new(TransportChoice::Only(kind), Metrics::default());
        Self { source, arena, address, endpoints, puller, folder, _stop: stop.drop_guard() }
    }

    /// A corrupting proxy before the source; the pull goes through it.
    pub(crate) async fn proxy(&self, kind: TransportKind, plan: Plan, seed: u64, pull: &mut Pull) -> DropGuard {
        let stop = CancellationToken::new();
        match kind {
            TransportKind::Grpc => {
                let (listener, address) = listen().await;
                tokio::spawn(corrupting_proxy(listener, self.address.to_string(), plan, seed, stop.clone()));
                pull.address = address.to_string();
            }
            TransportKind::Tcp => {
                let (listener, address) = listen().await;
                let proxy = SocketProxy::new(plan, seed, stop.clone());
                tokio::spawn(proxy.tcp(listener, self.endpoints.tcp.clone()));
                pull.endpoints.tcp = address.to_string();
            }
            TransportKind::Shm => {
                let path = self.folder.path().join(format!("proxy-{seed}.sock"));
                let listener = transfer::bind_shm(&path).expect("a short path");
                let proxy = SocketProxy::new(plan, seed, stop.clone());
                tokio::spawn(proxy.shm(listener, self.endpoints.shm.clone()));
                pull.endpoints.shm = path.display().to_string();
            }
        }
        stop.drop_guard()
    }

    pub(crate) fn offer(&self, n_tokens: usize) -> (OfferHandle, Computing) {
        self.offer_as(REQUEST, source_blocks(n_tokens), n_tokens)
    }

    /// An offer of these blocks under another name; what is published in them is offered at once.
    pub(crate) fn offer_as(
        &self,
        request: RequestId,
        blocks: Vec<BlockIdx>,
        n_tokens: usize,
    ) -> (OfferHandle, Computing) {
        let (progress, _) = watch::channel(0);
        let released = Arc::new(AtomicBool::new(false));
        let hold = FakeHold { blocks: blocks.clone(), progress: progress.subscribe(), released: released.clone() };
        let offer = Offer {
            request,
            choice: 0,
            worker: prefill(),
            owner_epoch: Epoch(5),
            reader: decode(),
            n_tokens,
            hashes: hashes(n_tokens),
            hold: Box::new(hold),
            hold_for: Duration::from_millis(200),
        };
        let handle = self.source.offer(offer).expect("no other offer");
        (handle, Computing { arena: self.arena.clone(), blocks, progress, released, n_tokens, salt: 0 })
    }

    pub(crate) fn pull(&self, n_tokens: usize) -> Pull {
        Pull {
            n_blocks_here: 0,
            address: self.address.to_string(),
            endpoints: self.endpoints.clone(),
            peer: prefill(),
            reader: decode(),
            request: REQUEST,
            choice: 0,
            owner_epoch: Epoch(5),
            trace: TraceContext::default(),
            compatibility: compatibility(),
            checksum: Checksum::On,
            blocks: (0..n_tokens.div_ceil(BLOCK_TOKENS) as u32).map(BlockIdx).collect(),
            n_tokens,
            hashes: hashes(n_tokens),
            arena: arena(self.arena.cell_bytes(0)),
            deadline: Instant::now() + Duration::from_secs(20),
            progress_timeout: Duration::from_secs(2),
            keep_alive: Duration::from_millis(50),
        }
    }
}

/// Copies the first `n` blocks of what was computed into the reader's blocks, as if they had come before.
pub(crate) fn have(computing: &Computing, pull: &mut Pull, n: usize) {
    let mut cell = vec![0; pull.arena.cell_bytes(0)];
    for layer in 0..N_LAYERS {
        for block in 0..n {
            computing.arena.export(layer, computing.blocks[block].0, BLOCK_TOKENS, &mut cell).expect("computed");
            pull.arena.import(layer, pull.blocks[block].0, BLOCK_TOKENS, &cell).expect("empty");
        }
    }
    pull.n_blocks_here = n;
}

/// The prefill side's computation.
pub(crate) struct Computing {
    arena: Arc<KvArena>,
    blocks: Vec<BlockIdx>,
    progress: watch::Sender<u64>,
    released: Arc<AtomicBool>,
    n_tokens: usize,
    /// Makes this prompt's bytes other than those of the same tokens of another.
    pub(crate) salt: usize,
}

impl Computing {
    /// Publishes the rows of `tokens` in every layer, one layer after the other.
    pub(crate) fn publish(&self, tokens: std::ops::Range<usize>) {
        for layer in 0..N_LAYERS {
            for token in tokens.clone() {
                let block = self.blocks[token / BLOCK_TOKENS].0;
                let row = token % BLOCK_TOKENS;
                let mut append = self.arena.append(layer, block, row, 1).expect("rows come in order");
                fill(append.plane_mut(0), layer, token + self.salt);
                append.publish();
            }
            self.progress.send_modify(|n| *n += 1);
        }
    }

    pub(crate) fn publish_all(&self) {
        self.publish(0..self.n_tokens);
    }

    pub(crate) fn released(&self) -> bool {
        self.released.load(Ordering::SeqCst)
    }
}

/// Whether the pull's arena holds exactly what was computed.
pub(crate) fn holds_prompt(pull: &Pull) -> bool {
    holds(pull, 0)
}

/// [`holds_prompt`] of a prompt with this salt.
pub(crate) fn holds(pull: &Pull, salt: usize) -> bool {
    let bytes = pull.arena.cell_bytes(0);
    let mut found = vec![0; bytes];
    let mut row = vec![0; bytes / BLOCK_TOKENS];
    (0..N_LAYERS).all(|layer| {
        (0..pull.blocks.len()).all(|block| {
            let rows = (pull.n_tokens - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            let exported = pull.arena.export(layer, pull.blocks[block].0, rows, &mut found);
            exported.is_ok()
                && (0..rows).all(|r| {
                    fill(&mut row, layer, block * BLOCK_TOKENS + r + salt);
                    found[r * row.len()..][..row.len()] == row
                })
        })
    })
}

pub(crate) fn handoff(n_tokens: usize) -> Handoff {
    Handoff {
        first: Token { id: 77, position: 0, logprob: Some(-1.5), top: vec![], finish: None },
        position: n_tokens as u32,
        choice: 0,
        seed: 9,
        hidden_state: vec![],
        generated: vec![77],
    }
}

pub(crate) fn prefill() -> WorkerRef {
    WorkerRef { id: WorkerId::new("prefill-0"), epoch: Epoch(11) }
}

pub(crate) fn decode() -> WorkerRef {
    WorkerRef { id: WorkerId::new("decode-0"), epoch: Epoch(12) }
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

pub(crate) fn compatibility() -> Compatibility {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 4 }, window: None };
    Compatibility {
        protocol: (1, 1),
        model_digest: "model".into(),
        model_revision: String::new(),
        geometry: KvGeometry {
            block_tokens: BLOCK_TOKENS as u32,
            element: KvElement::F32,
            layers: vec![layer; N_LAYERS],
        },
        rope: String::new(),
        attention: String::new(),
        quantization: String::new(),
        adapters: vec![],
        drafter: String::new(),
        numerics: String::new(),
    }
}

struct FakeHold {
    blocks: Vec<BlockIdx>,
    progress: watch::Receiver<u64>,
    released: Arc<AtomicBool>,
}

impl KvHold for FakeHold {
    fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }
}

impl Drop for FakeHold {
    fn drop(&mut self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

pub(crate) fn arena(cell_bytes: usize) -> Arc<KvArena> {
    Arc::new(KvArena::new(&[cell_bytes; N_LAYERS], 64, BLOCK_TOKENS).expect("a small arena"))
}

/// Blocks of the source: not the reader's numbers.
pub(crate) fn source_blocks(n_tokens: usize) -> Vec<BlockIdx> {
    (0..n_tokens.div_ceil(BLOCK_TOKENS) as u32).map(|b| BlockIdx(63 - b)).collect()
}

fn hashes(n_tokens: usize) -> Vec<BlockHash> {
    (0..n_tokens.div_ceil(BLOCK_TOKENS) as u8).map(|b| BlockHash([b + 1; 16])).collect()
}

pub(crate) fn fill(row: &mut [u8], layer: usize, token: usize) {
    for (i, byte) in row.iter_mut().enumerate() {
        *byte = (layer * 83 + token * 31 + i * 7 + i / 256) as u8;
    }
}
