//! Messages of the gRPC transport, written from the arena straight into the connection's buffer.
//!
//! The bytes are those that the generated code would write, but for the order of two fields: a frame's payload comes
//! last. Reading is the generated code's: payloads are slices of the buffer that they arrived in.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BufMut as _;
use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use proto::v1 as wire;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

use crate::cells::{Batch, OutCell};

/// A message's buffer at first, and how much is put together before the connection is asked to write: a batch.
const BUFFER_BYTES: usize = 1 << 20;

/// Numbers of the fields that are written by hand.
const FRAMES_OF_RESPONSE: u32 = 1;
const FRAMES_OF_BATCH: u32 = 1;
const PAYLOAD_OF_FRAME: u32 = 9;

/// What a source sends.
pub(super) enum Message {
    /// Cells whose checksums are filled in.
    Cells(Queued),
    Plain(Box<wire::FetchResponse>),
}

/// A batch that waits for its connection, and keeps the hold meanwhile: one that is stuck must be given up by whoever
/// ends the fetch. Clones share it.
#[derive(Clone)]
pub(super) struct Queued(Arc<Mutex<State>>);

enum State {
    Waiting(Batch),
    Written,
    Revoked,
}

impl Queued {
    pub(super) fn new(batch: Batch) -> Self {
        Self(Arc::new(Mutex::new(State::Waiting(batch))))
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(*self.state(), State::Waiting(_))
    }

    /// Drops the batch if it was not written yet: its message will be empty.
    pub(super) fn revoke(&self) {
        let mut state = self.state();
        if matches!(*state, State::Waiting(_)) {
            *state = State::Revoked;
        }
    }

    /// The batch, once; `None`: it was revoked.
    fn take(&self) -> Result<Option<Batch>, Status> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Written) {
            State::Waiting(batch) => Ok(Some(batch)),
            State::Written => Err(Status::internal("a batch is written once")),
            State::Revoked => Ok(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of the source.
#[derive(Default)]
pub(super) struct SourceCodec;

impl Codec for SourceCodec {
    type Encode = Message;
    type Decode = wire::FetchRequest;
    type Encoder = MessageEncoder;
    type Decoder = ProstDecoder<wire::FetchRequest>;

    fn encoder(&mut self) -> MessageEncoder {
        MessageEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<wire::FetchRequest> {
        ProstDecoder::default()
    }
}

pub(super) struct MessageEncoder;

impl Encoder for MessageEncoder {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let plain = match message {
            Message::Cells(queued) => match queued.take()? {
                Some(batch) => {
                    encode_cells(&batch, buffer);
                    return Ok(());
                }
                // What ends the stream, and why, follows.
                None => Box::new(no_frames()),
            },
            Message::Plain(message) => message,
        };
        plain.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, BUFFER_BYTES)
    }
}

/// Says that the source is there, and nothing else.
pub(super) fn no_frames() -> wire::FetchResponse {
    wire::FetchResponse { item: Some(wire::fetch_response::Item::Frames(wire::FrameBatch::default())) }
}

/// As [`wire::FetchResponse`] with frames.
fn encode_cells(batch: &Batch, buffer: &mut EncodeBuf<'_>) {
    let frames: Vec<_> = batch.cells.iter().map(|cell| (cell, head_bytes(batch, cell))).collect();
    let key = |number: u32| encoded_len_varint(u64::from(number << 3));
    let payload_bytes = |cell: &OutCell| key(PAYLOAD_OF_FRAME) + encoded_len_varint(cell.bytes as u64) + cell.bytes;
    let frame_bytes = |cell: &OutCell, head: &[u8]| head.len() + payload_bytes(cell);
    let batch_bytes = frames.iter().map(|(cell, head)| {
        let bytes = frame_bytes(cell, head);
        key(FRAMES_OF_BATCH) + encoded_len_varint(bytes as u64) + bytes
    });
    let batch_bytes: usize = batch_bytes.sum();
    buffer.reserve(key(FRAMES_OF_RESPONSE) + encoded_len_varint(batch_bytes as u64) + batch_bytes);
    encode_key(FRAMES_OF_RESPONSE, WireType::LengthDelimited, buffer);
    encode_varint(batch_bytes as u64, buffer);
    for (cell, head) in &frames {
        encode_key(FRAMES_OF_BATCH, WireType::LengthDelimited, buffer);
        encode_varint(frame_bytes(cell, head) as u64, buffer);
        buffer.put_slice(head);
        encode_key(PAYLOAD_OF_FRAME, WireType::LengthDelimited, buffer);
        encode_varint(cell.bytes as u64, buffer);
        buffer.put_slice(batch.payload(cell).bytes());
    }
}

/// A frame without its payload.
fn head_bytes(batch: &Batch, cell: &OutCell) -> Vec<u8> {
    batch.with_head(cell, |head| {
        let frame = wire::Frame {
            request_id: Some(wire::RequestId { value: head.request.to_vec().into() }),
            owner_epoch: head.owner_epoch,
            worker_epoch: head.worker_epoch,
            layer_begin: head.layers.0,
            layer_end: head.layers.1,
            block_index: head.block,
            n_tokens: head.n_tokens,
            block_hash: head.hash.to_vec().into(),
            payload: bytes::Bytes::new(),
            checksum: head.checksum,
        };
        frame.encode_to_vec()
    })
}
