//! What the suite runs on.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::etcd::{EtcdBackend, EtcdRegistry};
use crate::memory::{MemoryBackend, MemoryRegistry, MemoryStore};
use crate::{Registry, Timing};

pub(super) trait Server: Sized + Send + Sync {
    type Backend: Backend;

    /// A fresh, empty one; `None` if this machine has none.
    async fn start() -> Option<Self>;
    /// A client of its own.
    fn registry(&self, prefix: &str) -> Arc<dyn Registry>;
    /// For operations below the contract.
    fn backend(&self) -> Self::Backend;
    /// Forgets history up to now.
    async fn compact(&self);
    /// Ends every lease.
    async fn revoke_all(&self);
    /// Cuts it off or kills it.
    async fn stop(&mut self);
    /// Brings it back with its data.
    async fn resume(&mut self);
    /// Brings it back without its data.
    async fn resume_empty(&mut self);
    /// Stops it in a way that no connection notices; whether that can be done here.
    fn freeze(&mut self, _frozen: bool) -> bool {
        false
    }
}

pub(super) struct Memory {
    store: MemoryStore,
}

impl Server for Memory {
    type Backend = MemoryBackend;

    async fn start() -> Option<Self> {
        Some(Self { store: MemoryStore::new() })
    }

    fn registry(&self, prefix: &str) -> Arc<dyn Registry> {
        Arc::new(MemoryRegistry::on(self.store.clone(), prefix, Timing::default()))
    }

    fn backend(&self) -> MemoryBackend {
        MemoryBackend(self.store.clone())
    }

    async fn compact(&self) {
        self.store.compact(self.store.revision()).expect("not compacted yet");
    }

    async fn revoke_all(&self) {
        for lease in self.store.leases() {
            self.store.revoke(lease).expect("just listed");
        }
    }

    async fn stop(&mut self) {
        self.store.set_reachable(false);
    }

    async fn resume(&mut self) {
        self.store.set_reachable(true);
    }

    async fn resume_empty(&mut self) {
        // Its clients hold this very store.
        self.revoke_all().await;
        self.store.set_reachable(true);
    }
}

pub(super) struct Wire {
    store: MemoryStore,
    address: SocketAddr,
    running: Option<(JoinHandle<()>, CancellationToken)>,
}

impl Wire {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    async fn serve(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is free");
        self.address = listener.local_addr().expect("bound");
        let stop = CancellationToken::new();
        let (store, token) = (self.store.clone(), stop.clone());
        let task = tokio::spawn(async move {
            crate::wire::serve(listener, store, token).await.expect("the listener works");
        });
        self.running = Some((task, stop));
    }
}

impl Server for Wire {
    type Backend = EtcdBackend;

    async fn start() -> Option<Self> {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut wire = Self { store: MemoryStore::new(), address, running: None };
        wire.serve().await;
        Some(wire)
    }

    fn registry(&self, prefix: &str) -> Arc<dyn Registry> {
        Arc::new(EtcdRegistry::connect(&[self.address.to_string()], prefix).expect("an address"))
    }

    fn backend(&self) -> EtcdBackend {
        EtcdBackend::new(vec![self.address.to_string()])
    }

    async fn compact(&self) {
        self.store.compact(self.store.revision()).expect("not compacted yet");
    }

    async fn revoke_all(&self) {
        for lease in self.store.leases() {
            self.store.revoke(lease).expect("just listed");
        }
    }

    async fn stop(&mut self) {
        let (task, stop) = self.running.take().expect("running");
        stop.cancel();
        task.await.expect("it ends in order");
    }

    async fn resume(&mut self) {
        self.serve().await;
    }

    async fn resume_empty(&mut self) {
        // The earliest start there is: revisions go back.
        self.store = MemoryStore::starting_at(1);
        self.serve().await;
    }
}

pub(super) struct Etcd {
    binary: PathBuf,
    data: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Etcd {
    pub(super) fn address(&self) -> SocketAddr {
        self.client
    }

    /// Lies beside the server.
    pub(super) fn etcdctl(&self) -> PathBuf {
        self.binary.with_file_name("etcdctl")
    }

    async fn launch(&mut self) {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let log = std::fs::File::create(self.data.path().join("log")).expect("a log file");
        let child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.data.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}"), "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the etcd binary starts"));
        let start = Instant::now();
        while TcpStream::connect(self.client).await.is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "etcd does not listen: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.data.path().join("log")).unwrap_or_default()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }
}

impl Server for Etcd {
    type Backend = EtcdBackend;

    async fn start() -> Option<Self> {
        let binary = bootstrap::env::path("BATON_ETCD").filter(|path| path.exists());
        let Some(binary) = binary else {
            eprintln!("SKIPPED: BATON_ETCD names no etcd binary, the suite did not run against a real etcd");
            return None;
        };
        let port = || async {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
            listener.local_addr().expect("bound")
        };
        let data = tempfile::tempdir().expect("a temporary folder");
        let mut etcd = Self { binary, data, client: port().await, peer: port().await, child: None };
        etcd.launch().await;
        Some(etcd)
    }

    fn registry(&self, prefix: &str) -> Arc<dyn Registry> {
        Arc::new(EtcdRegistry::connect(&[self.client.to_string()], prefix).expect("an address"))
    }

    fn backend(&self) -> EtcdBackend {
        EtcdBackend::new(vec![self.client.to_string()])
    }

    async fn compact(&self) {
        let mut client = etcd_client::Client::connect([self.client.to_string()], None).await.expect("a client");
        let revision = client.get("x", None).await.expect("etcd answers").header().expect("a header").revision();
        client.compact(revision, None).await.expect("not compacted yet");
    }

    async fn revoke_all(&self) {
        let mut client = etcd_client::Client::connect([self.client.to_string()], None).await.expect("a client");
        for lease in client.leases().await.expect("etcd answers").leases() {
            client.lease_client().revoke(lease.id()).await.expect("just listed");
        }
    }

    async fn stop(&mut self) {
        self.kill();
    }

    async fn resume(&mut self) {
        self.launch().await;
    }

    async fn resume_empty(&mut self) {
        std::fs::remove_dir_all(self.data.path().join("data")).expect("our own folder");
        self.launch().await;
    }

    fn freeze(&mut self, frozen: bool) -> bool {
        let pid = self.child.as_ref().expect("running").id().to_string();
        let signal = if frozen { "-STOP" } else { "-CONT" };
        Command::new("kill").args([signal, &pid]).status().expect("kill runs").success()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("etcd's log:\n{}", self.log());
        }
    }
}
