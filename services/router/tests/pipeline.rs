//! Requests from door to workers and back: order, failures, cancellation.

mod support;

use std::time::Duration;

use futures::StreamExt as _;
use rpc::inference::{
    CallMeta, ChatMessage, GenerateCall, GenerationOptions, InferenceApi as _, InferenceClient, InferenceEvent, Input,
};
use rpc::reason;
use serde_json::{Value, json};
use support::client::{Answer, Open};
use support::fake::{Script, alphabet};
use support::{Cluster, MODEL, eventually};
use types::{Code, Failure, Phase, StopParams};

fn ask(max_tokens: u32, more: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "Say the alphabet.", "max_tokens": max_tokens, "seed": 1});
    merge(&mut body, more);
    body
}

fn merge(body: &mut Value, more: Value) {
    let (Value::Object(body), Value::Object(more)) = (body, more) else { panic!("objects") };
    body.extend(more);
}

fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["choices"][0]["text"].as_str().expect("a text").to_owned()
}

fn lost() -> Failure {
    Failure::new(Code::Aborted, reason::PEER_LOST, "connection broke")
}

fn full() -> Failure {
    Failure::new(Code::ResourceExhausted, "NO_KV_BLOCKS", "no room")
}

#[tokio::test]
async fn a_request_goes_through_a_pair_and_leaves_nothing() {
    let c = Cluster::start(1, 1).await;
    let answer = c.post("/v1/completions", ask(8, json!({}))).await;
    assert_eq!(text(&answer), alphabet(0, 8));
    let json = answer.json();
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(
        json["usage"],
        json!({"prompt_tokens": 17, "completion_tokens": 8, "total_tokens": 25,
               "prompt_tokens_details": {"cached_tokens": 3}})
    );
    c.at_rest().await;
    for fake in c.fakes() {
        let log = fake.log();
        assert_eq!((log.cancelled.len(), log.n_dropped), (0, 0), "{}: what ended in order is not cancelled", fake.id);
    }
    assert_eq!((c.prefills[0].log().n_prefill, c.decodes[0].log().decodes.len()), (1, 1));
    assert_eq!(c.metric(r#"requests_total{endpoint="/v1/completions",outcome="ok"}"#), 1.0);
    assert_eq!(c.metric("disaggregation_skipped"), 0.0);
    assert_eq!(c.metric("time_to_first_token_seconds_count"), 1.0);
    c.stop().await;
}

#[tokio::test]
async fn streams_say_the_same_as_whole_answers() {
    let c = Cluster::start(1, 1).await;
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = c.post("/v1/completions", ask(8, stream.clone())).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.streamed_text(0), alphabet(0, 8));
    let events = answer.events();
    assert_eq!(events.last(), Some(&json!("[DONE]")));
    let usage = &events[events.len() - 2];
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(8)));
    assert_eq!(events[0]["usage"], Value::Null);

    let mut chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 5});
    let whole = c.post("/v1/chat/completions", chat.clone()).await.json();
    assert_eq!(whole["choices"][0]["message"], json!({"role": "assistant", "content": "abcde", "refusal": null}));
    merge(&mut chat, stream);
    let answer = c.post("/v1/chat/completions", chat).await;
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(answer.streamed_text(0), "abcde");
    assert_eq!(events[events.len() - 3]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[events.len() - 2]["usage"], whole["usage"]);
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    c.stop().await;
}

