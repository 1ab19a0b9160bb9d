//! A router over real sockets, led workers by script, and a bare HTTP client.

#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod client;
pub mod fake;
pub mod model;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bootstrap::Runtime;
use registry::memory::MemoryRegistry;
use registry::{Member, Membership, Registry as _};
use rpc::inference::{InferenceApi as _, InferenceClient};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::{Compatibility, KvElement, KvGeometry, LayerKv, LayerKvKind, Role, WorkerId};

use client::Answer;
use fake::Fake;

pub const MODEL: &str = "alphabet";

/// A router and its workers.
pub struct Cluster {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub prefills: Vec<Fake>,
    pub decodes: Vec<Fake>,
    pub registry: Arc<MemoryRegistry>,
    pub runtime: Runtime,
    memberships: Vec<Membership>,
    router: JoinHandle<anyhow::Result<()>>,
    _model: TempDir,
}

impl Cluster {
    pub async fn start(n_prefill: usize, n_decode: usize) -> Self {
        Self::with(n_prefill, n_decode, |_| {}).await
    }

    pub async fn with(n_prefill: usize, n_decode: usize, change: impl FnOnce(&mut router::Config)) -> Self {
        let registry = Arc::new(MemoryRegistry::new());
        let mut memberships = Vec::new();
        let mut spawn = async |role: Role, n: usize| {
            let mut fakes = Vec::new();
            for index in 0..n {
                let fake = Fake::start(format!("{role}-{index}")).await;
                let membership = registry.join(member(role, &fake)).await.expect("joins");
                fake.incarnation(membership.joined().await);
                memberships.push(membership);
                fakes.push(fake);
            }
            fakes
        };
        let prefills = spawn(Role::Prefill, n_prefill).await;
        let decodes = spawn(Role::Decode, n_decode).await;
        let model = model::write();
        let mut config = router::Config::new("router-0", model.path().to_owned(), MODEL);
        config.admin = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        config.limits.grace = Duration::from_millis(500);
        // Idle workers are asked in the order of their ids.
        config.rules.policy = routing::Policy::LeastLoaded;
        change(&mut config);
        let runtime = Runtime::new("router", "router-0", CancellationToken::new());
        let router = tokio::spawn(router::run(config, runtime.clone(), registry.clone()));
        let mut announced = runtime.announced();
        let ports = announced.wait_for(|all| !all.is_empty()).await.expect("the router starts")[0].ports;
        let cluster = Self {
            http: ports.http.expect("bound"),
            grpc: ports.grpc.expect("bound"),
            admin: ports.admin.expect("bound"),
            prefills,
            decodes,
            registry,
            runtime,
            memberships,
            router,
            _model: model,
        };
        if n_decode > 0 {
            eventually("the router knows its workers", async || cluster.get("/health").await.status == 200).await;
            let all = cluster.prefills.iter().chain(&cluster.decodes);
            for fake in all {
                eventually("the router hears reports", async || fake.log().n_report_streams > 0).await;
            }
        }
        cluster
    }

    pub async fn get(&self, path: &str) -> Answer {
        client::call(self.http, "GET", path, &[], b"").await
    }

    /// What the admin port says about a request's placements.
    pub async fn explain(&self, id: &str) -> serde_json::Value {
        client::call(self.admin, "GET", &format!("/debug/explain/{id}"), &[], b"").await.json()
    }

    pub async fn post(&self, path: &str, body: serde_json::Value) -> Answer {
        self.post_with(path, &[], body).await
    }

    pub async fn post_with(&self, path: &str, headers: &[(&str, &str)], body: serde_json::Value) -> Answer {
        client::call(self.http, "POST", path, headers, body.to_string().as_bytes()).await
    }

    /// The sum of a metric's series whose line contains `part`.
    pub fn metric(&self, part: &str) -> f64 {
        let text = self.runtime.metrics().to_classic();
        let lines = text.lines().filter(|line| !line.starts_with('#') && line.contains(part));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub fn fakes(&self) -> impl Iterator<Item = &Fake> {
        self.prefills.iter().chain(&self.decodes)
    }

    /// No worker has a stream of a request any more, and the router serves none.
    pub async fn at_rest(&self) {
        eventually("everything is at rest", async || {
            self.fakes().all(|fake| fake.log().n_open == 0) && self.metric("requests_in_flight") == 0.0
        })
        .await;
    }

    /// A worker says that it has other numerics; returns when the router knows.
    pub async fn set_numerics(&self, fake: &Fake, numerics: &str) {
        let index = self.fakes().position(|f| f.id == fake.id).expect("one of ours");
        let role = if index < self.prefills.len() { Role::Prefill } else { Role::Decode };
        let document = Compatibility { numerics: numerics.into(), ..compatibility() };
        let member = Member { compatibility: Some(document), ..member(role, fake) };
        self.memberships[index].update(member).await.expect("the registry takes it");
        let client = InferenceClient::new(&self.grpc.to_string()).expect("an address");
        eventually("the router knows the numerics", async || {
            let members = client.cluster_state().await.expect("a state").members;
            members.iter().any(|m| m.worker.id.as_str() == fake.id && m.numerics == numerics && m.device == "fake")
        })
        .await;
    }

    pub async fn stop(self) {
        self.runtime.shutdown().cancel();
        self.router.await.expect("no panic").expect("an orderly end");
        assert!(self.runtime.finish(Duration::from_secs(5)).await, "every task ends");
    }
}

pub fn compatibility() -> Compatibility {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 8 }, window: None };
    Compatibility {
        protocol: (1, 1),
        model_digest: "0123456789abcdef".into(),
        model_revision: String::new(),
        geometry: KvGeometry { block_tokens: 16, element: KvElement::F32, layers: vec![layer] },
        rope: "default".into(),
        attention: "causal".into(),
        quantization: "f32".into(),
        adapters: vec![],
        drafter: String::new(),
        numerics: "f32".into(),
    }
}

fn member(role: Role, fake: &Fake) -> Member {
    Member {
        id: WorkerId::new(fake.id.as_str()),
        role,
        rpc_address: fake.address.to_string(),
        kv_address: if role == Role::Prefill { "127.0.0.1:9".into() } else { String::new() },
        kv_endpoints: types::KvEndpoints::default(),
        admin_address: String::new(),
        http_address: String::new(),
        model: MODEL.into(),
        max_context: 512,
        compatibility: Some(compatibility()),
        device: "fake".into(),
        draining: false,
    }
}

/// Waits until it holds, ten seconds at most.
pub async fn eventually(what: &str, holds: impl AsyncFn() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("in time: {what}"));
}
