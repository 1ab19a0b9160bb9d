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
    let (p, biased) = exp_parts(l, x);
    l.scale_by_power(l.add(p, l.splat(1.0)), biased)
}

/// `p` and `n` (biased, for [`Lanes::scale_by_power`]) with `e^x = (1 + p) * 2^n` and `p` near 0.
#[inline(always)]
fn exp_parts<L: Lanes>(l: L, x: L::F) -> (L::F, L::F) {
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
    (l.fma(p, l.mul(r, r), r), biased)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) fn silu<L: Lanes>(l: L, x: L::F) -> L::F {
    let minus = l.sub(l.splat(-0.0), x);
    l.div(x, l.add(l.splat(1.0), exp(l, minus)))
}

/// `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 * x^3)`, as `x / (1 + e^-2u)`.
///
/// Source: Hendrycks and Gimpel, arXiv:1606.08415.
#[inline(always)]
pub(super) fn gelu_tanh<L: Lanes>(l: L, x: L::F) -> L::F {
    // -2 sqrt(2 / pi), and that times 0.044715.
    let (first, third) = (l.splat(-1.595_769), l.splat(-0.071_354_814));
    let exponent = l.mul(x, l.fma(third, l.mul(x, x), first));
    l.div(x, l.add(l.splat(1.0), exp(l, exponent)))
}

/// Hyperbolic tangent, within 4 ulp; NaN for NaN. With `m = e^2x - 1`, which is small where `x` is: `m / (m + 2)`.
#[inline(always)]
pub(super) fn tanh<L: Lanes>(l: L, x: L::F) -> L::F {
    // Beyond these the result is 1 or -1.
    let x = l.max(l.splat(-10.0), l.min(l.splat(10.0), x));
    let (p, biased) = exp_parts(l, l.add(x, x));
    let power = l.scale_by_power(l.splat(1.0), biased);
    let m = l.fma(p, power, l.sub(power, l.splat(1.0)));
    l.div(m, l.add(m, l.splat(2.0)))
}

/// `cap * tanh(x / cap)`.
#[inline(always)]
pub(super) fn softcap<L: Lanes>(l: L, x: L::F, cap: L::F) -> L::F {
    l.mul(cap, tanh(l, l.div(x, cap)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use crate::cpu::lanes::{Kernel, LANES, launch};

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Tanh,
        GeluTanh,
    }

    struct Apply(Function, [f32; LANES]);

    impl Kernel for Apply {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<L: Lanes>(self, l: L) -> [f32; LANES] {
            let x = l.load(&self.1);
            let y = match self.0 {
                Function::Exp => exp(l, x),
                Function::Tanh => tanh(l, x),
                Function::GeluTanh => gelu_tanh(l, x),
            };
            let mut out = [0.0; LANES];
            l.store(&mut out, y);
            out
        }
    }

    /// Compares all levels with each other, and their results with the exact ones, whose largest relative error
    /// (relative to `unit` where they are smaller) it gives in units of 2^-23.
    fn worst(function: Function, range: std::ops::Range<i32>, unit: f64, exact: impl Fn(f64) -> f64) -> f64 {
        let mut worst = 0.0_f64;
        for i in range {
            let x = std::array::from_fn(|j| (i as f32 + j as f32 / 16.0) * 1e-3);
            let found = launch(Isa::SCALAR, Apply(function, x));
            for isa in Isa::available() {
                assert_eq!(launch(isa, Apply(function, x)).map(f32::to_bits), found.map(f32::to_bits));
            }
            for (x, y) in x.into_iter().zip(found) {
                let exact = exact(f64::from(x));
                worst = worst.max((f64::from(y) - exact).abs() / exact.abs().max(unit));
            }
        }
        worst / f64::from(f32::EPSILON)
    }

    #[test]
    fn functions_are_close_and_the_same_everywhere() {
        let exp = worst(Function::Exp, -85_999..87_999, 0.0, f64::exp);
        assert!(exp < 2.0, "exp: {exp}");
        let tanh = worst(Function::Tanh, -12_000..12_000, f64::MIN_POSITIVE, f64::tanh);
        assert!(tanh < 4.0, "tanh: {tanh}");
        let gelu =
            |x: f64| x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).exp());
        let gelu_tanh = worst(Function::GeluTanh, -12_000..12_000, 1.0, gelu);
        assert!(gelu_tanh < 4.0, "gelu: {gelu_tanh}");
    }

    #[test]
    fn special_values() {
        let special = std::array::from_fn(|i| [0.0, -0.0, f32::NAN, f32::NEG_INFINITY, f32::INFINITY][i % 5]);
        let exp = launch(Isa::detect(), Apply(Function::Exp, special));
        assert_eq!((exp[0], exp[1]), (1.0, 1.0));
        assert!(exp[2].is_nan() && exp[3] < 1e-37 && exp[4] > 1e38);
        let tanh = launch(Isa::detect(), Apply(Function::Tanh, special));
        assert_eq!((tanh[0], tanh[1], tanh[3], tanh[4]), (0.0, 0.0, -1.0, 1.0));
        assert!(tanh[2].is_nan());
    }
}
