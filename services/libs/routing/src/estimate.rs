//! How long things take on a worker, learned while serving.
//!
//! A prior has the shape of the times: a prompt's is linear in its tokens and in the pairs that attend to each other, a
//! step's in its sequences and their context, a transfer's in its tokens. What is learned is a factor for each worker,
//! on top of one for the whole cluster: machine and model decide the latter, and a worker about which nothing was
//! heard lately is thought to be like the others.
//!
//! The factors are means of logarithms, weighted exponentially. An observation moves a factor by at most
//! [`STEP_MAX`], so a stalled request does not make its worker an outcast; and a worker's own factor goes back to 1 with
//! a half-life, so one that was slow once is tried again.

use std::time::Duration;

/// Seconds of a prompt token before anything was observed.
const PROMPT_PRIOR: f64 = 1e-4;
/// Seconds of a decode step: its own, for each sequence, for each token of context. Shape of the published fit for a
/// model of 13 billion parameters on one A100 (DistServe's profile data).
const STEP_PRIOR: [f64; 3] = [2e-2, 4e-5, 6e-7];
/// Seconds of a token's KV on the way: one megabyte at ten gigabytes per second.
const TRANSFER_PRIOR: f64 = 1e-4 / 10.0;
/// Least weight of an observation: of a worker's factor, and of the cluster's.
const WORKER_WEIGHT: f64 = 1.0 / 8.0;
const CLUSTER_WEIGHT: f64 = 1.0 / 64.0;
/// Observations that count in full, whatever they say.
const N_TRUSTED: u32 = 4;
/// Most that a later observation counts for, as a logarithm: four times as slow.
const STEP_MAX: f64 = 1.386;
/// Of a worker's factor.
const HALF_LIFE: f64 = 60.0;

/// Something that was timed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Observation {
    /// A prompt was computed, without its time in a queue.
    Prompt {
        /// Tokens, as by [`Work::prompt_cost`](crate::Work::prompt_cost).
        cost: u64,
        /// Until the first token.
        time: Duration,
    },
    /// A step of all sequences: the time between two tokens of one.
    Step {
        /// How long.
        time: Duration,
    },
    /// Blocks came from a prefill worker.
    Transfer {
        /// Tokens in them.
        tokens: u64,
        /// From the first token until they were complete.
        time: Duration,
    },
}

/// A factor on a prior.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Factor {
    log: f64,
    n: u32,
    at: Duration,
}

impl Factor {
    /// Takes the logarithm of an observed ratio.
    fn observe(&mut self, log: f64, least_weight: f64, now: Duration) {
        let trusted = self.n < N_TRUSTED;
        self.n = self.n.saturating_add(1);
        let weight = (1.0 / f64::from(self.n)).max(least_weight);
        let moved = if trusted { log - self.log } else { (log - self.log).clamp(-STEP_MAX, STEP_MAX) };
        self.log += weight * moved;
        self.at = now;
    }

    /// The logarithm, on its way back to 0.
    fn faded(&self, now: Duration) -> f64 {
        self.log * (-now.saturating_sub(self.at).as_secs_f64() / HALF_LIFE).exp2()
    }
}

/// Factors of one worker, or of the cluster.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Factors {
    prompt: Factor,
    step: Factor,
    transfer: Factor,
}

impl Factors {
    /// A worker's times now.
    pub(crate) fn pace(&self, cluster: &Self, now: Duration) -> Pace {
        let factor = |own: Factor, all: Factor| (own.faded(now) + all.log).exp();
        Pace {
            prompt: factor(self.prompt, cluster.prompt),
            step: factor(self.step, cluster.step),
            transfer: factor(self.transfer, cluster.transfer),
        }
    }

