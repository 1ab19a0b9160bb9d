//! The gate of a gated feed-forward layer.

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes, launch};
use super::math::{gelu_tanh, silu};

/// Rows of one task.
const TASK_ROWS: usize = 8;

/// What a gate goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

impl Cpu {
    /// `out = activation(gate) * up`.
    ///
    /// `gate_up`: `[n_rows, 2 * dim]`, a row's gates then its ups. `out`: `[n_rows, dim]`.
    ///
    /// # Panics
    /// If the lengths are not whole rows of the same number.
    ///
    /// Source: Shazeer, arXiv:2002.05202.
    pub fn gate(&mut self, activation: Activation, gate_up: &[f32], dim: usize, out: &mut [f32]) {
        assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(dim), "{} of {dim}", out.len());
        let isa = self.isa;
        self.pool.chunks_mut(out, TASK_ROWS * dim, |task, out| {
            let gate_up = &gate_up[task * TASK_ROWS * 2 * dim..][..2 * out.len()];
            launch(isa, Gate { activation, gate_up, dim, out });
        });
    }
}

struct Gate<'a> {
    activation: Activation,
    gate_up: &'a [f32],
    dim: usize,
    out: &'a mut [f32],
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.activation {
            Activation::Silu => self.rows(l, |x| silu(l, x)),
            Activation::GeluTanh => self.rows(l, |x| gelu_tanh(l, x)),
        }
    }
}

impl Gate<'_> {
    #[inline(always)]
    fn rows<L: Lanes>(self, l: L, activation: impl Fn(L::F) -> L::F) {
        for (row, out) in self.gate_up.chunks_exact(2 * self.dim).zip(self.out.chunks_exact_mut(self.dim)) {
            let (gate, up) = row.split_at(self.dim);
            let ((gate, gate_rest), (up, up_rest)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
            let (out, out_rest) = out.as_chunks_mut::<LANES>();
            for ((gate, up), out) in gate.iter().zip(up).zip(out) {
                l.store(out, l.mul(activation(l.load(gate)), l.load(up)));
            }
            let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
            a[..gate_rest.len()].copy_from_slice(gate_rest);
            b[..up_rest.len()].copy_from_slice(up_rest);
            let last = l.mul(activation(l.load(&a)), l.load(&b));
            l.store(&mut a, last);
            out_rest.copy_from_slice(&a[..up_rest.len()]);
        }
    }
}
