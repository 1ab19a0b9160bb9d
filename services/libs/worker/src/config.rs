//! Limits of one worker.

use std::time::Duration;

use kvcache::hash::Secret;

/// Limits of one worker. Blocks and context come from the engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerConfig {
    /// Tokens computed in one step, at most: a prompt is cut into chunks of no more than this.
    pub max_step_tokens: usize,
    /// Sequences computed at a time, at most; not above `max_step_tokens`.
    pub max_running: usize,
    /// Sequences that wait for room, at most; the next one is refused.
    pub max_waiting: usize,
    /// New tokens for which admission keeps blocks, at most. A sequence that goes on for longer takes
    /// blocks as they are free, and may be preempted.
    pub reserve_cap_tokens: usize,
    /// Whether full blocks are kept for sequences that begin alike.
    pub prefix_cache: bool,
    /// Goes into the names of blocks: the same on all workers of a cluster.
    pub prefix_secret: Secret,
    /// While one tenant has more cached blocks than this part of the pool, they give way before those of others.
    pub tenant_percent: u8,
    /// A sequence that waited this long is overtaken no more.
    pub age_after: Duration,
    /// A step that takes longer makes the worker not ready.
    pub stall_after: Duration,
    /// How long shutdown waits for the running step.
    pub stop_timeout: Duration,
}

/// A limit that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A limit of the scheduler's.
    #[error(transparent)]
    Scheduler(#[from] scheduler::ConfigError),
    /// The engine's thread could not be started.
    #[error("cannot start the engine's thread: {0}")]
    Thread(String),
    /// The engine has no KV blocks.
    #[error("the engine has no KV blocks")]
    NoBlocks,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            max_step_tokens: 256,
            max_running: 64,
            max_waiting: 256,
            reserve_cap_tokens: 1024,
            prefix_cache: true,
            prefix_secret: Secret::default(),
            tenant_percent: 50,
            age_after: Duration::from_secs(2),
            stall_after: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(5),
        }
    }
}

impl WorkerConfig {
    pub(crate) fn scheduler(&self) -> scheduler::Config {
        scheduler::Config {
            max_step_tokens: self.max_step_tokens,
            max_running: self.max_running,
            max_waiting: self.max_waiting,
            reserve_cap_tokens: self.reserve_cap_tokens,
            tenant_percent: self.tenant_percent,
            age_after: self.age_after,
        }
    }
}
