//! Sequences that begin alike share blocks: what was computed once is computed no more, the answer stays the same to
//! the bit, and nobody sees what is another tenant's.

mod support;

use std::ops::ControlFlow;
use std::time::Duration;

use engine::EngineError;
use engine::sim::SimConfig;
use futures::future::join_all;
use support::{BLOCK_TOKENS, Random, Request, Worker, collect, copy, hooked, plain, request, sim};
use types::{BlockHash, KvEvent, KvEventBatch, SamplingParams, Token, TokenId};
use worker::{DecodeStart, Started, WorkerConfig};

/// Tokens that the worker has computed.
fn computed(worker: &Worker) -> usize {
    worker.metric("worker_computed_tokens_total") as usize
}

fn cold() -> Worker {
    Worker::new(sim(), WorkerConfig { prefix_cache: false, ..WorkerConfig::default() })
}

/// The next turn of a chat: what was said, the answer, and a new question.
fn next_turn(last: &Request, answer: &[Token], n_new: usize) -> Request {
    let mut random = Random::new(last.key.request.0 as u64 + 77);
    let mut prompt = last.prompt.to_vec();
    prompt.extend(answer.iter().map(|token| token.id));
    prompt.extend((0..n_new).map(|_| random.below(support::N_VOCAB) as TokenId));
    let key = worker::SeqKey { request: types::RequestId(last.key.request.0 + 1000), ..last.key };
    Request { key, prompt: prompt.into(), ..last.clone() }
}

fn sampled(request: Request, seed: u64) -> Request {
    let sampling = SamplingParams { temperature: 0.9, seed, logprobs: Some(3), ..SamplingParams::default() };
    Request { sampling, ..request }
}

