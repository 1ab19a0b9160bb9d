//! Calls for another incarnation, from a replaced owner, or made twice are refused before anything happens.

use engine::sim::Speedup;
use futures::StreamExt as _;
use rpc::worker::WorkerApi as _;
use types::{Epoch, Retry};

use crate::support::{Ask, Cluster, Options};

#[tokio::test(flavor = "multi_thread")]
async fn stale_and_double_calls_are_refused() {
    let cluster = Cluster::start(Options { speedup: Speedup::Times(1.0), ..Options::default() }).await;
    let ask = Ask::new(2, 100, 200);

    let mut stale = cluster.context(&cluster.prefill, 1);
    stale.worker.epoch = Epoch(stale.worker.epoch.0 + 1);
    let refused = cluster.prefill.client.run_prefill(stale.clone(), cluster.prefill_call(&ask)).await.err().unwrap();
    assert_eq!((refused.reason, refused.retry), ("STALE_EPOCH", Retry::Safe(None)));
    assert_eq!(cluster.prefill.client.cancel(stale.clone(), true).await.unwrap_err().reason, "STALE_EPOCH");
    assert_eq!(cluster.prefill.client.drain(stale.worker).await.unwrap_err().reason, "STALE_EPOCH");

    let mut context = cluster.context(&cluster.decode, 2);
    context.owner_epoch = Epoch(5);
    let reserved = cluster.reserve(2, &ask).await.unwrap();
    let call = cluster.decode_call(&reserved, &ask, false);
    let mut running = cluster.decode.client.run_decode(context.clone(), call.clone()).await.unwrap();
    running.next().await.unwrap().unwrap();
    let double = cluster.decode.client.run_decode(context.clone(), call.clone()).await.err().unwrap();
    assert_eq!(double.reason, "DUPLICATE_REQUEST");
    context.owner_epoch = Epoch(4);
    let replaced = cluster.decode.client.run_decode(context, call).await.err().unwrap();
    assert_eq!(replaced.reason, "STALE_OWNER");
    drop(running);
    cluster.decode.rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_worker_refuses_the_others_calls() {
    let cluster = Cluster::start(Options::default()).await;
    let ask = Ask::new(2, 10, 4);
    let context = cluster.context(&cluster.prefill, 1);
    let reserved = cluster.reserve(1, &ask).await.unwrap();
    let call = cluster.decode_call(&reserved, &ask, false);
    let refused = cluster.prefill.client.run_decode(context, call).await.err().unwrap();
    assert_eq!(refused.reason, "NOT_A_DECODE_WORKER");
    let context = cluster.context(&cluster.decode, 1);
    let refused = cluster.decode.client.run_prefill(context, cluster.prefill_call(&ask)).await.err().unwrap();
    assert_eq!(refused.reason, "NOT_A_PREFILL_WORKER");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_for_its_prompt() {
    let cluster = Cluster::start(Options::default()).await;
    let ask = Ask::new(2, 10, 4);
    let reserved = cluster.reserve(1, &ask).await.unwrap();
    let longer = Ask::new(2, 300, 4);
    let call = cluster.decode_call(&reserved, &longer, false);
    let refused = cluster.run_decode(1, call).await.unwrap_err();
    assert_eq!(refused.param.as_deref(), Some("prompt"));

    let reserved = cluster.reserve(2, &ask).await.unwrap();
    let mut call = cluster.decode_call(&reserved, &ask, true);
    call.source.as_mut().unwrap().compatibility.model_digest = "another".into();
    let refused = cluster.run_decode(2, call).await.unwrap_err();
    assert_eq!((refused.reason, refused.param.as_deref()), ("INCOMPATIBLE", Some("model_digest")));
}
