//! What a worker has already is neither computed nor pulled again.

use std::sync::Arc;

use futures::StreamExt as _;
use rpc::worker::WorkerApi as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use transfer::testing::{Fault, corrupting_proxy};
use types::{KvEvent, Token};

use crate::support::{Answer, Ask, Cluster, Options};

const BLOCK: usize = 16;

/// The next turn: what was said, the answer, and something new.
fn next_turn(ask: &Ask, tokens: &[Token], n_new: u32) -> Ask {
    let answer = tokens.iter().map(|token| token.id);
    Ask { prompt: ask.prompt.iter().copied().chain(answer).chain(900..900 + n_new).collect(), ..ask.clone() }
}

/// A first turn of 70 tokens and a second one, and what the second gave.
async fn two_turns(cluster: &Cluster, seed: u64, tenants: [&str; 2]) -> (Ask, Ask, Answer, Answer) {
    let first = Ask { tenant: tenants[0].into(), ..Ask::new(seed, 70, 40) };
    let answer = cluster.split(u128::from(seed) * 10 + 1, &first).await.expect("answers");
    let second = Ask { tenant: tenants[1].into(), ..next_turn(&first, &answer.tokens, 20) };
    let again = cluster.split(u128::from(seed) * 10 + 2, &second).await.expect("answers");
    (first, second, answer, again)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_turn_computes_and_pulls_only_what_is_missing() {
    let (warm, cold) = tokio::join!(Cluster::start(Options::default()), Cluster::start(Options::default()));
    for seed in 1..6 {
        let (first, second, answer, again) = two_turns(&warm, seed, ["", ""]).await;
        let n_prompt = second.prompt.len();
        assert_eq!(again.cached as usize, first.prompt.len() / BLOCK * BLOCK, "prefill has the first prompt");
        let n_here = (first.prompt.len() + answer.tokens.len() - 1) / BLOCK;
        let n_blocks = n_prompt.div_ceil(BLOCK);
        let per_block = answer.bytes / first.prompt.len().div_ceil(BLOCK) as u64;
        assert_eq!(again.bytes, (n_blocks - n_here) as u64 * per_block, "decode has its answer too");
        assert!(!again.recomputed);
        let expected = cold.alone(u128::from(seed), &second).await.expect("answers");
        assert_eq!((&again.tokens, expected.cached), (&expected.tokens, 0));
        let alone = warm.alone_warm(u128::from(seed) * 10 + 3, &second).await.expect("answers");
        assert_eq!(alone.tokens, expected.tokens);
        assert!(alone.cached as usize >= n_here * BLOCK, "decode computes its own prompts behind what it has");
    }
    for worker in [&warm.prefill, &warm.decode, &cold.decode] {
        worker.rest().await;
        assert!(worker.accounting().await.cached > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_tenant_gets_nothing_of_it() {
    let cluster = Cluster::start(Options::default()).await;
    let (.., second, _, again) = two_turns(&cluster, 1, ["a", "b"]).await;
    let n_blocks = second.prompt.len().div_ceil(BLOCK) as u64;
    let (_, third, answer, other) = two_turns(&cluster, 2, ["a", "a"]).await;
    let per_block = answer.bytes / 70u64.div_ceil(BLOCK as u64);
    assert_eq!((again.cached, again.bytes), (0, n_blocks * per_block), "all of it crosses");
    // The positive control: with one tenant it does not.
    assert!(other.cached > 0 && other.bytes < third.prompt.len().div_ceil(BLOCK) as u64 * per_block);
}

/// A pull of what is missing fails as any other: what cannot be had intact is computed, behind what is here.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_rest_is_repaired_or_computed_here() {
    for (first_fetch_only, recomputed) in [(true, false), (false, true)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cluster = Cluster::start(Options { kv_advertise: Some(address), ..Options::default() }).await;
        let upstream = cluster.kv_bound().to_string();
        // The fetch of the first turn, number 0, is left alone.
        let plan = Arc::new(move |n: u64| (n == 1 || n > 1 && !first_fetch_only).then_some(Fault::PayloadBit));
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        tokio::spawn(corrupting_proxy(listener, upstream, plan, 7, stop));
        let (_, second, _, again) = two_turns(&cluster, 3, ["", ""]).await;
        assert_eq!(again.recomputed, recomputed);
        assert_eq!(again.tokens, cluster.alone(99, &second).await.expect("answers").tokens);
        cluster.decode.rest().await;
        cluster.prefill.rest().await;
    }
}

/// Over a real socket: what each worker says about its cache is what it has.
#[tokio::test(flavor = "multi_thread")]
async fn routers_hear_what_is_cached() {
    let cluster = Cluster::start(Options::default()).await;
    two_turns(&cluster, 1, ["", ""]).await;
    for (worker, other) in [(&cluster.prefill, 8), (&cluster.decode, 9)] {
        worker.rest().await;
        let mut events = worker.client.kv_events(worker.worker.clone(), 0).await.expect("subscribes");
        let batch = events.next().await.expect("endless").expect("lives");
        assert_eq!(batch.events[0], KvEvent::Cleared);
        let n: usize = batch.events.iter().map(KvEvent::n_hashes).sum();
        assert_eq!(n as u32, worker.accounting().await.cached);
        assert!(batch.id > 0, "small enough for one batch");
        let mut more = worker.client.kv_events(worker.worker.clone(), batch.id).await.expect("subscribes");
        // Another prompt each time, or there is nothing new.
        cluster.split(50 + u128::from(other), &Ask::new(other, 40, 4)).await.expect("answers");
        let next = more.next().await.expect("endless").expect("lives");
        assert_eq!(next.id, batch.id + 1, "nothing is missed and nothing comes twice");
        assert_eq!(events.next().await.expect("endless").expect("lives"), next);
        let stale = types::WorkerRef { epoch: types::Epoch(0), ..worker.worker.clone() };
        assert_eq!(worker.client.kv_events(stale, 0).await.err().expect("refused").reason, "STALE_EPOCH");
    }
}
