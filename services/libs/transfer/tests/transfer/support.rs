//! A source with an arena that rows are published into by hand, and a reader with an arena of its own.

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
use transfer::testing::{Plan, corrupting_proxy};
use transfer::{Checksum, KvHold, Metrics, Offer, OfferHandle, Pull, Puller, Source, SourceConfig};
use types::{
    BlockHash, BlockIdx, Compatibility, Epoch, Handoff, KvElement, KvGeometry, LayerKv, LayerKvKind, RequestId, Token,
    WorkerId, WorkerRef,
};

pub(crate) const BLOCK_TOKENS: usize = 4;
pub(crate) const N_LAYERS: usize = 3;
pub(crate) const REQUEST: RequestId = RequestId(0xABCD);
pub(crate) const CONFIG: SourceConfig = SourceConfig {
    offer_wait: Duration::from_millis(300),
    progress_timeout: Duration::from_millis(400),
    heartbeat: Duration::from_millis(50),
    n_fetches: 16,
};

pub(crate) struct Bed {
    pub(crate) source: Arc<Source>,
    pub(crate) arena: Arc<KvArena>,
    pub(crate) address: SocketAddr,
    pub(crate) puller: Puller,
    _stop: DropGuard,
}

impl Bed {
    /// Cells of `cell_bytes` bytes.
    pub(crate) async fn new(cell_bytes: usize) -> Self {
        let stop = CancellationToken::new();
        let arena = arena(cell_bytes);
        let (_, worker) = watch::channel(prefill());
        let source = Source::new(arena.clone(), compatibility(), worker, CONFIG, Metrics::default());
        let (listener, address) = listen().await;
        let limits = Limits { grace: Duration::from_millis(50), ..Limits::kv() };
        tokio::spawn(transfer::serve(listener, source.clone(), ServeOptions::new(limits), stop.clone()));
        Self { source, arena, address, puller: Puller::default(), _stop: stop.drop_guard() }
    }

    /// A corrupting proxy before the source.
    pub(crate) async fn proxy(&self, plan: Plan, seed: u64) -> (SocketAddr, DropGuard) {
        let stop = CancellationToken::new();
        let (listener, address) = listen().await;
        tokio::spawn(corrupting_proxy(listener, self.address.to_string(), plan, seed, stop.clone()));
        (address, stop.drop_guard())
    }

    pub(crate) fn offer(&self, n_tokens: usize) -> (OfferHandle, Computing) {
        let (progress, _) = watch::channel(0);
        let released = Arc::new(AtomicBool::new(false));
        let blocks = source_blocks(n_tokens);
        let hold = FakeHold { blocks: blocks.clone(), progress: progress.subscribe(), released: released.clone() };
        let offer = Offer {
            request: REQUEST,
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
        (handle, Computing { arena: self.arena.clone(), blocks, progress, released, n_tokens })
    }

    pub(crate) fn pull(&self, n_tokens: usize) -> Pull {
        Pull {
            n_blocks_here: 0,
            address: self.address.to_string(),
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
}

impl Computing {
    /// Publishes the rows of `tokens` in every layer, one layer after the other.
    pub(crate) fn publish(&self, tokens: std::ops::Range<usize>) {
        for layer in 0..N_LAYERS {
            for token in tokens.clone() {
                let block = self.blocks[token / BLOCK_TOKENS].0;
                let row = token % BLOCK_TOKENS;
                let mut append = self.arena.append(layer, block, row, 1).expect("rows come in order");
                fill(append.plane_mut(0), layer, token);
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
    let bytes = pull.arena.cell_bytes(0);
    let mut found = vec![0; bytes];
    let mut row = vec![0; bytes / BLOCK_TOKENS];
    (0..N_LAYERS).all(|layer| {
        (0..pull.blocks.len()).all(|block| {
            let rows = (pull.n_tokens - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            let exported = pull.arena.export(layer, pull.blocks[block].0, rows, &mut found);
            exported.is_ok()
                && (0..rows).all(|r| {
                    fill(&mut row, layer, block * BLOCK_TOKENS + r);
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

fn arena(cell_bytes: usize) -> Arc<KvArena> {
    Arc::new(KvArena::new(&[cell_bytes; N_LAYERS], 64, BLOCK_TOKENS).expect("a small arena"))
}

/// Blocks of the source: not the reader's numbers.
fn source_blocks(n_tokens: usize) -> Vec<BlockIdx> {
    (0..n_tokens.div_ceil(BLOCK_TOKENS) as u32).map(|b| BlockIdx(63 - b)).collect()
}

fn hashes(n_tokens: usize) -> Vec<BlockHash> {
    (0..n_tokens.div_ceil(BLOCK_TOKENS) as u8).map(|b| BlockHash([b + 1; 16])).collect()
}

fn fill(row: &mut [u8], layer: usize, token: usize) {
    for (i, byte) in row.iter_mut().enumerate() {
        *byte = (layer * 83 + token * 31 + i * 7 + i / 256) as u8;
    }
}
