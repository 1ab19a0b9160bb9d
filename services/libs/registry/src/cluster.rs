//! The registry's client on any backend: one mirror for the view, one session for each membership.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::backend::{Backend, BackendError};
use crate::record::Record;
use crate::session::Session;
use crate::{Member, Membership, RegistryError, View, mirror};

/// Times of a registry client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timing {
    /// How long a member stays registered that is no longer heard. Whole seconds; etcd takes at least 2.
    pub ttl: Duration,
    /// How often a member is heard.
    pub beat_interval: Duration,
    /// Longest wait for the answer to that.
    pub beat_timeout: Duration,
    /// How often a member looks whether its record is still there and its own.
    pub check_interval: Duration,
    /// Longest wait for any other answer.
    pub request_timeout: Duration,
    /// How often the view's watch is asked for a sign of life.
    pub probe_interval: Duration,
    /// Silence after which the watch is given up.
    pub silence_max: Duration,
    /// How long members stay in the view that vanished with an outage.
    pub grace: Duration,
    /// How long after an outage deletions are taken for its consequence.
    pub settle: Duration,
    /// First wait before another attempt.
    pub backoff_min: Duration,
    /// Longest wait of a membership before another attempt; shorter than the time to live, so that a registry that
    /// comes back finds the lease's owner in time.
    pub session_backoff_max: Duration,
    /// Longest wait of the view before another attempt.
    pub mirror_backoff_max: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(2),
            beat_interval: Duration::from_millis(500),
            beat_timeout: Duration::from_secs(1),
            check_interval: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
            probe_interval: Duration::from_millis(500),
            silence_max: Duration::from_millis(1500),
            grace: Duration::from_secs(10),
            settle: Duration::from_secs(3),
            backoff_min: Duration::from_millis(50),
            session_backoff_max: Duration::from_millis(800),
            mirror_backoff_max: Duration::from_secs(2),
        }
    }
}

/// Waits for `operation`, `limit` at most.
pub(crate) async fn within<T>(
    limit: Duration,
    operation: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    tokio::time::timeout(limit, operation)
        .await
        .unwrap_or_else(|_| Err(BackendError::Unavailable(format!("no answer within {limit:?}"))))
}

#[derive(Debug)]
pub(crate) struct Cluster<B> {
    backend: Arc<B>,
    /// Ends with a slash, so that one name's key is never the beginning of another's.
    prefix: Vec<u8>,
    timing: Timing,
    view: watch::Receiver<Arc<View>>,
    _mirror: DropGuard,
}

impl<B: Backend> Cluster<B> {
    /// Begins to follow the members below `prefix`. Needs a tokio runtime.
    pub(crate) fn new(backend: B, prefix: &str, timing: Timing) -> Self {
        let backend = Arc::new(backend);
        let prefix = format!("/{}/v1/workers/", prefix.trim_matches('/')).into_bytes();
        let (sender, view) = watch::channel(Arc::new(View::empty()));
        let stop = CancellationToken::new();
        // Ends with the guard, which this registry holds.
        tokio::spawn(mirror::run(backend.clone(), prefix.clone(), timing.clone(), sender, stop.clone()));
        Self { backend, prefix, timing, view, _mirror: stop.drop_guard() }
    }

    pub(crate) fn join(&self, member: Member) -> Result<Membership, RegistryError> {
        Record { member: member.clone(), epoch_min: 0 }.encode()?;
        let key = [self.prefix.as_slice(), member.id.as_str().as_bytes()].concat();
        Ok(Membership::start(member, |desired, epoch, stop| {
            Session::new(self.backend.clone(), key, self.timing.clone(), desired, epoch, stop).run()
        }))
    }

    pub(crate) fn members(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }
}
