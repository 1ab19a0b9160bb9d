//! Exponential and what is made of it, the same bits on every level.

use super::lanes::Lanes;

/// Inputs are clamped to this range, in which the result is a normal number.
const EXP_MIN: f32 = -86.0;
const EXP_MAX: f32 = 88.0;

/// `e^x`, within 2 ulp for -86 <= x <= 88 and clamped outside; exactly 1 for 0; NaN for NaN.
///
/// Source: Cephes `expf` (Moshier), evaluated with fused multiply-adds.
#[inline(always)]
pub(super) fn exp<L: Lanes>(l: L, x: L::F) -> L::F {
    // 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits.
    let magic = l.splat(12_582_912.0);
    let x = l.max(l.splat(EXP_MIN), l.min(l.splat(EXP_MAX), x));
    let biased = l.fma(x, l.splat(std::f32::consts::LOG2_E), magic);
    let n = l.sub(biased, magic);
    let r = l.fnma(n, l.splat(0.693_359_4), x);
    let r = l.fnma(n, l.splat(-2.121_944_4e-4), r);
    let mut p = l.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_58e-2, 1.666_666_5e-1, 5e-1] {
        p = l.fma(p, r, l.splat(c));
    }
    let p = l.add(l.fma(p, l.mul(r, r), r), l.splat(1.0));
    l.scale_by_power(p, biased)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu<L: Lanes>(l: L, x: L::F) -> L::F {
    let minus = l.sub(l.splat(-0.0), x);
    l.div(x, l.add(l.splat(1.0), exp(l, minus)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::cpu::lanes::{Kernel, LANES, launch};

    struct Exp([f32; LANES]);

    impl Kernel for Exp {
        type Output = [f32; LANES];

        fn run<L: Lanes>(self, l: L) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            l.store(&mut out, exp(l, l.load(&self.0)));
            out
        }
    }

    #[test]
    fn exp_is_close_and_the_same_everywhere() {
        let mut worst = 0.0_f64;
        for i in -86_000..88_000 / LANES as i32 {
            let x = std::array::from_fn(|j| (i as f32 + j as f32 / 16.0) * 1e-3);
            let expected = launch(Isa::SCALAR, Exp(x));
            for isa in Isa::available() {
                assert_eq!(launch(isa, Exp(x)).map(f32::to_bits), expected.map(f32::to_bits));
            }
            for (x, y) in x.into_iter().zip(expected).filter(|(x, _)| (-86.0..=88.0).contains(x)) {
                let exact = f64::from(x).exp();
                worst = worst.max(((f64::from(y) - exact) / exact).abs());
            }
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst}");
        let special = std::array::from_fn(|i| [0.0, -0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY][i % 5]);
        let out = launch(Isa::detect(), Exp(special));
        assert_eq!((out[0], out[1]), (1.0, 1.0));
        assert!(out[2].is_nan() && out[3] < 1e-37 && out[4] > 1e38);
    }
}