/// The same answer whatever the workers' scripts do to order and delivery.
async fn check_same(n_prefill: usize, n_decode: usize, prefill: impl Fn(&mut Script), decode: impl Fn(&mut Script)) {
    let c = Cluster::start(n_prefill, n_decode).await;
    c.prefills[..].iter().take(1).for_each(|fake| fake.script(&prefill));
    c.decodes[0].script(&decode);
    let answer = c.post("/v1/completions", ask(8, json!({"stream": true, "return_token_ids": true}))).await;
    assert_eq!(answer.streamed_text(0), alphabet(0, 8), "{}", answer.text());
    let ids: Vec<Value> = answer
        .events()
        .iter()
        .flat_map(|e| e["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(ids.len(), 8, "each position is sent once");
    assert_eq!(answer.events().last(), Some(&json!("[DONE]")));
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn tokens_come_in_order_each_once() {
    let nothing = |_: &mut Script| {};
    check_same(1, 1, nothing, |s| s.repeat = true).await;
    check_same(1, 1, |s| s.first_delay = Duration::from_millis(60), nothing).await;
    check_same(1, 1, nothing, |s| s.recompute = true).await;
    check_same(1, 2, nothing, |s| s.skip = Some(3)).await;
    check_same(1, 2, nothing, |s| s.skip = Some(1)).await;
}

#[tokio::test]
async fn failures_of_workers_are_not_the_clients() {
    let nothing = |_: &mut Script| {};
    let fail = |at| move |s: &mut Script| s.fail_decode_at = Some((at, lost()));
    check_same(1, 2, nothing, fail(1)).await;
    check_same(1, 2, nothing, fail(5)).await;
    check_same(1, 1, nothing, fail(5)).await;
    check_same(0, 2, nothing, fail(0)).await;
    check_same(1, 2, nothing, |s| s.refuse_reserve = Some(full())).await;
    check_same(2, 1, |s| s.refuse_prefill = Some(full()), nothing).await;
    check_same(1, 1, |s| s.refuse_prefill = Some(full()), nothing).await;
    check_same(1, 1, |s| s.lose_prefill = Some(lost()), |s| s.recompute = true).await;
    check_same(2, 1, |s| s.lose_prefill = Some(lost()), fail(1)).await;
    check_same(0, 1, nothing, nothing).await;
}

#[tokio::test]
async fn a_resumed_choice_replays_what_was_sent() {
    let c = Cluster::start(1, 2).await;
    c.decodes[0].script(|s| s.fail_decode_at = Some((5, lost())));
    assert_eq!(text(&c.post("/v1/completions", ask(8, json!({}))).await), alphabet(0, 8));
    let resumed = &c.decodes[1].log().decodes[0];
    assert_eq!((resumed.generated.len(), resumed.source.is_none()), (5, true));
    assert_eq!(c.metric(r#"attempts_total{kind="resume"}"#), 1.0);
    c.stop().await;
}

#[tokio::test]
async fn a_killed_worker_costs_no_token() {
    let c = Cluster::start(1, 2).await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(10));
    let body = ask(20, json!({"stream": true})).to_string();
    let mut open = Open::send(c.http, "POST", "/v1/completions", &[], body.as_bytes()).await;
    open.until("\"d\"").await;
    c.decodes[0].kill();
    let answer = open.rest().await;
    assert_eq!(answer.streamed_text(0), alphabet(0, 20), "{}", answer.text());
    let again = c.post("/v1/completions", ask(4, json!({}))).await;
    assert_eq!(text(&again), alphabet(0, 4));
    assert_eq!(c.decodes[0].log().decodes.len(), 1, "nobody asks a dead worker while another lives");
    c.stop().await;
}

#[tokio::test]
async fn what_cannot_go_on_ends_as_an_error() {
    let c = Cluster::start(1, 1).await;
    let broken = Failure::new(Code::Internal, "SAMPLING_FAILED", "logits are not finite");
    let check = async |script: &dyn Fn(&mut Script), status: u16, code: &str| {
        c.decodes[0].script(|s| {
            *s = Script::default();
            script(s);
        });
        let whole = c.post("/v1/completions", ask(8, json!({}))).await;
        assert_eq!((whole.status, whole.json()["error"]["code"].as_str()), (status, Some(code)), "{}", whole.text());
        c.decodes[0].script(|s| {
            *s = Script::default();
            script(s);
        });
        let streamed = c.post("/v1/completions", ask(8, json!({"stream": true}))).await;
        let events = streamed.events();
        let last = events.last().expect("something was sent");
        assert_eq!(last["error"]["code"], code, "a stream that failed says so");
        assert!(!streamed.text().contains("[DONE]"), "and has no end");
        whole
    };
    let whole = check(&|s| s.fail_decode_at = Some((4, broken.clone())), 500, "sampling_failed").await;
    assert_eq!(whole.header("x-should-retry"), Some("false"));
    check(&|s| s.skip = Some(4), 502, "malformed_response").await;
    // A worker that replays the wrong token is found out.
    c.decodes[0].script(|s| {
        *s = Script::default();
        s.recompute = true;
        s.wrong_at = Some(0);
    });
    let diverged = c.post("/v1/completions", ask(8, json!({}))).await;
    assert_eq!(diverged.json()["error"]["code"], "tokens_diverged");
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn a_stalled_worker_is_left() {
    let c = Cluster::with(1, 2, |config| config.limits.next_token_time = Duration::from_millis(150)).await;
    c.decodes[0].script(|s| s.hang_at = Some(4));
    let answer = c.post("/v1/completions", ask(8, json!({}))).await;
    assert_eq!(text(&answer), alphabet(0, 8));
    assert_eq!(c.decodes[0].log().cancelled.len(), 1);
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn stop_strings_cut_the_text_and_the_work() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(5));
    for (stop, more, expected) in [
        (json!("def"), json!({}), "abc"),
        (json!(["xyz", "de"]), json!({"include_stop_str_in_output": true}), "abcde"),
        (json!("a"), json!({}), ""),
    ] {
        let mut more = more;
        merge(&mut more, json!({"stop": stop}));
        let answer = c.post("/v1/completions", ask(400, more.clone())).await;
        assert_eq!(text(&answer), expected);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
        assert!(answer.time < Duration::from_secs(1), "the rest is not waited for");
        c.at_rest().await;
        merge(&mut more, json!({"stream": true}));
        assert_eq!(c.post("/v1/completions", ask(400, more)).await.streamed_text(0), expected);
    }
    eventually("decode hears of it", async || c.decodes[0].log().cancelled.len() == 6).await;
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn special_tokens_end_a_choice_without_text() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.eos_at = Some(3));
    let answer = c.post("/v1/completions", ask(8, json!({"return_token_ids": true}))).await;
    assert_eq!(text(&answer), "abc");
    let choice = &answer.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["token_ids"], json!([97, 98, 99, 257]));
    assert_eq!(choice["prompt_token_ids"].as_array().map(Vec::len), Some(17));
    c.stop().await;
}

#[tokio::test]
async fn one_token_needs_no_handover() {
    let c = Cluster::start(1, 1).await;
    for stream in [false, true] {
        let answer = c.post("/v1/completions", ask(1, json!({"stream": stream}))).await;
        let got = if stream { answer.streamed_text(0) } else { text(&answer) };
        assert_eq!(got, "a");
    }
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn choices_are_independent() {
    let c = Cluster::start(1, 2).await;
    let answer = c.post("/v1/completions", ask(6, json!({"n": 3, "prompt": ["one", [97, 98]]}))).await;
    let json = answer.json();
    let texts: Vec<_> = json["choices"].as_array().expect("choices").iter().map(|c| c["text"].clone()).collect();
    let expected: Vec<String> = [0, 1, 2, 0, 1, 2].iter().map(|&choice| alphabet(choice, 6)).collect();
    assert_eq!(texts, expected);
    assert_eq!(json["usage"]["prompt_tokens"], 5);
    assert_eq!(json["usage"]["completion_tokens"], 36);
    let n_decodes: Vec<_> = c.decodes.iter().map(|fake| fake.log().decodes.len()).collect();
    assert_eq!(n_decodes.iter().sum::<usize>(), 6);
    assert!(n_decodes.iter().all(|&n| n > 0), "work is spread: {n_decodes:?}");
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_on_both_workers() {
    let c = Cluster::start(1, 1).await;
    let (prefill, decode) = (&c.prefills[0], &c.decodes[0]);
    let n_cancelled = || (prefill.log().cancelled.len(), decode.log().cancelled.len());
    let send = async |more: Value| {
        let body = ask(400, more).to_string();
        Open::send(c.http, "POST", "/v1/completions", &[], body.as_bytes()).await
    };

    // While prefill computes, streaming and not.
    prefill.script(|s| s.first_delay = Duration::from_secs(60));
    for (round, stream) in [false, true].into_iter().enumerate() {
        let open = send(json!({"stream": stream})).await;
        eventually("both work", async || prefill.log().n_open == 1 && decode.log().n_open == 1).await;
        drop(open);
        eventually("both hear it", async || n_cancelled() == (round + 1, round + 1)).await;
        c.at_rest().await;
    }

    // While decode generates; prefill has handed over and is left alone.
    prefill.script(|s| s.first_delay = Duration::ZERO);
    decode.script(|s| s.token_delay = Duration::from_millis(10));
    let mut open = send(json!({"stream": true})).await;
    open.until("\"f\"").await;
    drop(open);
    eventually("decode hears it", async || n_cancelled().1 == 3).await;
    c.at_rest().await;
    let open = send(json!({})).await;
    eventually("decode works", async || decode.log().n_open == 1).await;
    drop(open);
    eventually("decode hears it", async || n_cancelled().1 == 4).await;
    c.at_rest().await;

    // Each choice of a request.
    let open = send(json!({"n": 3, "stream": true})).await;
    eventually("decode works", async || decode.log().n_open == 3).await;
    drop(open);
    eventually("decode hears it", async || n_cancelled().1 == 7).await;
    c.at_rest().await;
    assert_eq!(c.metric(r#"outcome="cancelled"}"#), 5.0);
    c.stop().await;
}

#[tokio::test]
async fn a_request_that_waits_for_room_can_be_cancelled() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.refuse_reserve = Some(full()));
    let body = ask(4, json!({})).to_string();
    let open = Open::send(c.http, "POST", "/v1/completions", &[], body.as_bytes()).await;
    eventually("it asks again", async || c.decodes[0].log().n_reserve > 3).await;
    drop(open);
    c.at_rest().await;
    let n = c.decodes[0].log().n_reserve;
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert_eq!(c.decodes[0].log().n_reserve, n, "nobody asks any more");
    assert_eq!(c.prefills[0].log().n_prefill, 0, "prefill spends only a credit that decode gave");
    c.stop().await;
}

#[tokio::test]
async fn overload_is_an_early_typed_refusal() {
    let c = Cluster::with(1, 1, |config| {
        config.limits.n_admitted = 16;
        config.limits.n_waiting = 1;
        config.limits.queue_time = Duration::from_millis(300);
    })
    .await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(100));
    let body = ask(30, json!({"n": 16, "stream": true})).to_string();
    let first = Open::send(c.http, "POST", "/v1/completions", &[], body.as_bytes()).await;
    eventually("all places are taken", async || c.decodes[0].log().n_open == 16).await;
    let waits = async { c.post("/v1/completions", ask(1, json!({}))).await };
    let refused = async {
        eventually("one waits", async || c.metric("requests_waiting") == 1.0).await;
        c.post("/v1/completions", ask(1, json!({}))).await
    };
    let (waited, refused) = tokio::join!(waits, refused);
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert!(refused.time < Duration::from_millis(300), "it did not wait");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!((waited.status, waited.json()["error"]["code"].as_str()), (429, Some("queue_timeout")));
    drop(first);
    c.at_rest().await;

    // No room on any worker until the queue time is over.
    c.decodes[0].script(|s| s.refuse_reserve = Some(full()));
    let answer = c.post("/v1/completions", ask(1, json!({}))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (429, Some("no_kv_blocks")));
    c.decodes[0].script(|s| s.refuse_reserve = None);
    assert_eq!(text(&c.post("/v1/completions", ask(1, json!({}))).await), "a");
    c.stop().await;
}

#[tokio::test]
async fn a_request_has_the_time_that_its_client_gives() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(50));
    let answer = c.post_with("/v1/completions", &[("x-request-timeout", "0.2")], ask(100, json!({}))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (504, Some("deadline_exceeded")));
    assert!(answer.time < Duration::from_secs(3), "all tokens would take five seconds");
    c.at_rest().await;
    let bad = c.post_with("/v1/completions", &[("x-request-timeout", "soon")], ask(1, json!({}))).await;
    assert_eq!((bad.status, bad.json()["error"]["param"].as_str()), (400, Some("x-request-timeout")));
    c.stop().await;
}

#[tokio::test]
async fn without_prefill_workers_decode_does_it_and_says_so() {
    let c = Cluster::start(0, 1).await;
    assert_eq!(text(&c.post("/v1/completions", ask(5, json!({}))).await), alphabet(0, 5));
    assert_eq!(c.metric(r#"baton_router_disaggregation_skipped_total{reason="absent"}"#), 1.0);
    let usage = &c.post("/v1/completions", ask(5, json!({}))).await.json()["usage"];
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 2);
    c.stop().await;
}

#[tokio::test]
async fn without_decode_workers_there_is_no_service() {
    let c = Cluster::start(1, 0).await;
    assert_eq!(c.get("/health").await.status, 503);
    let answer = c.post("/v1/completions", ask(5, json!({}))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("no_worker")));
    assert!(answer.header("retry-after").is_some());
    c.stop().await;

    // Known once, gone now: one may be restarting, but nobody asks the dead in a loop.
    let c = Cluster::with(0, 1, |config| config.limits.queue_time = Duration::from_millis(300)).await;
    c.decodes[0].kill();
    let answer = c.post("/v1/completions", ask(5, json!({}))).await;
    assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (503, Some("no_worker")));
    assert!(answer.time > Duration::from_millis(250) && answer.time < Duration::from_secs(5));
    c.stop().await;
}

