//! What every process of ours needs before and after its real work: settings, logs, metrics, the admin port,
//! orderly shutdown.
//!
//! Not here: what a role does, command-line parsing. This is the only crate that reads the environment
//! ([`mod@env`]) and settings files ([`config`]).
//! Begin with [`Runtime`], which a service's `run` is given.

pub mod admin;
pub mod config;
pub mod env;
pub mod logging;
pub mod metrics;
pub mod progress;
mod runtime;

pub use admin::{AdminHooks, AdminServer};
pub use config::{ConfigError, load};
pub use metrics::Metrics;
pub use runtime::{Announcement, Ports, Runtime, shutdown_signal};

/// Processors this process may use: affinity and cgroup quota respected, at least 1.
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
