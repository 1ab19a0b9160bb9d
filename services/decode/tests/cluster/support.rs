//! A cluster of two workers, and a caller that does what a router does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bootstrap::Runtime;
use engine::Engine;
use engine::sim::{SimConfig, SimEngine, Speedup, Timing};
use futures::StreamExt as _;
use registry::Registry;
use registry::memory::MemoryRegistry;
use rpc::worker::{
    DecodeCall, DecodeEvent, PrefillCall, PrefillEvent, PullFrom, Reserve, Reserved, WorkerApi, WorkerClient,
};
use rpc::{RequestContext, TraceContext};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::{Accounting, Compatibility, Epoch, Failure, RequestId, Role, SamplingParams, StopParams, Token, WorkerRef};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
const HOLD: Duration = Duration::from_secs(5);

pub(crate) struct Options {
    pub(crate) speedup: Speedup,
    pub(crate) checksum: transfer::Checksum,
    /// Where decode is told to find prefill's KV.
    pub(crate) kv_advertise: Option<SocketAddr>,
    pub(crate) drain_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            speedup: Speedup::Infinite,
            checksum: transfer::Checksum::On,
            kv_advertise: None,
            drain_grace: Duration::from_secs(5),
        }
    }
}

/// A worker process's worth.
pub(crate) struct Worker {
    pub(crate) client: WorkerClient,
    pub(crate) worker: WorkerRef,
    pub(crate) kv_address: String,
    pub(crate) kv_endpoints: types::KvEndpoints,
    pub(crate) compatibility: Compatibility,
    pub(crate) runtime: Runtime,
    pub(crate) task: JoinHandle<anyhow::Result<()>>,
}

impl Worker {
    pub(crate) async fn accounting(&self) -> Accounting {
        self.client.accounting().await.expect("answers")
    }

    /// Waits until nothing is owned by anybody; the time it took.
    pub(crate) async fn rest(&self) -> Duration {
        let started = tokio::time::Instant::now();
        loop {
            let a = self.accounting().await;
            if (a.request, a.transfer, a.n_requests, a.n_streams) == (0, 0, 0, 0) {
                assert_eq!(a.free + a.cached, a.total);
                return started.elapsed();
            }
            assert!(started.elapsed() < Duration::from_secs(5), "{} does not come to rest: {a:?}", self.worker);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Value of a counter in the metrics, 0 if it is not there.
    pub(crate) fn metric(&self, line: &str) -> u64 {
        let text = self.runtime.metrics().to_openmetrics();
        let value = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().expect("a count"))
    }
}

pub(crate) struct Cluster {
    pub(crate) prefill: Worker,
    pub(crate) decode: Worker,
    pub(crate) registry: Arc<MemoryRegistry>,
}

impl Cluster {
    pub(crate) async fn start(options: Options) -> Self {
        let registry = Arc::new(MemoryRegistry::new());
        let mut config = prefill::Config::loopback("prefill-0", "sim");
        config.node.kv_advertise = options.kv_advertise.map(|address| address.to_string());
        if options.kv_advertise.is_some() {
            // A man in the middle of gRPC: no way leads past it.
            config.transports = prefill::TransportConfig::default();
        }
        config.node.drain_grace = options.drain_grace;
        let speedup = options.speedup;
        let prefill = launch(Role::Prefill, "prefill-0", &registry, |registry, runtime| {
            prefill::run(config, Box::new(move || engine(speedup)), registry, runtime)
        });
        let mut config = decode::Config::loopback("decode-0", "sim");
        config.pull.checksum = options.checksum;
        config.pull.progress_timeout = Duration::from_secs(2);
        config.node.drain_grace = options.drain_grace;
        let decode = launch(Role::Decode, "decode-0", &registry, |registry, runtime| {
            decode::run(config, Box::new(move || engine(speedup)), registry, runtime)
        });
        let (prefill, decode) = tokio::join!(prefill, decode);
        Self { prefill, decode, registry }
    }

