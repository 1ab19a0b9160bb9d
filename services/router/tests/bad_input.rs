//! Wrong requests: each a clear refusal, soon, and nothing else disturbed.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::client;
use support::{Cluster, MODEL};

/// A refusal must come within this time.
const SOON: Duration = Duration::from_millis(100);

async fn check(c: &Cluster, path: &str, body: &[u8], status: u16, code: &str, param: Option<&str>) {
    let mut answer = client::call(c.http, "POST", path, &[], body).await;
    for _ in 0..5 {
        // A busy machine may be late; the router is late every time.
        if answer.time >= SOON {
            answer = client::call(c.http, "POST", path, &[], body).await;
        }
    }
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    assert_eq!(answer.status, status, "{shown}: {}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!((error["code"].as_str(), error["param"].as_str()), (Some(code), param), "{shown}: {error}");
    assert!(error["message"].as_str().is_some_and(|m| !m.is_empty() && m.len() < 400), "{shown}: {error}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(answer.time < SOON, "{shown}: took {:?}", answer.time);
    assert!(answer.header("x-request-id").is_some());
}

fn with(base: &Value, change: Value) -> Vec<u8> {
    let (Value::Object(mut all), Value::Object(change)) = (base.clone(), change) else { panic!("objects") };
    all.extend(change);
    Value::Object(all).to_string().into_bytes()
}

#[tokio::test]
async fn wrong_requests_are_refused_by_name() {
    let c = Cluster::start(1, 1).await;
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4});
    let text = json!({"model": MODEL, "prompt": "hi", "max_tokens": 4});
    let (chat_path, text_path) = ("/v1/chat/completions", "/v1/completions");
    let invalid = "invalid_argument";

    let both: Vec<(Value, u16, &str, &str)> = vec![
        (json!({"model": "nope"}), 404, "model_not_found", "model"),
        (json!({"model": null}), 400, invalid, "model"),
        (json!({"model": 7}), 400, invalid, "model"),
        (json!({"n": 1_000_000_000}), 400, invalid, "n"),
        (json!({"n": 0}), 400, invalid, "n"),
        (json!({"n": -1}), 400, invalid, "n"),
        (json!({"n": "two"}), 400, invalid, "n"),
        (json!({"temperature": -1}), 400, invalid, "temperature"),
        (json!({"temperature": 1e39}), 400, invalid, "temperature"),
        (json!({"temperature": "hot"}), 400, invalid, "temperature"),
        (json!({"temperature": [1]}), 400, invalid, "temperature"),
        (json!({"top_p": 0}), 400, invalid, "top_p"),
        (json!({"top_p": 1.1}), 400, invalid, "top_p"),
        (json!({"top_k": -2}), 400, invalid, "top_k"),
        (json!({"min_p": 2}), 400, invalid, "min_p"),
        (json!({"repetition_penalty": 0}), 400, invalid, "repetition_penalty"),
        (json!({"frequency_penalty": 3}), 400, invalid, "frequency_penalty"),
        (json!({"presence_penalty": -3}), 400, invalid, "presence_penalty"),
        (json!({"logit_bias": {"x": 1}}), 400, invalid, "logit_bias"),
        (json!({"logit_bias": {"99999": 1}}), 400, invalid, "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), 400, invalid, "logit_bias"),
        (json!({"seed": 1.5}), 400, invalid, "seed"),
        (json!({"max_tokens": 0}), 400, invalid, "max_tokens"),
        (json!({"max_tokens": -4}), 400, invalid, "max_tokens"),
        (json!({"max_tokens": 4_294_967_296_u64}), 400, invalid, "max_tokens"),
        (json!({"min_tokens": 5}), 400, invalid, "min_tokens"),
        (json!({"stop": ""}), 400, invalid, "stop"),
        (json!({"stop": 3}), 400, invalid, "stop"),
        (json!({"stop": vec!["x"; 17]}), 400, invalid, "stop"),
        (json!({"stop": "x".repeat(257)}), 400, invalid, "stop"),
        (json!({"stop_token_ids": [258]}), 400, invalid, "stop_token_ids"),
        (json!({"stream": "yes"}), 400, invalid, "stream"),
        (json!({"tools": [{"type": "function"}]}), 400, "not_supported", "tools"),
        (json!({"response_format": {"type": "json_object"}}), 400, "not_supported", "response_format"),
        (json!({"guided_json": {"a": 1}}), 400, "not_supported", "guided_json"),
        (json!({"best_of": 2}), 400, "not_supported", "best_of"),
        (json!({"echo": true}), 400, "not_supported", "echo"),
    ];
    for (change, status, code, param) in both {
        check(&c, chat_path, &with(&chat, change.clone()), status, code, Some(param)).await;
        check(&c, text_path, &with(&text, change), status, code, Some(param)).await;
    }

    let long = "x".repeat(600);
    let over = "context_length_exceeded";
    let message = |message: Value| json!({"messages": [message]});
    let only_chat: Vec<(Value, &str, &str)> = vec![
        (json!({"messages": []}), invalid, "messages"),
        (json!({"messages": null}), invalid, "messages"),
        (json!({"messages": "hi"}), invalid, "messages"),
        (json!({"messages": ["hi"]}), invalid, "messages[0]"),
        (message(json!({"role": "user"})), invalid, "messages[0].content"),
        (message(json!({"role": 1, "content": "x"})), invalid, "messages[0].role"),
        (message(json!({"role": "user", "content": 5})), invalid, "messages[0].content"),
        (message(json!({"role": "user", "content": [{"type": "image_url"}]})), invalid, "messages[0].content"),
        (message(json!({"role": "robot", "content": "x"})), "chat_template", "messages"),
        (message(json!({"role": "user", "content": long.clone()})), over, "messages"),
        (json!({"messages": vec![json!({"role": "user", "content": "x"}); 2049]}), invalid, "messages"),
        (json!({"logprobs": 3}), invalid, "logprobs"),
        (json!({"top_logprobs": 3}), invalid, "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), invalid, "top_logprobs"),
    ];
    for (change, code, param) in only_chat {
        check(&c, chat_path, &with(&chat, change), 400, code, Some(param)).await;
    }
    let only_text: Vec<(Value, &str, &str)> = vec![
        (json!({"prompt": ""}), invalid, "prompt"),
        (json!({"prompt": []}), invalid, "prompt"),
        (json!({"prompt": null}), invalid, "prompt"),
        (json!({"prompt": {"a": 1}}), invalid, "prompt"),
        (json!({"prompt": [1, "a"]}), invalid, "prompt"),
        (json!({"prompt": [258]}), invalid, "prompt"),
        (json!({"prompt": [-1]}), invalid, "prompt[0]"),
        (json!({"prompt": [4_294_967_296_u64]}), invalid, "prompt[0]"),
        (json!({"prompt": long}), over, "prompt"),
        (json!({"prompt": vec![1; 512]}), over, "prompt"),
        (json!({"prompt": vec![1; 509]}), over, "prompt"),
        (json!({"max_tokens": 4000}), over, "prompt"),
        (json!({"prompt": vec!["x"; 65]}), invalid, "prompt"),
        (json!({"prompt": vec!["x"; 64], "n": 3}), invalid, "n"),
        (json!({"logprobs": 21}), invalid, "logprobs"),
        (json!({"suffix": "x"}), "not_supported", "suffix"),
    ];
    for (change, code, param) in only_text {
        check(&c, text_path, &with(&text, change), 400, code, Some(param)).await;
    }

    let nested = "[".repeat(100_000);
    let raw: Vec<(Vec<u8>, u16, &str, Option<&str>)> = vec![
        (b"".to_vec(), 400, "invalid_json", None),
        (b"{".to_vec(), 400, "invalid_json", None),
        (b"[]".to_vec(), 400, invalid, None),
        (br#"{"model": "alphabet", "temperature": NaN}"#.to_vec(), 400, "invalid_json", Some("temperature")),
        (br#"{"model": "alphabet", "temperature": Infinity}"#.to_vec(), 400, "invalid_json", Some("temperature")),
        (br#"{"model": "alphabet", "temperature": 1e999}"#.to_vec(), 400, "invalid_json", Some("temperature")),
        (b"{\"model\": \"alphabet\", \"prompt\": \"\xff\xfe\"}".to_vec(), 400, "invalid_json", None),
        (nested.clone().into_bytes(), 400, "json_too_deep", None),
        (format!("{{\"messages\": {nested}").into_bytes(), 400, "json_too_deep", None),
        (format!("{{\"extra\": {nested}").into_bytes(), 400, "json_too_deep", None),
        (vec![b' '; 10 << 20], 413, "body_too_large", None),
    ];
    for (body, status, code, param) in raw {
        for path in [chat_path, text_path] {
            check(&c, path, &body, status, code, param).await;
        }
    }

    check(&c, "/tokenize", br#"{"model": "nope", "prompt": "x"}"#, 404, "model_not_found", Some("model")).await;
    check(&c, "/tokenize", b"{}", 400, invalid, Some("prompt")).await;
    check(&c, "/detokenize", br#"{"tokens": [258]}"#, 400, invalid, Some("tokens")).await;
    check(&c, "/detokenize", br#"{"tokens": "x"}"#, 400, invalid, Some("tokens")).await;
    check(&c, "/v1/nothing", b"{}", 404, "endpoint_not_found", None).await;

    assert_eq!(c.get("/v1/models/nope").await.status, 404);
    assert_eq!(c.get("/v1/completions").await.status, 405);
    assert!(c.fakes().all(|fake| fake.log().n_reserve == 0), "no worker heard of it");
    let good = c.post(chat_path, chat).await;
    assert_eq!(good.json()["choices"][0]["message"]["content"], "abcd");
    c.at_rest().await;
    c.stop().await;
}

#[tokio::test]
async fn a_body_without_a_length_is_limited_too() {
    let c = Cluster::start(0, 1).await;
    let mut body = format!("{:x}\r\n", 5 << 20).into_bytes();
    body.extend(vec![b' '; 5 << 20]);
    body.extend(b"\r\n0\r\n\r\n");
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut socket = tokio::net::TcpStream::connect(c.http).await.expect("listens");
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head).await.expect("writes");
    socket.write_all(&body).await.expect("writes");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("reads");
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    c.stop().await;
}

#[tokio::test]
async fn what_looks_odd_but_is_right_is_served() {
    let c = Cluster::start(1, 1).await;
    let base = json!({"model": MODEL, "prompt": "hi", "max_tokens": 3});
    let fine = [
        json!({"unknown_field": {"deep": [1, 2, {"a": null}]}}),
        json!({"temperature": null, "top_p": null, "seed": null, "stop": null, "n": null, "logit_bias": null}),
        json!({"seed": -5, "top_k": -1, "tools": [], "suffix": "", "echo": false, "best_of": 1}),
        json!({"seed": u64::MAX, "response_format": {"type": "text"}, "user": "me"}),
        json!({"temperature": 2, "top_p": 1, "logprobs": 0, "stop": []}),
        json!({"prompt": [104, 105]}),
        json!({"prompt": ["hi"]}),
        json!({"prompt": [[104, 105]]}),
        json!({"max_tokens": 3, "prompt": "x".repeat(509)}),
    ];
    for change in fine {
        let answer = client::call(c.http, "POST", "/v1/completions", &[], &with(&base, change.clone())).await;
        assert_eq!(answer.status, 200, "{change}: {}", answer.text());
        assert_eq!(answer.json()["choices"][0]["text"], "abc", "{change}");
    }
    // Where the client does not say: 16 tokens of text, an answer up to the context; never over it.
    let asked = async |path: &str, body: Value| c.post(path, body).await.json()["usage"]["completion_tokens"].clone();
    let text = |n: usize| json!({"model": MODEL, "prompt": "x".repeat(n)});
    assert_eq!(asked("/v1/completions", text(100)).await, 16);
    assert_eq!(asked("/v1/completions", text(500)).await, 12);
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "x".repeat(450)}]});
    let n_prompt = 450 + "user\n\nassistant\n".len() + 3;
    assert_eq!(asked("/v1/chat/completions", chat).await, 512 - n_prompt);
    c.stop().await;
}

#[tokio::test]
async fn text_endpoints_answer_as_vllm_does() {
    let c = Cluster::start(1, 1).await;
    let tokenized = c.post("/tokenize", json!({"model": MODEL, "prompt": "hi <|im_end|>"})).await.json();
    assert_eq!(tokenized["count"], 13, "a control token in text is text");
    assert_eq!(tokenized["max_model_len"], 512);
    let back = c.post("/detokenize", json!({"model": MODEL, "tokens": tokenized["tokens"]})).await.json();
    assert_eq!(back, json!({"prompt": "hi <|im_end|>"}));
    let chat = json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
                      "add_generation_prompt": false, "return_token_strs": true});
    let tokenized = c.post("/tokenize", chat).await.json();
    let strs: Vec<_> =
        tokenized["token_strs"].as_array().expect("strings").iter().map(|s| s.as_str().unwrap()).collect();
    assert_eq!(strs.concat(), "<|im_start|>user\na<|im_end|>\n");

    let models = c.get("/v1/models").await.json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&json!(MODEL), &json!(512)));
    assert_eq!(c.get(&format!("/v1/models/{MODEL}")).await.json()["object"], "model");
    assert_eq!(c.get("/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(c.get("/ping").await.status, 200);
    let label = client::call(c.http, "GET", "/health", &[("x-request-id", "mine")], b"").await;
    assert_eq!(label.header("x-request-id"), Some("mine"));
    c.stop().await;
}

#[tokio::test]
async fn logprobs_have_openais_shapes() {
    let c = Cluster::start(1, 1).await;
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2,
                      "logprobs": true, "top_logprobs": 2, "return_token_ids": true});
    let answer = c.post("/v1/chat/completions", chat).await.json();
    let choice = &answer["choices"][0];
    let entry = |token: &str, logprob: f64| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let mut first = entry("a", -0.25);
    first["top_logprobs"] = json!([entry("a", -0.25), entry("b", -1.25)]);
    assert_eq!(choice["logprobs"]["content"][0], first);
    assert_eq!(choice["logprobs"]["content"].as_array().map(Vec::len), Some(2));
    assert_eq!(choice["token_ids"], json!([97, 98]));
    assert!(answer["prompt_token_ids"].as_array().is_some_and(|ids| ids[0] == 256));

    let text = json!({"model": MODEL, "prompt": "hi", "max_tokens": 3, "logprobs": 2});
    let expected = json!({
        "tokens": ["a", "b", "c"],
        "token_logprobs": [-0.25, -0.25, -0.25],
        "top_logprobs": [{"a": -0.25, "b": -1.25}, {"b": -0.25, "c": -1.25}, {"c": -0.25, "d": -1.25}],
        "text_offset": [0, 1, 2],
    });
    assert_eq!(c.post("/v1/completions", text.clone()).await.json()["choices"][0]["logprobs"], expected);
    let mut stream = text;
    stream["stream"] = json!(true);
    let events = c.post("/v1/completions", stream).await.events();
    let last = &events[events.len() - 2]["choices"][0]["logprobs"];
    assert_eq!((&last["tokens"], &last["text_offset"]), (&json!(["c"]), &json!([2])));
    c.stop().await;
}
