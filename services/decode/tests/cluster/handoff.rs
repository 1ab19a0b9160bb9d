//! Split = whole: prefill here, transfer, decode there gives what one worker gives alone.

use std::sync::Arc;

use futures::StreamExt as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use transfer::Checksum;
use transfer::testing::{Fault, Plan, corrupting_proxy};
use types::FinishReason;

use crate::support::{Answer, Ask, Cluster, Options};

/// Lengths around the block's 16 tokens and the step's 256.
const LENGTHS: [usize; 10] = [1, 2, 15, 16, 17, 64, 255, 256, 257, 600];
const CHECKSUM_FAILURES: &str = "baton_transfer_rejected_frames_total{reason=\"checksum\"}";

fn same_tokens(split: &Answer, alone: &Answer) -> bool {
    split.tokens == alone.tokens && split.n_tokens == alone.n_tokens
}

#[tokio::test(flavor = "multi_thread")]
async fn split_equals_whole_whatever_the_batch() {
    let cluster = Cluster::start(Options::default()).await;
    let pairs = futures::stream::iter(0..60u64).map(|i| {
        let cluster = &cluster;
        async move {
            let ask = Ask::new(i, LENGTHS[i as usize % LENGTHS.len()], 1 + (i as u32 * 5) % 40);
            let split = cluster.split(u128::from(i) * 2, &ask).await.unwrap();
            let alone = cluster.alone(u128::from(i) * 2 + 1, &ask).await.unwrap();
            assert!(same_tokens(&split, &alone), "prompt {i}: {split:?}\nalone {alone:?}");
            assert_eq!(split.tokens.len(), ask.stop.max_tokens as usize);
            if ask.stop.max_tokens > 1 {
                assert!(!split.recomputed && split.bytes > 0, "prompt {i}");
            }
        }
    });
    pairs.buffer_unordered(16).collect::<Vec<()>>().await;
    cluster.prefill.rest().await;
    cluster.decode.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_of_one_token_is_prefills_alone() {
    let cluster = Cluster::start(Options::default()).await;
    let ask = Ask::new(4, 40, 1);
    let split = cluster.split(1, &ask).await.unwrap();
    assert_eq!(split.tokens.len(), 1);
    assert_eq!(split.tokens[0].finish, Some(FinishReason::Length));
    assert_eq!((split.n_tokens, split.bytes), (1, 0));
    cluster.prefill.rest().await;
    cluster.decode.rest().await;
}

/// Asks through a man in the middle, and alone; how many answers were alike.
async fn through_proxy(plan: Plan, checksum: Checksum, n_asks: u64) -> (u64, Cluster, Vec<Answer>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kv_advertise = Some(listener.local_addr().unwrap());
    let cluster = Cluster::start(Options { checksum, kv_advertise, ..Options::default() }).await;
    let (upstream, stop) = (cluster.kv_bound().to_string(), CancellationToken::new());
    let proxy = tokio::spawn(corrupting_proxy(listener, upstream, plan, 1, stop.clone()));
    let mut alike = 0;
    let mut answers = Vec::new();
    for i in 0..n_asks {
        let ask = Ask::new(i, LENGTHS[i as usize % LENGTHS.len()], 12);
        let split = cluster.split(u128::from(i) * 2, &ask).await.unwrap();
        let alone = cluster.alone(u128::from(i) * 2 + 1, &ask).await.unwrap();
        alike += u64::from(same_tokens(&split, &alone));
        answers.push(split);
    }
    cluster.prefill.rest().await;
    cluster.decode.rest().await;
    stop.cancel();
    proxy.await.unwrap().unwrap();
    (alike, cluster, answers)
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_is_repaired_and_counted() {
    // Fetches alternate: the damaged one, then its repair.
    let plan: Plan = Arc::new(|n| (n % 2 == 0).then_some(Fault::PayloadBit));
    let (alike, cluster, answers) = through_proxy(plan, Checksum::On, 20).await;
    assert_eq!(alike, 20);
    assert!(answers.iter().all(|answer| !answer.recomputed));
    assert_eq!(cluster.decode.metric(CHECKSUM_FAILURES), 20);
    assert_eq!(cluster.decode.metric("baton_transfer_refetched_cells_total"), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_repaired_is_computed_again() {
    for fault in [Fault::NoiseBlock, Fault::ManifestBit, Fault::Truncate, Fault::Disconnect] {
        let (alike, cluster, answers) = through_proxy(Arc::new(move |_| Some(fault)), Checksum::On, 10).await;
        assert_eq!(alike, 10, "{fault:?}");
        assert!(answers.iter().all(|answer| answer.recomputed), "{fault:?}");
        let reason = if matches!(fault, Fault::NoiseBlock | Fault::ManifestBit) { "corrupt" } else { "peer_lost" };
        let line = format!("baton_transfer_downgrades_total{{reason=\"{reason}\"}}");
        assert_eq!(cluster.decode.metric(&line), 10, "{fault:?}");
    }
}

/// The positive control: the tokens do depend on the bytes that cross.
#[tokio::test(flavor = "multi_thread")]
async fn without_checksums_noise_changes_the_answer() {
    let (alike, cluster, answers) = through_proxy(Arc::new(|_| Some(Fault::NoiseBlock)), Checksum::Off, 40).await;
    assert!(alike <= 2, "{alike} of 40 answers did not change");
    assert!(answers.iter().all(|answer| !answer.recomputed));
    assert_eq!(cluster.decode.metric(CHECKSUM_FAILURES), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_prefill_worker_costs_time_only() {
    let cluster = Cluster::start(Options::default()).await;
    let ask = Ask::new(3, 200, 20);
    let alone = cluster.alone(1, &ask).await.unwrap();
    let reserved = cluster.reserve(2, &ask).await.unwrap();
    let mut call = cluster.decode_call(&reserved, &ask, true);
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let source = call.source.as_mut().unwrap();
    (source.address, source.endpoints) = (gone.to_string(), types::KvEndpoints::default());
    let answer = cluster.run_decode(2, call).await.unwrap();
    assert!(answer.recomputed);
    assert_eq!(answer.tokens, alone.tokens, "position 0 comes from decode: the router may not have it");
    cluster.decode.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_sequence_goes_on_where_it_was() {
    let cluster = Cluster::start(Options::default()).await;
    for (seed, n_given) in [(2, 1), (3, 7), (5, 16)] {
        let ask = Ask::new(seed, 50, 24);
        let whole = cluster.alone(u128::from(seed) * 10, &ask).await.unwrap();
        let request = u128::from(seed) * 10 + 1;
        let reserved = cluster.reserve(request, &ask).await.unwrap();
        let mut call = cluster.decode_call(&reserved, &ask, false);
        call.generated = whole.tokens[..n_given].iter().map(|token| token.id).collect();
        let rest = cluster.run_decode(request, call).await.unwrap();
        assert_eq!(rest.tokens, whole.tokens[n_given..]);
    }
}
