//! Chooses a token from processed logits.

use std::cmp::Ordering;

use types::{SamplingParams, TokenId};

use super::SamplingError;

/// Tokens ranked at first for top-p; doubled until they hold enough mass.
const TOP_P_RANKED_FIRST: usize = 128;

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) token: TokenId,
    logit: f32,
    /// Relative to the most likely token's weight, which is 1.
    pub(super) weight: f64,
}

/// The largest logit.
///
/// # Errors
/// NaN or plus infinity anywhere; nothing but minus infinity.
pub(super) fn checked_max(logits: &[f32]) -> Result<f32, SamplingError> {
    let (max, finite) = max_and_finite(logits);
    if !finite {
        let token = logits.iter().position(|z| z.is_nan() || *z == f32::INFINITY);
        return Err(SamplingError::NotFinite { token: token.unwrap_or_default() as TokenId });
    }
    if max == f32::NEG_INFINITY { Err(SamplingError::NothingLeft) } else { Ok(max) }
}

/// The token with the largest logit, the lowest id on ties.
pub(super) fn greedy(logits: &[f32]) -> Result<TokenId, SamplingError> {
    let max = checked_max(logits)?;
    Ok(logits.iter().position(|&z| z == max).unwrap_or_default() as TokenId)
}

/// The first token in order of ids at which the cumulative weight of the candidates exceeds `uniform`
/// (in [0, 1)) times their sum.
pub(super) fn random(logits: &[f32], params: &SamplingParams, uniform: f64) -> Result<TokenId, SamplingError> {
    let candidates = candidates(logits, params)?;
    let target = uniform * total(&candidates);
    let (mut mass, mut last) = (0.0, 0);
    for candidate in candidates.iter().filter(|c| c.weight > 0.0) {
        mass += candidate.weight;
        last = candidate.token;
        if mass > target {
            break;
        }
    }
    Ok(last)
}

/// What temperature, top-k, top-p and min-p leave, in order of ids; never empty.
pub(super) fn candidates(logits: &[f32], params: &SamplingParams) -> Result<Vec<Candidate>, SamplingError> {
    let max = f64::from(checked_max(logits)?);
    let temperature = f64::from(params.temperature);
    let possible = logits.iter().enumerate().filter(|(_, z)| **z > f32::NEG_INFINITY);
    let mut kept: Vec<_> =
        possible.map(|(id, &logit)| Candidate { token: id as TokenId, logit, weight: 0.0 }).collect();
    if params.top_k > 0 && (params.top_k as usize) < kept.len() {
        top_k(&mut kept, params.top_k as usize);
    }
    for candidate in &mut kept {
        candidate.weight = ((f64::from(candidate.logit) - max) / temperature).exp();
    }
    if params.top_p < 1.0 {
        top_p(&mut kept, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        // The largest weight is 1, so the threshold needs no normalisation.
        kept.retain(|c| c.weight >= f64::from(params.min_p));
    }
    Ok(kept)
}

/// Keeps the `k` most likely, `0 < k < kept.len()`.
fn top_k(kept: &mut Vec<Candidate>, k: usize) {
    kept.select_nth_unstable_by(k - 1, by_rank);
    kept.truncate(k);
    kept.sort_unstable_by_key(|c| c.token);
}

/// Keeps the most likely up to and including the one at which their mass reaches `p`.
fn top_p(kept: &mut Vec<Candidate>, p: f64) {
    let enough = p * total(kept);
    let (mut n_ranked, mut n_keep, mut mass) = (0, 0, 0.0);
    let mut step = TOP_P_RANKED_FIRST;
    while n_keep < kept.len() && (n_keep == 0 || mass < enough) {
        if n_keep == n_ranked {
            let rest = &mut kept[n_ranked..];
            let n = step.min(rest.len());
            rest.select_nth_unstable_by(n - 1, by_rank);
            rest[..n].sort_unstable_by(by_rank);
            n_ranked += n;
            step *= 2;
        }
        mass += kept[n_keep].weight;
        n_keep += 1;
    }
    kept.truncate(n_keep);
    kept.sort_unstable_by_key(|c| c.token);
}

/// Most likely first, ties by lowest id. Logits are never NaN here.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

fn total(kept: &[Candidate]) -> f64 {
    kept.iter().map(|c| c.weight).sum()
}

/// One pass, in lanes that the compiler turns into vector instructions.
fn max_and_finite(logits: &[f32]) -> (f32, bool) {
    const LANES: usize = 16;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut bad = [false; LANES];
    for chunk in chunks {
        for lane in 0..LANES {
            let z = chunk[lane];
            max[lane] = if z > max[lane] { z } else { max[lane] };
            bad[lane] |= z.is_nan() | (z == f32::INFINITY);
        }
    }
    let largest = max.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &z| if z > a { z } else { a });
    let finite = !bad.contains(&true) && rest.iter().all(|z| !z.is_nan() && *z != f32::INFINITY);
    (largest, finite)
}
