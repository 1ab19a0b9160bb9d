//! Serving one fetch: wait for the offer, send cells as they become readable, close with the manifest, and keep the
//! blocks until the reader has spoken its last word or its connection is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernels::kv::KvArena;
use rpc::reason;
use rpc::status::deadline_exceeded;
use tokio::time::{Instant, timeout};
use types::{BlockHash, Code, Epoch, Failure, Fault, RequestId, Retry, WorkerRef};

use crate::cells::Batch;
use crate::frame::{CellId, Checksum, Expected, rows_of_block};
use crate::link::{Ears, Heard, Outlet, ReaderGone};
use crate::manifest::{Closing, write_manifest};
use crate::metrics::Direction;
use crate::offer::{EndCause, Fetching, Offered, State};
use crate::source::{Found, Source};

/// Cells are put together to about this many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// What a cell's header takes of it, about.
const HEADER_BYTES: usize = 128;
/// A silent reader is asked for this often within the time that it may be silent: each part counts only while this
/// process runs, so that having been stopped itself is not taken for the reader's silence.
const SILENCE_PARTS: u32 = 5;

/// What a reader wants.
pub(crate) struct Ask {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
    pub(crate) worker: WorkerRef,
    pub(crate) owner_epoch: Epoch,
    pub(crate) deadline: Instant,
    pub(crate) reader: WorkerRef,
    /// Sorted; empty: everything.
    pub(crate) only: Vec<CellId>,
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) checksum: Checksum,
    /// The reader has the first so many blocks.
    pub(crate) n_blocks_here: u32,
}

/// How a fetch left its connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Connection {
    /// Both sides know that it is over.
    Clean,
    /// The reader is being told why there will be no more.
    Refused,
    /// To be closed: that is what fences the reader.
    Close,
}

/// Serves a fetch to its end. The hold is kept meanwhile; whoever calls closes the connection unless it is clean.
pub(crate) async fn produce(
    source: &Arc<Source>,
    ask: &Ask,
    outlet: &mut dyn Outlet,
    ears: &mut dyn Ears,
) -> Connection {
    let mut fetch = Fetch { source, ask, outlet };
    let heard = tokio::select! {
        biased;
        heard = fetch.run(ears) => heard,
        () = tokio::time::sleep_until(ask.deadline) => Err(deadline_exceeded()),
    };
    match heard {
        Ok(connection) => connection,
        Err(failure) => {
            tracing::debug!(request = %ask.request, reader = %ask.reader, %failure, "fetch refused");
            let _ = timeout(source.config().progress_timeout, fetch.outlet.refuse(&failure)).await;
            Connection::Refused
        }
    }
}

struct Fetch<'a> {
    source: &'a Arc<Source>,
    ask: &'a Ask,
    outlet: &'a mut dyn Outlet,
}

enum Stop {
    Gone,
    Failed(Failure),
}

impl From<ReaderGone> for Stop {
    fn from(_: ReaderGone) -> Self {
        Self::Gone
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Fetch<'_> {
    /// `Err` is to be told to the reader.
    async fn run(&mut self, ears: &mut dyn Ears) -> Result<Connection, Failure> {
        let listening = listen(ears, self.source, self.ask);
        tokio::pin!(listening);
        let result = tokio::select! {
            biased;
            _ = &mut listening => return Ok(Connection::Close),
            result = self.attach() => result,
        };
        let offered = match result {
            Ok(offered) => offered,
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Gone) => return Ok(Connection::Close),
        };
        let mut fetching = offered.open(!self.ask.only.is_empty())?;
        // From here `fetching` keeps the blocks, until this function ends.
        let sent = tokio::select! {
            biased;
            last = &mut listening => return Ok(ended(&mut fetching, last)),
            sent = self.send_all(&offered) => sent,
        };
        match sent {
            // Repairs happen now, on fetches of their own; the last word on this one says that all is well.
            Ok(()) => Ok(ended(&mut fetching, listening.await)),
            Err(Stop::Failed(failure)) => Err(failure),
            Err(Stop::Gone) => Ok(Connection::Close),
        }
    }

    /// Finds the offer, waiting for it if need be.
    async fn attach(&mut self) -> Result<Arc<Offered>, Stop> {
        let config = *self.source.config();
        let give_up = Instant::now() + config.offer_wait;
        loop {
            let arrived = self.source.arrived();
            tokio::pin!(arrived);
            // Before looking, so that an offer made in between is not missed.
            arrived.as_mut().enable();
            match self.source.find((self.ask.request, self.ask.choice), self.ask.owner_epoch) {
                Found::Offer(offered) => {
                    self.check(&offered)?;
                    return Ok(offered);
                }
                Found::Ended(failure) => return Err(failure.into()),
                Found::NotYet => {}
            }
            if self.ask.worker != self.source.worker() {
                return Err(stale_epoch(&self.ask.worker, &self.source.worker()).into());
            }
            let beat = Instant::now() + config.heartbeat;
            tokio::select! {
                () = arrived => {}
                () = tokio::time::sleep_until(beat.min(give_up)) => {
                    if Instant::now() >= give_up {
                        let failure = Failure::new(Code::NotFound, "KV_NOT_OFFERED", "no such prompt is on offer");
                        return Err(failure.with_fault(Fault::Server).into());
                    }
                    self.beat().await?;
                }
            }
        }
    }

