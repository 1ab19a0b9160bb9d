//! One member's lease: register, keep alive, come back after an outage, for ever.
//!
//! After an outage the old lease is tried first: if the registry still has it, nothing has happened and the epoch
//! stays. Only a lease that is really gone leads to a new registration with a new epoch.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use types::Epoch;

use crate::Member;
use crate::backend::{Backend, BackendError, Connection, Created, Entry, Heart};
use crate::backoff::{Backoff, STABLE};
use crate::cluster::{Timing, within};
use crate::mirror::epoch;
use crate::record::Record;

/// Most attempts to create a key that others create and delete in between.
const CREATE_ATTEMPTS: usize = 8;

pub(crate) struct Session<B> {
    backend: Arc<B>,
    key: Vec<u8>,
    timing: Timing,
    desired: watch::Receiver<Member>,
    epoch: watch::Sender<Epoch>,
    stop: CancellationToken,
    held: Option<Held>,
    /// What was written last.
    stored: Option<Member>,
    /// A younger incarnation has the name; said once.
    superseded: bool,
}

/// What the registry holds of ours, as far as we know.
#[derive(Clone, Copy, Debug)]
struct Held {
    lease: i64,
    created: i64,
    epoch_min: u64,
}

/// Why keeping a registration ended while the connection is fine.
#[derive(Debug)]
enum Kept {
    /// Left.
    Left,
    /// The lease or the record is gone.
    Lost(&'static str),
}

impl<B: Backend> Session<B> {
    pub(crate) fn new(
        backend: Arc<B>,
        key: Vec<u8>,
        timing: Timing,
        desired: watch::Receiver<Member>,
        epoch: watch::Sender<Epoch>,
        stop: CancellationToken,
    ) -> Self {
        Self { backend, key, timing, desired, epoch, stop, held: None, stored: None, superseded: false }
    }

