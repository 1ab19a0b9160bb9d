//! Who may call: incarnations, owners, duplicates, draining.
//!
//! **Invariant**: at any time one stream at most serves a choice of a request here, and it belongs to the newest
//! owner that has been seen.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rpc::{RequestContext, reason};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use types::{Code, Epoch, Failure, RequestId, Retry, WorkerRef};

/// Choices whose newest owner is remembered; the oldest is forgotten first.
const OWNERS_MAX: usize = 1 << 14;
/// A cancelled stream is gone after this time, or its caller hears no more of it.
const CANCEL_WAIT: Duration = Duration::from_secs(1);
/// When to come back after a refusal for a stream that is about to end.
const REPLACE_RETRY: Duration = Duration::from_millis(20);

type Key = (RequestId, u32);

/// Admits calls.
#[derive(Debug)]
pub struct Gate {
    worker: watch::Receiver<WorkerRef>,
    draining: watch::Sender<bool>,
    state: Mutex<State>,
    /// Told whenever a stream ended.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    owners: HashMap<Key, Epoch>,
    /// Keys of `owners`, oldest first.
    order: VecDeque<Key>,
    streams: HashMap<Key, Stream>,
}

#[derive(Debug)]
struct Stream {
    owner: Epoch,
    cancelled: CancellationToken,
}

/// A stream that was admitted. Dropping it says that the stream has ended.
#[derive(Debug)]
pub struct Admitted {
    gate: Arc<Gate>,
    key: Key,
    cancelled: CancellationToken,
}

impl Admitted {
    /// Does `work` unless the stream is cancelled, by [`Gate::cancel`] or at the end of the process.
    ///
    /// # Errors
    /// Those of `work`; `CANCELLED`.
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            result = work => result,
            () = self.cancelled.cancelled() => Err(Failure::cancelled()),
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.lock().streams.remove(&self.key);
        self.gate.ended.notify_waiters();
    }
}

impl Gate {
    /// For the incarnation in `worker`.
    pub fn new(worker: watch::Receiver<WorkerRef>) -> Arc<Self> {
        Arc::new(Self { worker, draining: watch::Sender::new(false), state: Mutex::default(), ended: Notify::new() })
    }

    /// This process's present incarnation, whenever it changes.
    pub fn worker(&self) -> watch::Receiver<WorkerRef> {
        self.worker.clone()
    }

    /// Whether the call is meant for this incarnation.
    ///
    /// # Errors
    /// `STALE_EPOCH`, safe to retry elsewhere or after a look at the registry.
    pub fn check_worker(&self, worker: &WorkerRef) -> Result<(), Failure> {
        let here = self.worker.borrow();
        if *here == *worker {
            return Ok(());
        }
        let message = format!("this is {}, not {worker}", *here);
        Err(Failure::new(Code::FailedPrecondition, reason::STALE_EPOCH, message).with_retry(Retry::Safe(None)))
    }

    /// Whether the call is meant for this incarnation and comes from no owner that has been replaced.
    ///
    /// # Errors
    /// `STALE_EPOCH`, `STALE_OWNER`.
    pub fn check(&self, context: &RequestContext) -> Result<(), Failure> {
        self.check_worker(&context.worker)?;
        self.lock().fence((context.request, context.choice), context.owner_epoch)
    }

    /// Refuses new work while draining.
    ///
    /// # Errors
    /// `DRAINING`, safe to retry elsewhere.
    pub fn check_open(&self) -> Result<(), Failure> {
        if *self.draining.borrow() {
            return Err(Failure::new(Code::Unavailable, reason::DRAINING, "the worker takes no new work"));
        }
        Ok(())
    }

