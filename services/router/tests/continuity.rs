//! Whether an answer is identical to what one worker gives, or only equivalent: by the numerics of those that took part.

mod support;

use std::time::Duration;

use rpc::reason;
use serde_json::{Value, json};
use support::fake::{Script, alphabet};
use support::{Cluster, MODEL};
use types::{Code, Failure};

fn ask(more: Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "Say the alphabet.", "max_tokens": 8, "seed": 1});
    let (Value::Object(fields), Value::Object(more)) = (&mut body, more) else { panic!("objects") };
    fields.extend(more);
    body
}

fn lost() -> Failure {
    Failure::new(Code::Aborted, reason::PEER_LOST, "connection broke")
}

/// What an answer says of itself, whole and streamed; each run begins with these scripts.
async fn continuity(c: &Cluster, prefill: impl Fn(&mut Script), decode: impl Fn(&mut Script)) -> String {
    let whole = one(c, false, &prefill, &decode).await;
    assert_eq!(one(c, true, &prefill, &decode).await, whole);
    whole
}

/// What one answer says of itself; the first decode worker has a script.
async fn one(c: &Cluster, stream: bool, prefill: impl Fn(&mut Script), decode: impl Fn(&mut Script)) -> String {
    c.prefills.iter().for_each(|fake| fake.script(&prefill));
    c.decodes[0].script(&decode);
    let more = if stream { json!({"stream": true, "stream_options": {"include_usage": true}}) } else { json!({}) };
    let answer = c.post("/v1/completions", ask(more)).await;
    let last = if stream {
        assert_eq!(answer.streamed_text(0), alphabet(0, 8), "{}", answer.text());
        let events = answer.events();
        assert_eq!(events[0]["continuity"], Value::Null, "said when it is known");
        events[events.len() - 2].clone()
    } else {
        assert_eq!(answer.json()["choices"][0]["text"], alphabet(0, 8), "{}", answer.text());
        answer.json()
    };
    c.at_rest().await;
    last["continuity"].as_str().unwrap_or_default().to_owned()
}

fn well(_: &mut Script) {}

fn fails_at(position: u32) -> impl Fn(&mut Script) {
    move |s| s.fail_decode_at = Some((position, lost()))
}

#[tokio::test]
async fn equal_numerics_are_identical_whatever_happens() {
    let c = Cluster::start(1, 2).await;
    assert_eq!(continuity(&c, well, well).await, "identical");
    assert_eq!(continuity(&c, well, fails_at(5)).await, "identical");
    c.stop().await;
}

#[tokio::test]
async fn a_pair_of_unequal_numerics_is_equivalent() {
    let c = Cluster::start(1, 1).await;
    c.set_numerics(&c.prefills[0], "other").await;
    assert_eq!(continuity(&c, well, well).await, "equivalent");
    // Nothing of prefill's goes into an answer that decode computes alone.
    let lose = |s: &mut Script| (s.lose_prefill, s.first_delay) = (Some(lost()), Duration::ZERO);
    assert_eq!(continuity(&c, lose, |s| s.recompute = true).await, "identical");
    c.stop().await;
}

#[tokio::test]
async fn an_answer_goes_on_with_equal_numerics_if_it_can() {
    // A cluster each: a worker that failed a moment ago is not asked first.
    for (others, position, decodes, said) in [
        (&[1][..], 5, [1, 0, 1], "identical"),
        (&[2], 5, [1, 1, 0], "identical"),
        (&[1, 2], 5, [1, 1, 0], "equivalent"),
        // What failed before the first token began nothing.
        (&[1, 2], 0, [1, 1, 0], "identical"),
    ] {
        let c = Cluster::start(0, 3).await;
        for &other in others {
            c.set_numerics(&c.decodes[other], "other").await;
        }
        let found = one(&c, false, well, fails_at(position)).await;
        let asked: Vec<usize> = c.decodes.iter().map(|fake| fake.log().decodes.len()).collect();
        assert_eq!((&asked[..], &found[..]), (&decodes[..], said), "{others:?} differ, lost at {position}");
        c.stop().await;
    }
}
