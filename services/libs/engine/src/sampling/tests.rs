//! Every processor against numpy and against plain definitions; the statistics of the draws.

use std::collections::BTreeSet;

use serde_json::Value;

use super::random::philox4x32;
use super::*;

fn params(change: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
    let mut params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    change(&mut params);
    params
}

fn stop() -> StopParams {
    StopParams { max_tokens: 100, ..StopParams::default() }
}

const EMPTY: History<'_> = History { prompt: &[], generated: &[] };
const FIRST: Draw = Draw { choice: 0, position: 0 };

/// Normal deviates from the generator under test's own counter; independent of what the tests claim.
fn random_logits(n: usize, seed: u64) -> Vec<f32> {
    let u = |i: u32, c: u32| uniform(seed ^ 0xABCD, Draw { choice: c, position: i });
    let normal = |i| (-2.0 * (1.0 - u(i, 0)).ln()).sqrt() * (std::f64::consts::TAU * u(i, 1)).cos();
    (0..n as u32).map(|i| (3.0 * normal(i)) as f32).collect()
}

fn draw_at(logits: &[f32], params: &SamplingParams, draw: Draw) -> TokenId {
    sample(&mut logits.to_vec(), params, &stop(), &[], EMPTY, draw).unwrap().token
}

fn kept(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
    select::candidates(logits, params).unwrap().iter().map(|c| c.token).collect()
}

#[test]
fn equals_hugging_face() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("golden.json")).unwrap();
    for (i, case) in cases.iter().enumerate() {
        let number = |name: &str| case[name].as_f64().unwrap();
        let ids = |name: &str| -> Vec<TokenId> { serde_json::from_value(case[name].clone()).unwrap() };
        let logits: Vec<f32> = serde_json::from_value(case["logits"].clone()).unwrap();
        let params = SamplingParams {
            temperature: number("temperature") as f32,
            top_k: number("top_k") as u32,
            top_p: number("top_p") as f32,
            min_p: number("min_p") as f32,
            repetition_penalty: number("repetition_penalty") as f32,
            frequency_penalty: number("frequency_penalty") as f32,
            presence_penalty: number("presence_penalty") as f32,
            logit_bias: serde_json::from_value(case["logit_bias"].clone()).unwrap(),
            seed: 0,
            logprobs: Some(3),
        };
        let stop = StopParams { min_tokens: number("min_tokens") as u32, ..stop() };
        let (prompt, generated, eos) = (ids("prompt"), ids("generated"), ids("eos"));
        let history = History { prompt: &prompt, generated: &generated };

        let mut processed = logits.clone();
        processors::apply(&mut processed, &params, &stop, &eos, history);
        let found = select::candidates(&processed, &params).unwrap();
        let sum: f64 = found.iter().map(|c| c.weight).sum();
        let expected: Vec<(TokenId, f64)> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        assert_eq!(found.len(), expected.len(), "case {i}");
        for (found, (token, probability)) in found.iter().zip(expected) {
            assert_eq!(found.token, token, "case {i}");
            assert!((found.weight / sum - probability).abs() < 1e-6, "case {i} token {token}");
        }

        let greedy = SamplingParams { temperature: 0.0, ..params };
        let sampled = sample(&mut logits.clone(), &greedy, &stop, &eos, history, FIRST).unwrap();
        let logprobs: Vec<f64> = serde_json::from_value(case["logprobs"].clone()).unwrap();
        assert_eq!(sampled.token, number("greedy") as TokenId, "case {i}");
        let all = sampled.top.iter().map(|t| (t.token, t.logprob));
        for (token, logprob) in all.chain([(sampled.token, sampled.logprob.unwrap())]) {
            assert!((f64::from(logprob) - logprobs[token as usize]).abs() < 1e-5, "case {i} token {token}");
        }
        let mut order: Vec<TokenId> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        assert_eq!(sampled.top.iter().map(|t| t.token).collect::<Vec<_>>(), order[..3]);
    }
}

