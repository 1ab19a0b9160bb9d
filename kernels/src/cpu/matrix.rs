//! Weights, repacked at load so that lanes are outputs.

use crate::memory::AlignedVec;
use crate::pool::Pool;

/// Outputs in a panel: two vectors of lanes.
pub(super) const PANEL: usize = 32;

/// A weight matrix `[n_out, k]` in panels: `[n_out / 32][k][32]`, float32, missing outputs zero.
pub struct Matrix {
    n_out: usize,
    k: usize,
    panels: AlignedVec<f32>,
}

impl Matrix {
    /// Packs a matrix whose row `o` the function writes into the given `k` floats.
    pub fn pack(pool: &mut Pool, n_out: usize, k: usize, row: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        let n_panels = n_out.div_ceil(PANEL);
        let mut panels = AlignedVec::zeroed(n_panels * k * PANEL);
        pool.chunks_mut(&mut panels, k * PANEL, |p, panel| {
            let mut source = vec![0.0; k];
            for lane in 0..PANEL.min(n_out - p * PANEL) {
                row(p * PANEL + lane, &mut source);
                for (lanes, &w) in panel.chunks_exact_mut(PANEL).zip(&source) {
                    lanes[lane] = w;
                }
            }
        });
        Self { n_out, k, panels }
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory it takes.
    pub fn n_bytes(&self) -> usize {
        size_of_val(&*self.panels)
    }

    pub(super) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL)
    }

    /// Panel `p`: `[k][32]`.
    pub(super) fn panel(&self, p: usize) -> &[f32] {
        &self.panels[p * self.k * PANEL..(p + 1) * self.k * PANEL]
    }
}

/// A linear layer: matrices side by side over the same input, as query, key and value are.
pub struct Linear {
    parts: Vec<Matrix>,
    bias: Option<Vec<f32>>,
    n_out: usize,
    k: usize,
}

impl Linear {
    /// Outputs are those of the parts in order; `bias` has one number for each.
    ///
    /// # Panics
    /// If there is no part, the parts differ in inputs, or `bias` has another length: the loader checks shapes.
    pub fn new(parts: Vec<Matrix>, bias: Option<Vec<f32>>) -> Self {
        let k = parts.first().expect("a linear layer has a part").k;
        let n_out = parts.iter().map(Matrix::n_out).sum();
        assert!(parts.iter().all(|p| p.k == k), "parts share their input");
        assert!(bias.as_ref().is_none_or(|b| b.len() == n_out), "one bias per output");
        Self { parts, bias, n_out, k }
    }

    /// Outputs.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Memory it takes.
    pub fn n_bytes(&self) -> usize {
        self.parts.iter().map(Matrix::n_bytes).sum::<usize>() + self.bias.as_ref().map_or(0, |b| 4 * b.len())
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    pub(super) fn n_panels(&self) -> usize {
        self.parts.iter().map(Matrix::n_panels).sum()
    }

    /// The matrix that panel `index` (counted over all parts) belongs to, its number there, its first output here.
    pub(super) fn locate(&self, index: usize) -> (&Matrix, usize, usize) {
        let (mut panel, mut first_out) = (index, 0);
        for part in &self.parts {
            if panel < part.n_panels() {
                return (part, panel, first_out + panel * PANEL);
            }
            panel -= part.n_panels();
            first_out += part.n_out;
        }
        panic!("no panel {index}");
    }
}
