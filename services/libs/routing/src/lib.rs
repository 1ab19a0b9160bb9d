//! Which workers serve a request: a table of what is known about them, and a policy that picks.
//!
//! Pure: members, load reports, cached prefixes, failures and the time come in; choices come out, each with its reasons.
//! Not here: the registry, connections, reservations, what is cached where (crate `index`). Begin with [`WorkerTable`],
//! then [`Policy`].

mod choose;
mod estimate;
mod explain;
mod health;
mod in_flight;
mod policy;
mod predicted;
mod score;
mod table;
mod worker;

pub use choose::{Ask, Choice, Pair};
pub use estimate::Observation;
pub use explain::{Candidate, Explanation, Partner};
pub use health::{Health, WorkerState};
pub use in_flight::InFlight;
pub use policy::{Policy, UnknownPolicy};
pub use predicted::Predicted;
pub use score::{Score, Term};
pub use table::{Changes, NoPrefill, Rules, WorkerTable};
pub use worker::{Work, WorkerInfo};
