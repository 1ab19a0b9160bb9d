//! Limits.

use std::time::Duration;

/// Limits of a scheduler.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Tokens of one step, at most.
    pub max_step_tokens: usize,
    /// Sequences computed at a time, at most; not above `max_step_tokens`, so that each step has room
    /// for all of them.
    pub max_running: usize,
    /// Sequences that wait, at most (preempted ones may exceed it).
    pub max_waiting: usize,
    /// New tokens for which admission keeps blocks, at most.
    pub reserve_cap_tokens: usize,
    /// While one tenant has more cached blocks than this part of the pool, they give way before those of others; 100:
    /// all are alike.
    pub tenant_percent: u8,
    /// A sequence this old is overtaken no more, neither in admission nor in the step's token budget.
    pub age_after: Duration,
}

/// A limit that cannot be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// A limit that must be at least 1 is 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A part that is more than the whole.
    #[error("tenant_percent is {0}, above 100")]
    Percent(u8),
    /// Running decodes would not fit into a step.
    #[error("max_running is {max_running}, above max_step_tokens, which is {max_step_tokens}")]
    StepTooSmall {
        /// Sequences computed at a time.
        max_running: usize,
        /// Tokens of one step.
        max_step_tokens: usize,
    },
}

impl Config {
    /// Checks the limits.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let named = [
            ("max_step_tokens", self.max_step_tokens),
            ("max_running", self.max_running),
            ("max_waiting", self.max_waiting),
            ("reserve_cap_tokens", self.reserve_cap_tokens),
        ];
        if let Some((name, _)) = named.into_iter().find(|&(_, value)| value == 0) {
            return Err(ConfigError::Zero(name));
        }
        if self.tenant_percent > 100 {
            return Err(ConfigError::Percent(self.tenant_percent));
        }
        if self.max_running > self.max_step_tokens {
            let (max_running, max_step_tokens) = (self.max_running, self.max_step_tokens);
            return Err(ConfigError::StepTooSmall { max_running, max_step_tokens });
        }
        Ok(())
    }
}
