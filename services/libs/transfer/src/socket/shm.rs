//! Shared memory: payloads cross in a ring that the source writes and the reader maps; records go over a unix socket.
//!
//! The reader copies out of the ring into its arena, says so, and only then is that part of the ring written again:
//! no read is torn or stale while both keep to it, and the checksum, taken of the reader's own copy, shows if one did
//! not. The ring belongs to one connection. What lies in it are the cells that this reader was offered: the arena
//! itself is never mapped by another process, keeps its large pages, and a reader that hangs pins a ring, not blocks.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kernels::shared::{SHARED_BYTES_MAX, SharedReader, SharedWriter};
use proto::v1 as wire;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use types::Failure;

use super::open::{Dialer, LandError, Line, SocketTransport};
use super::record::{Kind, RecordFault, encode, heads, put_head};
use super::serve::{SocketOutlet, serve_all, serve_connection};
use super::stream::{ReadError, Record, bytes_of, write_record, write_refused};
use crate::assembly::{Assembly, Round};
use crate::cells::Batch;
use crate::frame::CellId;
use crate::link::{Landed, Outlet, ReaderGone, Transport, TransportKind};
use crate::pull::Pull;
use crate::source::Source;

/// A ring has this many bytes, or room for three of the largest cell (a batch and what is skipped at the ring's end):
/// small enough to stay in a cache, large enough
/// that neither side waits for the other's wake-up.
const RING_BYTES: usize = 8 << 20;
/// Payloads begin at multiples of this.
const ALIGN: usize = 64;
/// Longest path of a unix socket, bytes, with the zero at its end.
const SOCKET_PATH_MAX: usize = 107;

/// Names the running system: a unix socket's path and its memory files mean something only there.
pub fn host_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Binds the socket at `path`, which only this user can reach; what an earlier process left there is replaced.
///
/// # Errors
/// The path is too long, or the system refuses.
pub fn bind_shm(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if path.as_os_str().len() > SOCKET_PATH_MAX {
        let message = format!("a socket's path has at most {SOCKET_PATH_MAX} bytes: {}", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves `source` through shared memory until `shutdown`; fetches that run then may go on for `grace`.
pub async fn serve_shm(listener: UnixListener, source: Arc<Source>, grace: Duration, shutdown: CancellationToken) {
    let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
    let serve_one = |source: Arc<Source>, stream: UnixStream| async move {
        match begin(&source, &stream).await {
            Ok(memory) => {
                let (read, write) = stream.into_split();
                let (sender, taken) = watch::channel(0);
                let mut outlet = ShmOutlet { write, ring: Ring { memory, position: 0, taken } };
                serve_connection(&source, read, &mut outlet, sender).await;
            }
            Err(error) => tracing::warn!(%error, "cannot share memory with a reader"),
        }
    };
    serve_all(&source, grace, shutdown, accept, serve_one).await;
}

/// Makes a ring and sends it to a reader of the same user.
async fn begin(source: &Source, stream: &UnixStream) -> io::Result<SharedWriter> {
    check_peer(stream)?;
    let arena = source.arena();
    let cell_max = (0..arena.n_layers()).map(|layer| arena.cell_bytes(layer).next_multiple_of(ALIGN)).max();
    let bytes = RING_BYTES.max(cell_max.unwrap_or(0).saturating_mul(3)).min(SHARED_BYTES_MAX);
    let memory = SharedWriter::new(bytes)?;
    stream.async_io(Interest::WRITABLE, || send_file(stream, &memory)).await?;
    Ok(memory)
}

pub(crate) fn send_file(stream: &UnixStream, memory: &SharedWriter) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [memory.file()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)), "there is space for one file");
    sendmsg(stream.as_fd(), &[IoSlice::new(&[0])], &mut control, SendFlags::empty())?;
    Ok(())
}

/// The first byte of a connection, and the file that came with it.
pub(crate) fn receive_file(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    let file = files.next().and_then(|mut files| files.next());
    match file {
        Some(file) if received.bytes == 1 && !received.flags.contains(ReturnFlags::CTRUNC) => Ok(file),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the source sent no memory")),
    }
}

