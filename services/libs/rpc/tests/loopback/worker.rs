//! The control plane: what goes in comes out, whichever side of the wire one stands on.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use rpc::worker::{
    DecodeCall, DecodeEvent, HoldCause, PrefillCall, PrefillEvent, PullFrom, Reserve, Reserved, WorkerApi, WorkerClient,
};
use rpc::{EventStream, Limits, RequestContext, ServeOptions, TraceContext};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{
    Accounting, BlockHash, Code, Compatibility, Epoch, Failure, Fault, FinishReason, KvElement, KvEvent, KvEventBatch,
    KvGeometry, LayerKv, LayerKvKind, Load, Phase, PhaseTimes, RequestId, Retry, SamplingParams, StopParams, Token,
    TopLogprob, WorkerId, WorkerRef,
};

use crate::{Alive, listen};

/// Does what the request's number says, and checks that calls arrive as they were made.
#[derive(Default)]
struct Script {
    alive: Alive,
}

const ECHO: u128 = 1;
const FAIL: u128 = 2;
const ENDLESS: u128 = 3;
const TRUNCATED: u128 = 4;
const FAIL_LATER: u128 = 5;
const SLOW: u128 = 6;

#[async_trait]
impl WorkerApi for Script {
    async fn reserve(&self, context: RequestContext, call: Reserve) -> Result<Reserved, Failure> {
        let _alive = self.alive.guard();
        match context.request.0 {
            FAIL => Err(failure()),
            SLOW => std::future::pending().await,
            _ => {
                assert_eq!(call, reserve());
                assert_eq!(RequestContext { deadline: Duration::ZERO, ..context.clone() }, zero_deadline(ECHO));
                Ok(Reserved { id: [7; 16], n_blocks: call.n_prompt, worker: context.worker })
            }
        }
    }

    async fn run_prefill(&self, _: RequestContext, call: PrefillCall) -> Result<EventStream<PrefillEvent>, Failure> {
        assert_eq!(call, prefill_call());
        Ok(futures::stream::iter(prefill_events().map(Ok)).boxed())
    }

    async fn run_decode(&self, context: RequestContext, call: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        assert_eq!(call, decode_call());
        let alive = self.alive.guard();
        let events = futures::stream::iter(decode_events().map(Ok));
        Ok(match context.request.0 {
            FAIL => return Err(failure()),
            ENDLESS => {
                let forever = futures::stream::iter(0..).then(move |position| {
                    let _ = &alive;
                    async move {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        Ok(DecodeEvent::Token(Token { position, ..token() }))
                    }
                });
                forever.boxed()
            }
            TRUNCATED => events.take(2).boxed(),
            FAIL_LATER => events.take(2).chain(futures::stream::iter([Err(failure())])).boxed(),
            _ => events.boxed(),
        })
    }

    async fn cancel(&self, context: RequestContext, all_choices: bool) -> Result<bool, Failure> {
        Ok(all_choices && context.request == RequestId(ECHO))
    }

    async fn drain(&self, worker: WorkerRef) -> Result<u32, Failure> {
        assert_eq!(worker, here());
        Ok(5)
    }

    async fn load_report(
        &self,
        worker: WorkerRef,
        min_interval: Duration,
    ) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        assert_eq!(min_interval, Duration::from_millis(250));
        Ok(futures::stream::iter([Ok((worker, load()))]).chain(futures::stream::pending()).boxed())
    }

    async fn kv_events(&self, worker: WorkerRef, after: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        assert_eq!(worker, here());
        if after == u64::MAX {
            return Err(failure());
        }
        let batches = kv_batches().into_iter().filter(move |batch| batch.id > after).map(Ok);
        Ok(futures::stream::iter(batches.chain([Err(failure())])).boxed())
    }

    async fn accounting(&self) -> Result<Accounting, Failure> {
        Ok(accounting())
    }
}

struct Bed {
    client: WorkerClient,
    alive: Alive,
    _stop: DropGuard,
}

