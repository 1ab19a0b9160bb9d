//! What membership needs of a store: the few operations of etcd's v3 API that it uses.

use std::future::Future;
use std::time::Duration;

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum BackendError {
    /// The lease has run out or was revoked.
    #[error("lease not found")]
    LeaseNotFound,
    /// The revision asked for is no longer kept.
    #[error("revision compacted")]
    Compacted,
    /// The store does not answer, not in time, or refuses.
    #[error("{0}")]
    Unavailable(String),
}

/// Result of an operation.
pub(crate) type Result<T> = std::result::Result<T, BackendError>;

/// A key with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    /// Revision at which the key appeared.
    pub(crate) create_revision: i64,
    /// Revision of its last change.
    pub(crate) mod_revision: i64,
}

/// Outcome of [`Connection::create`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Created {
    /// The key was absent and is there since this revision.
    At(i64),
    /// The key is there already.
    Exists(Entry),
}

/// One change, as a watch reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Created or changed.
    Put(Entry),
    /// Deleted at a revision.
    Delete { key: Vec<u8>, mod_revision: i64 },
}

/// Makes connections.
pub(crate) trait Backend: Send + Sync + 'static {
    type Connection: Connection;

    /// A fresh connection; after a failure to another endpoint if there are several.
    fn dial(&self) -> impl Future<Output = Result<Self::Connection>> + Send;
}

/// One client's operations. Clones share the connection.
pub(crate) trait Connection: Clone + Send + Sync + 'static {
    type Heart: Heart;
    type Feed: Feed;

    fn grant(&mut self, ttl: Duration) -> impl Future<Output = Result<i64>> + Send;
    fn revoke(&mut self, lease: i64) -> impl Future<Output = Result<()>> + Send;
    /// Renews the lease once and opens the stream for more.
    fn keep_alive(&mut self, lease: i64) -> impl Future<Output = Result<Self::Heart>> + Send;
    fn get(&mut self, key: &[u8]) -> impl Future<Output = Result<Option<Entry>>> + Send;
    /// Puts the key if it is absent.
    fn create(&mut self, key: &[u8], value: Vec<u8>, lease: i64) -> impl Future<Output = Result<Created>> + Send;
    /// Puts the key if it was created at `created`; whether it was.
    fn replace(
        &mut self,
        key: &[u8],
        value: Vec<u8>,
        lease: i64,
        created: i64,
    ) -> impl Future<Output = Result<bool>> + Send;
    /// Deletes the key if it was created at `created`.
    fn delete(&mut self, key: &[u8], created: i64) -> impl Future<Output = Result<()>> + Send;
    /// All keys with the prefix, and the store's revision.
    fn list(&mut self, prefix: &[u8]) -> impl Future<Output = Result<(Vec<Entry>, i64)>> + Send;
    /// Changes to keys with the prefix from revision `from` on.
    fn watch(&mut self, prefix: &[u8], from: i64) -> impl Future<Output = Result<Self::Feed>> + Send;
}

/// Keeps one lease alive.
pub(crate) trait Heart: Send + 'static {
    /// Renews the lease.
    fn beat(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// One watch.
pub(crate) trait Feed: Send + 'static {
    /// The next changes in order; an empty list is a sign of life. Cancel-safe.
    fn next(&mut self) -> impl Future<Output = Result<Vec<Change>>> + Send;
    /// Asks for a sign of life.
    fn probe(&mut self) -> impl Future<Output = Result<()>> + Send;
}
