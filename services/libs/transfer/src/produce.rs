//! Serving one fetch: wait for the offer, send cells as they become readable, close with the manifest.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kernels::kv::KvArena;
use proto::v1 as wire;
use proto::v1::fetch_response::Item;
use rpc::convert::write_request_id;
use rpc::reason;
use rpc::status::{deadline_exceeded, to_status};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;
use types::{BlockHash, Code, Epoch, Failure, Fault, RequestId, Retry, WorkerRef};

use crate::frame::{CellId, Checksum, Expected, checksum, rows_of_block};
use crate::manifest::{Closing, write_manifest};
use crate::metrics::Direction;
use crate::offer::{Offered, State};
use crate::source::{Found, Source};

/// Frames are put together to messages of about this size.
const BATCH_BYTES: usize = 1 << 20;
/// What a frame's header takes of it, about.
const HEADER_BYTES: usize = 128;

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

type Messages = mpsc::Sender<Result<wire::FetchResponse, Status>>;

/// Serves a fetch to its end. The reader ends it by closing the stream, also after the manifest: until then it may
/// ask for repairs.
pub(crate) async fn produce(source: &Arc<Source>, ask: Ask, messages: Messages) {
    let fetch = Fetch { source, ask: &ask, messages: &messages };
    let failure = tokio::select! {
        biased;
        () = fetch.run() => return,
        () = tokio::time::sleep_until(ask.deadline) => deadline_exceeded(),
    };
    fetch.refuse(&failure).await;
}

struct Fetch<'a> {
    source: &'a Arc<Source>,
    ask: &'a Ask,
    messages: &'a Messages,
}

/// The reader is gone or does not read: there is nobody to tell.
struct ReaderGone;

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
    async fn run(&self) {
        let result = tokio::select! {
            biased;
            () = self.messages.closed() => return,
            result = self.attach() => result,
        };
        let offered = match result {
            Ok(offered) => offered,
            Err(Stop::Failed(failure)) => return self.refuse(&failure).await,
            Err(Stop::Gone) => return,
        };
        let mut fetching = match offered.open(!self.ask.only.is_empty()) {
            Ok(fetching) => fetching,
            Err(failure) => return self.refuse(&failure).await,
        };
        // From here `fetching` keeps the blocks, until this function ends.
        let result = tokio::select! {
            biased;
            () = self.messages.closed() => return,
            result = self.send_all(&offered) => result,
        };
        match result {
            Ok(()) => {
                fetching.delivered();
                // Repairs happen now, on fetches of their own; closing this one says that all is well.
                let _ = tokio::time::timeout(self.source.config().progress_timeout, self.messages.closed()).await;
            }
            Err(Stop::Failed(failure)) => self.refuse(&failure).await,
            Err(Stop::Gone) => {}
        }
    }

    /// Finds the offer, waiting for it if need be.
    async fn attach(&self) -> Result<Arc<Offered>, Stop> {
        let config = self.source.config();
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
                    self.send(batch(Vec::new())).await?;
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
    async fn send_all(&self, offered: &Offered) -> Result<(), Stop> {
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
            while let Some(frames) = pending.readable(arena)? {
                let (n_cells, bytes) = (frames.len() as u64, frames.iter().map(|f| f.payload.len() as u64).sum());
                self.send(batch(frames)).await?;
                offered.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.source.metrics().count_cells(Direction::Sent, n_cells, bytes);
                if let State::Failed(failure) = &*state.borrow() {
                    return Err(failure.clone().into());
                }
            }
            match now {
                State::Ready(handoff) if pending.is_empty() => {
                    let manifest = pending.manifest(arena, &handoff);
                    return Ok(self.send(wire::FetchResponse { item: Some(Item::Manifest(manifest)) }).await?);
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
                () = tokio::time::sleep(self.source.config().heartbeat) => self.send(batch(Vec::new())).await?,
            }
        }
    }

    async fn send(&self, message: wire::FetchResponse) -> Result<(), ReaderGone> {
        let sent = tokio::time::timeout(self.source.config().progress_timeout, self.messages.send(Ok(message))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ReaderGone),
            Err(_) => {
                tracing::warn!(request = %self.ask.request, reader = %self.ask.reader, "reader takes nothing, cutting it off");
                Err(ReaderGone)
            }
        }
    }

    async fn refuse(&self, failure: &Failure) {
        tracing::debug!(request = %self.ask.request, reader = %self.ask.reader, %failure, "fetch refused");
        let message = self.messages.send(Err(to_status(failure)));
        let _ = tokio::time::timeout(self.source.config().progress_timeout, message).await;
    }
}

/// The cells that a fetch has yet to send, and the sums of those it has sent.
struct Pending<'a> {
    offered: &'a Offered,
    checksum: Checksum,
    /// Blocks per layer, in order: within a layer they become readable in order.
    lanes: Vec<VecDeque<u32>>,
    sums: Vec<(CellId, u64)>,
    bytes: u64,
}

impl<'a> Pending<'a> {
    fn new(offered: &'a Offered, arena: &KvArena, ask: &Ask) -> Self {
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
    fn readable(&mut self, arena: &KvArena) -> Result<Option<Vec<wire::Frame>>, Failure> {
        let mut frames = Vec::new();
        let mut size = 0;
        for layer in 0..self.lanes.len() {
            while let Some(&block) = self.lanes[layer].front() {
                let rows = rows_of_block(self.offered.n_tokens, arena.block_tokens(), block as usize);
                let place = self.offered.blocks[block as usize].0;
                if size >= BATCH_BYTES || arena.rows(layer, place) < rows {
                    break;
                }
                let frame = self.frame(arena, layer, block, rows)?;
                size += frame.payload.len() + HEADER_BYTES;
                self.bytes += frame.payload.len() as u64;
                frames.push(frame);
                self.lanes[layer].pop_front();
            }
        }
        Ok((!frames.is_empty()).then_some(frames))
    }

    fn frame(&mut self, arena: &KvArena, layer: usize, block: u32, rows: usize) -> Result<wire::Frame, Failure> {
        let offered = self.offered;
        let mut payload = vec![0; arena.cell_bytes(layer)];
        arena
            .export(layer, offered.blocks[block as usize].0, rows, &mut payload)
            .map_err(|error| Failure::internal(error.to_string()))?;
        let cell = CellId { block, layer: layer as u32 };
        let mut frame = wire::Frame {
            request_id: Some(write_request_id(offered.request)),
            owner_epoch: offered.owner_epoch.0,
            worker_epoch: offered.worker.epoch.0,
            layer_begin: cell.layer,
            layer_end: cell.layer + 1,
            block_index: block,
            n_tokens: rows as u32,
            block_hash: offered.hashes[block as usize].0.to_vec().into(),
            payload: payload.into(),
            checksum: 0,
        };
        if self.checksum == Checksum::On {
            frame.checksum = checksum(&frame);
        }
        self.sums.push((cell, frame.checksum));
        Ok(frame)
    }

    fn manifest(&mut self, arena: &KvArena, handoff: &types::Handoff) -> wire::Manifest {
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

fn batch(frames: Vec<wire::Frame>) -> wire::FetchResponse {
    wire::FetchResponse { item: Some(Item::Frames(wire::FrameBatch { frames })) }
}

fn stale_epoch(asked: &WorkerRef, here: &WorkerRef) -> Failure {
    Failure::new(Code::FailedPrecondition, reason::STALE_EPOCH, format!("this is {here}, not {asked}"))
        .with_retry(Retry::Safe(None))
}
