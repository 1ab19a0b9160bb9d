//! Root-mean-square normalisation.

use super::lanes::{Kernel, LANES, Lanes, launch};
use super::{Cpu, Store};

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
        self.rms_norm_to(x, weight, eps, out, Store::Replace);
    }

    /// `out = out + rms_norm(x)`: a branch that is normalised before it joins the residual stream.
    ///
    /// # Panics
    /// As [`Cpu::rms_norm`].
    pub fn rms_norm_add(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.rms_norm_to(x, weight, eps, out, Store::Add);
    }

    fn rms_norm_to(&mut self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32], store: Store) {
        let dim = weight.len();
        assert!(x.len() == out.len() && x.len().is_multiple_of(dim), "{} to {} of {dim}", x.len(), out.len());
        let isa = self.isa;
        self.pool.chunks_mut(out, TASK_ROWS * dim, |task, out| {
            let x = &x[task * TASK_ROWS * dim..][..out.len()];
            launch(isa, RmsNorm { x, weight, eps, out, store });
        });
    }

    /// Normalises in place `n_parts` parts of each row, one after the other from element `first` on.
    ///
    /// `x`: `[n_rows, stride]`. `weight`: the elements of a part, the same for each; else as [`Cpu::rms_norm`].
    ///
    /// # Panics
    /// If the parts do not fit a row or `x` is not whole rows.
    pub fn rms_norm_parts(&mut self, x: &mut [f32], stride: usize, parts: Parts, weight: &[f32], eps: f32) {
        let Parts { first, n_parts } = parts;
        let len = n_parts * weight.len();
        assert!(first + len <= stride && x.len().is_multiple_of(stride), "{len} from {first} in rows of {stride}");
        let isa = self.isa;
        self.pool.chunks_mut(x, TASK_ROWS * stride, |_, x| {
            launch(isa, RmsNormParts { x, stride, first, len, weight, eps });
        });
    }
}

/// Equal parts of a row, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// Element of the row where the first begins.
    pub first: usize,
    /// How many.
    pub n_parts: usize,
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
    store: Store,
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
                let y = apply(l, l.load(x), scale, l.load(w));
                let y = if self.store == Store::Add { l.add(l.load(out), y) } else { y };
                l.store(out, y);
            }
            for ((x, w), out) in x_rest.iter().zip(w_rest).zip(out_rest) {
                let y = *x * scale * *w;
                *out = if self.store == Store::Add { *out + y } else { y };
            }
        }
    }
}

/// Some elements of a row times its scale and their gains.
#[inline(always)]
pub(super) fn apply<L: Lanes>(l: L, x: L::F, scale: f32, gain: L::F) -> L::F {
    l.mul(l.mul(x, l.splat(scale)), gain)
}

struct RmsNormParts<'a> {
    x: &'a mut [f32],
    stride: usize,
    first: usize,
    len: usize,
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNormParts<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for row in self.x.chunks_exact_mut(self.stride) {
            for x in row[self.first..self.first + self.len].chunks_exact_mut(self.weight.len()) {
                let scale = scale(l, x, self.eps);
                let (x, x_rest) = x.as_chunks_mut::<LANES>();
                let (w, w_rest) = self.weight.as_chunks::<LANES>();
                for (x, w) in x.iter_mut().zip(w) {
                    let y = apply(l, l.load(x), scale, l.load(w));
                    l.store(x, y);
                }
                for (x, w) in x_rest.iter_mut().zip(w_rest) {
                    *x = *x * scale * *w;
                }
            }
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`.
#[inline(always)]
pub(super) fn scale<L: Lanes>(l: L, x: &[f32], eps: f32) -> f32 {
    1.0 / (sum_of_squares(l, x) / x.len() as f32 + eps).sqrt()
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
