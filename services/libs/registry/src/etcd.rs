//! The registry in etcd, or in a [`crate::memory::MemoryStore`] that [`crate::wire`] serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, EventType, GetOptions, LeaseKeepAliveStream, LeaseKeeper, PutOptions,
    Txn, TxnOp, TxnOpResponse, WatchOptions, WatchRequestSender, WatchResponseStream,
};
use tokio::sync::watch;

use crate::backend::{Backend, BackendError, Change, Connection, Created, Entry, Feed, Heart, Result};
use crate::cluster::Cluster;
use crate::{Member, Membership, Registry, RegistryError, Timing, View};

/// Largest answer, bytes: all members at once.
const MESSAGE_MAX: usize = 64 << 20;
/// Without these a stopped or cut-off server is never noticed. etcd ends connections that ask more often.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A client of an etcd cluster.
#[derive(Debug)]
pub struct EtcdRegistry(Cluster<EtcdBackend>);

impl EtcdRegistry {
    /// For members below `prefix`. Does not wait for a connection. Needs a tokio runtime.
    ///
    /// # Errors
    /// If an endpoint is not `host:port`.
    pub fn connect<E: AsRef<str>>(endpoints: &[E], prefix: &str) -> std::result::Result<Self, RegistryError> {
        Self::connect_with(endpoints, prefix, Timing::default())
    }

    /// As [`EtcdRegistry::connect`], with times of the caller's.
    ///
    /// # Errors
    /// As [`EtcdRegistry::connect`].
    pub fn connect_with<E: AsRef<str>>(
        endpoints: &[E],
        prefix: &str,
        timing: Timing,
    ) -> std::result::Result<Self, RegistryError> {
        let endpoints: Vec<String> = endpoints.iter().map(|e| e.as_ref().trim().to_owned()).collect();
        for endpoint in &endpoints {
            check_endpoint(endpoint)
                .map_err(|reason| RegistryError::Address { url: endpoint.clone(), reason: reason.to_owned() })?;
        }
        if endpoints.is_empty() {
            return Err(RegistryError::Address { url: String::new(), reason: "names no endpoint".into() });
        }
        Ok(Self(Cluster::new(EtcdBackend::new(endpoints), prefix, timing)))
    }
}

fn check_endpoint(endpoint: &str) -> std::result::Result<(), &'static str> {
    let (host, port) = endpoint.rsplit_once(':').ok_or("has no port")?;
    if host.is_empty() || host.contains(['/', '@', ' ']) {
        return Err("has no usable host");
    }
    port.parse::<u16>().ok().filter(|&p| p > 0).map(|_| ()).ok_or("has no usable port")
}

#[async_trait::async_trait]
impl Registry for EtcdRegistry {
    async fn join(&self, member: Member) -> std::result::Result<Membership, RegistryError> {
        self.0.join(member)
    }

    fn members(&self) -> watch::Receiver<Arc<View>> {
        self.0.members()
    }
}

/// Each connection is a client of its own with one endpoint, the next one after each failure: a client with several
/// picks dead ones.
#[derive(Debug)]
pub(crate) struct EtcdBackend {
    endpoints: Vec<String>,
    next: AtomicUsize,
}

impl EtcdBackend {
    /// With at least one endpoint.
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self { endpoints, next: AtomicUsize::new(0) }
    }
}

#[derive(Clone)]
pub(crate) struct EtcdConnection(Client);

pub(crate) struct EtcdHeart {
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

pub(crate) struct EtcdFeed {
    requests: WatchRequestSender,
    answers: WatchResponseStream,
}

impl Backend for EtcdBackend {
    type Connection = EtcdConnection;

    async fn dial(&self) -> Result<EtcdConnection> {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let options = ConnectOptions::new()
            .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_require_leader(true);
        Ok(EtcdConnection(Client::connect([&self.endpoints[n % self.endpoints.len()]], Some(options)).await?))
    }
}

impl Connection for EtcdConnection {
    type Heart = EtcdHeart;
    type Feed = EtcdFeed;

    async fn grant(&mut self, ttl: Duration) -> Result<i64> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        Ok(self.0.lease_client().grant(seconds, None).await?.id())
    }

    async fn revoke(&mut self, lease: i64) -> Result<()> {
        self.0.lease_client().revoke(lease).await?;
        Ok(())
    }

    async fn keep_alive(&mut self, lease: i64) -> Result<EtcdHeart> {
        let (keeper, answers) = self.0.lease_client().keep_alive(lease).await.map_err(|error| match error {
            // The client's word for an answer with no time to live.
            etcd_client::Error::LeaseKeepAliveError(_) => BackendError::LeaseNotFound,
            other => other.into(),
        })?;
        Ok(EtcdHeart { keeper, answers })
    }

    async fn get(&mut self, key: &[u8]) -> Result<Option<Entry>> {
        let answer = self.0.kv_client().get(key, None).await?;
        Ok(answer.kvs().first().map(entry))
    }

