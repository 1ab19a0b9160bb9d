//! Events of the prefix cache, as one incarnation's.

use futures::StreamExt as _;
use rpc::EventStream;
use types::{Code, Failure, KvEventBatch};
use worker::WorkerHandle;

use crate::Gate;

/// What changes in the prefix cache after the batch with id `after`; see
/// [`WorkerApi::kv_events`](rpc::worker::WorkerApi::kv_events). Ends with a failure when this process is registered anew.
///
/// # Errors
/// `ResourceExhausted` if too many follow.
pub fn kv_events(gate: &Gate, worker: &WorkerHandle, after: u64) -> Result<EventStream<KvEventBatch>, Failure> {
    let mut follower = worker.kv_events(after)?;
    let mut incarnation = gate.worker();
    let called = incarnation.borrow_and_update().clone();
    let events = async_stream::stream! {
        loop {
            let batch = tokio::select! {
                batch = follower.next() => batch,
                _ = incarnation.wait_for(|now| *now != called) => {
                    let message = format!("{called} was registered anew");
                    Err(Failure::new(Code::FailedPrecondition, rpc::reason::STALE_EPOCH, message))
                }
            };
            let over = batch.is_err();
            yield batch;
            if over {
                return;
            }
        }
    };
    Ok(events.boxed())
}