#[tokio::test]
async fn the_same_key_is_the_same_work() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(10));
    let key = [("idempotency-key", "k1")];
    let (one, two) = tokio::join!(
        c.post_with("/v1/completions", &key, ask(8, json!({}))),
        c.post_with("/v1/completions", &key, ask(8, json!({}))),
    );
    assert_eq!(one.json(), two.json());
    let again = c.post_with("/v1/completions", &key, ask(8, json!({}))).await;
    assert_eq!(again.json(), one.json());
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(c.decodes[0].log().decodes.len(), 1);
    assert_eq!(c.post_with("/v1/completions", &key, ask(9, json!({}))).await.status, 422);

    let key = [("idempotency-key", "k2")];
    let body = ask(50, json!({"stream": true}));
    let open = Open::send(c.http, "POST", "/v1/completions", &key, body.to_string().as_bytes()).await;
    eventually("it runs", async || c.decodes[0].log().n_open == 1).await;
    assert_eq!(c.post_with("/v1/completions", &key, body).await.status, 409);
    drop(open);
    c.stop().await;
}

fn grpc_call(model: &str, max_tokens: u32) -> GenerateCall {
    let message = ChatMessage { role: "user".into(), content: "abc".into(), name: None };
    let options = GenerationOptions { stop: StopParams { max_tokens, ..StopParams::default() }, ..Default::default() };
    GenerateCall { model: model.into(), input: Input::Chat(vec![message]), options }
}

