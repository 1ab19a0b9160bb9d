//! Which worker holds which prefix: what the workers say, and what the router's own choices make likely.
//!
//! Pure: event batches, choices and the time come in; numbers of leading blocks come out. Not here: hashing (crate
//! `kvcache`), the choice of a worker (crate `routing`), how events travel. Memory is allocated once and never grows.
//! Begin with [`PrefixIndex`].

mod error;
mod guesses;
mod prefix_index;
mod slots;
mod stream;
mod tree;

pub use error::{ApplyError, Resync};
pub use prefix_index::{Applied, Config, Match, PrefixIndex, Stats};