    /// Port of prefill's KV service itself.
    pub(crate) fn kv_bound(&self) -> SocketAddr {
        let announced = self.prefill.runtime.announced();
        let all = announced.borrow();
        all[0].ports.kv.expect("a prefill worker serves KV")
    }

    pub(crate) fn context(&self, worker: &Worker, request: u128) -> RequestContext {
        RequestContext {
            request: RequestId(request),
            worker: worker.worker.clone(),
            owner_epoch: Epoch(1),
            deadline: DEADLINE,
            trace: TraceContext::default(),
            choice: 0,
        }
    }

    pub(crate) async fn reserve(&self, request: u128, ask: &Ask) -> Result<Reserved, Failure> {
        let context = self.context(&self.decode, request);
        let call = Reserve { n_prompt: ask.prompt.len() as u32, max_new: ask.stop.max_tokens, hold: HOLD };
        self.decode.client.reserve(context, call).await
    }

    pub(crate) fn decode_call(&self, reserved: &Reserved, ask: &Ask, split: bool) -> DecodeCall {
        DecodeCall {
            tenant: ask.tenant.clone(),
            reservation: reserved.id,
            prompt: ask.prompt.clone(),
            sampling: ask.sampling.clone(),
            stop: ask.stop.clone(),
            source: split.then(|| PullFrom {
                prefill: self.prefill.worker.clone(),
                address: self.prefill.kv_address.clone(),
                endpoints: self.prefill.kv_endpoints.clone(),
                compatibility: self.prefill.compatibility.clone(),
            }),
            generated: vec![],
        }
    }

    pub(crate) fn prefill_call(&self, ask: &Ask) -> PrefillCall {
        PrefillCall {
            tenant: ask.tenant.clone(),
            prompt: ask.prompt.clone(),
            sampling: ask.sampling.clone(),
            stop: ask.stop.clone(),
            reader: self.decode.worker.clone(),
            hold: HOLD,
        }
    }

    /// Prompt computed by prefill, continued by decode.
    pub(crate) async fn split(&self, request: u128, ask: &Ask) -> Result<Answer, Failure> {
        let reserved = self.reserve(request, ask).await?;
        let prefill = self.run_prefill(request, ask);
        let decode = self.run_decode(request, self.decode_call(&reserved, ask, true));
        let (first, mut answer) = match futures::future::join(prefill, decode).await {
            (Ok((first, cached)), Ok(answer)) => (Ok(first), Answer { cached, ..answer }),
            (Err(failure), Ok(answer)) => (Err(failure), answer),
            (Err(failure), Err(_)) | (Ok(_), Err(failure)) => return Err(failure),
        };
        match first {
            Ok(first) if answer.tokens.first().is_none_or(|token| token.position == 1) => {
                answer.tokens.insert(0, first)
            }
            Ok(first) => assert_eq!(first, answer.tokens[0], "recomputed alike"),
            Err(_) => assert!(answer.recomputed),
        }
        Ok(answer)
    }

    /// All of it by decode, sharing nothing with what came before.
    pub(crate) async fn alone(&self, request: u128, ask: &Ask) -> Result<Answer, Failure> {
        self.alone_warm(request, &Ask { tenant: format!("alone {request}"), ..ask.clone() }).await
    }

    /// All of it by decode, behind what is there.
    pub(crate) async fn alone_warm(&self, request: u128, ask: &Ask) -> Result<Answer, Failure> {
        let reserved = self.reserve(request, ask).await?;
        self.run_decode(request, self.decode_call(&reserved, ask, false)).await
    }

