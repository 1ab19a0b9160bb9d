//! The handle of one registration.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::Epoch;

use crate::record::Record;
use crate::{Member, RegistryError};

/// Longest wait for the registry to forget a member that leaves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// One member's registration, kept alive by a task of its own until [`Membership::leave`] or drop.
#[derive(Debug)]
pub struct Membership {
    desired: watch::Sender<Member>,
    epoch: watch::Receiver<Epoch>,
    stop: CancellationToken,
    task: TaskTracker,
}

impl Membership {
    /// Starts the task that `run` makes.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        member: Member,
        run: impl FnOnce(watch::Receiver<Member>, watch::Sender<Epoch>, CancellationToken) -> F,
    ) -> Self {
        let (desired, wanted) = watch::channel(member);
        let (epoch_sender, epoch) = watch::channel(Epoch(0));
        let (stop, task) = (CancellationToken::new(), TaskTracker::new());
        task.spawn(run(wanted, epoch_sender, stop.clone()));
        task.close();
        Self { desired, epoch, stop, task }
    }

    /// The epoch of the present registration, 0 before the first. It grows when the registration was lost and had
    /// to be made anew; while the registry is away it stays.
    pub fn epoch(&self) -> watch::Receiver<Epoch> {
        self.epoch.clone()
    }

    /// Waits for the first registration.
    pub async fn joined(&self) -> Epoch {
        let mut epoch = self.epoch.clone();
        match epoch.wait_for(|epoch| epoch.0 > 0).await {
            Ok(epoch) => *epoch,
            // The task ends only when this membership leaves.
            Err(_) => Epoch(0),
        }
    }

    /// Changes what the member says; the epoch stays. Takes effect as soon as the registry is there.
    ///
    /// # Errors
    /// If the record can never be stored, or names another member.
    pub async fn update(&self, member: Member) -> Result<(), RegistryError> {
        if member.id != self.desired.borrow().id {
            return Err(RegistryError::Member { field: "id", reason: "cannot be changed".into() });
        }
        Record { member: member.clone(), epoch_min: 0 }.encode()?;
        self.desired.send(member).map_err(|_| RegistryError::Ended)
    }

    /// Gives up the registration and waits until the registry has forgotten it, 3 s at most: without the registry
    /// the lease runs out instead.
    pub async fn leave(&self) {
        self.stop.cancel();
        if tokio::time::timeout(LEAVE_TIMEOUT, self.task.wait()).await.is_err() {
            tracing::warn!("the registry does not answer, the membership's lease runs out by itself");
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
