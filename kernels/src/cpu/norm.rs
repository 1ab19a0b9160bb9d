//! Root-mean-square normalisation.

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes, launch};

/// Rows of one task.
const TASK_ROWS: usize = 16;

impl Cpu {
    /// `out = x / sqrt(mean(x^2) + eps) * weight`, row by row.
    ///
    /// `x`, `out`: `[n_rows, dim]`. `weight`: `[dim]`. The squares are summed in sixteen chains, element `i` in chain
    /// `i % 16`, which are then added as a tree.
    ///
    /// # Panics
    /// If the lengths are not whole rows of the same number.
    ///
    /// Source: Zhang and Sennrich, arXiv:1910.07467.
    pub fn rms_norm(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let dim = weight.len();
        assert!(x.len() == out.len() && x.len().is_multiple_of(dim), "{} to {} of {dim}", x.len(), out.len());
        let isa = self.isa;
        self.pool.chunks_mut(out, TASK_ROWS * dim, |task, out| {
            let x = &x[task * TASK_ROWS * dim..][..out.len()];
            launch(isa, RmsNorm { x, weight, eps, out });
        });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let dim = self.weight.len();
        for (x, out) in self.x.chunks_exact(dim).zip(self.out.chunks_exact_mut(dim)) {
            let scale = scale(l, x, self.eps);
            let (x, x_rest) = x.as_chunks::<LANES>();
            let (w, w_rest) = self.weight.as_chunks::<LANES>();
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for ((x, w), out) in x.iter().zip(w).zip(out) {
                l.store(out, apply(l, l.load(x), scale, l.load(w)));
            }
            for ((x, w), out) in x_rest.iter().zip(w_rest).zip(out_rest) {
                *out = *x * scale * *w;
            }
        }
    }
}

/// What a row is multiplied by before its gains.
#[inline(always)]
pub(super) fn scale<L: Lanes>(l: L, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(l, x) / x.len() as f32 + eps).sqrt()
}

/// Some elements of a row times its scale and their gains.
#[inline(always)]
pub(super) fn apply<L: Lanes>(l: L, x: L::F, scale: f32, gain: L::F) -> L::F {
    l.mul(l.mul(x, l.splat(scale)), gain)
}

#[inline(always)]
fn sum_of_squares<L: Lanes>(l: L, x: &[f32]) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut sum = l.splat(0.0);
    for chunk in chunks {
        let x = l.load(chunk);
        sum = l.fma(x, x, sum);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let x = l.load(&last);
    l.sum(l.fma(x, x, sum))
}
