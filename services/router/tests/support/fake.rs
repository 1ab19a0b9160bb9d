//! A worker that computes nothing: it follows a script, over the real protocol, and keeps a log.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use rpc::worker::{DecodeCall, DecodeEvent, HoldCause, PrefillCall, PrefillEvent, Reserve, Reserved, WorkerApi};
use rpc::{EventStream, Limits, RequestContext, ServeOptions};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use types::{
    Accounting, Epoch, Failure, FinishReason, KvEventBatch, Load, Phase, PhaseTimes, RequestId, Token, TokenId,
    TopLogprob, WorkerId, WorkerRef,
};

/// The token at a position: the alphabet, begun one letter later by each choice.
pub fn letter(choice: u32, position: u32) -> TokenId {
    u32::from(b'a') + (choice + position) % 26
}

/// The text of the first `n` tokens.
pub fn alphabet(choice: u32, n: u32) -> String {
    (0..n).map(|p| char::from_u32(letter(choice, p)).expect("a letter")).collect()
}

/// What a worker does. The default serves well.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Answer to every reservation.
    pub refuse_reserve: Option<Failure>,
    /// Answer to every prefill call.
    pub refuse_prefill: Option<Failure>,
    /// Prefill ends so after it has begun.
    pub lose_prefill: Option<Failure>,
    /// Before prefill's first token.
    pub first_delay: Duration,
    /// The pull fails: decode computes the prompt itself.
    pub recompute: bool,
    /// Before each decode token.
    pub token_delay: Duration,
    /// Decode fails instead of sending this position, once.
    pub fail_decode_at: Option<(u32, Failure)>,
    /// Every decode token is sent twice.
    pub repeat: bool,
    /// This position is never sent.
    pub skip: Option<u32>,
    /// Decode says nothing from this position on.
    pub hang_at: Option<u32>,
    /// This position has a wrong token.
    pub wrong_at: Option<u32>,
    /// A special token ends the choice here.
    pub eos_at: Option<u32>,
}

/// What a worker saw.
#[derive(Clone, Debug, Default)]
pub struct Log {
    pub n_reserve: usize,
    pub n_prefill: usize,
    pub decodes: Vec<DecodeCall>,
    pub n_report_streams: usize,
    pub cancelled: Vec<(RequestId, u32)>,
    /// Streams of requests that are open.
    pub n_open: usize,
    /// Streams that were dropped before their end.
    pub n_dropped: usize,
}

#[derive(Clone)]
pub struct Fake {
    pub id: String,
    pub address: SocketAddr,
    state: Arc<State>,
    server: AbortHandle,
}

struct State {
    id: String,
    epoch: Mutex<Epoch>,
    script: Mutex<Script>,
    log: Mutex<Log>,
}

impl Fake {
    pub async fn start(id: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            id: id.clone(),
            epoch: Mutex::default(),
            script: Mutex::default(),
            log: Mutex::default(),
        });
        let options = ServeOptions::new(Limits::internal());
        let api = Arc::new(Worker(state.clone()));
        let serve = rpc::worker::serve(listener, api, options, CancellationToken::new());
        let server = tokio::spawn(serve).abort_handle();
        Self { id, address, state, server }
    }

    pub fn incarnation(&self, epoch: Epoch) {
        *self.state.epoch.lock().expect("no panic") = epoch;
    }

    pub fn script(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.state.script());
    }

    pub fn log(&self) -> Log {
        self.state.log().clone()
    }

    /// As by SIGKILL: every connection breaks.
    pub fn kill(&self) {
        self.server.abort();
    }
}

impl State {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().expect("no panic")
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no panic")
    }
}

/// Counts an open stream; one that is not `ended` was dropped.
struct OpenStream {
    state: Arc<State>,
    ended: bool,
}

impl OpenStream {
    fn new(state: &Arc<State>) -> Self {
        state.log().n_open += 1;
        Self { state: state.clone(), ended: false }
    }

    fn end(&mut self) {
        self.ended = true;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut log = self.state.log();
        log.n_open -= 1;
        log.n_dropped += usize::from(!self.ended);
    }
}

struct Worker(Arc<State>);

fn token(choice: u32, position: u32, max_tokens: u32, logprobs: Option<u32>, script: &Script) -> Token {
    let mut id = letter(choice, position);
    let mut finish = (position + 1 == max_tokens).then_some(FinishReason::Length);
    if script.wrong_at == Some(position) {
        id = u32::from(b'?');
    }
    if script.eos_at == Some(position) {
        id = super::model::IM_END;
        finish = Some(FinishReason::Stop);
    }
    let logprob = |rank: u32| -0.25 - rank as f32;
    let top = |rank| TopLogprob { token: letter(choice, position + rank), logprob: logprob(rank) };
    Token {
        id,
        position,
        logprob: logprobs.map(|_| logprob(0)),
        top: (0..logprobs.unwrap_or(0)).map(top).collect(),
        finish,
    }
}

