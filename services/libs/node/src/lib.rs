//! A worker process's place in the cluster: its sockets, its incarnation, who may call it, how it leaves.
//!
//! The prefill and decode services are the same kind of process; what they share stands here once. Not here: what
//! they do with a request (the services), and how it is computed (crate `worker`).
//! Begin with [`run`], which reads from binding to leaving; [`Gate`] decides who may call.

mod config;
mod gate;
mod kv_events;
mod load;
mod ready;
mod run;

pub use config::{ConfigError, NodeConfig};
pub use gate::{Admitted, Gate};
pub use kv_events::kv_events;
pub use load::load_reports;
pub use run::{OpenEngine, Parts, accounting, run};