    /// Whether the reader may have this offer.
    fn check(&self, offered: &Offered) -> Result<(), Failure> {
        let ask = self.ask;
        if ask.worker != offered.worker {
            return Err(stale_epoch(&ask.worker, &offered.worker));
        }
        if ask.owner_epoch != offered.owner_epoch {
            let message = format!("owner epoch {}, not {}", offered.owner_epoch.0, ask.owner_epoch.0);
            return Err(Failure::new(Code::FailedPrecondition, reason::STALE_OWNER, message));
        }
        if ask.reader != offered.reader {
            let message = format!("offered to {}, not to {}", offered.reader, ask.reader);
            return Err(Failure::new(Code::FailedPrecondition, "KV_WRONG_READER", message).with_fault(Fault::Client));
        }
        if ask.hashes != offered.hashes {
            let message = "reader and source disagree about the prompt's blocks";
            return Err(Failure::new(Code::FailedPrecondition, "KV_HASH_MISMATCH", message).with_fault(Fault::Client));
        }
        let (n_layers, n_blocks) = (self.source.arena().n_layers(), offered.hashes.len());
        if ask.only.iter().any(|cell| cell.layer as usize >= n_layers || cell.block as usize >= n_blocks) {
            return Err(Failure::invalid("only", "no such cell"));
        }
        if ask.n_blocks_here as usize >= n_blocks {
            return Err(Failure::invalid("n_blocks_here", "the reader has the whole prompt"));
        }
        Ok(())
    }

    /// Sends every wanted cell as soon as it is readable, then the manifest.
    async fn send_all(&mut self, offered: &Arc<Offered>) -> Result<(), Stop> {
        let arena = self.source.arena();
        let mut pending = Pending::new(offered, arena, self.ask);
        let mut progress = offered.progress.clone();
        let mut state = offered.state.subscribe();
        let mut computing = true;
        loop {
            // Before looking, so that what comes after it wakes the wait below.
            progress.borrow_and_update();
            let now = state.borrow_and_update().clone();
            if let State::Failed(failure) = now {
                return Err(failure.into());
            }
            while let Some(batch) = pending.readable(arena)? {
                let ids: Vec<_> = batch.cells.iter().map(|cell| cell.id).collect();
                let bytes = batch.payload_bytes();
                let sums = self.in_time(|outlet| outlet.cells(batch)).await?;
                offered.bytes.fetch_add(bytes, Ordering::Relaxed);
                let kind = self.outlet.kind();
                self.source.metrics().count_cells(Direction::Sent, kind, ids.len() as u64, bytes);
                pending.sent(ids, sums, bytes);
                if let State::Failed(failure) = &*state.borrow() {
                    return Err(failure.clone().into());
                }
            }
            match now {
                State::Ready(handoff) if pending.is_empty() => {
                    let manifest = pending.manifest(arena, &handoff);
                    return Ok(self.in_time(|outlet| outlet.manifest(manifest)).await?);
                }
                State::Ready(_) if !computing => {
                    return Err(Failure::internal("computing ended before all of the prompt was there").into());
                }
                _ => {}
            }
            tokio::select! {
                changed = progress.changed(), if computing => computing = changed.is_ok(),
                // The sender lives in `offered`.
                _ = state.changed() => {}
                () = tokio::time::sleep(self.source.config().heartbeat) => self.beat().await?,
            }
        }
    }

    async fn beat(&mut self) -> Result<(), ReaderGone> {
        self.in_time(|outlet| outlet.beat()).await
    }