async fn bed() -> Bed {
    let (listener, address) = listen().await;
    let script = Script::default();
    let (alive, stop) = (script.alive.clone(), CancellationToken::new());
    let options = ServeOptions::new(Limits::internal());
    tokio::spawn(rpc::worker::serve(listener, Arc::new(script), options, stop.clone()));
    Bed { client: WorkerClient::new(&address.to_string()).expect("an address"), alive, _stop: stop.drop_guard() }
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let bed = bed().await;
    let client = &bed.client;
    let reserved = client.reserve(context(ECHO), reserve()).await;
    assert_eq!(reserved, Ok(Reserved { id: [7; 16], n_blocks: 100, worker: here() }));
    let events = client.run_prefill(context(ECHO), prefill_call()).await.unwrap();
    assert_eq!(events.map(Result::unwrap).collect::<Vec<_>>().await, prefill_events());
    let events = client.run_decode(context(ECHO), decode_call()).await.unwrap();
    assert_eq!(events.map(Result::unwrap).collect::<Vec<_>>().await, decode_events());
    assert_eq!(client.cancel(context(ECHO), true).await, Ok(true));
    assert_eq!(client.cancel(context(ECHO), false).await, Ok(false));
    assert_eq!(client.drain(here()).await, Ok(5));
    assert_eq!(client.accounting().await, Ok(accounting()));
    let mut reports = client.load_report(here(), Duration::from_millis(250)).await.unwrap();
    assert_eq!(reports.next().await, Some(Ok((here(), load()))));
}

#[tokio::test]
async fn failures_cross_whole() {
    let bed = bed().await;
    assert_eq!(bed.client.reserve(context(FAIL), reserve()).await, Err(failure()));
    assert_eq!(bed.client.run_decode(context(FAIL), decode_call()).await.err(), Some(failure()));
    let events: Vec<_> = bed.client.run_decode(context(FAIL_LATER), decode_call()).await.unwrap().collect().await;
    assert_eq!((events.len(), events[2].clone()), (3, Err(failure())), "nothing follows a failure");
}

#[tokio::test]
async fn a_stream_without_its_last_event_failed() {
    let bed = bed().await;
    let events: Vec<_> = bed.client.run_decode(context(TRUNCATED), decode_call()).await.unwrap().collect().await;
    let last = events[2].clone().unwrap_err();
    assert_eq!((events.len(), last.reason, last.fault), (3, "PEER_LOST", Fault::Peer));
}

#[tokio::test]
async fn dropping_is_cancelling() {
    let bed = bed().await;
    let mut events = bed.client.run_decode(context(ENDLESS), decode_call()).await.unwrap();
    events.next().await.unwrap().unwrap();
    drop(events);
    bed.alive.none().await;
    let reserve = tokio::time::timeout(Duration::from_millis(50), bed.client.reserve(context(SLOW), reserve()));
    assert!(reserve.await.is_err());
    bed.alive.none().await;
}

