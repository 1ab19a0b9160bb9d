//! Clients and servers of the control plane and of the client API, with domain types on both sides.
//!
//! The traits [`worker::WorkerApi`] and [`inference::InferenceApi`] are implemented twice each: by a service
//! (behind `serve`) and by a client. In between lie gRPC, checked conversions ([`convert`]), and the one place
//! that turns failures into statuses and back ([`status`]).
//!
//! Not here: what a service does, and the KV data plane's `Fetch` (crate `transfer`, which uses [`net`] for its
//! sockets and this crate's conversions). Begin with [`worker::WorkerApi`].

pub mod context;
pub mod convert;
pub mod inference;
pub mod net;
pub mod reason;
pub mod status;
pub mod worker;

pub use context::{RequestContext, TraceContext};
pub use net::{Limits, ServeError, ServeOptions};

/// Events of one call, then its end; nothing follows an error. Dropping it cancels the call at the far side.
pub type EventStream<T> = futures::stream::BoxStream<'static, Result<T, types::Failure>>;