    async fn create(&mut self, key: &[u8], value: Vec<u8>, lease: i64) -> Result<Created> {
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, 0)])
            .and_then([TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))])
            .or_else([TxnOp::get(key, None)]);
        let answer = self.0.kv_client().txn(txn).await?;
        if answer.succeeded() {
            let header = answer.header().ok_or_else(|| malformed("a transaction's answer has no header"))?;
            return Ok(Created::At(header.revision()));
        }
        match answer.op_responses().first() {
            Some(TxnOpResponse::Get(found)) => found.kvs().first().map(|kv| Created::Exists(entry(kv))),
            _ => None,
        }
        .ok_or_else(|| malformed("a key neither exists nor can be created"))
    }

    async fn replace(&mut self, key: &[u8], value: Vec<u8>, lease: i64, created: i64) -> Result<bool> {
        let txn = Txn::new().when([Compare::create_revision(key, CompareOp::Equal, created)]).and_then([TxnOp::put(
            key,
            value,
            Some(PutOptions::new().with_lease(lease)),
        )]);
        Ok(self.0.kv_client().txn(txn).await?.succeeded())
    }

    async fn delete(&mut self, key: &[u8], created: i64) -> Result<()> {
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, created)])
            .and_then([TxnOp::delete(key, None)]);
        self.0.kv_client().txn(txn).await?;
        Ok(())
    }

    async fn list(&mut self, prefix: &[u8]) -> Result<(Vec<Entry>, i64)> {
        let mut client = self.0.kv_client().max_decoding_message_size(MESSAGE_MAX);
        let answer = client.get(prefix, Some(GetOptions::new().with_prefix())).await?;
        let header = answer.header().ok_or_else(|| malformed("a list has no header"))?;
        Ok((answer.kvs().iter().map(entry).collect(), header.revision()))
    }

    async fn watch(&mut self, prefix: &[u8], from: i64) -> Result<EtcdFeed> {
        let options = WatchOptions::new().with_prefix().with_start_revision(from).with_progress_notify();
        let mut client = self.0.watch_client().max_decoding_message_size(MESSAGE_MAX);
        let (requests, answers) = client.watch(prefix, Some(options)).await?.split();
        Ok(EtcdFeed { requests, answers })
    }
}

impl Heart for EtcdHeart {
    async fn beat(&mut self) -> Result<()> {
        self.keeper.keep_alive().await?;
        let answer = self.answers.message().await?.ok_or_else(|| malformed("the keep-alive stream has ended"))?;
        if answer.ttl() > 0 { Ok(()) } else { Err(BackendError::LeaseNotFound) }
    }
}

impl Feed for EtcdFeed {
    async fn next(&mut self) -> Result<Vec<Change>> {
        let answer = self.answers.message().await?.ok_or_else(|| malformed("the watch has ended"))?;
        if answer.compact_revision() > 0 {
            return Err(BackendError::Compacted);
        }
        if answer.canceled() {
            return Err(malformed(&format!("the watch was cancelled: {}", answer.cancel_reason())));
        }
        let change = |event: &etcd_client::Event| {
            let kv = event.kv()?;
            Some(match event.event_type() {
                EventType::Put => Change::Put(entry(kv)),
                EventType::Delete => Change::Delete { key: kv.key().to_vec(), mod_revision: kv.mod_revision() },
            })
        };
        Ok(answer.events().iter().filter_map(change).collect())
    }

    async fn probe(&mut self) -> Result<()> {
        Ok(self.requests.request_progress().await?)
    }
}

fn entry(kv: &etcd_client::KeyValue) -> Entry {
    Entry {
        key: kv.key().to_vec(),
        value: kv.value().to_vec(),
        create_revision: kv.create_revision(),
        mod_revision: kv.mod_revision(),
    }
}

fn malformed(what: &str) -> BackendError {
    BackendError::Unavailable(what.to_owned())
}

impl From<etcd_client::Error> for BackendError {
    fn from(error: etcd_client::Error) -> Self {
        match &error {
            etcd_client::Error::GRpcStatus(status)
                if status.code() == tonic::Code::NotFound && status.message().contains("lease not found") =>
            {
                Self::LeaseNotFound
            }
            etcd_client::Error::GRpcStatus(status)
                if status.code() == tonic::Code::OutOfRange && status.message().contains("compacted") =>
            {
                Self::Compacted
            }
            etcd_client::Error::GRpcStatus(status) => {
                Self::Unavailable(format!("{:?}: {}", status.code(), status.message()))
            }
            other => Self::Unavailable(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_checked_at_once() {
        for good in ["127.0.0.1:2379", "[::1]:2379", "etcd.local:1"] {
            assert!(EtcdRegistry::connect(&[good], "p").is_ok(), "{good}");
        }
        for bad in ["", "host", "host:", "host:0", "host:99999", ":1", "http://host:1", "a b:1"] {
            assert!(EtcdRegistry::connect(&[bad], "p").is_err(), "{bad}");
        }
        assert!(EtcdRegistry::connect::<&str>(&[], "p").is_err());
        assert!(crate::connect("etcd://127.0.0.1:1,127.0.0.1:2").is_ok());
        for bad in ["memory", "etcd://", "http://127.0.0.1:1", "etcd://127.0.0.1:1,"] {
            assert!(crate::connect(bad).is_err(), "{bad}");
        }
    }
}