#[tokio::test]
async fn the_deadline_ends_calls_and_streams() {
    let bed = bed().await;
    let short = |request| RequestContext { deadline: Duration::from_millis(80), ..context(request) };
    let started = Instant::now();
    let late = bed.client.reserve(short(SLOW), reserve()).await.unwrap_err();
    assert_eq!((late.code, late.reason), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert!(started.elapsed() < Duration::from_secs(1));
    bed.alive.none().await;
    // This service ignores its deadline; the client does not wait for it for ever.
    let events: Vec<_> = bed.client.run_decode(short(ENDLESS), decode_call()).await.unwrap().collect().await;
    assert_eq!(events.last().unwrap().clone().unwrap_err().reason, "DEADLINE_EXCEEDED");
    bed.alive.none().await;
    let none = RequestContext { deadline: Duration::ZERO, ..context(ECHO) };
    assert_eq!(bed.client.reserve(none, reserve()).await.unwrap_err().reason, "DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn nobody_there_is_safe_to_retry() {
    let (listener, address) = listen().await;
    drop(listener);
    let client = WorkerClient::new(&address.to_string()).unwrap();
    let lost = client.reserve(context(ECHO), reserve()).await.unwrap_err();
    assert_eq!((lost.code, lost.reason, lost.retry), (Code::Unavailable, "PEER_UNREACHABLE", Retry::Safe(None)));
    for malformed in ["", "no port", "host", "host:x", "http://host:1/path x"] {
        assert!(WorkerClient::new(malformed).is_err(), "{malformed:?}");
    }
}

#[tokio::test]
async fn malformed_calls_are_refused_with_the_field() {
    use proto::v1::worker_service_client::WorkerServiceClient;
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let options = ServeOptions::new(Limits::internal());
    tokio::spawn(rpc::worker::serve(listener, Arc::new(Script::default()), options, stop));
    let channel = rpc::net::channel(&address.to_string(), &Limits::internal()).unwrap();
    let mut client = WorkerServiceClient::new(channel).max_encoding_message_size(64 << 20);

    let good = || proto::v1::ReserveRequest {
        context: Some(rpc::convert::write_context(&context(ECHO))),
        n_prompt_tokens: 100,
        max_new_tokens: 10,
        hold_ms: 1500,
    };
    type Change = fn(&mut proto::v1::ReserveRequest);
    let cases: [(&str, Change); 6] = [
        ("context", |r| r.context = None),
        ("context.request_id", |r| r.context.as_mut().unwrap().request_id = None),
        ("context.request_id", |r| r.context.as_mut().unwrap().request_id.as_mut().unwrap().value = vec![0; 15].into()),
        ("context.worker", |r| r.context.as_mut().unwrap().worker.as_mut().unwrap().worker_id = String::new()),
        ("context.traceparent", |r| r.context.as_mut().unwrap().traceparent = "x".repeat(1000)),
        ("n_prompt_tokens", |r| r.n_prompt_tokens = 0),
    ];
    for (param, change) in cases {
        let mut request = good();
        change(&mut request);
        let refused = rpc::status::from_status(&client.reserve(request).await.unwrap_err());
        assert_eq!((refused.code, refused.param.as_deref()), (Code::InvalidArgument, Some(param)));
    }
    let mut large = good();
    large.context.as_mut().unwrap().tracestate = "x".repeat(9 << 20);
    assert!(client.reserve(large).await.is_err(), "a message over the limit");
    client.reserve(good()).await.expect("the connection lives on");
}

fn here() -> WorkerRef {
    WorkerRef { id: WorkerId::new("decode-0"), epoch: Epoch(12) }
}

fn context(request: u128) -> RequestContext {
    RequestContext { deadline: Duration::from_secs(20), ..zero_deadline(request) }
}

fn zero_deadline(request: u128) -> RequestContext {
    RequestContext {
        request: RequestId(request),
        worker: here(),
        owner_epoch: Epoch(3),
        deadline: Duration::ZERO,
        trace: TraceContext { traceparent: "00-ab-cd-01".into(), tracestate: "a=b".into() },
        choice: 2,
    }
}

fn reserve() -> Reserve {
    Reserve { n_prompt: 100, max_new: 10, hold: Duration::from_millis(1500) }
}

fn failure() -> Failure {
    let failure = Failure::new(Code::ResourceExhausted, "NO_KV_BLOCKS", "no room for 100 tokens");
    Failure { param: Some("max_tokens".into()), ..failure }
        .with_fault(Fault::Peer)
        .with_retry(Retry::Safe(Some(Duration::from_millis(40))))
}

fn sampling() -> SamplingParams {
    SamplingParams { temperature: 0.5, logit_bias: vec![(4, -1.5)], seed: 99, ..SamplingParams::default() }
}

fn stop() -> StopParams {
    StopParams { max_tokens: 10, min_tokens: 1, ignore_eos: true, stop_token_ids: vec![2] }
}

fn prefill_call() -> PrefillCall {
    let prompt = [1, 2, 3].into();
    PrefillCall {
        prompt,
        sampling: sampling(),
        stop: stop(),
        reader: here(),
        hold: Duration::from_millis(2500),
        tenant: "t".into(),
    }
}

fn decode_call() -> DecodeCall {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 3, head_dim: 64 }, window: None };
    let compatibility = Compatibility {
        protocol: (1, 1),
        model_digest: "d".into(),
        model_revision: String::new(),
        geometry: KvGeometry { block_tokens: 16, element: KvElement::F16, layers: vec![layer; 30] },
        rope: "r".into(),
        attention: "a".into(),
        quantization: "q".into(),
        adapters: vec![],
        drafter: String::new(),
        numerics: "n".into(),
    };
    DecodeCall {
        tenant: "tenant".into(),
        reservation: [7; 16],
        prompt: [1, 2, 3].into(),
        sampling: sampling(),
        stop: stop(),
        source: Some(PullFrom {
            prefill: here(),
            address: "127.0.0.1:7100".into(),
            endpoints: types::KvEndpoints { tcp: "127.0.0.1:7101".into(), shm: "/run/kv".into(), host: "boot".into() },
            compatibility,
        }),
        generated: vec![8, 9],
    }
}

