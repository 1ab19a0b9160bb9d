//! The transport that always works: `baton.v1.KvService`.

mod codec;
mod open;
mod serve;

pub(crate) use open::GrpcTransport;
pub use serve::serve;
pub(crate) use serve::too_many;
