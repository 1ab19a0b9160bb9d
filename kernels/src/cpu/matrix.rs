//! Weights, repacked at load so that lanes are outputs.

use super::int8::{BLOCK, Inputs, Int8Panels};
use crate::memory::AlignedVec;
use crate::pool::Pool;
use crate::quant::QuantFormat;

/// Outputs in a panel: two vectors of lanes.
pub(super) const PANEL: usize = 32;
/// Strips in a panel.
pub(super) const STRIPS: usize = PANEL / super::lanes::LANES;

/// A weight matrix `[n_out, k]`, packed; outputs that are missing in the last panel are zero.
pub struct Matrix {
    n_out: usize,
    k: usize,
    weights: Weights,
}

/// Panels of 32 outputs.
pub(super) enum Weights {
    /// `[n_panels][k][32]`.
    F32(AlignedVec<f32>),
    /// Two strips of sixteen to a panel, for inputs in 8 bits.
    Int8(Int8Panels),
}

impl Matrix {
    /// Packs, in float32, a matrix whose row `o` the function writes into the given `k` floats.
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
        Self { n_out, k, weights: Weights::F32(panels) }
    }

    /// Packs, for inputs in 8 bits, a matrix whose row `o` the function gives as stored in `format`; `None` if there
    /// is no such way for the format.
    pub fn pack_int8<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Option<Self> {
        if !Int8Panels::takes(format) || !k.is_multiple_of(BLOCK) {
            return None;
        }
        let n_strips = n_out.div_ceil(PANEL) * STRIPS;
        Some(Self { n_out, k, weights: Weights::Int8(Int8Panels::pack(pool, format, n_strips, n_out, k, row)) })
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
        match &self.weights {
            Weights::F32(panels) => size_of_val(&**panels),
            Weights::Int8(panels) => panels.n_bytes(),
        }
    }

    /// Writes row `row`, the weights of that output, as the floats that were packed: bit for bit those of
    /// [`dequantize`](crate::quant::dequantize).
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `k` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.n_out && out.len() == self.k, "row {row} of {}, {} of {}", self.n_out, out.len(), self.k);
        match &self.weights {
            Weights::F32(panels) => {
                let panel = &panels[row / PANEL * self.k * PANEL..][..self.k * PANEL];
                for (lanes, out) in panel.chunks_exact(PANEL).zip(out) {
                    *out = lanes[row % PANEL];
                }
            }
            Weights::Int8(panels) => panels.read_row(row, out),
        }
    }

    pub(super) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL)
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }
}

/// A linear layer: matrices side by side over the same input, as query, key and value are.
pub struct Linear {
    parts: Vec<Matrix>,
    bias: Option<Vec<f32>>,
    inputs: Inputs,
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
        Self { parts, bias, inputs: Inputs::Coarse, n_out, k }
    }

    /// Sets how exactly parts packed for 8-bit inputs take them; coarse at first.
    pub fn with_inputs(self, inputs: Inputs) -> Self {
        Self { inputs, ..self }
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

    /// Writes the weights of output `row`; see [`Matrix::read_row`].
    ///
    /// # Panics
    /// If there is no such output, or `out` is not `k` long.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let mut row = row;
        for part in &self.parts {
            if row < part.n_out {
                return part.read_row(row, out);
            }
            row -= part.n_out;
        }
        panic!("{row} outputs too far");
    }

    /// How inputs are quantised, if a part takes them so.
    pub(super) fn int8_inputs(&self) -> Option<Inputs> {
        self.parts.iter().any(|p| matches!(p.weights, Weights::Int8(_))).then_some(self.inputs)
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
