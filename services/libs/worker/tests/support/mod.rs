//! Workers over the simulated engine, and requests to give them.

#![allow(dead_code, reason = "each test file uses a part")]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use engine::sim::{SimConfig, SimEngine, Speedup, Timing};
use engine::{Engine, EngineError, ModelInfo, Slice};
use kernels::kv::KvArena;
use kvcache::hash::Chain;
use prometheus_client::registry::Registry;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::{Accounting, Failure, Handoff, RequestId, SamplingParams, StopParams, Token, TokenId};
use worker::{
    DecodeJob, DecodeRun, DecodeStart, Hold, Landing, PrefillJob, SeqKey, Started, WorkerConfig, WorkerHandle, spawn,
};

pub(crate) const N_VOCAB: usize = 512;
pub(crate) const BLOCK_TOKENS: usize = 16;

/// No time passes in steps; 1024 blocks.
pub(crate) fn sim() -> SimConfig {
    SimConfig {
        n_vocab: N_VOCAB,
        max_context: 2048,
        eos: vec![2],
        eos_per_mille: 10,
        key: 7,
        speedup: Speedup::Infinite,
        timing: Timing::ZERO,
        kv_blocks: 1024,
        block_tokens: BLOCK_TOKENS,
        ..SimConfig::default()
    }
}

/// Every step takes about this long.
pub(crate) fn slow(step: Duration) -> SimConfig {
    SimConfig { speedup: Speedup::Times(1.0), timing: Timing { step, ..Timing::ZERO }, ..sim() }
}

pub(crate) struct Worker {
    pub(crate) handle: WorkerHandle,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Worker {
    pub(crate) fn new(sim: SimConfig, config: WorkerConfig) -> Self {
        Self::with(Box::new(SimEngine::new(sim).unwrap()), config)
    }

    pub(crate) fn with(engine: Box<dyn Engine>, config: WorkerConfig) -> Self {
        let shutdown = CancellationToken::new();
        let (handle, task) = spawn(engine, config, shutdown.clone()).unwrap();
        Self { handle, shutdown, task }
    }

    /// Waits until nothing is owned by anybody, a second at most.
    pub(crate) async fn at_rest(&self) {
        let start = Instant::now();
        loop {
            let found = self.handle.accounting().await;
            let Accounting { total, free, cached, n_requests, n_streams, request, transfer } = found;
            if (request, transfer, n_requests, n_streams) == (0, 0, 0, 0) && free + cached == total {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(1), "not at rest: {found:?}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn stop(self) {
        self.at_rest().await;
        self.shutdown.cancel();
        self.task.await.unwrap();
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let mut registry = Registry::default();
        self.handle.register_metrics(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().unwrap()
    }
}

/// All that decides a request's tokens.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) key: SeqKey,
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopParams,
    pub(crate) deadline: Duration,
    /// Whose blocks are shared; `None`: nothing is.
    pub(crate) tenant: Option<&'static str>,
}

/// Repeatable randomness for tests.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) % n as u64) as usize
    }
}

/// A request of any shape: greedy or seeded, with penalties, logprobs, stops.
pub(crate) fn request(id: u64) -> Request {
    let mut random = Random::new(id);
    let n_prompt = match random.below(3) {
        0 => 1 + random.below(20),
        1 => 16 * (1 + random.below(8)),
        _ => 1 + random.below(300),
    };
    let sampling = match random.below(3) {
        0 => SamplingParams { logprobs: Some(2), ..SamplingParams::default() },
        1 => SamplingParams { temperature: 0.9, top_p: 0.95, seed: id, ..SamplingParams::default() },
        _ => SamplingParams {
            temperature: 1.1,
            top_k: 40,
            repetition_penalty: 1.2,
            presence_penalty: 0.5,
            frequency_penalty: 0.3,
            logprobs: Some(0),
            seed: id ^ 99,
            ..SamplingParams::default()
        },
    };
    let max_tokens = 2 + random.below(90) as u32;
    let stop = StopParams {
        max_tokens,
        min_tokens: if random.below(4) == 0 { max_tokens / 2 } else { 0 },
        ignore_eos: random.below(3) == 0,
        stop_token_ids: if random.below(3) == 0 { vec![random.below(N_VOCAB) as u32; 2] } else { vec![] },
    };
    Request {
        key: SeqKey { request: RequestId(u128::from(id)), choice: random.below(3) as u32 },
        prompt: (0..n_prompt).map(|_| random.below(N_VOCAB) as u32).collect(),
        sampling,
        stop,
        deadline: Duration::from_secs(60),
        tenant: Some(""),
    }
}

/// A greedy request of the given size that ends only by its length.
pub(crate) fn plain(id: u64, n_prompt: usize, max_tokens: u32) -> Request {
    let mut random = Random::new(id);
    Request {
        key: SeqKey { request: RequestId(u128::from(id)), choice: 0 },
        prompt: (0..n_prompt).map(|_| random.below(N_VOCAB) as u32).collect(),
        sampling: SamplingParams::default(),
        stop: StopParams { max_tokens, ignore_eos: true, ..StopParams::default() },
        deadline: Duration::from_secs(60),
        tenant: Some(""),
    }
}

impl Request {
    pub(crate) fn names(&self, worker: &WorkerHandle) -> Option<Chain> {
        self.tenant.map(|tenant| worker.names(tenant, &self.prompt, self.stop.max_tokens))
    }

