//! Plain data that two or more crates need: identities, sampling parameters, KV geometry, failures.
//!
//! Not here: behaviour, I/O, wire formats (nothing in this crate is serializable).
//! Begin with [`Failure`], the error that crosses processes, and [`KvGeometry`].

mod compat;
mod failure;
mod geometry;
mod id;
mod kv_event;
mod load;
mod phase;
mod sampling;
mod token;

pub use compat::{Compatibility, Mismatch, PROTOCOL_MAX, PROTOCOL_MIN};
pub use failure::{Code, Failure, Fault, Retry};
pub use geometry::{KvElement, KvGeometry, LayerKv, LayerKvKind};
pub use id::{BlockHash, BlockIdx, Epoch, ParseIdError, RequestId, Role, TokenId, WorkerId, WorkerRef};
pub use kv_event::{KvEvent, KvEventBatch};
pub use load::{Accounting, Load};
pub use phase::{Phase, PhaseTimes};
pub use sampling::{InvalidParam, SamplingParams, StopParams};
pub use token::{FinishReason, Handoff, Token, TopLogprob};
