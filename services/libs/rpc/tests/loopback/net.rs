//! What every server of ours does beside its service: health, reflection, limits, bounded shutdown.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use rpc::worker::{DecodeCall, DecodeEvent, PrefillCall, PrefillEvent, Reserve, Reserved, WorkerApi, WorkerClient};
use rpc::{EventStream, Limits, RequestContext, ServeOptions};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use types::{Accounting, Epoch, Failure, KvEventBatch, Load, WorkerId, WorkerRef};

use crate::listen;

/// Reports its load once, then keeps the stream open.
struct Idle;

#[async_trait]
impl WorkerApi for Idle {
    async fn reserve(&self, _: RequestContext, _: Reserve) -> Result<Reserved, Failure> {
        Err(Failure::internal("not used"))
    }
    async fn run_prefill(&self, _: RequestContext, _: PrefillCall) -> Result<EventStream<PrefillEvent>, Failure> {
        Err(Failure::internal("not used"))
    }
    async fn run_decode(&self, _: RequestContext, _: DecodeCall) -> Result<EventStream<DecodeEvent>, Failure> {
        Err(Failure::internal("not used"))
    }
    async fn cancel(&self, _: RequestContext, _: bool) -> Result<bool, Failure> {
        Ok(false)
    }
    async fn drain(&self, _: WorkerRef) -> Result<u32, Failure> {
        Ok(0)
    }
    async fn load_report(&self, worker: WorkerRef, _: Duration) -> Result<EventStream<(WorkerRef, Load)>, Failure> {
        Ok(futures::stream::iter([Ok((worker, Load::default()))]).chain(futures::stream::pending()).boxed())
    }
    async fn kv_events(&self, _: WorkerRef, _: u64) -> Result<EventStream<KvEventBatch>, Failure> {
        Ok(futures::stream::pending().boxed())
    }
    async fn accounting(&self) -> Result<Accounting, Failure> {
        Ok(Accounting::default())
    }
}

#[tokio::test]
async fn health_follows_readiness() {
    let (listener, address) = listen().await;
    let (ready, follow) = watch::channel(false);
    let stop = CancellationToken::new();
    let options = ServeOptions::new(Limits::internal()).with_ready(follow);
    tokio::spawn(rpc::worker::serve(listener, Arc::new(Idle), options, stop.clone()));
    let channel = rpc::net::channel(&address.to_string(), &Limits::internal()).unwrap();
    let mut client = HealthClient::new(channel);
    let services = ["", "baton.v1.WorkerService", "baton.v1.AdminService"];
    for now in [false, true, false, true] {
        ready.send_replace(now);
        for service in services {
            let says = async {
                loop {
                    let request = HealthCheckRequest { service: service.into() };
                    // 1: serving, 2: not serving.
                    let status = client.check(request).await.map_or(0, |answer| answer.into_inner().status);
                    if status == if now { 1 } else { 2 } {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(1), says).await.unwrap_or_else(|_| panic!("{service:?} does not say {now}"));
        }
    }
    let unknown = client.check(HealthCheckRequest { service: "x".into() }).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    stop.cancel();
}

#[tokio::test]
async fn reflection_names_what_is_served_here() {
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let options = ServeOptions::new(Limits::internal());
    tokio::spawn(rpc::worker::serve(listener, Arc::new(Idle), options, stop.clone()));
    let channel = rpc::net::channel(&address.to_string(), &Limits::internal()).unwrap();
    let mut client = ServerReflectionClient::new(channel);
    let ask = |request| tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("baton.v1.WorkerService".into())),
    ];
    let mut answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    names.sort();
    assert_eq!(names, ["baton.v1.AdminService", "baton.v1.WorkerService", "grpc.health.v1.Health"]);
    let file = answers.message().await.unwrap().unwrap().message_response;
    assert!(matches!(file, Some(MessageResponse::FileDescriptorResponse(_))), "{file:?}");
    stop.cancel();
}

#[tokio::test]
async fn shutdown_is_bounded_whatever_the_clients_do() {
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let limits = Limits { grace: Duration::from_millis(200), ..Limits::internal() };
    let server = tokio::spawn(rpc::worker::serve(listener, Arc::new(Idle), ServeOptions::new(limits), stop.clone()));
    let client = WorkerClient::new(&address.to_string()).unwrap();
    let worker = WorkerRef { id: WorkerId::new("w"), epoch: Epoch(1) };
    let mut reports = client.load_report(worker, Duration::from_millis(100)).await.unwrap();
    reports.next().await.unwrap().unwrap();
    // A connection that never says anything.
    let _silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let started = Instant::now();
    stop.cancel();
    let lost = timeout(Duration::from_secs(2), reports.next()).await.expect("is cut").unwrap().unwrap_err();
    assert_eq!(lost.reason, "PEER_LOST");
    timeout(Duration::from_secs(3), server).await.expect("ends").unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(200), "streams had their time");
    assert!(client.accounting().await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn connections_are_limited_not_lost() {
    let (listener, address) = listen().await;
    let stop = CancellationToken::new();
    let limits = Limits { n_connections: 1, ..Limits::internal() };
    tokio::spawn(rpc::worker::serve(listener, Arc::new(Idle), ServeOptions::new(limits), stop.clone()));
    let first = WorkerClient::new(&address.to_string()).unwrap();
    first.accounting().await.unwrap();
    let second = WorkerClient::new(&address.to_string()).unwrap();
    assert!(timeout(Duration::from_millis(100), second.accounting()).await.is_err(), "waits for its turn");
    drop(first);
    timeout(Duration::from_secs(3), second.accounting()).await.expect("has its turn").unwrap();
    stop.cancel();
}