/// Both ends belong to one user: file permissions say so too, but not in every namespace.
fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let (peer, own) = (stream.peer_cred()?.uid(), rustix::process::geteuid().as_raw());
    if peer != own {
        let message = format!("the other side belongs to user {peer}, not {own}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

struct ShmOutlet {
    write: OwnedWriteHalf,
    ring: Ring,
}

/// The source's view of the ring. Positions count bytes since the connection began.
struct Ring {
    memory: SharedWriter,
    /// Everything before it was written.
    position: u64,
    /// Everything before it was copied out.
    taken: watch::Receiver<u64>,
}

impl Ring {
    /// Waits for room, and returns where a payload of `len` bytes goes.
    async fn place(&mut self, len: usize) -> Result<usize, ReaderGone> {
        let size = self.memory.len() as u64;
        let (begin, end) = place(self.position, len, size).ok_or(ReaderGone)?;
        // The reader says what it took; a position ahead of the writing one is a lie that hurts itself alone.
        self.taken.wait_for(|&taken| end - taken.min(self.position) <= size).await.map_err(|_| ReaderGone)?;
        self.position = end;
        Ok((begin % size) as usize)
    }
}

/// Positions of a payload's begin and end: in one piece, so before the ring's end or at its beginning.
fn place(position: u64, len: usize, size: u64) -> Option<(u64, u64)> {
    let len = (len as u64).next_multiple_of(ALIGN as u64);
    let begin = if position % size + len > size { position.next_multiple_of(size) } else { position };
    // Up to the end of the round that it begins in, nothing before it is needed.
    (len <= size).then_some((begin, begin + len))
}

fn gone(_: io::Error) -> ReaderGone {
    ReaderGone
}

#[async_trait]
impl Outlet for ShmOutlet {
    fn kind(&self) -> TransportKind {
        TransportKind::Shm
    }

    async fn cells(&mut self, mut batch: Batch) -> Result<Vec<u64>, ReaderGone> {
        let mut control = Vec::new();
        for at in 0..batch.cells.len() {
            let place = self.ring.place(batch.cells[at].bytes).await?;
            let payload_sum = self.ring.memory.write(place, batch.payload(&batch.cells[at]).bytes());
            batch.set_checksum(at, payload_sum);
            batch.with_head(&batch.cells[at], |head| put_head(&mut control, head, place as u64));
        }
        let record = encode(Kind::Cells, batch.cells.len(), &control, self.ring.position);
        tokio::io::AsyncWriteExt::write_all(&mut self.write, &record).await.map_err(gone)?;
        Ok(batch.sums())
    }

    async fn beat(&mut self) -> Result<(), ReaderGone> {
        write_record(&mut self.write, Kind::Beat, &[], 0).await.map_err(gone)
    }

    async fn manifest(&mut self, manifest: wire::Manifest) -> Result<(), ReaderGone> {
        write_record(&mut self.write, Kind::Manifest, &bytes_of(&manifest), 0).await.map_err(gone)
    }

    async fn refuse(&mut self, failure: &Failure) -> Result<(), ReaderGone> {
        write_record(&mut self.write, Kind::Refused, &bytes_of(&write_refused(failure)), 0).await.map_err(gone)
    }
}

#[async_trait]
impl SocketOutlet for ShmOutlet {
    async fn ended(&mut self) -> Result<(), ReaderGone> {
        write_record(&mut self.write, Kind::Ended, &[], 0).await.map_err(gone)
    }
}

/// Opens fetches through shared memory.
pub(crate) fn shm_transport() -> Arc<dyn Transport> {
    Arc::new(SocketTransport::new(ShmDialer))
}

struct ShmDialer;

#[async_trait]
impl Dialer for ShmDialer {
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;
    type Extra = SharedReader;

    fn address(pull: &Pull) -> &str {
        &pull.endpoints.shm
    }

    async fn connect(&self, pull: &Pull) -> io::Result<Line<Self>> {
        let stream = UnixStream::connect(Self::address(pull)).await?;
        check_peer(&stream)?;
        let file = stream.async_io(Interest::READABLE, || receive_file(&stream)).await?;
        let extra = SharedReader::open(&file)?;
        let (read, write) = stream.into_split();
        Ok(Line { read, write, extra })
    }

    async fn land(
        (_, memory): (&mut OwnedReadHalf, &SharedReader),
        record: &Record,
        words: &mpsc::Sender<Vec<u8>>,
        assembly: &mut Assembly<'_>,
        round: &mut Round,
    ) -> Result<Landed, LandError> {
        let mut landed = Landed { n_cells: record.prelude.count as u64, ..Landed::default() };
        for (head, at) in heads(&record.control) {
            landed.bytes = landed.bytes.saturating_add(head.payload_bytes);
            let fault = match assembly.begin(round, &head)? {
                Ok(mut slot) => {
                    let at = inside(at, slot.bytes_mut().len(), memory.len())
                        .ok_or(ReadError::Damaged(RecordFault("place in shared memory")))?;
                    let payload_sum = memory.read(at, slot.bytes_mut());
                    assembly.land(round, slot, payload_sum)?.err()
                }
                Err(fault) => Some(fault),
            };
            if let Some(fault) = fault {
                landed.rejected.push((CellId { block: head.block, layer: head.layers.0 }, fault));
            }
        }
        let taken = encode(Kind::Taken, 0, &[], record.prelude.extent);
        words.send(taken).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(landed)
    }
}

/// Where a payload lies, if it lies in the ring.
fn inside(at: u64, len: usize, size: usize) -> Option<usize> {
    let at = usize::try_from(at).ok()?;
    (at <= size && len <= size - at).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_lie_in_one_piece() {
        for (position, len, want) in [
            (0, 64, Some((0, 64))),
            (0, 1, Some((0, 64))),
            (960, 64, Some((960, 1024))),
            (960, 65, Some((1024, 1152))),
            (1024, 1024, Some((1024, 2048))),
            (1088, 1024, Some((2048, 3072))),
            (0, 1025, None),
        ] {
            assert_eq!(place(position, len, 1024), want, "{len} bytes at {position}");
        }
        assert_eq!(inside(1000, 24, 1024), Some(1000));
        for (at, len) in [(1000, 25), (1025, 0), (u64::MAX, 1)] {
            assert_eq!(inside(at, len, 1024), None);
        }
    }

    #[tokio::test]
    async fn the_ring_waits_for_what_is_not_taken() {
        let (sender, taken) = watch::channel(0);
        let mut ring = Ring { memory: SharedWriter::new(4096).unwrap(), position: 0, taken };
        assert_eq!(ring.place(3000).await.unwrap(), 0);
        let waits = tokio::time::timeout(Duration::from_millis(20), ring.place(2000)).await;
        assert!(waits.is_err(), "the first payload has not been taken");
        sender.send_replace(3008);
        assert_eq!(ring.place(2000).await.unwrap(), 0, "the next begins anew");
        drop(sender);
        assert!(ring.place(4000).await.is_err());
    }
}
