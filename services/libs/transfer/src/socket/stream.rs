//! Reading and writing records.

use std::io;

use proto::v1 as wire;
use rpc::status::{from_status, to_status};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tonic::Status;
use types::Failure;

use super::record::{Kind, PRELUDE_BYTES, Prelude, RecordFault, encode};

/// Why there is no next record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The connection broke.
    #[error("connection broke: {0}")]
    Broken(#[from] io::Error),
    /// Bytes that make no sense.
    #[error(transparent)]
    Damaged(#[from] RecordFault),
}

/// A prelude and its control part, both checked.
pub(crate) struct Record {
    pub(crate) prelude: Prelude,
    pub(crate) control: Vec<u8>,
}

impl Record {
    /// The message in the control part.
    pub(crate) fn decode<M: prost::Message + Default>(&self) -> Result<M, RecordFault> {
        M::decode(&self.control[..]).map_err(|_| RecordFault("message"))
    }
}

/// The next record; `None` when the other side closed its end between two.
pub(crate) async fn read_record(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Record>, ReadError> {
    let mut bytes = [0; PRELUDE_BYTES];
    let mut n = 0;
    while n < PRELUDE_BYTES {
        match stream.read(&mut bytes[n..]).await? {
            0 if n == 0 => return Ok(None),
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            more => n += more,
        }
    }
    let prelude = Prelude::parse(&bytes)?;
    let mut control = vec![0; prelude.control_bytes];
    stream.read_exact(&mut control).await?;
    prelude.check_control(&control)?;
    Ok(Some(Record { prelude, control }))
}

/// Writes a record without payloads.
pub(crate) async fn write_record(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    control: &[u8],
    extent: u64,
) -> io::Result<()> {
    stream.write_all(&encode(kind, 0, control, extent)).await
}

/// A failure as the message that tells it.
pub(crate) fn write_refused(failure: &Failure) -> wire::FetchRefused {
    let status = to_status(failure);
    wire::FetchRefused {
        code: i32::from(status.code()).cast_unsigned(),
        message: status.message().to_owned(),
        details: status.details().to_vec().into(),
    }
}

/// The failure in a message that tells one.
pub(crate) fn read_refused(refused: wire::FetchRefused) -> Failure {
    let code = tonic::Code::from_i32(refused.code.cast_signed());
    from_status(&Status::with_details(code, refused.message, refused.details))
}

/// A message's bytes.
pub(crate) fn bytes_of(message: &impl prost::Message) -> Vec<u8> {
    message.encode_to_vec()
}
