//! Frequencies of the rotary embedding and their scaling.

pub(super) mod gguf;
pub(super) mod huggingface;

use std::f64::consts::TAU;

use xxhash_rust::xxh3::xxh3_64;

/// Rotary embedding of a model.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Rope {
    /// Radians per position of each pair.
    pub(crate) inv_freq: Vec<f32>,
    /// Others for long sequences.
    long: Option<Long>,
    /// Multiplies cosines and sines.
    pub(crate) factor: f32,
    /// The scaling's name.
    pub(crate) kind: &'static str,
}

/// Frequencies of sequences that may become longer than `original_context`.
#[derive(Clone, PartialEq, Debug)]
struct Long {
    original_context: usize,
    inv_freq: Vec<f32>,
}

/// LongRoPE: each frequency divided by a factor of its own, from one of two sets. Source: Ding et al., arXiv:2402.13753.
pub(crate) struct LongFactors {
    /// For sequences that never become longer than `original_context`.
    pub(crate) short: Vec<f64>,
    /// For those that may.
    pub(crate) long: Vec<f64>,
    /// Context trained on.
    pub(crate) original_context: usize,
    /// Multiplies cosines and sines, with either set.
    pub(crate) attention_factor: f64,
}

/// How frequencies are scaled for contexts longer than those trained on.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Scaling {
    /// Not at all.
    Default,
    /// All divided by a factor. Source: Chen et al., arXiv:2306.15595.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between. Source: Llama 3.1.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context trained on.
        original_context: f64,
    },
    /// By parts, with scaled cosines and sines. Source: Peng et al., arXiv:2309.00071.
    Yarn {
        /// The factor.
        factor: f64,
        /// Multiplies cosines and sines.
        attention_factor: f64,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Context trained on.
        original_context: f64,
        /// Whether the ramp's ends are whole dimensions.
        truncate: bool,
    },
}

