//! Who owns each block of the KV cache, and what a block is called.
//!
//! Pure bookkeeping: block indices and counts, no memory, no clock, no task. The bytes lie in
//! `kernels::kv::KvArena`; who may have how many blocks is decided by `scheduler`.
//!
//! - [`BlockPool`]: hands out blocks and takes them back. Requests and transfers own blocks in their
//!   own right; a block is free only when it has no owner of either kind.
//! - [`hash`]: the prefix keys that name blocks by their content.
//!
//! Begin reading at [`BlockPool`].

pub mod hash;
mod pool;

pub use pool::{BlockPool, OutOfBlocks, PoolAccounting, RequestBlocks, TransferBlocks};
