//! Tensor operations and the memory they work on.
//!
//! Here: the KV cache's memory ([`kv::KvArena`]), a small thread pool ([`pool::Pool`]), and the operations of a
//! transformer, each twice: [`mod@reference`] is plain and slow, the oracle of every test; [`cpu`] is the fast path.
//! Not here: models, files, requests, any decision about what to compute.
//!
//! **Numerics contract.** Each output row is a fixed sequence of float operations of that row and the weights
//! alone: sums run over `k` in order with one fused multiply-add per term, attention runs over KV rows in order in
//! tiles of a fixed size. Batch, thread count and instruction set change which lanes do the work, never the bits.
//!
//! This is the one crate that may use `unsafe`; each use names the check that makes it sound.
//! Begin with [`cpu`].

#![allow(unsafe_code)]

pub mod affinity;
pub mod checksum;
pub mod cpu;
pub mod isa;
pub mod kv;
mod memory;
pub mod pool;
pub mod quant;
pub mod reference;
#[cfg(target_os = "linux")]
pub mod shared;

pub use isa::{Isa, IsaError};

/// Name and version of this crate's arithmetic. Equal names mean equal bits, on every machine and instruction level;
/// whoever changes a result's bits raises the number, so that a cluster in which both run knows.
pub const NUMERICS: &str = "cpu-2";
