//! The client API: streams, the unary form of them, and what clients read beside the messages.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use proto::v1 as wire;
use proto::v1::inference_service_client::InferenceServiceClient;
use rpc::inference::{
    CallMeta, ChatMessage, ChoiceDelta, ClusterState, GenerateCall, Generation, GenerationOptions, InferenceApi,
    InferenceClient, InferenceEvent, Input, MemberState, ModelCard, StreamEnd, Timeline, TokenizeInput, Usage,
};
use rpc::{Limits, ServeOptions, TraceContext};
use tokio_util::sync::{CancellationToken, DropGuard};
use types::{
    Code, Epoch, Failure, FinishReason, RequestId, SamplingParams, StopParams, Token, TokenId, WorkerId, WorkerRef,
};

use crate::{Alive, listen};

const REQUEST: RequestId = RequestId(0x00AB_CDEF);

#[derive(Default)]
struct Script {
    alive: Alive,
}

#[async_trait]
impl InferenceApi for Script {
    async fn generate(&self, call: GenerateCall, meta: CallMeta) -> Result<Generation, Failure> {
        let alive = self.alive.guard();
        let events = match call.model.as_str() {
            "unknown" => return Err(Failure::new(Code::NotFound, "MODEL_NOT_FOUND", "no model unknown")),
            "hung" => std::future::pending().await,
            "endless" => {
                let forever = futures::stream::iter(0..).then(move |_| {
                    let _ = &alive;
                    async {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        Ok(deltas()[0].clone())
                    }
                });
                forever.boxed()
            }
            "broken" => futures::stream::iter([Ok(deltas()[0].clone()), Err(Failure::internal("broke"))]).boxed(),
            "traced" => {
                assert_eq!(meta.trace, trace());
                let left = meta.deadline.expect("a deadline was given");
                assert!(left > Duration::from_secs(5) && left <= Duration::from_secs(7), "{left:?}");
                futures::stream::iter(deltas().map(Ok)).boxed()
            }
            _ => {
                assert!(
                    call == text_call()
                        || call == chat_call()
                        || call.options == GenerationOptions { n: 1, ..GenerationOptions::default() },
                    "{call:?}"
                );
                futures::stream::iter(deltas().map(Ok)).boxed()
            }
        };
        Ok(Generation { request: REQUEST, events })
    }

    async fn tokenize(
        &self,
        model: String,
        input: TokenizeInput,
        add_special: bool,
    ) -> Result<(Vec<TokenId>, u32), Failure> {
        assert_eq!((model.as_str(), add_special), ("m", true));
        let n = match input {
            TokenizeInput::Text(text) => text.len(),
            TokenizeInput::Chat(messages) => messages.len(),
        };
        Ok((vec![1; n], 2048))
    }

    async fn detokenize(&self, _: String, ids: Vec<TokenId>) -> Result<String, Failure> {
        Ok(format!("{ids:?}"))
    }

    async fn models(&self) -> Result<Vec<ModelCard>, Failure> {
        Ok(vec![ModelCard { id: "m".into(), max_model_len: 2048, created_unix_s: 1 }])
    }

    async fn cluster_state(&self) -> Result<ClusterState, Failure> {
        Ok(state())
    }
}

struct Bed {
    client: InferenceClient,
    raw: InferenceServiceClient<tonic::transport::Channel>,
    alive: Alive,
    _stop: DropGuard,
}

async fn bed() -> Bed {
    let (listener, address) = listen().await;
    let script = Script::default();
    let (alive, stop) = (script.alive.clone(), CancellationToken::new());
    tokio::spawn(rpc::inference::serve(listener, Arc::new(script), ServeOptions::new(Limits::public()), stop.clone()));
    let address = address.to_string();
    Bed {
        client: InferenceClient::new(&address).expect("an address"),
        raw: InferenceServiceClient::new(rpc::net::channel(&address, &Limits::public()).expect("an address")),
        alive,
        _stop: stop.drop_guard(),
    }
}

#[tokio::test]
async fn what_goes_in_comes_out() {
    let bed = bed().await;
    for call in [text_call(), chat_call()] {
        let generation = bed.client.generate(call, CallMeta::default()).await.unwrap();
        assert_eq!(generation.request, REQUEST);
        assert_eq!(generation.events.map(Result::unwrap).collect::<Vec<_>>().await, deltas());
    }
    let text = TokenizeInput::Text("abc".into());
    assert_eq!(bed.client.tokenize("m".into(), text, true).await, Ok((vec![1; 3], 2048)));
    let chat = TokenizeInput::Chat(vec![message()]);
    assert_eq!(bed.client.tokenize("m".into(), chat, true).await, Ok((vec![1], 2048)));
    assert_eq!(bed.client.detokenize("m".into(), vec![1, 2]).await, Ok("[1, 2]".into()));
    assert_eq!(bed.client.models().await.unwrap()[0].id, "m");
    assert_eq!(bed.client.cluster_state().await, Ok(state()));
}

#[tokio::test]
async fn deadline_and_trace_reach_the_service() {
    let bed = bed().await;
    let meta = CallMeta { deadline: Some(Duration::from_secs(7)), trace: trace(), tenant: "team-a".into() };
    let call = GenerateCall { model: "traced".into(), ..text_call() };
    let generation = bed.client.generate(call, meta).await.unwrap();
    assert_eq!(generation.events.count().await, 3);

    let meta = CallMeta { deadline: Some(Duration::from_millis(60)), ..CallMeta::default() };
    let call = GenerateCall { model: "hung".into(), ..text_call() };
    let late = bed.client.generate(call, meta).await.err().unwrap();
    assert_eq!(late.reason, "DEADLINE_EXCEEDED");
    bed.alive.none().await;
}

