//! The registry in this process's memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::backend::{Backend, BackendError, Change, Connection, Created, Entry, Feed, Heart, Result};
use crate::cluster::Cluster;
pub use crate::store::{
    Batch, Compare, CompareOp, CompareTarget, Event, EventKind, KeyRange, KeyValue, LeaseStatus, MemoryStore, Op,
    OpResult, Put, StoreError, TxnResult, Watcher,
};
use crate::{DEFAULT_PREFIX, Member, Membership, Registry, RegistryError, Timing, View};

/// A client of a [`MemoryStore`] in the same process.
#[derive(Debug)]
pub struct MemoryRegistry(Cluster<MemoryBackend>);

impl MemoryRegistry {
    /// With a store of its own. Needs a tokio runtime.
    pub fn new() -> Self {
        Self::on(MemoryStore::new(), DEFAULT_PREFIX, Timing::default())
    }

    /// On a store that others use too.
    pub fn on(store: MemoryStore, prefix: &str, timing: Timing) -> Self {
        Self(Cluster::new(MemoryBackend(store), prefix, timing))
    }
}

impl Default for MemoryRegistry {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait::async_trait]
impl Registry for MemoryRegistry {
    async fn join(&self, member: Member) -> std::result::Result<Membership, RegistryError> {
        self.0.join(member)
    }

    fn members(&self) -> watch::Receiver<Arc<View>> {
        self.0.members()
    }
}

#[derive(Debug)]
pub(crate) struct MemoryBackend(pub(crate) MemoryStore);

#[derive(Clone)]
pub(crate) struct MemoryConnection {
    store: MemoryStore,
    reachable: watch::Receiver<bool>,
}

pub(crate) struct MemoryHeart {
    connection: MemoryConnection,
    lease: i64,
}

pub(crate) struct MemoryFeed {
    watcher: Watcher,
    reachable: watch::Receiver<bool>,
    probed: bool,
}

impl Backend for MemoryBackend {
    type Connection = MemoryConnection;

    async fn dial(&self) -> Result<MemoryConnection> {
        Ok(MemoryConnection { store: self.0.clone(), reachable: self.0.reachable() })
    }
}

impl MemoryConnection {
    fn store(&self) -> Result<&MemoryStore> {
        check_reachable(&self.reachable).map(|()| &self.store)
    }
}

impl Connection for MemoryConnection {
    type Heart = MemoryHeart;
    type Feed = MemoryFeed;

    async fn grant(&mut self, ttl: Duration) -> Result<i64> {
        Ok(self.store()?.grant(0, ttl)?.0)
    }

    async fn revoke(&mut self, lease: i64) -> Result<()> {
        Ok(self.store()?.revoke(lease)?)
    }

    async fn keep_alive(&mut self, lease: i64) -> Result<MemoryHeart> {
        self.store()?.keep_alive(lease)?;
        Ok(MemoryHeart { connection: self.clone(), lease })
    }

    async fn get(&mut self, key: &[u8]) -> Result<Option<Entry>> {
        Ok(self.store()?.get(key).map(entry))
    }

    async fn create(&mut self, key: &[u8], value: Vec<u8>, lease: i64) -> Result<Created> {
        let put = Op::Put(Put { key: key.to_vec(), value: Some(value), lease: Some(lease) });
        let read = Op::Range(KeyRange::key(key), 0);
        let done = self.store()?.transact(&[Compare::created_at(key, 0)], &[put], &[read])?;
        match done.results.into_iter().next() {
            Some(OpResult::Range(mut found)) if !found.is_empty() => Ok(Created::Exists(entry(found.remove(0)))),
            _ => Ok(Created::At(done.revision)),
        }
    }

    async fn replace(&mut self, key: &[u8], value: Vec<u8>, lease: i64, created: i64) -> Result<bool> {
        let put = Op::Put(Put { key: key.to_vec(), value: Some(value), lease: Some(lease) });
        Ok(self.store()?.transact(&[Compare::created_at(key, created)], &[put], &[])?.succeeded)
    }

    async fn delete(&mut self, key: &[u8], created: i64) -> Result<()> {
        let delete = Op::Delete(KeyRange::key(key));
        self.store()?.transact(&[Compare::created_at(key, created)], &[delete], &[])?;
        Ok(())
    }

    async fn list(&mut self, prefix: &[u8]) -> Result<(Vec<Entry>, i64)> {
        let (found, revision) = self.store()?.range(&KeyRange::prefix(prefix), 0)?;
        Ok((found.into_iter().map(entry).collect(), revision))
    }

    async fn watch(&mut self, prefix: &[u8], from: i64) -> Result<MemoryFeed> {
        let watcher = self.store()?.watch(KeyRange::prefix(prefix), from);
        Ok(MemoryFeed { watcher, reachable: self.reachable.clone(), probed: false })
    }
}

impl Heart for MemoryHeart {
    async fn beat(&mut self) -> Result<()> {
        self.connection.store()?.keep_alive(self.lease)?;
        Ok(())
    }
}

impl Feed for MemoryFeed {
    async fn next(&mut self) -> Result<Vec<Change>> {
        check_reachable(&self.reachable)?;
        if std::mem::take(&mut self.probed) {
            return Ok(Vec::new());
        }
        tokio::select! {
            batch = self.watcher.next() => Ok(batch?.events.into_iter().map(change).collect()),
            _ = self.reachable.wait_for(|reachable| !reachable) => Err(cut_off()),
        }
    }

    async fn probe(&mut self) -> Result<()> {
        self.probed = true;
        check_reachable(&self.reachable)
    }
}

fn check_reachable(reachable: &watch::Receiver<bool>) -> Result<()> {
    if *reachable.borrow() { Ok(()) } else { Err(cut_off()) }
}

fn cut_off() -> BackendError {
    BackendError::Unavailable("the store is cut off".into())
}

fn entry(kv: KeyValue) -> Entry {
    Entry { key: kv.key, value: kv.value, create_revision: kv.create_revision, mod_revision: kv.mod_revision }
}

fn change(event: Event) -> Change {
    match event.kind {
        EventKind::Put(kv) => Change::Put(entry(kv)),
        EventKind::Delete(key) => Change::Delete { key, mod_revision: event.revision },
    }
}

impl From<StoreError> for BackendError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LeaseNotFound => Self::LeaseNotFound,
            StoreError::Compacted(_) => Self::Compacted,
            other => Self::Unavailable(other.to_string()),
        }
    }
}
