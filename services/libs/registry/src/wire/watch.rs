//! The watch service: any number of watches on one stream, one task-free loop that reads the store's history.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use etcd_client::proto::{PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService};
use futures::Stream;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, header};
use crate::memory::{Batch, EventKind, MemoryStore, StoreError, Watcher};

/// Most watches on one stream.
const WATCHES_MAX: usize = 256;
/// How often a watch that asked for it hears that nothing has changed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// The id under which answers to progress requests come.
const NO_WATCH: i64 = -1;
const NO_PUT: i32 = 0;
const NO_DELETE: i32 = 1;

pub(super) struct Service {
    pub(super) store: MemoryStore,
    pub(super) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<PbWatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<Streaming<PbWatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        let shutdown = self.shutdown.clone();
        let mut requests = request.into_inner();
        let mut watches = Watches { store: self.store.clone(), open: BTreeMap::new(), next_id: 0 };
        let mut changed = self.store.changes();
        let answers = async_stream::try_stream! {
            let mut progress = tokio::time::interval(PROGRESS_INTERVAL);
            progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                changed.mark_unchanged();
                while let Some(answer) = watches.next_change() {
                    yield answer;
                }
                let answers = tokio::select! {
                    request = requests.message() => match request {
                        Ok(Some(request)) => watches.answer(request),
                        Ok(None) => break,
                        Err(status) => Err(status),
                    },
                    _ = changed.changed() => Ok(Vec::new()),
                    _ = progress.tick() => Ok(watches.progress()),
                    () = shutdown.cancelled() => break,
                };
                for answer in answers? {
                    yield answer;
                }
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }
}

/// The watches of one stream.
struct Watches {
    store: MemoryStore,
    open: BTreeMap<i64, Open>,
    next_id: i64,
}

struct Open {
    watcher: Watcher,
    prev_kv: bool,
    filters: Vec<i32>,
    progress: bool,
    /// Nothing was sent since the last progress tick.
    quiet: bool,
}

impl Watches {
    fn answer(&mut self, request: PbWatchRequest) -> Result<Vec<PbWatchResponse>, Status> {
        let header = header(self.store.revision());
        Ok(match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(create)) => {
                if self.open.len() >= WATCHES_MAX {
                    return Err(Status::resource_exhausted(format!("more than {WATCHES_MAX} watches on one stream")));
                }
                let range = convert::range(create.key, create.range_end)?;
                let Some(id) = self.free_id(create.watch_id) else {
                    let cancel_reason = "etcdserver: duplicate watch ID provided on the WatchStream".to_owned();
                    let (created, canceled, watch_id) = (true, true, NO_WATCH);
                    return Ok(vec![PbWatchResponse {
                        header,
                        watch_id,
                        created,
                        canceled,
                        cancel_reason,
                        ..Default::default()
                    }]);
                };
                let open = Open {
                    watcher: self.store.watch(range, create.start_revision),
                    prev_kv: create.prev_kv,
                    filters: create.filters,
                    progress: create.progress_notify,
                    quiet: true,
                };
                self.open.insert(id, open);
                vec![PbWatchResponse { header, watch_id: id, created: true, ..Default::default() }]
            }
            Some(PbWatchRequestUnion::CancelRequest(cancel)) => match self.open.remove(&cancel.watch_id) {
                Some(_) => {
                    let (watch_id, canceled) = (cancel.watch_id, true);
                    vec![PbWatchResponse { header, watch_id, canceled, ..Default::default() }]
                }
                None => Vec::new(),
            },
            Some(PbWatchRequestUnion::ProgressRequest(_)) => {
                vec![PbWatchResponse { header, watch_id: NO_WATCH, ..Default::default() }]
            }
            None => Vec::new(),
        })
    }

    fn free_id(&mut self, wanted: i64) -> Option<i64> {
        if wanted != 0 {
            return (!self.open.contains_key(&wanted)).then_some(wanted);
        }
        while self.open.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Some(self.next_id - 1)
    }

    /// What some watch has to hear now.
    fn next_change(&mut self) -> Option<PbWatchResponse> {
        let mut compacted = None;
        for (&watch_id, open) in &mut self.open {
            match open.watcher.poll() {
                Ok(Some(batch)) => {
                    if let Some(answer) = open.events(watch_id, batch) {
                        return Some(answer);
                    }
                }
                Ok(None) => {}
                Err(StoreError::Compacted(oldest)) => compacted = Some((watch_id, oldest)),
                Err(error) => unreachable!("a watch reads no lease and no key, yet: {error}"),
            }
        }
        let (watch_id, compact_revision) = compacted?;
        self.open.remove(&watch_id);
        let header = header(self.store.revision());
        Some(PbWatchResponse { header, watch_id, canceled: true, compact_revision, ..Default::default() })
    }

    fn progress(&mut self) -> Vec<PbWatchResponse> {
        let revision = self.store.revision();
        let mut answers = Vec::new();
        for (&watch_id, open) in &mut self.open {
            if std::mem::replace(&mut open.quiet, true) && open.progress {
                answers.push(PbWatchResponse { header: header(revision), watch_id, ..Default::default() });
            }
        }
        answers
    }
}

impl Open {
    fn events(&mut self, watch_id: i64, batch: Batch) -> Option<PbWatchResponse> {
        let wanted = |kind: &EventKind| match kind {
            EventKind::Put(_) => !self.filters.contains(&NO_PUT),
            EventKind::Delete(_) => !self.filters.contains(&NO_DELETE),
        };
        let events: Vec<_> = batch
            .events
            .into_iter()
            .filter(|event| wanted(&event.kind))
            .map(|event| convert::event(event, self.prev_kv))
            .collect();
        if events.is_empty() {
            return None;
        }
        self.quiet = false;
        Some(PbWatchResponse { header: header(batch.revision), watch_id, events, ..Default::default() })
    }
}