#[tokio::test]
async fn the_unary_form_is_the_stream_put_together() {
    let mut bed = bed().await;
    let request = |model: &str| wire::GenerateRequest {
        model: model.into(),
        prompt: Some(wire::Prompt { kind: Some(wire::prompt::Kind::Text("p".into())) }),
        options: None,
    };
    let answer = bed.raw.generate(request("m")).await.unwrap();
    assert_eq!(answer.metadata().get("x-request-id").unwrap().to_str().unwrap(), REQUEST.to_string());
    let answer = answer.into_inner();
    let choices: Vec<_> = answer.choices.iter().map(|c| (c.index, c.text.as_str(), c.finish_reason)).collect();
    assert_eq!(choices, [(0, "one", 1), (1, "two", 2)]);
    assert_eq!(answer.usage.unwrap().completion_tokens, 4);

    let broken = bed.raw.generate(request("broken")).await.unwrap_err();
    assert_eq!(rpc::status::from_status(&broken).message, "broke");
    let mut hung = tonic::Request::new(request("endless"));
    hung.set_timeout(Duration::from_millis(80));
    let late = bed.raw.generate(hung).await.unwrap_err();
    assert_eq!(rpc::status::from_status(&late).reason, "DEADLINE_EXCEEDED");
    bed.alive.none().await;
}

#[tokio::test]
async fn dropping_is_cancelling() {
    let bed = bed().await;
    let call = GenerateCall { model: "endless".into(), ..text_call() };
    let mut generation = bed.client.generate(call, CallMeta::default()).await.unwrap();
    generation.events.next().await.unwrap().unwrap();
    drop(generation);
    bed.alive.none().await;
}

#[tokio::test]
async fn bad_calls_have_the_status_that_clients_expect() {
    let mut bed = bed().await;
    let prompt = Some(wire::Prompt { kind: Some(wire::prompt::Kind::Text("p".into())) });
    let good = wire::GenerateStreamRequest { model: "m".into(), prompt, options: None };
    type Change = fn(&mut wire::GenerateStreamRequest);
    let cases: [(tonic::Code, Option<&str>, Change); 4] = [
        (tonic::Code::NotFound, None, |r| r.model = "unknown".into()),
        (tonic::Code::InvalidArgument, Some("prompt"), |r| r.prompt = None),
        (tonic::Code::InvalidArgument, Some("prompt"), |r| r.prompt = Some(wire::Prompt { kind: None })),
        (tonic::Code::InvalidArgument, Some("temperature"), |r| {
            let sampling = wire::SamplingParams { temperature: f32::NAN, ..Default::default() };
            r.options = Some(wire::GenerationOptions { sampling: Some(sampling), ..Default::default() });
        }),
    ];
    for (code, param, change) in cases {
        let mut request = good.clone();
        change(&mut request);
        let status = bed.raw.generate_stream(request).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert_eq!(rpc::status::from_status(&status).param.as_deref(), param);
    }
}

fn message() -> ChatMessage {
    ChatMessage { role: "user".into(), content: "hi".into(), name: Some("n".into()) }
}

fn text_call() -> GenerateCall {
    let options = GenerationOptions {
        sampling: SamplingParams { temperature: 0.5, seed: 7, ..SamplingParams::default() },
        seed: Some(7),
        stop: StopParams { max_tokens: 3, ..StopParams::default() },
        stop_strings: vec!["\n".into()],
        include_stop_string: true,
        n: 2,
        return_token_ids: true,
        keep_special_tokens: true,
        user: "u".into(),
    };
    GenerateCall { model: "m".into(), input: Input::Ids(vec![1, 2, 3]), options }
}

fn chat_call() -> GenerateCall {
    GenerateCall { input: Input::Chat(vec![message()]), ..text_call() }
}

fn trace() -> TraceContext {
    TraceContext { traceparent: "00-ab-cd-01".into(), tracestate: "k=v".into() }
}

fn deltas() -> [InferenceEvent; 3] {
    let token = Token { id: 5, position: 0, logprob: None, top: vec![], finish: None };
    let delta = |index, text: &str, finish| {
        InferenceEvent::Delta(ChoiceDelta { index, text: text.into(), tokens: vec![token.clone()], finish })
    };
    let usage = Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: 1 };
    let timeline = Timeline {
        prefill_worker: "p".into(),
        decode_worker: "d".into(),
        kv_bytes: 9,
        transport: "grpc".into(),
        ..Timeline::default()
    };
    [
        delta(0, "one", Some(FinishReason::Stop)),
        delta(1, "two", Some(FinishReason::Length)),
        InferenceEvent::End(StreamEnd { usage, timeline }),
    ]
}

fn state() -> ClusterState {
    let member = MemberState {
        worker: WorkerRef { id: WorkerId::new("d"), epoch: Epoch(4) },
        role: "decode".into(),
        rpc_address: "a:1".into(),
        kv_address: "a:2".into(),
        admin_address: "a:3".into(),
        model: "m".into(),
        health: "UP".into(),
        n_running: 1,
        n_waiting: 2,
        blocks_total: 3,
        blocks_free: 4,
        transport: "grpc".into(),
        numerics: "f32".into(),
        device: "cpu/avx2".into(),
        reason: "r".into(),
    };
    ClusterState {
        members: vec![member],
        registry_age: Duration::from_millis(20),
        registry_connected: true,
        n_requests: 5,
    }
}
