//! Log-probabilities of the model's own distribution, before any processing.

use types::{TokenId, TopLogprob};

/// What must be remembered of the raw logits before they are overwritten.
pub(super) struct Raw {
    logits: Vec<f32>,
    log_sum: f64,
    pub(super) top: Vec<TopLogprob>,
}

impl Raw {
    /// `max`: the largest of `logits`, finite. `n_top`: alternatives to report.
    pub(super) fn of(logits: &[f32], max: f32, n_top: usize) -> Self {
        let max = f64::from(max);
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let mut raw = Self { logits: logits.to_vec(), log_sum: max + sum.ln(), top: Vec::new() };
        raw.top = largest(logits, n_top)
            .into_iter()
            .map(|token| TopLogprob { token, logprob: raw.logprob(token) })
            .filter(|t| t.logprob > f32::NEG_INFINITY)
            .collect();
        raw
    }

    pub(super) fn logprob(&self, token: TokenId) -> f32 {
        (f64::from(self.logits[token as usize]) - self.log_sum) as f32
    }
}

/// Ids of the `n` largest values, largest first, ties by lowest id. Meant for small `n`.
fn largest(values: &[f32], n: usize) -> Vec<TokenId> {
    let mut best: Vec<TokenId> = Vec::with_capacity(n + 1);
    for (id, &value) in values.iter().enumerate() {
        if best.len() == n && best.last().is_none_or(|&last| value <= values[last as usize]) {
            continue;
        }
        let at = best.partition_point(|&other| values[other as usize] >= value);
        best.insert(at, id as TokenId);
        best.truncate(n);
    }
    best
}