/// The same beginning goes where it went before, everything else is spread; each placement can be explained.
#[tokio::test]
async fn prompts_go_where_their_beginning_is() {
    let c = Cluster::with(4, 4, |config| config.rules.policy = routing::Policy::Cost).await;
    let mut used = std::collections::BTreeSet::new();
    for conversation in 0..8 {
        let mut pairs = Vec::new();
        for turn in 0..3 {
            let prompt = format!("conversation {conversation} ").repeat(8 + turn);
            let answer = c.post("/v1/completions", json!({"model": MODEL, "prompt": prompt, "max_tokens": 2})).await;
            let id = answer.json()["id"].as_str().expect("an id").to_owned();
            let explained = c.explain(&id).await;
            let placement = &explained["placements"][0];
            assert_eq!(placement["policy"], "cost");
            assert_eq!(placement["decodes"].as_array().map(Vec::len), Some(4));
            assert_eq!(placement["prefills"].as_array().map(Vec::len), Some(4));
            let best = &placement["decodes"][0];
            assert_eq!(best["worker"], placement["decode"], "{placement}");
            let cached = best["cached_tokens"].as_u64().expect("a number");
            assert_eq!(cached > 0, turn > 0, "{placement}");
            pairs.push((placement["decode"].to_string(), placement["prefill"].to_string()));
        }
        assert!(pairs.iter().all(|pair| *pair == pairs[0]), "{pairs:?}");
        used.extend(pairs);
    }
    // How evenly depends on times that are measured: an idle worker that was quick is tried again.
    assert!(used.len() >= 2, "idle workers are used: {used:?}");
    assert!(c.metric("predicted_cached_tokens_total") > 0.0);
    assert!(c.metric(r#"index_blocks{source="choices"}"#) > 0.0);
    c.stop().await;
}

#[tokio::test]
async fn short_prompts_are_not_handed_over() {
    let c = Cluster::with(1, 1, |config| config.rules.local_tokens = 32).await;
    assert_eq!(text(&c.post("/v1/completions", ask(3, json!({}))).await), alphabet(0, 3));
    assert_eq!((c.prefills[0].log().n_prefill, c.metric(r#"disaggregation_skipped_total{reason="local"}"#)), (0, 1.0));
    c.stop().await;
}

#[tokio::test]
async fn grpc_is_the_same_pipeline() {
    let c = Cluster::start(1, 1).await;
    let client = InferenceClient::new(&c.grpc.to_string()).expect("an address");
    let generation = client.generate(grpc_call(MODEL, 6), CallMeta::default()).await.expect("accepted");
    let events: Vec<_> = generation.events.map(|event| event.expect("no failure")).collect().await;
    let mut whole = String::new();
    for event in &events[..events.len() - 1] {
        let InferenceEvent::Delta(delta) = event else { panic!("deltas come before the end") };
        assert!(delta.tokens.is_empty(), "nobody asked for ids");
        whole += &delta.text;
    }
    assert_eq!(whole, alphabet(0, 6));
    let Some(InferenceEvent::End(end)) = events.last() else { panic!("an end") };
    assert_eq!(end.usage.completion_tokens, 6);
    let line = &end.timeline;
    assert_eq!((line.prefill_worker.as_str(), line.decode_worker.as_str()), ("prefill-0", "decode-0"));
    assert_eq!((line.kv_bytes, line.transport.as_str()), (1000, "grpc"));
    for phase in Phase::ALL {
        assert!(line.phases.get(phase) > Duration::ZERO, "{} has a time", phase.as_str());
    }
    for phase in [Phase::PrefillQueue, Phase::Prefill, Phase::Handoff, Phase::DecodeQueue, Phase::FirstStep] {
        assert_eq!(line.phases.get(phase), Duration::from_millis(1), "{} counts once", phase.as_str());
    }

    let unknown = client.generate(grpc_call("other", 6), CallMeta::default()).await.err().expect("refused");
    assert_eq!((unknown.code, unknown.reason), (Code::NotFound, "MODEL_NOT_FOUND"));
    assert_eq!(client.detokenize(MODEL.into(), vec![104, 105]).await.as_deref(), Ok("hi"));
    assert_eq!(client.models().await.expect("a list")[0].max_model_len, 512);
    let state = client.cluster_state().await.expect("a state");
    let health: Vec<_> = state.members.iter().map(|m| (m.worker.id.as_str(), m.health.as_str())).collect();
    assert_eq!(health, [("decode-0", "UP"), ("prefill-0", "UP")]);

    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(10));
    let mut generation = client.generate(grpc_call(MODEL, 300), CallMeta::default()).await.expect("accepted");
    generation.events.next().await.expect("an event").expect("a delta");
    drop(generation);
    eventually("decode hears of it", async || c.decodes[0].log().cancelled.len() == 1).await;
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn shutdown_ends_what_outlives_the_grace_time() {
    let c = Cluster::start(1, 1).await;
    c.decodes[0].script(|s| s.token_delay = Duration::from_millis(50));
    let body = ask(400, json!({"stream": true})).to_string();
    let mut open = Open::send(c.http, "POST", "/v1/completions", &[], body.as_bytes()).await;
    open.until("data: ").await;
    let (decode, prefill) = (c.decodes[0].clone(), c.prefills[0].clone());
    c.stop().await;
    eventually("the workers are free", async || decode.log().n_open == 0 && prefill.log().n_open == 0).await;
}
