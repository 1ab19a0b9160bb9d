//! Load reports: what changed, not more often than asked for.

use std::time::Duration;

use futures::StreamExt as _;
use rpc::EventStream;
use tokio::sync::watch;
use types::{Code, Failure, Load, WorkerRef};

use crate::Gate;

/// The load now and whenever it changed, at most once per `min_interval`. Ends with a failure when this process is
/// registered anew (the caller then knows nothing of the new incarnation) and when the worker stops.
pub fn load_reports(
    gate: &Gate,
    mut load: watch::Receiver<Load>,
    min_interval: Duration,
) -> EventStream<(WorkerRef, Load)> {
    let mut worker = gate.worker();
    let stopped = || Failure::new(Code::Unavailable, "WORKER_STOPPED", "the worker has stopped");
    async_stream::stream! {
        let called = worker.borrow_and_update().clone();
        load.mark_changed();
        loop {
            tokio::select! {
                changed = load.changed() => {
                    if changed.is_err() {
                        yield Err(stopped());
                        return;
                    }
                    let now = *load.borrow_and_update();
                    yield Ok((called.clone(), now));
                    tokio::time::sleep(min_interval).await;
                }
                changed = worker.changed() => {
                    let now = worker.borrow_and_update().clone();
                    if changed.is_err() || now != called {
                        let message = format!("this is {now} now");
                        yield Err(Failure::new(Code::FailedPrecondition, rpc::reason::STALE_EPOCH, message));
                        return;
                    }
                }
            }
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use types::{Epoch, WorkerId};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reports_the_last_of_many_changes() {
        let worker = |epoch| WorkerRef { id: WorkerId::new("d0"), epoch: Epoch(epoch) };
        let (incarnations, identity) = watch::channel(worker(1));
        let gate = Gate::new(identity);
        let (sender, load) = watch::channel(Load::default());
        let mut reports = load_reports(&gate, load, Duration::from_millis(100));
        assert_eq!(reports.next().await, Some(Ok((worker(1), Load::default()))), "at once");
        let started = tokio::time::Instant::now();
        for steps in 1..50 {
            sender.send_replace(Load { steps, ..Load::default() });
        }
        let (_, now) = reports.next().await.unwrap().unwrap();
        assert_eq!(now.steps, 49);
        assert!(started.elapsed() >= Duration::from_millis(100));
        incarnations.send_replace(worker(2));
        assert_eq!(reports.next().await.unwrap().unwrap_err().reason, "STALE_EPOCH");
        assert!(reports.next().await.is_none());
    }
}
