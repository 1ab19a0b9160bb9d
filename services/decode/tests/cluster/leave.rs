//! Joining and leaving: readiness, drain, shutdown.

use std::time::Duration;

use engine::sim::Speedup;
use futures::StreamExt as _;
use registry::Registry as _;
use rpc::worker::WorkerApi as _;
use tokio::time::{Instant, timeout};

use crate::support::{Ask, Cluster, Options};

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_running_requests_end() {
    let cluster = Cluster::start(Options { speedup: Speedup::Times(1.0), ..Options::default() }).await;
    let ask = Ask::new(2, 100, 120);
    let late = Ask::new(3, 10, 5);
    let running = cluster.split(1, &ask);
    let shutdown = async {
        tokio::time::sleep(Duration::from_millis(40)).await;
        cluster.decode.runtime.shutdown().cancel();
        tokio::time::sleep(Duration::from_millis(10)).await;
        let refused = cluster.reserve(2, &late).await.unwrap_err();
        assert_eq!(refused.reason, "DRAINING");
    };
    let (answer, ()) = tokio::join!(running, shutdown);
    assert_eq!(answer.unwrap().tokens.len(), 120);
    let started = Instant::now();
    timeout(Duration::from_secs(5), cluster.decode.task).await.expect("ends").unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    let mut members = cluster.registry.members();
    let gone = members.wait_for(|view| view.members.len() == 1);
    timeout(Duration::from_secs(2), gone).await.expect("leaves the registry").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_does_not_wait_for_ever() {
    let options =
        Options { speedup: Speedup::Times(0.1), drain_grace: Duration::from_millis(200), ..Options::default() };
    let cluster = Cluster::start(options).await;
    let ask = Ask::new(2, 100, 1500);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.decode.runtime.shutdown().cancel();
    };
    let (answer, ()) = tokio::join!(cluster.alone(1, &ask), stop);
    assert!(answer.is_err());
    timeout(Duration::from_secs(6), cluster.decode.task).await.expect("ends").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_is_told_to_everybody() {
    let cluster = Cluster::start(Options::default()).await;
    let decode = &cluster.decode;
    let mut reports = decode.client.load_report(decode.worker.clone(), Duration::from_millis(20)).await.unwrap();
    assert!(!reports.next().await.unwrap().unwrap().1.draining);
    decode.client.drain(decode.worker.clone()).await.unwrap();
    let told = async { while !reports.next().await.unwrap().unwrap().1.draining {} };
    timeout(Duration::from_secs(2), told).await.expect("the load report says so");
    let mut members = cluster.registry.members();
    let told = members.wait_for(|view| view.members.values().any(|m| m.member.draining));
    timeout(Duration::from_secs(2), told).await.expect("the registry says so").unwrap();
    assert_eq!(cluster.reserve(1, &Ask::new(2, 10, 2)).await.unwrap_err().reason, "DRAINING");
}