    /// Until the membership is given up.
    pub(crate) async fn run(mut self) {
        let mut backoff = Backoff::new(self.timing.backoff_min, self.timing.session_backoff_max);
        let mut down = false;
        loop {
            let connected = self.connected(&mut backoff, &mut down).await;
            let Err(error) = connected else { return };
            if down {
                tracing::debug!(%error, "the registry still cannot be reached");
            } else {
                tracing::warn!(%error, "the registry cannot be reached, trying on");
            }
            down = true;
            tokio::select! {
                () = tokio::time::sleep(backoff.next()) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// One connection; `Ok` when the member has left.
    async fn connected(&mut self, backoff: &mut Backoff, down: &mut bool) -> Result<(), BackendError> {
        let mut connection = within(self.timing.request_timeout, self.backend.dial()).await?;
        loop {
            let Some((held, heart)) = self.hold(&mut connection).await? else {
                // A younger incarnation has the name: look again later.
                tokio::select! {
                    () = tokio::time::sleep(self.timing.check_interval) => continue,
                    () = self.stop.cancelled() => return Ok(()),
                }
            };
            if std::mem::take(down) {
                tracing::info!(epoch = self.epoch.borrow().0, "registered, the registry answers again");
            }
            let since = Instant::now();
            let kept = self.keep(&mut connection, held, heart).await;
            if since.elapsed() >= STABLE {
                backoff.reset();
            }
            match kept? {
                Kept::Left => return Ok(()),
                Kept::Lost(why) => {
                    tracing::warn!(why, "the registration is lost, registering again");
                    self.held = None;
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }

    /// The registration, resumed or made; `None` if the name belongs to a younger incarnation.
    async fn hold<C: Connection>(&mut self, connection: &mut C) -> Result<Option<(Held, C::Heart)>, BackendError> {
        if let Some(held) = self.held {
            match within(self.timing.beat_timeout, connection.keep_alive(held.lease)).await {
                Ok(heart) => return Ok(Some((held, heart))),
                Err(BackendError::LeaseNotFound) => {
                    tracing::info!("the lease has run out, registering again");
                    self.held = None;
                }
                Err(error) => return Err(error),
            }
        }
        let Some(held) = self.register(connection).await? else { return Ok(None) };
        self.held = Some(held);
        match within(self.timing.beat_timeout, connection.keep_alive(held.lease)).await {
            Ok(heart) => Ok(Some((held, heart))),
            Err(error) => Err(error),
        }
    }

    async fn register<C: Connection>(&mut self, connection: &mut C) -> Result<Option<Held>, BackendError> {
        let timeout = self.timing.request_timeout;
        let last = *self.epoch.borrow();
        // After a loss of the registry's data its revisions begin anew.
        let epoch_min = if last.0 == 0 { 0 } else { last.0 + 1 };
        for _ in 0..CREATE_ATTEMPTS {
            let found = within(timeout, connection.get(&self.key)).await?;
            if let Some(found) = found {
                if self.is_superseded_by(&found, last) {
                    return Ok(None);
                }
                within(timeout, connection.delete(&self.key, found.create_revision)).await?;
            }
            let member = self.desired.borrow_and_update().clone();
            let value = encode(&member, epoch_min)?;
            let lease = within(timeout, connection.grant(self.timing.ttl)).await?;
            match within(timeout, connection.create(&self.key, value, lease)).await? {
                Created::At(created) => {
                    let epoch = Epoch(u64::try_from(created).unwrap_or(0).max(epoch_min));
                    self.superseded = false;
                    self.stored = Some(member);
                    self.epoch.send_replace(epoch);
                    tracing::info!(id = %self.desired.borrow().id, epoch = epoch.0, "registered");
                    return Ok(Some(Held { lease, created, epoch_min }));
                }
                // Somebody was quicker; look who.
                Created::Exists(_) => within(timeout, connection.revoke(lease)).await?,
            }
        }
        Err(BackendError::Unavailable(format!("the key keeps changing, {CREATE_ATTEMPTS} attempts")))
    }

    /// A first registration takes the name over; a later one yields to an incarnation that is younger than ours.
    fn is_superseded_by(&mut self, found: &Entry, last: Epoch) -> bool {
        let Ok(record) = Record::decode(&found.value) else { return false };
        let theirs = epoch(found.create_revision, &record);
        let yields = last.0 > 0 && theirs > last;
        if yields && !self.superseded {
            tracing::error!(id = %self.desired.borrow().id, ours = last.0, theirs = theirs.0,
                "another process has registered under this name, standing back");
            self.superseded = true;
        }
        yields
    }

    /// Keeps the lease alive and the record up to date.
    async fn keep<C: Connection>(
        &mut self,
        connection: &mut C,
        held: Held,
        mut heart: C::Heart,
    ) -> Result<Kept, BackendError> {
        let timing = self.timing.clone();
        let stop = self.stop.clone();
        let mut beats = tokio::time::interval(timing.beat_interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Beside the beats, so that a slow answer does not hold them up.
        let record = self.tend(connection.clone(), held);
        tokio::pin!(record);
        loop {
            tokio::select! {
                () = stop.cancelled() => {
                    if let Err(error) = within(Duration::from_secs(1), connection.revoke(held.lease)).await {
                        tracing::debug!(%error, "cannot end the lease, it runs out by itself");
                    }
                    return Ok(Kept::Left);
                }
                _ = beats.tick() => match within(timing.beat_timeout, heart.beat()).await {
                    Ok(()) => {}
                    Err(BackendError::LeaseNotFound) => return Ok(Kept::Lost("the lease has ended")),
                    Err(error) => return Err(error),
                },
                lost = &mut record => return lost.map(Kept::Lost),
            }
        }
    }

    /// Writes updates and looks after the record; ends when it is no longer ours.
    async fn tend<C: Connection>(&mut self, mut connection: C, held: Held) -> Result<&'static str, BackendError> {
        let timeout = self.timing.request_timeout;
        // An update may have failed with the connection before.
        if self.stored.as_ref() != Some(&*self.desired.borrow()) {
            self.desired.mark_changed();
        }
        loop {
            tokio::select! {
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        // The handle is gone; the stop token ends this session.
                        return std::future::pending().await;
                    }
                    let member = self.desired.borrow_and_update().clone();
                    let value = encode(&member, held.epoch_min)?;
                    let replace = connection.replace(&self.key, value, held.lease, held.created);
                    if !within(timeout, replace).await? {
                        return Ok("the record is gone or another's");
                    }
                    self.stored = Some(member);
                }
                () = tokio::time::sleep(self.timing.check_interval) => {
                    let found = within(timeout, connection.get(&self.key)).await?;
                    if found.is_none_or(|f| f.create_revision != held.created || Record::decode(&f.value).is_err()) {
                        return Ok("the record is gone or another's");
                    }
                }
            }
        }
    }
}

fn encode(member: &Member, epoch_min: u64) -> Result<Vec<u8>, BackendError> {
    let record = Record { member: member.clone(), epoch_min };
    record.encode().map_err(|e| BackendError::Unavailable(e.to_string()))
}
