//! Memory of the KV cache, shared by the engine that fills it and the transfers that read and fill it.
//!
//! A *cell* is one block of one layer. It consists of *planes*: for grouped heads the keys of each KV head, then
//! the values of each, every plane `[block_tokens, row_bytes]`. Row `r` of every plane belongs to the block's token
//! `r`. Each cell has a *watermark*, the number of rows published: whoever appends writes rows at and above it,
//! whoever reads reads rows below it, so the two never meet. A watermark falls only in [`KvArena::reset`], which
//! refuses (panics) while anybody holds a [`Pin`] on the block. That makes the arena safe to share without a lock.

mod access;
mod arena;
#[cfg(test)]
mod tests;

pub use access::{Append, Pin};
pub use arena::{ArenaError, CellShape, KvArena};