/// YaRN's default factor for cosines and sines.
pub(crate) fn yarn_attention_factor(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

/// LongRoPE's default factor for cosines and sines: `sqrt(1 + ln scale / ln original_context)`.
fn longrope_attention_factor(scale: f64, original_context: usize) -> f64 {
    if scale <= 1.0 || original_context < 2 { 1.0 } else { (1.0 + scale.ln() / (original_context as f64).ln()).sqrt() }
}

impl Rope {
    /// Frequencies for heads of `head_dim` with base `theta`.
    pub(crate) fn new(head_dim: usize, theta: f64, scaling: &Scaling) -> Self {
        let exponent = |i: usize| (2 * i) as f64 / head_dim as f64;
        let base = (0..head_dim / 2).map(|i| 1.0 / theta.powf(exponent(i)));
        let scaled: Vec<f64> = match *scaling {
            Scaling::Default => base.collect(),
            Scaling::Linear { factor } => base.map(|f| f / factor).collect(),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => base
                .map(|f| {
                    let rotations = original_context / (TAU / f);
                    if rotations < low_freq_factor {
                        f / factor
                    } else if rotations > high_freq_factor {
                        f
                    } else {
                        let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - keep) * f / factor + keep * f
                    }
                })
                .collect(),
            Scaling::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                let dim = head_dim as f64;
                let ramp_end = |rotations: f64| dim * (original_context / (rotations * TAU)).ln() / (2.0 * theta.ln());
                let (mut low, mut high) = (ramp_end(beta_fast), ramp_end(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let divide = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                base.enumerate().map(|(i, f)| f / factor * divide(i) + f * (1.0 - divide(i))).collect()
            }
        };
        let (factor, kind) = match *scaling {
            Scaling::Default => (1.0, "default"),
            Scaling::Linear { .. } => (1.0, "linear"),
            Scaling::Llama3 { .. } => (1.0, "llama3"),
            Scaling::Yarn { attention_factor, .. } => (attention_factor as f32, "yarn"),
        };
        Self { inv_freq: scaled.into_iter().map(|f| f as f32).collect(), long: None, factor, kind }
    }

    /// LongRoPE.
    pub(crate) fn long(rotated: usize, theta: f64, factors: &LongFactors) -> Self {
        let divided = |factors: &[f64]| {
            let exponent = |i: usize| (2 * i) as f64 / rotated as f64;
            factors.iter().enumerate().map(|(i, f)| (1.0 / (f * theta.powf(exponent(i)))) as f32).collect()
        };
        let LongFactors { original_context, attention_factor, .. } = *factors;
        let long = Some(Long { original_context, inv_freq: divided(&factors.long) });
        Self { inv_freq: divided(&factors.short), long, factor: attention_factor as f32, kind: "longrope" }
    }

    /// Frequencies of a sequence that never has more than `max_tokens` tokens: all its positions have the same, so
    /// that a cached key never depends on how long the sequence became later.
    pub(crate) fn frequencies(&self, max_tokens: usize) -> &[f32] {
        self.long.as_ref().filter(|long| max_tokens > long.original_context).map_or(&self.inv_freq, |l| &l.inv_freq)
    }

    /// Sequences that may have more tokens than this have other keys than shorter ones.
    pub(crate) fn original_context(&self) -> Option<usize> {
        self.long.as_ref().map(|long| long.original_context)
    }

    /// Divides each frequency by a factor of its own, as files that carry ready factors want.
    pub(crate) fn divide(&mut self, factors: &[f32]) {
        for (f, factor) in self.inv_freq.iter_mut().zip(factors) {
            *f /= factor;
        }
    }

    /// Canonical text: equal exactly if all frequencies are.
    pub(crate) fn describe(&self) -> String {
        let hash = |inv_freq: &[f32]| xxh3_64(&inv_freq.iter().flat_map(|f| f.to_le_bytes()).collect::<Vec<_>>());
        let (kind, n, factor) = (self.kind, self.inv_freq.len(), self.factor);
        let plain = format!("{kind} half-rotated pairs={n} factor={factor} inv_freq={:016x}", hash(&self.inv_freq));
        match &self.long {
            None => plain,
            Some(long) => format!("{plain} above={} inv_freq={:016x}", long.original_context, hash(&long.inv_freq)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(scaling: &Scaling, expected: &[(usize, f64)], factor: f32) {
        let rope = Rope::new(128, 500_000.0, scaling);
        assert_eq!((rope.inv_freq.len(), rope.factor), (64, factor));
        for &(i, f) in expected {
            let found = f64::from(rope.inv_freq[i]);
            assert!((found - f).abs() <= 1e-6 * f, "{scaling:?} {i}: {found} instead of {f}");
        }
    }

    #[test]
    fn scalings_follow_their_formulas() {
        let plain = |i: f64| 500_000_f64.powf(-i / 64.0);
        check(&Scaling::Default, &[(0, 1.0), (63, plain(63.0))], 1.0);
        check(&Scaling::Linear { factor: 4.0 }, &[(0, 0.25), (10, plain(10.0) / 4.0)], 1.0);
        let llama3 =
            Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        // Wavelength 2 pi / f: below 2048 kept, above 8192 divided.
        let keep = (8192.0 / (TAU / plain(32.0)) - 1.0) / 3.0;
        let between = plain(32.0) * (keep + (1.0 - keep) / 8.0);
        check(&llama3, &[(0, 1.0), (20, plain(20.0)), (32, between), (50, plain(50.0) / 8.0)], 1.0);
        let attention_factor = yarn_attention_factor(4.0, 1.0);
        let yarn = Scaling::Yarn {
            factor: 4.0,
            attention_factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 8192.0,
            truncate: true,
        };
        check(&yarn, &[(0, 1.0), (63, plain(63.0) / 4.0)], 1.138_629_4);
    }

    #[test]
    fn a_different_frequency_shows_in_the_description() {
        let a = Rope::new(64, 10_000.0, &Scaling::Default);
        let mut b = a.clone();
        assert_eq!(a.describe(), b.describe());
        b.divide(&[1.0, 1.000_001]);
        assert_ne!(a.describe(), b.describe());
    }

    #[test]
    fn long_sequences_have_factors_of_their_own() {
        let factors = LongFactors {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_context: 32,
            attention_factor: longrope_attention_factor(16.0, 32),
        };
        let rope = Rope::long(4, 10_000.0, &factors);
        assert_eq!(rope.frequencies(32), [1.0, 0.005]);
        assert_eq!(rope.frequencies(33), [0.25, 0.001_25]);
        assert_eq!((rope.factor, longrope_attention_factor(1.0, 32)), (1.8_f64.sqrt() as f32, 1.0));
        let other = Rope::long(4, 10_000.0, &LongFactors { original_context: 33, ..factors });
        assert_ne!(rope.describe(), other.describe());
    }
}
