//! Whether new requests can be served: one flag from what the parts say.

use tokio::sync::watch;
use worker::{Health, WorkerHandle};

use crate::Gate;

/// Keeps `ready` true while the worker is healthy, registered and not draining; never returns.
pub(crate) async fn follow(worker: &WorkerHandle, gate: &Gate, ready: &watch::Sender<bool>) {
    let mut health = worker.health();
    let mut identity = gate.worker();
    let mut draining = gate.draining();
    loop {
        let healthy = *health.borrow_and_update() == Health::Ready;
        let registered = identity.borrow_and_update().epoch.0 > 0;
        let open = !*draining.borrow_and_update();
        let now = healthy && registered && open;
        if ready.send_if_modified(|ready| std::mem::replace(ready, now) != now) {
            tracing::info!(ready = now, healthy, registered, open, "readiness changed");
        }
        let changed = tokio::select! {
            changed = health.changed() => changed,
            changed = identity.changed() => changed,
            changed = draining.changed() => changed,
        };
        if changed.is_err() {
            // A part is gone: nothing can make this ready again.
            ready.send_replace(false);
            return std::future::pending().await;
        }
    }
}

/// Resolves when the worker can compute nothing any more.
pub(crate) async fn broken(worker: &WorkerHandle) -> Health {
    let mut health = worker.health();
    let broken = health.wait_for(|health| matches!(health, Health::Poisoned | Health::Stopped)).await;
    broken.map_or(Health::Stopped, |health| *health)
}