    /// Admits a stream for the context's choice.
    ///
    /// # Errors
    /// As [`Self::check`]; `DUPLICATE_REQUEST` while another stream serves the choice. A stream of an older owner is
    /// cancelled by this, and the refusal is safe to retry.
    pub fn admit(self: &Arc<Self>, context: &RequestContext) -> Result<Admitted, Failure> {
        self.check_worker(&context.worker)?;
        let key = (context.request, context.choice);
        let mut state = self.lock();
        state.fence(key, context.owner_epoch)?;
        if let Some(stream) = state.streams.get(&key) {
            let message = "this choice of the request is being served already";
            let failure = Failure::new(Code::FailedPrecondition, reason::DUPLICATE_REQUEST, message);
            if stream.owner >= context.owner_epoch {
                return Err(failure);
            }
            stream.cancelled.cancel();
            return Err(failure.with_retry(Retry::Safe(Some(REPLACE_RETRY))));
        }
        let cancelled = CancellationToken::new();
        state.streams.insert(key, Stream { owner: context.owner_epoch, cancelled: cancelled.clone() });
        Ok(Admitted { gate: self.clone(), key, cancelled })
    }

    /// Cancels the streams of the context's choice, or of all choices of its request, and waits until they have
    /// ended, for a second at most. Returns how many there were.
    ///
    /// # Errors
    /// `STALE_EPOCH`; `STALE_OWNER`: an owner that has been replaced cancels nothing.
    pub async fn cancel(&self, context: &RequestContext, all_choices: bool) -> Result<usize, Failure> {
        self.check_worker(&context.worker)?;
        let mine = |key: &Key| key.0 == context.request && (all_choices || key.1 == context.choice);
        let ending: Vec<Key> = {
            let state = self.lock();
            state.check_owner((context.request, context.choice), context.owner_epoch)?;
            let found = state.streams.iter().filter(|(key, _)| mine(key));
            found.inspect(|(_, stream)| stream.cancelled.cancel()).map(|(key, _)| *key).collect()
        };
        let gone = self.wait(|state| ending.iter().all(|key| !state.streams.contains_key(key)));
        // A stream that nobody reads ends with its connection.
        let _ = tokio::time::timeout(CANCEL_WAIT, gone).await;
        Ok(ending.len())
    }

    /// Cancels every stream.
    pub fn cancel_all(&self) {
        for stream in self.lock().streams.values() {
            stream.cancelled.cancel();
        }
    }

    /// New work is refused from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Whether new work is refused, whenever it changes.
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Resolves when no stream is open.
    pub async fn idle(&self) {
        self.wait(|state| state.streams.is_empty()).await;
    }

    /// Streams that are open.
    pub fn n_streams(&self) -> u32 {
        u32::try_from(self.lock().streams.len()).unwrap_or(u32::MAX)
    }

