//! Who owns each block of the KV cache, and what a block is called.
//!
//! Pure bookkeeping: block indices and counts, no memory, no clock, no task. The bytes lie in
//! `kernels::kv::KvArena`; who may have how many blocks is decided by `scheduler`.
//!
//! - [`BlockPool`]: hands out blocks and takes them back. Requests and transfers own blocks in their
//!   own right; a block without owner of either kind is free, or cached if it was sealed under its name.
//! - [`hash`]: the prefix keys that name blocks by their content.
//! - [`EventLog`]: what became of the named blocks, for those who follow from afar.
//!
//! Begin reading at [`BlockPool`], then `cache.rs` for which content is kept.

mod cache;
mod event_log;
pub mod hash;
mod pool;

pub use event_log::{EventLog, Lost};
pub use hash::Tenant;
pub use pool::{BlockPool, Hit, OutOfBlocks, PoolAccounting, RequestBlocks, TransferBlocks};
