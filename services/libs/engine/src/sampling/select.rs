//! Chooses a token from processed logits.

use std::cmp::Ordering;

use types::{SamplingParams, TokenId};

use super::SamplingError;

/// Tokens sorted at first for top-p; doubled until they hold enough mass.
const TOP_P_SORTED_FIRST: usize = 128;

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

/// A token drawn with `uniform` in [0, 1): temperature, top-k, top-p, min-p, then the first token in
/// order of ids at which the cumulative weight exceeds `uniform` times the sum.
pub(super) fn random(logits: &[f32], params: &SamplingParams, uniform: f64) -> Result<TokenId, SamplingError> {
    let max = f64::from(checked_max(logits)?);
    let temperature = f64::from(params.temperature);
    let weight = |z: f32| ((f64::from(z) - max) / temperature).exp();

    let mut kept: Vec<Candidate> = match params.top_k as usize {
        k if k > 0 && k < logits.len() => {
            let mut all: Vec<Ranked> = ranked(logits).collect();
            all.select_nth_unstable_by(k - 1, best_first);
            all.truncate(k);
            all.sort_unstable_by_key(|r| r.token);
            all.into_iter().map(|r| Candidate { weight: weight(r.logit), ..r.into() }).collect()
        }
        _ => ranked(logits).map(|r| Candidate { weight: weight(r.logit), ..r.into() }).collect(),
    };
    if params.top_p < 1.0 {
        top_p(&mut kept, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        // The largest weight is 1, so the threshold needs no normalisation.
        kept.retain(|c| c.weight >= f64::from(params.min_p));
    }
    Ok(at_mass(&kept, uniform))
}

#[derive(Clone, Copy)]
struct Ranked {
    logit: f32,
    token: TokenId,
}

#[derive(Clone, Copy)]
struct Candidate {
    /// Relative to the most likely token's, which has 1.
    weight: f64,
    logit: f32,
    token: TokenId,
}

impl From<Ranked> for Candidate {
    fn from(r: Ranked) -> Self {
        Self { weight: 0.0, logit: r.logit, token: r.token }
    }
}

/// Possible tokens in order of ids.
fn ranked(logits: &[f32]) -> impl Iterator<Item = Ranked> + '_ {
    let possible =
        |(id, &logit): (usize, &f32)| (logit > f32::NEG_INFINITY).then_some(Ranked { logit, token: id as TokenId });
    logits.iter().enumerate().filter_map(possible)
}

fn best_first(a: &Ranked, b: &Ranked) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// Keeps the most likely tokens up to and including the one at which their mass reaches `p`.
/// `kept` comes and goes in order of ids.
fn top_p(kept: &mut Vec<Candidate>, p: f64) {
    let enough = p * kept.iter().map(|c| c.weight).sum::<f64>();
    let by_rank = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token));
    let (mut sorted, mut mass, mut n_keep) = (0, 0.0, 0);
    let mut step = TOP_P_SORTED_FIRST;
    while n_keep < kept.len() && (n_keep == 0 || mass < enough) {
        if n_keep == sorted {
            let rest = &mut kept[sorted..];
            let n = step.min(rest.len());
            if n < rest.len() {
                rest.select_nth_unstable_by(n - 1, by_rank);
            }
            rest[..n].sort_unstable_by(by_rank);
            sorted += n;
            step *= 2;
        }
        mass += kept[n_keep].weight;
        n_keep += 1;
    }
    kept.truncate(n_keep);
    kept.sort_unstable_by_key(|c| c.token);
}

/// `kept` is not empty, and one of its weights is 1.
fn at_mass(kept: &[Candidate], uniform: f64) -> TokenId {
    let target = uniform * kept.iter().map(|c| c.weight).sum::<f64>();
    let mut mass = 0.0;
    let mut last = 0;
    for candidate in kept.iter().filter(|c| c.weight > 0.0) {
        mass += candidate.weight;
        last = candidate.token;
        if mass > target {
            break;
        }
    }
    last
}

/// One pass in lanes that the compiler turns into vector instructions.
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