    async fn wait(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before looking, so that a stream that ends in between is not missed.
            ended.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn check_owner(&self, key: Key, owner: Epoch) -> Result<(), Failure> {
        match self.owners.get(&key) {
            Some(newest) if owner < *newest => {
                let message = format!("owner epoch {} has been replaced by {}", owner.0, newest.0);
                Err(Failure::new(Code::FailedPrecondition, reason::STALE_OWNER, message))
            }
            _ => Ok(()),
        }
    }

    /// Remembers the newest owner of a choice, refuses older ones.
    fn fence(&mut self, key: Key, owner: Epoch) -> Result<(), Failure> {
        self.check_owner(key, owner)?;
        if self.owners.insert(key, owner).is_none() {
            self.order.push_back(key);
            if self.order.len() > OWNERS_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.owners.remove(&oldest);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rpc::TraceContext;
    use types::WorkerId;

    use super::*;

    fn gate() -> (watch::Sender<WorkerRef>, Arc<Gate>) {
        let (sender, worker) = watch::channel(incarnation(3));
        (sender, Gate::new(worker))
    }

    fn incarnation(epoch: u64) -> WorkerRef {
        WorkerRef { id: WorkerId::new("d0"), epoch: Epoch(epoch) }
    }

    fn context(request: u128, choice: u32, owner: u64) -> RequestContext {
        RequestContext {
            request: RequestId(request),
            worker: incarnation(3),
            owner_epoch: Epoch(owner),
            deadline: Duration::from_secs(1),
            trace: TraceContext::default(),
            choice,
        }
    }

    #[tokio::test]
    async fn only_the_present_incarnation_is_called() {
        let (incarnations, gate) = gate();
        assert!(gate.check(&context(1, 0, 1)).is_ok());
        for other in [incarnation(2), incarnation(4), WorkerRef { id: WorkerId::new("d1"), epoch: Epoch(3) }] {
            let refused = gate.check(&RequestContext { worker: other, ..context(1, 0, 1) }).unwrap_err();
            assert_eq!((refused.reason, refused.retry), ("STALE_EPOCH", Retry::Safe(None)));
        }
        incarnations.send_replace(incarnation(4));
        assert_eq!(gate.admit(&context(1, 0, 1)).unwrap_err().reason, "STALE_EPOCH");
    }

    #[tokio::test]
    async fn an_owner_that_was_replaced_is_refused() {
        let (_keep, gate) = gate();
        gate.check(&context(1, 0, 5)).unwrap();
        gate.check(&context(1, 0, 5)).unwrap();
        assert_eq!(gate.check(&context(1, 0, 4)).unwrap_err().reason, "STALE_OWNER");
        assert!(gate.check(&context(1, 1, 4)).is_ok(), "each choice has its own owner");
        for request in 0..OWNERS_MAX as u128 + 10 {
            gate.check(&context(request + 100, 0, 1)).unwrap();
        }
        let state = gate.lock();
        assert_eq!((state.owners.len(), state.order.len()), (OWNERS_MAX, OWNERS_MAX), "memory is bounded");
    }

    #[tokio::test]
    async fn a_choice_is_served_once_until_it_ends() {
        let (_keep, gate) = gate();
        let first = gate.admit(&context(1, 0, 1)).unwrap();
        let second = gate.admit(&context(1, 1, 1)).unwrap();
        let refused = gate.admit(&context(1, 0, 1)).unwrap_err();
        assert_eq!((refused.reason, refused.retry), ("DUPLICATE_REQUEST", Retry::Never));
        assert!(!first.cancelled.is_cancelled());
        let newer = gate.admit(&context(1, 0, 2)).unwrap_err();
        assert_eq!((newer.reason, newer.retry), ("DUPLICATE_REQUEST", Retry::Safe(Some(REPLACE_RETRY))));
        assert!(first.cancelled.is_cancelled(), "a newer owner replaces the stream");
        assert_eq!(gate.n_streams(), 2);
        drop((first, second));
        gate.idle().await;
        assert!(gate.admit(&context(1, 0, 2)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn cancel_waits_for_the_stream_but_not_for_ever() {
        let (_keep, gate) = gate();
        assert_eq!(gate.cancel(&context(1, 0, 9), true).await, Ok(0));
        let stuck = gate.admit(&context(1, 0, 2)).unwrap();
        assert_eq!(gate.cancel(&context(1, 0, 1), true).await.unwrap_err().reason, "STALE_OWNER");
        assert!(!stuck.cancelled.is_cancelled());
        assert_eq!(gate.cancel(&context(1, 0, 2), false).await, Ok(1));
        assert_eq!(gate.n_streams(), 1, "it did not listen");

        let listens = gate.admit(&context(1, 1, 1)).unwrap();
        let other = gate.admit(&context(2, 0, 1)).unwrap();
        let stream = async move {
            assert!(listens.unless_cancelled(std::future::pending::<Result<(), Failure>>()).await.is_err());
        };
        let ((), n) = tokio::join!(stream, async { gate.cancel(&context(1, 1, 1), false).await });
        assert_eq!((n, gate.n_streams()), (Ok(1), 2));
        drop(stuck);
        gate.cancel_all();
        assert!(other.cancelled.is_cancelled());
    }

    #[test]
    fn draining_refuses_new_work() {
        let (_keep, gate) = gate();
        assert!(gate.check_open().is_ok());
        gate.drain();
        assert_eq!(gate.check_open().unwrap_err().reason, "DRAINING");
        assert!(*gate.draining().borrow());
    }
}
