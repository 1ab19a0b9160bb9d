//! What every process of ours needs before and after its real work: settings, logs, metrics, the admin port,
//! orderly shutdown.
//!
//! Not here: what a role does, command-line parsing. This is the only crate that reads the environment
//! ([`mod@env`]) and settings files ([`config`]).
//! Begin with [`Runtime`], which a service's `run` is given.

pub mod admin;
pub mod config;
mod cores;
pub mod env;
pub mod logging;
pub mod metrics;
pub mod progress;
mod runtime;

pub use admin::{AdminHooks, AdminServer, ExplainHook};
pub use config::{ConfigError, load};
pub use cores::{cpu_count, cpu_quota};
pub use metrics::Metrics;
pub use runtime::{Announcement, Ports, Runtime, shutdown_signal};
