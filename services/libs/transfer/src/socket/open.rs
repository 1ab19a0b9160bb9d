//! The reader's side of a socket: what both socket transports share.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use proto::v1 as wire;
use proto::v1::fetch_note::Kind as NoteKind;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use types::{Code, Failure, Fault};

use super::record::{Kind, encode};
use super::stream::{ReadError, Record, bytes_of, read_record, read_refused};
use crate::ask::write_ask;
use crate::assembly::{Assembly, Round};
use crate::frame::CellId;
use crate::link::{Arrived, Inlet, Landed, LastWord, OpenError, Transport};
use crate::notes::{END_TIME, with_beats, write_last};
use crate::pull::{Pull, PullError};

/// Words that wait for the connection.
const WORDS_MAX: usize = 64;
/// Connections kept for the next fetch, of each peer and of all.
const IDLE_PEER_MAX: usize = 4;
const IDLE_MAX: usize = 256;

/// How a socket transport connects, and how its cells land.
#[async_trait]
pub(super) trait Dialer: Send + Sync + 'static {
    type Read: AsyncRead + Unpin + Send + 'static;
    type Write: AsyncWrite + Unpin + Send + 'static;
    /// What a connection has besides: shared memory, for one.
    type Extra: Send + 'static;

    /// Where the peer serves this transport.
    fn address(pull: &Pull) -> &str;

    async fn connect(&self, pull: &Pull) -> io::Result<Line<Self>>;

    /// Lands the payloads of a record of cells. `words`: to the source.
    async fn land(
        line: (&mut Self::Read, &Self::Extra),
        record: &Record,
        words: &mpsc::Sender<Vec<u8>>,
        assembly: &mut Assembly<'_>,
        round: &mut Round,
    ) -> Result<Landed, LandError>;
}

/// Why cells did not land.
pub(super) enum LandError {
    Read(ReadError),
    Pull(PullError),
}

impl From<io::Error> for LandError {
    fn from(error: io::Error) -> Self {
        Self::Read(error.into())
    }
}

impl From<ReadError> for LandError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<PullError> for LandError {
    fn from(error: PullError) -> Self {
        Self::Pull(error)
    }
}

/// A connection.
pub(super) struct Line<D: Dialer + ?Sized> {
    pub(super) read: D::Read,
    pub(super) write: D::Write,
    pub(super) extra: D::Extra,
}

/// Opens fetches over sockets; connections whose last fetch ended clean are used again.
pub(super) struct SocketTransport<D: Dialer> {
    dialer: D,
    idle: Arc<Idle<D>>,
    tasks: TaskTracker,
}

struct Idle<D: Dialer>(Mutex<HashMap<String, Vec<Line<D>>>>);

impl<D: Dialer> Idle<D> {
    fn take(&self, address: &str) -> Option<Line<D>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(address)?.pop()
    }

    fn put(&self, address: String, line: Line<D>) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.values().map(Vec::len).sum::<usize>() >= IDLE_MAX {
            idle.clear();
        }
        let lines = idle.entry(address).or_default();
        if lines.len() < IDLE_PEER_MAX {
            lines.push(line);
        }
    }
}

impl<D: Dialer> SocketTransport<D> {
    pub(super) fn new(dialer: D) -> Self {
        Self { dialer, idle: Arc::new(Idle(Mutex::default())), tasks: TaskTracker::new() }
    }

    /// Asks over a kept connection, or a new one.
    async fn ask(&self, pull: &Pull, ask: &[u8]) -> Result<Line<D>, OpenError> {
        while let Some(mut line) = self.idle.take(D::address(pull)) {
            // One that the source has closed says so at once: nothing is read, and the next is tried.
            let mut probe = [0; 1];
            let mut probe = tokio::io::ReadBuf::new(&mut probe);
            let quiet = std::future::poll_fn(|cx| {
                let polled = std::pin::Pin::new(&mut line.read).poll_read(cx, &mut probe);
                std::task::Poll::Ready(polled.is_pending())
            });
            if quiet.await && line.write.write_all(ask).await.is_ok() {
                return Ok(line);
            }
        }
        let unreachable = |error: io::Error| OpenError::Unreachable(error.to_string());
        let connected = timeout(CONNECT_TIME, self.dialer.connect(pull)).await;
        let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let mut line = connected.map_err(unreachable)?;
        line.write.write_all(ask).await.map_err(unreachable)?;
        Ok(line)
    }
}

/// A peer that does not accept within this time is unreachable.
const CONNECT_TIME: Duration = Duration::from_secs(2);

