//! Waiting times between attempts.

use std::time::Duration;

/// How long a connection must have worked for the next attempt to begin with the shortest wait.
pub(crate) const STABLE: Duration = Duration::from_secs(5);

/// Doubles from a minimum to a maximum; each wait is drawn between half and all of it, so that many clients of one
/// registry do not come back in step.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.max);
        let random = getrandom::u32().unwrap_or(u32::MAX);
        whole.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
    }

    /// An attempt succeeded.
    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_starts_again() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        let waits: Vec<_> = (0..8).map(|_| backoff.next()).collect();
        for (n, wait) in waits.iter().enumerate() {
            let whole = (min * (1 << n)).min(max);
            assert!(*wait >= whole / 2 && *wait <= whole, "wait {n} is {wait:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= min);
    }
}