    /// A reader that takes nothing for the progress timeout is cut off.
    async fn in_time<'s, T, F>(&'s mut self, send: impl FnOnce(&'s mut dyn Outlet) -> F) -> Result<T, ReaderGone>
    where
        F: Future<Output = Result<T, ReaderGone>> + 's,
    {
        match timeout(self.source.config().progress_timeout, send(&mut *self.outlet)).await {
            Ok(sent) => sent,
            Err(_) => {
                let (request, reader) = (self.ask.request, &self.ask.reader);
                tracing::warn!(%request, %reader, "reader takes nothing, cutting it off");
                Err(ReaderGone)
            }
        }
    }
}

/// A reader's end.
enum Last {
    Heard(Heard),
    /// Nothing was heard for too long.
    Silent,
}

/// Listens until the reader's end.
async fn listen(ears: &mut dyn Ears, source: &Source, ask: &Ask) -> Last {
    let part = source.config().silence / SILENCE_PARTS;
    loop {
        let mut next = ears.hear();
        let mut n_silent = 0;
        let heard = loop {
            match timeout(part, &mut next).await {
                Ok(heard) => break heard,
                Err(_) if n_silent + 1 >= SILENCE_PARTS => {
                    let (request, reader) = (ask.request, &ask.reader);
                    tracing::warn!(%request, %reader, "reader is silent, closing its connection");
                    return Last::Silent;
                }
                Err(_) => n_silent += 1,
            }
        };
        match heard {
            Heard::Holding => {}
            Heard::Failed(why) => {
                let (request, reader) = (ask.request, &ask.reader);
                tracing::info!(%request, %reader, why, "reader gave up");
                return Last::Heard(Heard::Failed(why));
            }
            last => return Last::Heard(last),
        }
    }
}

/// Notes how a fetch ended; what is done with its connection.
fn ended(fetching: &mut Fetching, last: Last) -> Connection {
    match last {
        Last::Heard(Heard::Sealed) => {
            fetching.ended(EndCause::Fetched);
            Connection::Clean
        }
        Last::Silent => {
            fetching.ended(EndCause::Fenced);
            Connection::Close
        }
        Last::Heard(_) => Connection::Close,
    }
}

/// The cells that a fetch has yet to send, and the sums of those it has sent.
struct Pending<'a> {
    offered: &'a Arc<Offered>,
    checksum: Checksum,
    /// Blocks per layer, in order: within a layer they become readable in order.
    lanes: Vec<VecDeque<u32>>,
    sums: Vec<(CellId, u64)>,
    bytes: u64,
}

impl<'a> Pending<'a> {
    fn new(offered: &'a Arc<Offered>, arena: &KvArena, ask: &Ask) -> Self {
        let n_blocks = offered.hashes.len() as u32; // bounded with the prompt
        let mut lanes = vec![VecDeque::new(); arena.n_layers()];
        if ask.only.is_empty() {
            lanes.fill((ask.n_blocks_here..n_blocks).collect());
        }
        for cell in &ask.only {
            lanes[cell.layer as usize].push_back(cell.block);
        }
        Self { offered, checksum: ask.checksum, lanes, sums: Vec::new(), bytes: 0 }
    }

    fn is_empty(&self) -> bool {
        self.lanes.iter().all(VecDeque::is_empty)
    }

    /// A message's worth of cells that can be read now; `None`: none can.
    fn readable(&mut self, arena: &Arc<KvArena>) -> Result<Option<Batch>, Failure> {
        let mut batch = Batch::new(self.offered.clone(), arena.clone(), self.checksum);
        let mut size = 0;
        for layer in 0..self.lanes.len() {
            while let Some(&block) = self.lanes[layer].front() {
                let rows = rows_of_block(self.offered.n_tokens, arena.block_tokens(), block as usize);
                let place = self.offered.blocks[block as usize].0;
                if size >= BATCH_BYTES || arena.rows(layer, place) < rows {
                    break;
                }
                let id = CellId { block, layer: layer as u32 };
                batch.push(id, rows).map_err(|error| Failure::internal(error.to_string()))?;
                size += arena.cell_bytes(layer) + HEADER_BYTES;
                self.lanes[layer].pop_front();
            }
        }
        Ok((!batch.cells.is_empty()).then_some(batch))
    }

    fn sent(&mut self, ids: Vec<CellId>, sums: Vec<u64>, bytes: u64) {
        self.sums.extend(ids.into_iter().zip(sums));
        self.bytes += bytes;
    }

    fn manifest(&mut self, arena: &KvArena, handoff: &types::Handoff) -> proto::v1::Manifest {
        let cell_bytes: Vec<_> = (0..arena.n_layers()).map(|layer| arena.cell_bytes(layer)).collect();
        let expected = Expected {
            request: self.offered.request,
            owner_epoch: self.offered.owner_epoch,
            worker_epoch: self.offered.worker.epoch,
            n_tokens: self.offered.n_tokens,
            block_tokens: arena.block_tokens(),
            cell_bytes: &cell_bytes,
            hashes: &self.offered.hashes,
            checksum: self.checksum,
        };
        self.sums.sort_unstable();
        let checksums: Vec<_> = self.sums.iter().map(|&(_, sum)| sum).collect();
        write_manifest(&expected, &Closing { checksums: &checksums, payload_bytes: self.bytes }, handoff)
    }
}

fn stale_epoch(asked: &WorkerRef, here: &WorkerRef) -> Failure {
    Failure::new(Code::FailedPrecondition, reason::STALE_EPOCH, format!("this is {here}, not {asked}"))
        .with_retry(Retry::Safe(None))
}
