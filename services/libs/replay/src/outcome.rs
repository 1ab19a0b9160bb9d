//! What a replay showed.

use std::time::Duration;

/// Of a whole trace.
#[derive(Clone, PartialEq, Debug)]
pub struct Outcome {
    /// Part of all blocks that were cached where their prompt was computed, when it was.
    pub hit_rate: f64,
    /// Part of all blocks that the router thought so when it chose.
    pub predicted_hit_rate: f64,
    /// From a request's arrival until its prompt was computed.
    pub first_token: Quantiles,
    /// Computing time of the busiest worker, as a multiple of the mean.
    pub busiest: f64,
    /// Computing time of all workers, as a part of what they have from the first arrival to the last end.
    pub utilization: f64,
}

/// Of some times.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Quantiles {
    /// Arithmetic mean.
    pub mean: Duration,
    /// Median.
    pub p50: Duration,
    /// 99 of 100 are no longer.
    pub p99: Duration,
}

impl Quantiles {
    /// Of any number of times, in any order.
    pub(crate) fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let Some(last) = times.len().checked_sub(1) else { return Self::default() };
        let at = |share: f64| times[(share * last as f64).round() as usize];
        let mean = times.iter().map(Duration::as_secs_f64).sum::<f64>() / times.len() as f64;
        Self { mean: Duration::from_secs_f64(mean), p50: at(0.5), p99: at(0.99) }
    }
}