/// The definitions, with a full sort and no shortcuts.
fn kept_by_definition(logits: &[f32], params: &SamplingParams) -> Vec<TokenId> {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&t| logits[t] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let best = f64::from(logits[order[0]]);
    let weight = |t: usize| ((f64::from(logits[t]) - best) / f64::from(params.temperature)).exp();
    let by_id: BTreeSet<usize> = order.iter().copied().collect();
    let total: f64 = by_id.iter().map(|&t| weight(t)).sum();
    let mut before = 0.0;
    let mut kept = BTreeSet::new();
    for t in order {
        if before >= f64::from(params.top_p) * total && params.top_p < 1.0 {
            break;
        }
        before += weight(t);
        if weight(t) >= f64::from(params.min_p) {
            kept.insert(t as TokenId);
        }
    }
    kept.into_iter().collect()
}

#[test]
fn equals_the_definitions() {
    for seed in 0..40 {
        let mut logits = random_logits(2000, seed);
        if seed % 2 == 0 {
            // Many ties.
            logits.iter_mut().for_each(|z| *z = z.round());
        }
        logits[7] = f32::NEG_INFINITY;
        for top_k in [0, 1, 2, 50, 1999, 5000] {
            for top_p in [1e-9, 0.1, 0.5, 0.99, 0.999_999, 1.0] {
                for (min_p, temperature) in [(0.0, 1.0), (0.1, 0.3), (0.0, 2.0), (1.0, 1.0)] {
                    let params = params(|p| {
                        (p.top_k, p.top_p, p.min_p, p.temperature) = (top_k, top_p, min_p, temperature);
                    });
                    assert_eq!(kept(&logits, &params), kept_by_definition(&logits, &params), "{seed} {params:?}");
                }
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let logits = [1.0, 2.0, 2.0, -0.0, 0.0, 2.0];
    assert_eq!(draw_at(&logits, &params(|p| p.temperature = 0.0), FIRST), 1);
    assert_eq!(kept(&logits, &params(|p| p.top_k = 2)), [1, 2]);
    assert_eq!(kept(&logits, &params(|p| p.top_k = 5)), [0, 1, 2, 3, 5]);
    assert_eq!(kept(&logits, &params(|p| p.top_p = 0.3)), [1, 2]);
    let sampled = sample(&mut logits.to_vec(), &params(|p| p.logprobs = Some(4)), &stop(), &[], EMPTY, FIRST);
    assert_eq!(sampled.unwrap().top.iter().map(|t| t.token).collect::<Vec<_>>(), [1, 2, 5, 0]);
}

/// Chi-square of 10^5 draws against the exact distribution; `limit`: about 4.5 sigma above its mean.
fn check_distribution(logits: &[f32], params: &SamplingParams, draws: impl Iterator<Item = Draw>) {
    let candidates = select::candidates(logits, params).unwrap();
    let sum: f64 = candidates.iter().map(|c| c.weight).sum();
    let mut counts = vec![0u32; logits.len()];
    let mut n = 0;
    for draw in draws {
        counts[draw_at(logits, params, draw) as usize] += 1;
        n += 1;
    }
    let expected = |weight: f64| f64::from(n) * weight / sum;
    let chi: f64 = candidates
        .iter()
        .map(|c| (f64::from(counts[c.token as usize]) - expected(c.weight)).powi(2) / expected(c.weight))
        .sum();
    let freedom = (candidates.len() - 1) as f64;
    let limit = freedom + 4.5 * (2.0 * freedom).sqrt();
    assert!(chi < limit, "chi-square {chi} with {freedom} degrees of freedom");
    assert_eq!(counts.iter().sum::<u32>(), candidates.iter().map(|c| counts[c.token as usize]).sum::<u32>());
}

#[test]
fn draws_follow_the_distribution() {
    const N: u32 = 100_000;
    let logits: Vec<f32> = random_logits(24, 5).iter().map(|z| z / 3.0).collect();
    let positions = |choice| (0..N).map(move |position| Draw { choice, position });
    for (choice, params) in [
        params(|p| p.seed = 1),
        params(|p| p.temperature = 0.6),
        params(|p| p.top_k = 7),
        params(|p| (p.top_p, p.seed) = (0.8, u64::MAX)),
        params(|p| (p.min_p, p.temperature) = (0.2, 1.5)),
    ]
    .iter()
    .enumerate()
    {
        check_distribution(&logits, params, positions(choice as u32));
    }
    check_distribution(&logits, &params(|_| ()), (0..N).map(|choice| Draw { choice, position: 9 }));
    for seed_bit in [0, 31, 32, 63] {
        let draws = (0..N / 10).map(|position| Draw { choice: 0, position });
        check_distribution(&logits, &params(|p| p.seed = 1 << seed_bit), draws);
    }
}

#[test]
fn neighbouring_draws_are_independent() {
    // Correlation between draws one apart in position, choice or seed: within 4.5 sigma of zero.
    const N: u32 = 100_000;
    let check = |a: fn(u32) -> f64, b: fn(u32) -> f64| {
        let covariance: f64 = (0..N).map(|i| (a(i) - 0.5) * (b(i) - 0.5)).sum::<f64>() / f64::from(N);
        assert!((covariance * 12.0).abs() < 4.5 / f64::from(N).sqrt(), "correlation {}", covariance * 12.0);
    };
    let at = |i| uniform(3, Draw { choice: 0, position: i });
    check(at, |i| uniform(3, Draw { choice: 0, position: i + 1 }));
    check(at, |i| uniform(3, Draw { choice: 1, position: i }));
    check(at, |i| uniform(4, Draw { choice: 0, position: i }));
    check(at, |i| uniform(3 | 1 << 40, Draw { choice: 0, position: i }));
}

#[test]
fn the_same_draw_gives_the_same_token() {
    let logits = random_logits(1000, 8);
    let tokens = |seed, choice| -> Vec<TokenId> {
        let params = params(|p| p.seed = seed);
        (0..50).map(|position| draw_at(&logits, &params, Draw { choice, position })).collect()
    };
    assert_eq!(tokens(1, 0), tokens(1, 0));
    assert_ne!(tokens(1, 0), tokens(1, 1));
    assert_ne!(tokens(1, 0), tokens(2, 0));
}

#[test]
fn philox_equals_its_published_vectors() {
    // Random123 distribution, kat_vectors, philox4x32 10.
    let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    for (counter, key, expected) in [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (pi, [0xa409_3822, 0x299f_31d0], [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]),
    ] {
        assert_eq!(philox4x32(counter, key), expected);
    }
}

#[test]
fn ends_are_masked_until_min_tokens() {
    let check = |generated: usize, ignore_eos, expected: TokenId| {
        let stop = StopParams { max_tokens: 9, min_tokens: 2, ignore_eos, stop_token_ids: vec![1, 999] };
        let generated = vec![3; generated];
        let history = History { prompt: &[], generated: &generated };
        let greedy = params(|p| p.temperature = 0.0);
        let sampled = sample(&mut [9.0, 8.0, 7.0, 6.0], &greedy, &stop, &[0], history, FIRST);
        assert_eq!(sampled.unwrap().token, expected);
    };
    check(0, false, 2);
    check(1, false, 2);
    check(2, false, 0);
    check(0, true, 0);
}

#[test]
fn penalties_count_what_they_should() {
    let history = History { prompt: &[0, 0, 5, 77], generated: &[1, 1, 2] };
    let apply = |params: &SamplingParams| {
        let mut logits = [4.0, 4.0, -4.0, 4.0, -4.0, 0.0];
        processors::apply(&mut logits, params, &stop(), &[], history);
        logits
    };
    assert_eq!(apply(&params(|p| p.repetition_penalty = 2.0)), [2.0, 2.0, -8.0, 4.0, -4.0, 0.0]);
    assert_eq!(apply(&params(|p| p.frequency_penalty = 0.5)), [4.0, 3.0, -4.5, 4.0, -4.0, 0.0]);
    assert_eq!(apply(&params(|p| p.presence_penalty = 0.5)), [4.0, 3.5, -4.5, 4.0, -4.0, 0.0]);
    assert_eq!(
        apply(&params(|p| p.logit_bias = vec![(3, 1.0), (3, 1.0), (99, 1.0)])),
        [4.0, 4.0, -4.0, 6.0, -4.0, 0.0]
    );
    // Bias comes before the repetition penalty.
    let both = params(|p| (p.logit_bias, p.repetition_penalty) = (vec![(0, -8.0)], 2.0));
    assert_eq!(apply(&both)[0], -8.0);
}

#[test]
fn extreme_logits() {
    let check = |logits: &[f32], params: &SamplingParams, expected: Result<TokenId, SamplingError>| {
        for params in [params.clone(), SamplingParams { temperature: 0.0, ..params.clone() }] {
            let found = sample(&mut logits.to_vec(), &params, &stop(), &[], EMPTY, FIRST);
            assert_eq!(found.map(|s| s.token), expected, "{logits:?} {params:?}");
        }
    };
    let inf = f32::INFINITY;
    let plain = params(|p| p.logprobs = Some(5));
    check(&[-inf; 40], &plain, Err(SamplingError::NothingLeft));
    check(&[], &plain, Err(SamplingError::NothingLeft));
    let mut nan = [0.0; 40];
    for at in [0, 17, 39] {
        nan[at] = f32::NAN;
        check(&nan, &plain, Err(SamplingError::NotFinite { token: at as TokenId }));
        nan[at] = inf;
        check(&nan, &plain, Err(SamplingError::NotFinite { token: at as TokenId }));
        nan[at] = 0.0;
    }
    check(&[-inf, -inf, 3.0, -inf], &plain, Ok(2));
    check(&[f32::MAX, f32::MIN, 0.0], &plain, Ok(0));
    check(&[0.0, 0.0, 0.0], &params(|p| p.logit_bias = vec![(1, 100.0)]), Ok(1));
    check(&[f32::MAX, f32::MAX / 2.0], &params(|p| p.logit_bias = vec![(1, 100.0), (0, -inf)]), Ok(1));
    check(&[2.0, 1.0], &params(|p| (p.temperature, p.top_k) = (f32::MIN_POSITIVE, 2)), Ok(0));
    let history = History { prompt: &[1], generated: &[] };
    let tiny = params(|p| p.repetition_penalty = f32::MIN_POSITIVE);
    let found = sample(&mut [5.0, 1.0], &tiny, &stop(), &[], history, FIRST).unwrap();
    assert_eq!(found.token, 1);
    let bans = params(|p| p.logit_bias = vec![(0, -inf), (1, -inf)]);
    check(&[1.0, 2.0], &bans, Err(SamplingError::NothingLeft));
}

#[test]
fn impossible_tokens_are_not_reported() {
    let params = params(|p| p.logprobs = Some(20));
    let sampled = sample(&mut [0.0, f32::NEG_INFINITY, 0.0], &params, &stop(), &[], EMPTY, FIRST).unwrap();
    assert_eq!(sampled.top.len(), 2);
    assert!(sampled.top.iter().all(|t| (t.logprob - 0.5f32.ln()).abs() < 1e-6));
    let none = sample(&mut [0.0], &SamplingParams { logprobs: None, ..params }, &stop(), &[], EMPTY, FIRST);
    assert_eq!(none.unwrap(), Sampled { token: 0, logprob: None, top: Vec::new() });
}
