//! What is simulated.

use std::time::Duration;

use routing::Policy;

/// A cluster of prefill workers and the router before them.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setup {
    /// How workers are chosen.
    pub policy: Policy,
    /// From what the router knows their caches.
    pub knowledge: Knowledge,
    /// Prefill workers; each computes one prompt at a time, in order.
    pub n_workers: usize,
    /// Blocks that each worker's cache holds.
    pub cache_blocks: usize,
    /// How long a prompt takes.
    pub time: PrefillTime,
    /// Arrivals come so many times as fast as they were recorded.
    pub speed: f64,
}

/// From what a router knows what workers hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Knowledge {
    /// Every worker sends events.
    Events,
    /// None does: from its own choices.
    Choices,
}

/// Time to compute a prompt of which a part is cached: `fixed + token * uncached + pair * (all² - cached²)`, seconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PrefillTime {
    /// Of any prompt.
    pub fixed: f64,
    /// For each token to be computed.
    pub token: f64,
    /// For each pair of tokens, one of them to be computed.
    pub pair: f64,
}

impl PrefillTime {
    /// A model of 13 billion parameters on four A100 (tensor parallel): DistServe's fit of its measurements
    /// (LLMServe/DistServe, simdistserve/estimators/profile_data, `facebook/opt-13b`, 4).
    pub const A100X4_13B: Self = Self { fixed: 12.062e-3, token: 38.081e-6, pair: 522.62e-12 };

    pub(crate) fn of(&self, n_prompt: u32, cached: u32) -> Duration {
        let (all, cached) = (f64::from(n_prompt), f64::from(cached.min(n_prompt)));
        let pairs = all * all - cached * cached;
        Duration::from_secs_f64(self.fixed + self.token * (all - cached) + self.pair * pairs)
    }
}