#[async_trait]
impl<D: Dialer> Transport for SocketTransport<D> {
    async fn open(&self, pull: &Pull, only: &[CellId]) -> Result<Box<dyn Inlet>, OpenError> {
        let ask = encode(Kind::Ask, 0, &bytes_of(&write_ask(pull, only)), 0);
        let Line { read, write, extra } = self.ask(pull, &ask).await?;
        let (words, spoken) = mpsc::channel(WORDS_MAX);
        let spoken = with_beats(ReceiverStream::new(spoken), note(NoteKind::Holding), pull.keep_alive);
        let speaking = self.tasks.spawn(speak(write, spoken));
        Ok(Box::new(SocketInlet::<D> {
            address: D::address(pull).to_owned(),
            read,
            extra,
            words,
            speaking,
            idle: self.idle.clone(),
            tasks: self.tasks.clone(),
            progress_timeout: pull.progress_timeout,
        }))
    }
}

/// Writes what is said, until nothing more will be; gives the writing end back unless it broke.
async fn speak<W: AsyncWrite + Unpin>(mut write: W, words: impl tokio_stream::Stream<Item = Vec<u8>>) -> Option<W> {
    tokio::pin!(words);
    while let Some(word) = words.next().await {
        write.write_all(&word).await.ok()?;
    }
    Some(write)
}

fn note(kind: NoteKind) -> Vec<u8> {
    let note = wire::FetchNote { kind: kind.into(), reason: String::new() };
    encode(Kind::Note, 0, &bytes_of(&note), 0)
}

struct SocketInlet<D: Dialer> {
    address: String,
    read: D::Read,
    extra: D::Extra,
    words: mpsc::Sender<Vec<u8>>,
    /// Ends when `words` is dropped, and closes the connection unless its writing end is taken over.
    speaking: JoinHandle<Option<D::Write>>,
    idle: Arc<Idle<D>>,
    tasks: TaskTracker,
    progress_timeout: Duration,
}

#[async_trait]
impl<D: Dialer> Inlet for SocketInlet<D> {
    async fn next(&mut self, assembly: &mut Assembly<'_>, round: &mut Round) -> Result<Arrived, PullError> {
        let stalled = |_| PullError::Stalled;
        let record = match timeout(self.progress_timeout, read_record(&mut self.read)).await.map_err(stalled)? {
            Ok(Some(record)) => record,
            Ok(None) => return Err(PullError::PeerLost(rpc::status::cut_off())),
            Err(error) => return read_failed(error),
        };
        let message = match record.prelude.kind {
            Kind::Cells => {
                let line = (&mut self.read, &self.extra);
                let landing = D::land(line, &record, &self.words, assembly, round);
                return match timeout(self.progress_timeout, landing).await.map_err(stalled)? {
                    Ok(landed) => Ok(Arrived::Cells(landed)),
                    Err(LandError::Read(error)) => read_failed(error),
                    Err(LandError::Pull(error)) => Err(error),
                };
            }
            Kind::Beat => return Ok(Arrived::Cells(Landed::default())),
            Kind::Manifest => record.decode().map(Arrived::Manifest),
            Kind::Refused => match record.decode() {
                Ok(refused) => return Err(PullError::of(read_refused(refused))),
                Err(fault) => Err(fault),
            },
            Kind::Ask | Kind::Note | Kind::Taken | Kind::Ended => {
                return Ok(Arrived::Damaged("a record that only readers send, or at the wrong time".into()));
            }
        };
        message.or_else(|fault| Ok(Arrived::Damaged(fault.to_string())))
    }

    fn end(self: Box<Self>, word: LastWord) {
        let Self { address, mut read, extra, words, speaking, idle, tasks, .. } = *self;
        let sealed = word == LastWord::Sealed;
        let last = encode(Kind::Note, 0, &bytes_of(&write_last(word)), 0);
        tasks.spawn(timeout(END_TIME, async move {
            let _ = words.send(last).await;
            drop(words);
            let write = speaking.await.ok().flatten();
            // The source's echo says that nothing of this fetch is on its way any more.
            let ended = matches!(read_record(&mut read).await, Ok(Some(record)) if record.prelude.kind == Kind::Ended);
            if let (true, true, Some(write)) = (sealed, ended, write) {
                idle.put(address, Line { read, write, extra });
            }
        }));
    }
}

fn read_failed(error: ReadError) -> Result<Arrived, PullError> {
    match error {
        ReadError::Broken(error) => {
            let message = format!("connection broke: {error}");
            let failure = Failure::new(Code::Aborted, rpc::reason::PEER_LOST, message);
            Err(PullError::PeerLost(failure.with_fault(Fault::Peer)))
        }
        ReadError::Damaged(fault) => Ok(Arrived::Damaged(fault.to_string())),
    }
}