    pub(crate) fn prefill_job(&self, worker: &WorkerHandle) -> PrefillJob {
        PrefillJob {
            names: self.names(worker),
            key: self.key,
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            deadline: Instant::now() + self.deadline,
        }
    }

    pub(crate) fn decode_job(&self, worker: &WorkerHandle, start: DecodeStart) -> DecodeJob {
        DecodeJob {
            names: self.names(worker),
            key: self.key,
            prompt: self.prompt.clone(),
            sampling: self.sampling.clone(),
            stop: self.stop.clone(),
            deadline: Instant::now() + self.deadline,
            start,
        }
    }

    /// Waits for room.
    pub(crate) async fn land(&self, worker: &WorkerHandle) -> Result<Landing, Failure> {
        let (n_prompt, max_new) = (self.prompt.len(), self.stop.max_tokens as usize);
        loop {
            match worker.reserve(self.key, n_prompt, max_new, Duration::from_secs(5)).await {
                Ok(reserved) => return worker.claim(reserved.id, self.key, self.names(worker).as_ref()).await,
                Err(failure) if failure.code == types::Code::ResourceExhausted => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Computed by one worker from prompt (and what was generated before) to end.
    pub(crate) async fn start_whole(
        &self,
        worker: &WorkerHandle,
        generated: Vec<TokenId>,
    ) -> Result<DecodeRun, Failure> {
        let landing = self.land(worker).await?;
        worker.decode(self.decode_job(worker, DecodeStart::Recompute { landing, generated })).await
    }

    pub(crate) async fn whole(&self, worker: &WorkerHandle) -> Result<Vec<Token>, Failure> {
        collect(self.start_whole(worker, vec![]).await?).await
    }

    pub(crate) fn handoff(&self, first: &Token) -> Handoff {
        Handoff {
            first: first.clone(),
            position: self.prompt.len() as u32,
            choice: self.key.choice,
            seed: self.sampling.seed,
            hidden_state: vec![],
            generated: vec![first.id],
        }
    }

    /// Prompt here, rest there; `tamper` may change a cell on its way.
    pub(crate) async fn split(
        &self,
        prefill: &WorkerHandle,
        decode: &WorkerHandle,
        tamper: impl Fn(usize, &mut [u8]),
    ) -> Result<Vec<Token>, Failure> {
        let landing = self.land(decode).await?;
        let mut run = prefill.prefill(self.prefill_job(prefill)).await?;
        let Started { hold, .. } = run.started().await?;
        let (first, _) = run.first_token().await?;
        if first.finish.is_some() {
            return Ok(vec![first]);
        }
        copy(prefill.arena(), &hold, decode.arena(), &landing, self.prompt.len(), tamper);
        drop(hold);
        let handoff = self.handoff(&first);
        let run = decode.decode(self.decode_job(decode, DecodeStart::Handoff { landing, handoff })).await?;
        let mut tokens = vec![first];
        tokens.extend(collect(run).await?);
        Ok(tokens)
    }
}

/// Every cell of a prompt that is not there, from one arena into another.
pub(crate) fn copy(
    from: &KvArena,
    hold: &Hold,
    to: &KvArena,
    landing: &Landing,
    n_tokens: usize,
    tamper: impl Fn(usize, &mut [u8]),
) {
    for layer in 0..from.n_layers() {
        let mut cell = vec![0; from.cell_bytes(layer)];
        for (i, (source, target)) in hold.blocks().iter().zip(landing.blocks()).enumerate().skip(landing.n_cached()) {
            let n_rows = BLOCK_TOKENS.min(n_tokens - i * BLOCK_TOKENS);
            from.export(layer, source.0, n_rows, &mut cell).unwrap();
            tamper(i, &mut cell);
            to.import(layer, target.0, n_rows, &cell).unwrap();
        }
    }
}

/// All tokens to the end; checks that positions follow one another and that the last one, only, finishes.
pub(crate) async fn collect(mut run: DecodeRun) -> Result<Vec<Token>, Failure> {
    let mut tokens: Vec<Token> = Vec::new();
    while let Some(token) = run.next().await {
        let token = token?;
        if let Some(last) = tokens.last() {
            assert_eq!((token.position, last.finish), (last.position + 1, None));
        }
        tokens.push(token);
    }
    assert!(tokens.last().is_some_and(|last| last.finish.is_some()), "a stream that just ended");
    Ok(tokens)
}

/// An engine with something in the way of each step.
pub(crate) struct Hooked<F> {
    pub(crate) inner: SimEngine,
    pub(crate) hook: F,
}

/// What the hook may see and do: the slices, and `on_layer`.
pub(crate) type Hook =
    Box<dyn FnMut(&[Slice<'_>], &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<(), EngineError> + Send>;

impl Engine for Hooked<Hook> {
    fn model(&self) -> &Arc<ModelInfo> {
        self.inner.model()
    }

    fn arena(&self) -> &Arc<KvArena> {
        self.inner.arena()
    }

    fn forward(
        &mut self,
        slices: &[Slice<'_>],
        logits: &mut Vec<f32>,
        on_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        (self.hook)(slices, on_layer)?;
        self.inner.forward(slices, logits, on_layer)
    }
}

pub(crate) fn hooked(sim: SimConfig, hook: Hook) -> Box<dyn Engine> {
    Box::new(Hooked { inner: SimEngine::new(sim).unwrap(), hook })
}
