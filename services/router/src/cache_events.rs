//! What a worker says about its prefix cache, on its way into the index.

use std::sync::Arc;

use futures::StreamExt as _;
use rpc::worker::WorkerApi as _;

use crate::cluster::{BACKOFF_MAX, BACKOFF_MIN, Cluster, Worker};

/// Hears what one worker says about its cache, again and again after losses and gaps; never returns. Meanwhile the index
/// goes by the router's own choices.
pub(crate) async fn follow_cache(cluster: Arc<Cluster>, Worker { info, client }: Worker) {
    let worker = &info.worker;
    let mut backoff = BACKOFF_MIN;
    loop {
        let after = cluster.cache_events_after(worker);
        match client.kv_events(worker.clone(), after).await {
            Err(failure) => tracing::debug!(%worker, %failure, "worker does not tell of its cache"),
            Ok(mut batches) => {
                while let Some(batch) = batches.next().await {
                    let applied = batch
                        .map_err(|failure| failure.to_string())
                        .and_then(|batch| cluster.cache_events(worker, &batch).map_err(|error| error.to_string()));
                    match applied {
                        Ok(()) => backoff = BACKOFF_MIN,
                        Err(why) => {
                            tracing::info!(%worker, why, "events of a cache end, asking anew");
                            break;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}