/// KV rows of a conversation after its first turn: the last token is never fed.
fn full_blocks(request: &Request, answer: &[Token]) -> usize {
    (request.prompt.len() + answer.len() - 1) / BLOCK_TOKENS
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_turn_computes_only_what_is_new() {
    let (warm, cold) = (Worker::new(sim(), WorkerConfig::default()), cold());
    for (id, n_prompt) in (0..10).map(|id| (id, [70, 64, 15, 200, 16][id as usize % 5])) {
        let first = if id % 2 == 0 { plain(id, n_prompt, 40) } else { sampled(plain(id, n_prompt, 40), id) };
        let answer = first.whole(&warm.handle).await.unwrap();
        let second = next_turn(&first, &answer, 21);
        let before = computed(&warm);
        let mut run = second.start_whole(&warm.handle, vec![]).await.unwrap();
        assert_eq!(run.n_cached(), 0, "not known yet");
        let first_token = run.next().await.unwrap().unwrap();
        let n_shared = full_blocks(&first, &answer) * BLOCK_TOKENS;
        assert_eq!(run.n_cached() as usize, n_shared, "blocks of prompt and answer");
        let mut found = vec![first_token];
        found.extend(collect(run).await.unwrap());
        assert_eq!(computed(&warm) - before, second.prompt.len() - n_shared + found.len() - 1);
        assert_eq!(found, second.whole(&cold.handle).await.unwrap(), "as from a cold start");
    }
    assert_eq!(cold.handle.accounting().await.cached, 0, "off is off");
    warm.stop().await;
    cold.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefill_and_decode_each_keep_what_they_had() {
    let [prefill, decode] = [(); 2].map(|()| Worker::new(sim(), WorkerConfig::default()));
    let cold = cold();
    for id in 0..6 {
        let first = sampled(plain(id, 50 + 16 * id as usize, 40), id);
        let answer = first.split(&prefill.handle, &decode.handle, |_, _| ()).await.unwrap();
        let second = next_turn(&first, &answer, 30);
        let before = (computed(&prefill), computed(&decode));
        let landing = second.land(&decode.handle).await.unwrap();
        assert_eq!(landing.n_cached(), full_blocks(&first, &answer), "decode has the answer too");
        drop(landing);
        let found = second.split(&prefill.handle, &decode.handle, |_, _| ()).await.unwrap();
        let n_prompt = second.prompt.len();
        assert_eq!(computed(&prefill) - before.0, n_prompt - first.prompt.len() / BLOCK_TOKENS * BLOCK_TOKENS);
        assert_eq!(computed(&decode) - before.1, found.len() - 1, "decode computes no prompt");
        assert_eq!(found, second.whole(&cold.handle).await.unwrap());
    }
    for worker in [prefill, decode, cold] {
        worker.stop().await;
    }
}

/// The positive control: the equalities above depend on what is in shared blocks.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_a_cached_block_would_show() {
    let [prefill, decode] = [(); 2].map(|()| Worker::new(sim(), WorkerConfig::default()));
    let first = plain(1, 64, 4);
    let expected = first.whole(&cold().handle).await.unwrap();
    let damaged = first.split(&prefill.handle, &decode.handle, |block, cell| cell[3] ^= u8::from(block == 1)).await;
    assert_ne!(damaged.unwrap(), expected);
    let again = Request { key: next_turn(&first, &[], 0).key, ..first.clone() };
    assert_ne!(again.whole(&decode.handle).await.unwrap(), expected, "it was shared");
}

/// How many tokens of a prompt that `one` had computed are not computed for `other`.
async fn shared(one: &'static str, other: &'static str) -> u32 {
    let worker = Worker::new(sim(), WorkerConfig::default());
    let first = Request { tenant: Some(one), ..plain(1, 100, 4) };
    first.whole(&worker.handle).await.unwrap();
    let before = computed(&worker);
    let second = Request { tenant: Some(other), key: next_turn(&first, &[], 0).key, ..first.clone() };
    let landing = second.land(&worker.handle).await.unwrap();
    let n_landed = landing.n_cached();
    drop(landing);
    let mut run = second.start_whole(&worker.handle, vec![]).await.unwrap();
    run.next().await.unwrap().unwrap();
    let n_cached = run.n_cached();
    collect(run).await.unwrap();
    assert_eq!(n_landed * BLOCK_TOKENS, n_cached as usize);
    assert_eq!(computed(&worker) - before, 100 + 3 - n_cached as usize, "what is reused is not computed");
    worker.stop().await;
    n_cached
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_never_share() {
    for (one, other) in [("a", "b"), ("", "a"), ("a", ""), ("a", "aa")] {
        assert_eq!(shared(one, other).await, 0, "{one:?} and {other:?}");
    }
    // The positive control: with the tenant taken out of the names they would.
    assert_eq!(shared("a", "a").await, 96);
    assert_eq!(shared("", "").await, 96);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_pressure_answers_stay_right_and_nothing_stays_owned() {
    let requests: Vec<Request> = (0..120)
        .map(|id| {
            let of = request(id % 9);
            let (mut random, own) = (Random::new(id), request(id));
            // A beginning of one of nine texts, and some of its own.
            let n = 1 + random.below(of.prompt.len());
            let prompt = [&of.prompt[..n], &own.prompt[..own.prompt.len().min(random.below(40))]].concat();
            Request { prompt: prompt.into(), tenant: Some(["a", "b"][random.below(2)]), ..own }
        })
        .collect();
    let cold = cold();
    let mut expected = Vec::new();
    for request in &requests {
        expected.push(request.whole(&cold.handle).await.unwrap());
    }
    let tight = WorkerConfig { reserve_cap_tokens: 1, ..WorkerConfig::default() };
    let cases = [("roomy", 8192, WorkerConfig::default()), ("tight", 60, tight)];
    for (name, kv_blocks, config) in cases {
        let one = Worker::new(SimConfig { kv_blocks, ..sim() }, config.clone());
        let prefill = Worker::new(SimConfig { kv_blocks, ..sim() }, config);
        for (requests, expected) in requests.chunks(20).zip(expected.chunks(20)) {
            let answers = requests.iter().enumerate().map(|(i, request)| {
                let (one, prefill) = (&one.handle, &prefill.handle);
                async move {
                    // Every third one is taken over from prefill, some leave in the middle.
                    match i % 6 {
                        0 | 1 => request.split(prefill, one, |_, _| ()).await.map(Some),
                        5 => {
                            let mut run = request.start_whole(one, vec![]).await?;
                            run.next().await.transpose().map(|_| None)
                        }
                        _ => request.whole(one).await.map(Some),
                    }
                }
            });
            for ((found, expected), request) in join_all(answers).await.into_iter().zip(expected).zip(requests) {
                assert!(found.unwrap().is_none_or(|found| found == *expected), "{name}: {:?}", request.key);
            }
        }
        let evicted = one.metric("kvcache_evicted_blocks_total");
        assert_eq!(evicted > 0.0, name == "tight", "{name}: {evicted} blocks gave way");
        assert!(one.metric("worker_cached_tokens_total") > 0.0, "{name}: something was shared");
        one.stop().await;
        prefill.stop().await;
    }
    cold.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_sequence_leaves_its_full_blocks() {
    let worker = Worker::new(sim(), WorkerConfig::default());
    let request = plain(3, 100, 50);
    let mut run = request.start_whole(&worker.handle, vec![]).await.unwrap();
    run.next().await.unwrap().unwrap();
    drop(run);
    worker.at_rest().await;
    let n = worker.handle.accounting().await.cached;
    assert!(n >= 6, "{n} blocks are cached");
    worker.stop().await;
}

/// What a failed step left in the blocks is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_failed_leaves_nothing_to_share() {
    let hook = |slices: &[engine::Slice<'_>], _: &mut dyn FnMut(usize) -> ControlFlow<()>| {
        let fails = slices.iter().any(|slice| slice.tokens.contains(&333));
        if fails { Err(EngineError::Aborted) } else { Ok(()) }
    };
    let worker = Worker::with(hooked(sim(), Box::new(hook)), WorkerConfig::default());
    let mut request = plain(1, 300, 5);
    let mut prompt: Vec<TokenId> = request.prompt.iter().map(|&token| token % 300).collect();
    prompt[280] = 333;
    request.prompt = prompt.into();
    request.whole(&worker.handle).await.unwrap_err();
    worker.at_rest().await;
    assert_eq!(worker.handle.accounting().await.cached, 256 / BLOCK_TOKENS as u32, "the first step's");
    worker.stop().await;
}

/// Blocks that came without names serve their own sequence only.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_without_names_is_not_shared() {
    let [prefill, decode] = [(); 2].map(|()| Worker::new(sim(), WorkerConfig::default()));
    let request = Request { tenant: None, ..plain(1, 100, 30) };
    let landing = request.land(&decode.handle).await.unwrap();
    let mut run = prefill.handle.prefill(request.prefill_job(&prefill.handle)).await.unwrap();
    let Started { hold, n_cached, .. } = run.started().await.unwrap();
    let (first, _) = run.first_token().await.unwrap();
    copy(prefill.handle.arena(), &hold, decode.handle.arena(), &landing, 100, |_, _| ());
    drop(hold);
    let start = DecodeStart::Handoff { landing, handoff: request.handoff(&first) };
    let run = decode.handle.decode(request.decode_job(&decode.handle, start)).await.unwrap();
    collect(run).await.unwrap();
    for worker in [prefill, decode] {
        worker.at_rest().await;
        assert_eq!((worker.handle.accounting().await.cached, n_cached), (0, 0));
        worker.stop().await;
    }
}

/// A listener's picture of a worker's cache.
#[derive(Default, PartialEq, Debug)]
struct Picture {
    known: std::collections::BTreeMap<BlockHash, Option<BlockHash>>,
    after: u64,
    n_cleared: usize,
}

impl Picture {
    fn apply(&mut self, batch: KvEventBatch) {
        for event in batch.events {
            match event {
                KvEvent::Stored { hashes, mut parent } => {
                    for hash in hashes {
                        assert_eq!(self.known.insert(hash, parent), None, "stored twice");
                        parent = Some(hash);
                    }
                }
                KvEvent::Removed { hashes } => {
                    assert!(hashes.iter().all(|hash| self.known.remove(hash).is_some()), "removed, and not there");
                }
                KvEvent::Cleared => (self.known, self.n_cleared) = (Default::default(), self.n_cleared + 1),
            }
        }
        self.after = batch.id;
    }

    /// All that there is to hear now.
    async fn hear(&mut self, follower: &mut worker::KvFollower) -> Result<(), types::Failure> {
        while let Ok(batch) = tokio::time::timeout(Duration::from_millis(100), follower.next()).await {
            self.apply(batch?);
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_knows_what_is_cached_and_continues_where_it_was() {
    let worker = Worker::new(SimConfig { kv_blocks: 100, ..sim() }, WorkerConfig::default());
    plain(1, 100, 30).whole(&worker.handle).await.unwrap();
    let mut picture = Picture::default();
    let mut follower = worker.handle.kv_events(0).unwrap();
    picture.hear(&mut follower).await.unwrap();
    assert_eq!((picture.known.len(), picture.n_cleared), ((100 + 30 - 1) / BLOCK_TOKENS, 1));
    for id in 2..30 {
        plain(id, 100, 30).whole(&worker.handle).await.unwrap();
    }
    picture.hear(&mut follower).await.unwrap();
    drop(follower);
    plain(30, 100, 30).whole(&worker.handle).await.unwrap();
    let mut follower = worker.handle.kv_events(picture.after).unwrap();
    picture.hear(&mut follower).await.unwrap();
    worker.at_rest().await;
    assert_eq!(picture.n_cleared, 1, "it went on where it was");
    assert_eq!(picture.known.len() as u32, worker.handle.accounting().await.cached);
    let mut anew = Picture::default();
    // An id of another history.
    anew.hear(&mut worker.handle.kv_events(1 << 40).unwrap()).await.unwrap();
    assert_eq!((&anew.known, anew.after, anew.n_cleared), (&picture.known, picture.after, 1));
    let names = plain(30, 100, 30).names(&worker.handle).unwrap();
    assert!(names.hashes().iter().all(|hash| picture.known.contains_key(hash)));
    worker.stop().await;
    assert_eq!(follower.next().await.unwrap_err().reason, "WORKER_STOPPED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_is_too_slow_is_cut_off_and_too_many_are_refused() {
    let worker = Worker::new(SimConfig { kv_blocks: 200, ..sim() }, WorkerConfig::default());
    let mut slow = worker.handle.kv_events(0).unwrap();
    let mut picture = Picture::default();
    picture.hear(&mut slow).await.unwrap();
    // More events than are kept.
    for id in 0..600 {
        plain(id, 1000, 2).whole(&worker.handle).await.unwrap();
    }
    let failure = picture.hear(&mut slow).await.unwrap_err();
    assert_eq!((failure.reason, failure.retry), ("KV_EVENTS_LOST", types::Retry::Safe(None)));
    let mut again = worker.handle.kv_events(picture.after).unwrap();
    picture.hear(&mut again).await.unwrap();
    worker.at_rest().await;
    assert_eq!(picture.known.len() as u32, worker.handle.accounting().await.cached);
    drop((slow, again));
    let all: Vec<_> = (0..64).map(|_| worker.handle.kv_events(0).unwrap()).collect();
    assert_eq!(worker.handle.kv_events(0).unwrap_err().code, types::Code::ResourceExhausted);
    drop(all);
    worker.handle.kv_events(0).unwrap();
    worker.stop().await;
}
