//! The KV data plane: a decode worker pulls a prompt's blocks from a prefill worker while they are computed.
//!
//! The side that computes makes an [`Offer`] to its [`Source`], which serves it to the one declared reader, cell by
//! cell as the arena publishes rows, and closes with a manifest that carries the handoff record. The side that
//! decodes calls [`Puller::pull`]: every frame is checked before its bytes are used, damaged cells are asked for
//! once more, and only a complete, matching set of cells returns `Ok`.
//!
//! Not here: who owns blocks (crate `worker`; this crate sees a [`KvHold`]) and what to do when a pull fails (the
//! decode service). The one transport so far is gRPC. Begin with `pull.rs` and `produce.rs`, the two ends.
//!
//! **Invariant**: bytes are exported only while the offer's hold is alive, and the hold ends only after the last
//! fetch that could read it has ended.

mod assembly;
pub mod frame;
mod manifest;
mod metrics;
mod offer;
mod produce;
mod pull;
mod service;
mod source;
#[cfg(feature = "testing")]
pub mod testing;

pub use frame::Checksum;
pub use metrics::{Metrics, TRANSPORT_GRPC};
pub use offer::{EndCause, Ended, KvHold, Offer, OfferHandle};
pub use pull::{Pull, PullError, Pulled, Puller};
pub use service::serve;
pub use source::{Source, SourceConfig};