fn phases(list: &[Phase]) -> PhaseTimes {
    let mut times = PhaseTimes::default();
    for &phase in list {
        times.add(phase, Duration::from_millis(1));
    }
    times
}

#[async_trait]
impl WorkerApi for Worker {
    async fn reserve(&self, context: RequestContext, _: Reserve) -> Result<Reserved, Failure> {
        self.0.log().n_reserve += 1;
        if let Some(failure) = self.0.script().refuse_reserve.clone() {
            return Err(failure);
        }
        let id = context.request.0.wrapping_add(u128::from(context.choice)).to_be_bytes();
        Ok(Reserved { id, n_blocks: 1, worker: context.worker })
    }

    async fn run_prefill(
        &self,
        context: RequestContext,
        call: PrefillCall,
    ) -> Result<EventStream<PrefillEvent>, Failure> {
        self.0.log().n_prefill += 1;
        let script = self.0.script().clone();
        if let Some(failure) = script.refuse_prefill {
            return Err(failure);
        }
        let mut open = OpenStream::new(&self.0);
        let events = async_stream::try_stream! {
            yield PrefillEvent::Started { phases: phases(&[Phase::PrefillQueue]) };
            tokio::time::sleep(script.first_delay).await;
            if let Some(failure) = script.lose_prefill.clone() {
                open.end();
                Err(failure)?;
            }
            let token = token(context.choice, 0, call.stop.max_tokens, call.sampling.logprobs, &script);
            let phases = phases(&[Phase::PrefillQueue, Phase::Prefill]);
            yield PrefillEvent::Finished { token, cached: 3, phases };
            tokio::time::sleep(Duration::from_millis(20)).await;
            yield PrefillEvent::HoldEnded { cause: HoldCause::Fetched, bytes: 1000 };
            open.end();
        };
        Ok(events.boxed())
    }

    async fn run_decode(&self, context: RequestContext, call: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        let expected = context.request.0.wrapping_add(u128::from(context.choice)).to_be_bytes();
        assert_eq!(call.reservation, expected, "the reservation is the choice's own");
        self.0.log().decodes.push(call.clone());
        let script = self.0.script().clone();
        let state = self.0.clone();
        let mut open = OpenStream::new(&self.0);
        let events = async_stream::try_stream! {
            let replayed: Vec<_> = (0..).zip(&call.generated).map(|(p, _)| letter(context.choice, p)).collect();
            assert_eq!(call.generated, replayed, "what is replayed is what was sent");
            let mut next = u32::try_from(call.generated.len()).expect("short");
            let mut times = PhaseTimes::default();
            if call.source.is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
                times = phases(&[Phase::Handoff]);
                let (bytes, transport) = if script.recompute { (0, "") } else { (1000, "grpc") };
                let transport = transport.to_owned();
                yield DecodeEvent::Handoff { bytes, n_blocks: 1, transport, recomputed: script.recompute, phases: times };
                next = u32::from(!script.recompute);
            }
            for position in next..call.stop.max_tokens {
                tokio::time::sleep(script.token_delay).await;
                if script.hang_at == Some(position) {
                    std::future::pending::<()>().await;
                }
                let fails = script.fail_decode_at.as_ref().filter(|(at, _)| *at == position);
                if let Some((_, failure)) = fails {
                    state.script().fail_decode_at = None;
                    open.end();
                    Err(failure.clone())?;
                }
                if script.skip == Some(position) {
                    continue;
                }
                let token = token(context.choice, position, call.stop.max_tokens, call.sampling.logprobs, &script);
                let last = token.finish.is_some();
                if script.repeat && !last {
                    yield DecodeEvent::Token(token.clone());
                }
                yield DecodeEvent::Token(token);
                if last {
                    break;
                }
            }
            times.merge(&phases(&[Phase::DecodeQueue, Phase::FirstStep]));
            yield DecodeEvent::Finished { n_tokens: call.stop.max_tokens, cached: 2, phases: times };
            open.end();
        };
        Ok(events.boxed())
    }

    async fn cancel(&self, context: RequestContext, _: bool) -> Result<bool, Failure> {
        self.0.log().cancelled.push((context.request, context.choice));
        Ok(true)
    }

    async fn drain(&self, _: WorkerRef) -> Result<u32, Failure> {
        Ok(0)
    }

    async fn load_report(&self, _: WorkerRef, _: Duration) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        let worker =
            WorkerRef { id: WorkerId::new(self.0.id.as_str()), epoch: *self.0.epoch.lock().expect("no panic") };
        self.0.log().n_report_streams += 1;
        let load = Load { blocks_total: 1000, blocks_free: 1000, ..Load::default() };
        Ok(futures::stream::once(async move { Ok((worker, load)) }).chain(futures::stream::pending()).boxed())
    }

    async fn kv_events(&self, _: WorkerRef, _: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        Ok(futures::stream::pending().boxed())
    }

    async fn accounting(&self) -> Result<Accounting, Failure> {
        Ok(Accounting::default())
    }
}
