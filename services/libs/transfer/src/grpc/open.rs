//! The reader's side of the gRPC transport: one connection a peer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use proto::v1 as wire;
use proto::v1::fetch_note::Kind;
use proto::v1::fetch_response::Item;
use proto::v1::kv_service_client::KvServiceClient;
use rpc::net::{Limits, channel};
use rpc::reason;
use rpc::status::from_status;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use types::Failure;

use crate::ask::write_ask;
use crate::assembly::{Assembly, Round};
use crate::frame::CellId;
use crate::link::{Arrived, Inlet, Landed, LastWord, OpenError, Transport};
use crate::notes::{END_TIME, with_beats, write_last};
use crate::pull::{Pull, PullError};

/// Peers whose connections are kept.
const CHANNELS_MAX: usize = 256;

/// Opens fetches over gRPC.
#[derive(Default)]
pub(crate) struct GrpcTransport {
    channels: Mutex<HashMap<String, Channel>>,
    tasks: TaskTracker,
}

impl GrpcTransport {
    fn client(&self, address: &str) -> Result<KvServiceClient<Channel>, Failure> {
        let limits = Limits::kv();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                if channels.len() >= CHANNELS_MAX {
                    // Rare (more peers than a cluster has): pulls under way keep their own handles.
                    channels.clear();
                }
                let channel = channel(address, &limits)?;
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Ok(KvServiceClient::new(channel)
            .max_decoding_message_size(limits.message_bytes)
            .max_encoding_message_size(limits.message_bytes))
    }
}

#[async_trait]
impl Transport for GrpcTransport {
    async fn open(&self, pull: &Pull, only: &[CellId]) -> Result<Box<dyn Inlet>, OpenError> {
        let mut client = self.client(&pull.address).map_err(PullError::Refused)?;
        let (last, words) = mpsc::channel(1);
        let ask = futures::stream::iter([write_ask(pull, only)]);
        let notes = with_beats(ReceiverStream::new(words), beat(), pull.keep_alive);
        let stream = tokio::time::timeout(pull.progress_timeout, client.fetch(ask.chain(notes)))
            .await
            .map_err(|_| PullError::Stalled)?
            .map_err(|status| stream_error(&status))?
            .into_inner();
        Ok(Box::new(GrpcInlet { stream, last, progress_timeout: pull.progress_timeout, tasks: self.tasks.clone() }))
    }
}

/// Says that the reader is alive.
fn beat() -> wire::FetchRequest {
    wire::FetchRequest {
        note: Some(wire::FetchNote { kind: Kind::Holding.into(), reason: String::new() }),
        ..wire::FetchRequest::default()
    }
}

struct GrpcInlet {
    stream: Streaming<wire::FetchResponse>,
    last: mpsc::Sender<wire::FetchRequest>,
    progress_timeout: Duration,
    tasks: TaskTracker,
}

#[async_trait]
impl Inlet for GrpcInlet {
    async fn next(&mut self, assembly: &mut Assembly<'_>, round: &mut Round) -> Result<Arrived, PullError> {
        let message = tokio::time::timeout(self.progress_timeout, self.stream.message())
            .await
            .map_err(|_| PullError::Stalled)?
            .map_err(|status| stream_error(&status))?
            .ok_or_else(|| PullError::PeerLost(rpc::status::cut_off()))?;
        match message.item {
            Some(Item::Frames(batch)) => {
                let mut landed = Landed::default();
                for frame in &batch.frames {
                    landed.n_cells += 1;
                    landed.bytes += frame.payload.len() as u64;
                    if let Err(fault) = assembly.accept(round, frame)? {
                        landed.rejected.push((CellId { block: frame.block_index, layer: frame.layer_begin }, fault));
                    }
                }
                Ok(Arrived::Cells(landed))
            }
            Some(Item::Manifest(manifest)) => Ok(Arrived::Manifest(manifest)),
            None => Err(PullError::Corrupt("a message that is neither frames nor manifest".into())),
        }
    }

    fn end(self: Box<Self>, word: LastWord) {
        let Self { mut stream, last, tasks, .. } = *self;
        tasks.spawn(async move {
            let note = wire::FetchRequest { note: Some(write_last(word)), ..wire::FetchRequest::default() };
            let _ = last.send(note).await;
            drop(last);
            // The stream is closed when the source has heard it: closing at once could overtake the word.
            let _ = tokio::time::timeout(END_TIME, async { while let Ok(Some(_)) = stream.message().await {} }).await;
        });
    }
}

fn stream_error(status: &Status) -> PullError {
    PullError::of(from_status(status))
}

impl PullError {
    /// What a source's or the transport's failure means for a pull.
    pub(crate) fn of(failure: Failure) -> Self {
        match failure.reason {
            reason::PEER_LOST | reason::PEER_UNREACHABLE => Self::PeerLost(failure),
            reason::DEADLINE_EXCEEDED => Self::Deadline,
            _ => Self::Refused(failure),
        }
    }
}