    /// Learns from a worker that had so many sequences with so much context.
    pub(crate) fn observe(&mut self, cluster: &mut Self, seen: Observation, busy: (u64, u64), now: Duration) {
        let prior = Pace { prompt: 1.0, step: 1.0, transfer: 1.0 };
        let (own, all, predicted, time) = match seen {
            Observation::Prompt { cost, time } => (&mut self.prompt, &mut cluster.prompt, prior.prompt(cost), time),
            Observation::Step { time } => (&mut self.step, &mut cluster.step, prior.step(busy.0, busy.1), time),
            Observation::Transfer { tokens, time } => {
                (&mut self.transfer, &mut cluster.transfer, prior.transfer(tokens), time)
            }
        };
        if time.is_zero() || predicted <= 0.0 {
            return;
        }
        let log = (time.as_secs_f64() / predicted).ln();
        all.observe(log, CLUSTER_WEIGHT, now);
        own.log = own.faded(now);
        own.observe(log - all.log, WORKER_WEIGHT, now);
    }
}

/// Predicted times of one worker.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Pace {
    prompt: f64,
    step: f64,
    transfer: f64,
}

impl Pace {
    /// Seconds for prompt tokens, counted as by `Work::prompt_cost`.
    pub(crate) fn prompt(&self, cost: u64) -> f64 {
        self.prompt * PROMPT_PRIOR * cost as f64
    }

    /// Seconds of a step of `sequences` with `context` tokens in all.
    pub(crate) fn step(&self, sequences: u64, context: u64) -> f64 {
        let [own, sequence, token] = STEP_PRIOR;
        self.step * (own + sequence * sequences as f64 + token * context as f64)
    }

    /// Seconds until the blocks of so many tokens have come.
    pub(crate) fn transfer(&self, tokens: u64) -> f64 {
        self.transfer * TRANSFER_PRIOR * tokens as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(cost: u64, seconds: f64) -> Observation {
        Observation::Prompt { cost, time: Duration::from_secs_f64(seconds) }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn learns_the_machine_in_a_few_requests_and_shares_it() {
        let (mut cluster, mut a, b) = (Factors::default(), Factors::default(), Factors::default());
        for n in 0..4 {
            a.observe(&mut cluster, prompt(1000, 50.0), (0, 0), at(n));
        }
        for worker in [&a, &b] {
            let predicted = worker.pace(&cluster, at(4)).prompt(2000);
            assert!((predicted - 100.0).abs() < 1.0, "{predicted}: twice the tokens, twice the time");
        }
    }

    #[test]
    fn tells_a_slow_worker_from_the_others_and_forgives_it() {
        let (mut cluster, mut slow, mut fast) = (Factors::default(), Factors::default(), Factors::default());
        for n in 0..100 {
            slow.observe(&mut cluster, prompt(1000, 0.4), (0, 0), at(n));
            fast.observe(&mut cluster, prompt(1000, 0.1), (0, 0), at(n));
        }
        let ratio = |now| slow.pace(&cluster, now).prompt(1000) / fast.pace(&cluster, now).prompt(1000);
        assert!((3.0..5.0).contains(&ratio(at(100))), "{}", ratio(at(100)));
        assert!((1.8..2.3).contains(&ratio(at(160))), "half of it a half-life later: {}", ratio(at(160)));
        assert!(ratio(at(1000)) < 1.01);
    }

    #[test]
    fn one_outlier_is_not_believed() {
        let (mut cluster, mut a) = (Factors::default(), Factors::default());
        for n in 0..20 {
            a.observe(&mut cluster, prompt(1000, 0.1), (0, 0), at(n));
        }
        a.observe(&mut cluster, prompt(1000, 1000.0), (0, 0), at(20));
        let predicted = a.pace(&cluster, at(20)).prompt(1000);
        assert!(predicted < 0.1 * 1.3, "ten thousand times as slow once makes {predicted} of 0.1");
    }

    #[test]
    fn nonsense_teaches_nothing() {
        let (mut cluster, mut a) = (Factors::default(), Factors::default());
        a.observe(&mut cluster, prompt(0, 1.0), (0, 0), at(0));
        a.observe(&mut cluster, prompt(100, 0.0), (0, 0), at(0));
        assert_eq!((cluster, a), Default::default());
    }
}
