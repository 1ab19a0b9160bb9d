//! Raw TCP: payloads go from arena to arena, through the kernel and nothing else.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kernels::checksum::xxh3_64;
use proto::v1 as wire;
use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use types::Failure;

use super::open::{Dialer, LandError, Line, SocketTransport};
use super::record::{Kind, check_extent, encode, heads, put_head};
use super::serve::{SocketOutlet, serve_all, serve_connection};
use super::stream::{Record, bytes_of, write_record, write_refused};
use crate::assembly::{Assembly, Round, Slot};
use crate::cells::Batch;
use crate::frame::CellId;
use crate::link::{Landed, Outlet, ReaderGone, Transport, TransportKind};
use crate::pull::Pull;
use crate::source::Source;

/// Asked of the kernel for either direction; it gives what its limits allow.
pub const SOCKET_BUFFER_BYTES: u32 = 4 << 20;

/// Serves `source` over raw TCP until `shutdown`; fetches that run then may go on for `grace`.
pub async fn serve_tcp(listener: TcpListener, source: Arc<Source>, grace: Duration, shutdown: CancellationToken) {
    let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
    let serve_one = |source: Arc<Source>, stream: TcpStream| async move {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set nodelay");
        }
        let (read, write) = stream.into_split();
        let (taken, _) = watch::channel(0);
        serve_connection(&source, read, &mut TcpOutlet(write), taken).await;
    };
    serve_all(&source, grace, shutdown, accept, serve_one).await;
}

/// Binds a listener whose connections have large buffers.
///
/// # Errors
/// The system's.
pub fn bind_tcp(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = large_socket(address)?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// A socket with large buffers: they must be set before it is connected.
fn large_socket(address: std::net::SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}

struct TcpOutlet(OwnedWriteHalf);

fn gone(_: io::Error) -> ReaderGone {
    ReaderGone
}

#[async_trait]
impl Outlet for TcpOutlet {
    fn kind(&self) -> TransportKind {
        TransportKind::Tcp
    }

    async fn cells(&mut self, mut batch: Batch) -> Result<Vec<u64>, ReaderGone> {
        batch.seal();
        let mut control = Vec::new();
        for cell in &batch.cells {
            batch.with_head(cell, |head| put_head(&mut control, head, 0));
        }
        let record = encode(Kind::Cells, batch.cells.len(), &control, batch.payload_bytes());
        let payloads: Vec<_> = batch.cells.iter().map(|cell| batch.payload(cell)).collect();
        let mut parts = vec![IoSlice::new(&record)];
        parts.extend(payloads.iter().map(|payload| IoSlice::new(payload.bytes())));
        let mut parts = &mut parts[..];
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            match self.0.write_vectored(parts).await {
                Ok(0) | Err(_) => return Err(ReaderGone),
                Ok(n) => IoSlice::advance_slices(&mut parts, n),
            }
        }
        Ok(batch.sums())
    }

    async fn beat(&mut self) -> Result<(), ReaderGone> {
        write_record(&mut self.0, Kind::Beat, &[], 0).await.map_err(gone)
    }

    async fn manifest(&mut self, manifest: wire::Manifest) -> Result<(), ReaderGone> {
        write_record(&mut self.0, Kind::Manifest, &bytes_of(&manifest), 0).await.map_err(gone)
    }

    async fn refuse(&mut self, failure: &Failure) -> Result<(), ReaderGone> {
        write_record(&mut self.0, Kind::Refused, &bytes_of(&write_refused(failure)), 0).await.map_err(gone)
    }
}

#[async_trait]
impl SocketOutlet for TcpOutlet {
    async fn ended(&mut self) -> Result<(), ReaderGone> {
        write_record(&mut self.0, Kind::Ended, &[], 0).await.map_err(gone)
    }
}

/// Opens fetches over raw TCP.
pub(crate) fn tcp_transport() -> Arc<dyn Transport> {
    Arc::new(SocketTransport::new(TcpDialer))
}

struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    type Read = OwnedReadHalf;
    type Write = OwnedWriteHalf;
    type Extra = ();

    fn address(pull: &Pull) -> &str {
        &pull.endpoints.tcp
    }

    async fn connect(&self, pull: &Pull) -> io::Result<Line<Self>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the address has no meaning");
        for address in tokio::net::lookup_host(Self::address(pull)).await? {
            match large_socket(address)?.connect(address).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let (read, write) = stream.into_split();
                    return Ok(Line { read, write, extra: () });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn land(
        (read, ()): (&mut OwnedReadHalf, &()),
        record: &Record,
        _: &mpsc::Sender<Vec<u8>>,
        assembly: &mut Assembly<'_>,
        round: &mut Round,
    ) -> Result<Landed, LandError> {
        check_extent(&record.prelude, &record.control).map_err(super::stream::ReadError::from)?;
        let mut landed =
            Landed { n_cells: record.prelude.count as u64, bytes: record.prelude.extent, ..Landed::default() };
        // Cells up to one that has no place here are read at once, each into its place.
        let mut slots = Vec::new();
        for (head, _) in heads(&record.control) {
            match assembly.begin(round, &head)? {
                Ok(slot) => slots.push(slot),
                Err(fault) => {
                    land_all(read, std::mem::take(&mut slots), assembly, round, &mut landed).await?;
                    landed.rejected.push((CellId { block: head.block, layer: head.layers.0 }, fault));
                    skip(read, head.payload_bytes).await?;
                }
            }
        }
        land_all(read, slots, assembly, round, &mut landed).await?;
        Ok(landed)
    }
}

async fn land_all<'a>(
    read: &mut OwnedReadHalf,
    mut slots: Vec<Slot<'a>>,
    assembly: &mut Assembly<'a>,
    round: &mut Round,
    landed: &mut Landed,
) -> Result<(), LandError> {
    read_all(read, &mut slots).await?;
    for mut slot in slots {
        let cell = slot.cell();
        let payload_sum = if assembly.hashes() { xxh3_64(slot.bytes_mut()) } else { 0 };
        if let Err(fault) = assembly.land(round, slot, payload_sum)? {
            landed.rejected.push((cell, fault));
        }
    }
    Ok(())
}

/// Fills every place, in order.
async fn read_all(read: &OwnedReadHalf, slots: &mut [Slot<'_>]) -> io::Result<()> {
    let mut parts: Vec<_> = slots.iter_mut().map(|slot| IoSliceMut::new(slot.bytes_mut())).collect();
    let mut parts = &mut parts[..];
    IoSliceMut::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        read.readable().await?;
        match read.try_read_vectored(parts) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => IoSliceMut::advance_slices(&mut parts, n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads over a payload that belongs nowhere.
async fn skip(read: &mut OwnedReadHalf, n_bytes: u64) -> io::Result<()> {
    use tokio::io::AsyncReadExt as _;
    let skipped = tokio::io::copy(&mut read.take(n_bytes), &mut tokio::io::sink()).await?;
    if skipped == n_bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
