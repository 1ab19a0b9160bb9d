//! What the machine can do: the same bytes over a plain connection, and by memcpy.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kernels::kv::KvArena;
use tokio::net::TcpSocket;
use transfer::SOCKET_BUFFER_BYTES;

use super::arena::{self, Layout};

/// Sends every cell of the arena, one write a cell.
pub(super) fn send(mut stream: TcpStream, arena: &KvArena, layout: Layout) -> anyhow::Result<()> {
    for (layer, block) in layout.cells() {
        let pin = arena.pin(block);
        stream.write_all(pin.cell(layer).context("the arena is full")?)?;
    }
    Ok(())
}

/// Receives every cell into the arena; the time from connecting to the last byte.
pub(super) async fn receive(address: &str, arena: &KvArena, layout: Layout) -> anyhow::Result<Duration> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    let started = Instant::now();
    let mut stream = blocking(socket.connect(address.parse()?).await?)?;
    tokio::task::block_in_place(|| arena::fill_all(arena, layout, |_, _, cell| stream.read_exact(cell)))?;
    Ok(started.elapsed())
}

/// As the standard library has it.
pub(super) fn blocking(stream: tokio::net::TcpStream) -> anyhow::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// As many bytes as the arena has, written once.
pub(super) fn memory(layout: Layout) -> anyhow::Result<Vec<u8>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(layout.bytes()).context("no memory for a second copy")?;
    memory.resize(layout.bytes(), 0xA5);
    Ok(memory)
}

/// Copies `from` into the arena, cell by cell.
pub(super) fn copy(from: &[u8], arena: &KvArena, layout: Layout) -> anyhow::Result<Duration> {
    let started = Instant::now();
    let mut cells = from.chunks_exact(layout.cell_bytes);
    arena::fill_all(arena, layout, |_, _, cell| {
        cell.copy_from_slice(cells.next().expect("as many bytes as the arena"));
        Ok(())
    })?;
    Ok(started.elapsed())
}
