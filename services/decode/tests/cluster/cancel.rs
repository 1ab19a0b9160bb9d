//! Requests that are given up at every moment: both workers come to rest.

use std::time::Duration;

use engine::sim::Speedup;
use futures::StreamExt as _;
use rpc::worker::WorkerApi as _;

use crate::support::{Ask, Cluster, Options};

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_cancels_leaves_nothing_behind() {
    let cluster = Cluster::start(Options { speedup: Speedup::Times(1.0), ..Options::default() }).await;
    let asks = futures::stream::iter(0..150u64).map(|i| {
        let cluster = &cluster;
        async move {
            let ask = Ask::new(i, 1 + (i as usize * 37) % 500, 64);
            let patience = Duration::from_micros(i * 911 % 90_000);
            let request = u128::from(i);
            // Dropping the answer drops both streams, at whatever they are. The cancel is for a reservation whose
            // answer was on its way.
            if tokio::time::timeout(patience, cluster.split(request, &ask)).await.is_err() {
                for worker in [&cluster.prefill, &cluster.decode] {
                    worker.client.cancel(cluster.context(worker, request), true).await.unwrap();
                }
            }
        }
    });
    asks.buffer_unordered(12).collect::<Vec<()>>().await;
    for worker in [&cluster.decode, &cluster.prefill] {
        let took = worker.rest().await;
        assert!(took < Duration::from_secs(1), "{} took {took:?}", worker.worker);
    }
    let ask = Ask::new(1, 100, 10);
    let split = cluster.split(1000, &ask).await.unwrap();
    assert_eq!(split.tokens, cluster.alone(1001, &ask).await.unwrap().tokens, "and both still work");
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_ends_a_request_at_both_and_is_idempotent() {
    let cluster = Cluster::start(Options { speedup: Speedup::Times(0.5), ..Options::default() }).await;
    let ask = Ask::new(2, 400, 500);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(60)).await;
        for worker in [&cluster.prefill, &cluster.decode] {
            let context = cluster.context(worker, 7);
            worker.client.cancel(context.clone(), false).await.unwrap();
            assert!(!worker.client.cancel(context, false).await.unwrap(), "nothing is left to cancel");
        }
    };
    let (answer, ()) = tokio::join!(cluster.split(7, &ask), cancel);
    assert_eq!(answer.unwrap_err().reason, "CANCELLED");
    assert!(cluster.prefill.rest().await < Duration::from_secs(1));
    assert!(cluster.decode.rest().await < Duration::from_secs(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_a_request() {
    let cluster = Cluster::start(Options { speedup: Speedup::Times(0.2), ..Options::default() }).await;
    let ask = Ask::new(2, 100, 1000);
    let reserved = cluster.reserve(1, &ask).await.unwrap();
    let mut context = cluster.context(&cluster.decode, 1);
    context.deadline = Duration::from_millis(100);
    let mut events =
        cluster.decode.client.run_decode(context, cluster.decode_call(&reserved, &ask, false)).await.unwrap();
    let last = loop {
        match events.next().await.expect("ends with a failure") {
            Ok(_) => {}
            Err(failure) => break failure,
        }
    };
    assert_eq!(last.reason, "DEADLINE_EXCEEDED");
    assert!(cluster.decode.rest().await < Duration::from_secs(1));
}
