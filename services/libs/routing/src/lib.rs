//! Which workers serve a request: a table of what is known about them, and a policy that picks.
//!
//! Pure: members, load reports, failures and the time come in, choices come out. Not here: the registry, connections,
//! reservations. Begin with [`WorkerTable`].

mod health;
mod in_flight;
mod policy;
mod table;
mod worker;

pub use health::{Health, WorkerState};
pub use in_flight::InFlight;
pub use policy::{Cost, LeastLoaded, Policy, Predicted};
pub use table::{Changes, NoPrefill, WorkerTable};
pub use worker::{Work, WorkerInfo};