fn token() -> Token {
    let top = vec![TopLogprob { token: 5, logprob: -0.25 }];
    Token { id: 5, position: 0, logprob: Some(-0.25), top, finish: None }
}

fn phases() -> PhaseTimes {
    let mut phases = PhaseTimes::default();
    phases.add(Phase::PrefillQueue, Duration::from_micros(1));
    phases.add(Phase::Prefill, Duration::from_micros(2));
    phases
}

fn prefill_events() -> [PrefillEvent; 3] {
    [
        PrefillEvent::Started { phases: phases() },
        PrefillEvent::Finished { token: token(), cached: 16, phases: phases() },
        PrefillEvent::HoldEnded { cause: HoldCause::Expired, bytes: 5 },
    ]
}

fn decode_events() -> [DecodeEvent; 4] {
    let last = Token { position: 1, finish: Some(FinishReason::Length), ..token() };
    [
        DecodeEvent::Handoff {
            bytes: 4096,
            n_blocks: 1,
            transport: "grpc".into(),
            recomputed: false,
            phases: phases(),
        },
        DecodeEvent::Token(token()),
        DecodeEvent::Token(last),
        DecodeEvent::Finished { n_tokens: 2, cached: 0, phases: phases() },
    ]
}

fn load() -> Load {
    Load { n_waiting: 1, n_waiting_tokens: 2, n_running: 3, blocks_total: 4, blocks_free: 5, draining: true, steps: 6 }
}

fn kv_batches() -> Vec<KvEventBatch> {
    let hash = |n: u8| BlockHash([n; 16]);
    let stored = |from: u8, parent| KvEvent::Stored { hashes: (from..from + 3).map(hash).collect(), parent };
    vec![
        KvEventBatch { id: 0, events: vec![KvEvent::Cleared, stored(1, None)] },
        KvEventBatch { id: 7, events: vec![stored(4, Some(hash(3)))] },
        KvEventBatch { id: 8, events: vec![KvEvent::Removed { hashes: vec![hash(6), hash(5)] }, stored(9, None)] },
    ]
}

#[tokio::test]
async fn events_of_the_prefix_cache_cross_in_order_and_end_with_their_failure() {
    let bed = bed().await;
    for after in [0, 7] {
        let events: Vec<_> = bed.client.kv_events(here(), after).await.unwrap().collect().await;
        let kept = kv_batches().into_iter().filter(|batch| batch.id > after).map(Ok);
        assert_eq!(events, kept.chain([Err(failure())]).collect::<Vec<_>>());
    }
    assert_eq!(bed.client.kv_events(here(), u64::MAX).await.err(), Some(failure()));
}

fn accounting() -> Accounting {
    Accounting { total: 1, free: 2, request: 3, transfer: 4, cached: 5, n_requests: 6, n_streams: 7 }
}
