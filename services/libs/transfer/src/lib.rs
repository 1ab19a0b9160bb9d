//! The KV data plane: a decode worker pulls a prompt's blocks from a prefill worker while they are computed.
//!
//! The side that computes makes an [`Offer`] to its [`Source`], which serves it to the one declared reader, cell by
//! cell as the arena publishes rows, and closes with a manifest that carries the handoff record. The side that
//! decodes calls [`Puller::pull`]: every frame is checked before its bytes are used, damaged cells are asked for
//! once more, and only a complete, matching set of cells returns `Ok`.
//!
//! Not here: who owns blocks (crate `worker`; this crate sees a [`KvHold`]) and what to do when a pull fails (the
//! decode service). Three transports carry a fetch: [`TransportKind`]; what must hold for all of them is written once.
//! Begin with `pull.rs` and `produce.rs`, the two ends, then `link.rs`, what a transport is.
//!
//! **Invariant**: bytes are exported only while the offer's hold is alive. The hold ends when the reader says that it
//! has everything or gave up, or when its connection is closed, never by a clock alone.

mod ask;
mod assembly;
mod cells;
mod choice;
pub mod frame;
mod grpc;
mod link;
mod manifest;
mod metrics;
mod notes;
mod offer;
mod produce;
mod pull;
mod socket;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

pub use choice::TransportChoice;
pub use frame::Checksum;
pub use grpc::serve;
pub use link::TransportKind;
pub use metrics::Metrics;
pub use notes::KEEP_ALIVE;
pub use offer::{EndCause, Ended, KvHold, Offer, OfferHandle};
pub use pull::{Pull, PullError, Pulled, Puller};
pub use socket::{SOCKET_BUFFER_BYTES, bind_tcp, record, serve_tcp};
#[cfg(target_os = "linux")]
pub use socket::{bind_shm, host_id, serve_shm};
pub use source::{Source, SourceConfig};
