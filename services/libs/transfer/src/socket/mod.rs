//! Transports on a socket of their own: the same records, over TCP with their payloads, over a unix socket with the
//! payloads in shared memory.
//!
//! A connection carries one fetch at a time. It is kept for the next one only when both sides have said that the last
//! is over; in every other case it is closed, and that is what fences the other side.

mod open;
pub mod record;
mod serve;
#[cfg(target_os = "linux")]
pub(crate) mod shm;
pub(crate) mod stream;
mod tcp;

#[cfg(target_os = "linux")]
pub(crate) use shm::shm_transport;
#[cfg(target_os = "linux")]
pub use shm::{bind_shm, host_id, serve_shm};
pub(crate) use tcp::tcp_transport;
pub use tcp::{SOCKET_BUFFER_BYTES, bind_tcp, serve_tcp};