    /// The first token, and how many of the prompt's were not computed.
    async fn run_prefill(&self, request: u128, ask: &Ask) -> Result<(Token, u32), Failure> {
        let context = self.context(&self.prefill, request);
        let mut events = self.prefill.client.run_prefill(context, self.prefill_call(ask)).await?;
        let mut first = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(PrefillEvent::Finished { token, cached, .. }) => first = Some((token, cached)),
                Ok(_) => {}
                Err(failure) => return first.ok_or(failure),
            }
        }
        Ok(first.expect("finished before its hold ended"))
    }

    pub(crate) async fn run_decode(&self, request: u128, call: DecodeCall) -> Result<Answer, Failure> {
        let mut events = self.decode.client.run_decode(self.context(&self.decode, request), call).await?;
        let mut answer = Answer::default();
        while let Some(event) = events.next().await {
            match event? {
                DecodeEvent::Handoff { bytes, recomputed, .. } => {
                    (answer.bytes, answer.recomputed) = (bytes, recomputed);
                }
                DecodeEvent::Token(token) => answer.tokens.push(token),
                DecodeEvent::Finished { n_tokens, cached, .. } => (answer.n_tokens, answer.cached) = (n_tokens, cached),
            }
        }
        Ok(answer)
    }
}

/// What a client wants.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) tenant: String,
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopParams,
}

impl Ask {
    /// A prompt that only `seed` decides; every other one is drawn at random, with logprobs.
    pub(crate) fn new(seed: u64, n_prompt: usize, max_tokens: u32) -> Self {
        let prompt = (0..n_prompt as u64).map(|i| ((seed * 7919 + i * i * 31 + 17) % 900) as u32).collect();
        let mut sampling = SamplingParams { seed, ..SamplingParams::default() };
        if seed % 2 == 1 {
            sampling.temperature = 0.9;
            sampling.logprobs = Some(2);
            sampling.repetition_penalty = 1.2;
        }
        Self { tenant: String::new(), prompt, sampling, stop: StopParams { max_tokens, ..StopParams::default() } }
    }
}

#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) tokens: Vec<Token>,
    pub(crate) n_tokens: u32,
    pub(crate) bytes: u64,
    pub(crate) recomputed: bool,
    /// Tokens of the prompt that were not computed, by whoever computed it.
    pub(crate) cached: u32,
}

fn engine(speedup: Speedup) -> anyhow::Result<Box<dyn Engine>> {
    let timing = Timing {
        step: Duration::from_micros(500),
        prefill_per_token: Duration::from_micros(50),
        decode_per_sequence: Duration::from_micros(50),
        decode_per_thousand_rows: Duration::ZERO,
    };
    let config =
        SimConfig { n_vocab: 1000, max_context: 2048, speedup, timing, kv_blocks: 1024, ..SimConfig::default() };
    Ok(Box::new(SimEngine::new(config)?))
}

async fn launch<F>(
    role: Role,
    id: &str,
    registry: &Arc<MemoryRegistry>,
    run: impl FnOnce(Arc<dyn Registry>, Runtime) -> F,
) -> Worker
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let runtime = Runtime::new(role.as_str(), id, CancellationToken::new());
    let task = tokio::spawn(run(registry.clone(), runtime.clone()));
    let mut members = registry.members();
    let found = members.wait_for(|view| view.members.values().any(|m| m.member.id.as_str() == id && m.epoch.0 > 0));
    let view = tokio::time::timeout(Duration::from_secs(10), found).await.expect("joins").expect("lives").clone();
    let registered = view.members.values().find(|m| m.member.id.as_str() == id).expect("just seen");
    let client = WorkerClient::new(&registered.member.rpc_address).expect("an address");
    // Registered is not yet "knows its epoch": the worker hears of it on its own.
    while let Err(failure) = client.load_report(registered.worker(), Duration::from_millis(10)).await {
        assert_eq!(failure.reason, "STALE_EPOCH");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Worker {
        client,
        worker: registered.worker(),
        kv_address: registered.member.kv_address.clone(),
        kv_endpoints: registered.member.kv_endpoints.clone(),
        compatibility: registered.member.compatibility.clone().expect("workers have one"),
        runtime,
        task,
    }
}
