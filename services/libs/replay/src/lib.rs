//! Recorded arrivals against the routing policies and the prefix index, in simulated time.
//!
//! The table, the policy and the index are those of a router; workers, caches and times are modelled. A replay is a pure
//! function of its trace and its setup. Not here: files, the wall clock, real workers. Begin with [`run`].

mod cache;
mod outcome;
mod setup;
mod simulation;
mod trace;

pub use outcome::{Outcome, Quantiles};
pub use setup::{Knowledge, PrefillTime, Setup};
pub use simulation::run;
pub use trace::{Arrival, Trace, TraceError};
