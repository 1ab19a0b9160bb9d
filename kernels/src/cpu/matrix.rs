//! Weights, repacked at load so that lanes are outputs.

use super::float::FloatStrips;
use super::integer::{BLOCK, IntegerWeights, Rounding};
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

/// Panels of 32 outputs: two strips of sixteen each.
pub(super) enum Weights {
    /// Floats, for inputs in float32.
    Float(FloatStrips),
    /// Integers, for quantised inputs.
    Integer(IntegerWeights),
}

impl Matrix {
    /// Packs, in float32, a matrix whose row `o` the function writes into the given `k` floats.
    pub fn pack(pool: &mut Pool, n_out: usize, k: usize, row: &(dyn Fn(usize, &mut [f32]) + Sync)) -> Self {
        let n_strips = n_out.div_ceil(PANEL) * STRIPS;
        Self { n_out, k, weights: Weights::Float(FloatStrips::pack(pool, n_strips, n_out, k, row)) }
    }

    /// Packs, as it is stored, a matrix whose row `o` the function gives in a format of 16 bits; `None` if `format` is
    /// another. Products have the bits of the same numbers packed in float32.
    pub fn pack_stored<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Option<Self> {
        let n_strips = n_out.div_ceil(PANEL) * STRIPS;
        let weights = FloatStrips::pack_stored(pool, format, n_strips, n_out, k, row)?;
        Some(Self { n_out, k, weights: Weights::Float(weights) })
    }

    /// Packs, for quantised inputs, a matrix whose row `o` the function gives as stored in `format`; `None` if there
    /// is no such way for the format.
    pub fn pack_integer<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Option<Self> {
        if !IntegerWeights::takes(format) || !k.is_multiple_of(BLOCK) {
            return None;
        }
        let n_strips = n_out.div_ceil(PANEL) * STRIPS;
        Some(Self { n_out, k, weights: Weights::Integer(IntegerWeights::pack(pool, format, n_strips, n_out, k, row)) })
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
            Weights::Float(strips) => strips.n_bytes(),
            Weights::Integer(panels) => panels.n_bytes(),
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
            Weights::Float(strips) => strips.read_row(row, out),
            Weights::Integer(weights) => weights.read_row(row, out),
        }
    }

    pub(super) fn n_panels(&self) -> usize {
        self.n_out.div_ceil(PANEL)
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    fn integer(&self) -> Option<&IntegerWeights> {
        match &self.weights {
            Weights::Integer(weights) => Some(weights),
            Weights::Float(_) => None,
        }
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

    /// Whether a part takes inputs rounded so.
    pub(super) fn takes(&self, rounding: Rounding) -> bool {
        self.parts.iter().any(|p| p.integer().is_some_and(|w| w.rounding() == rounding))
    }

    /// Whether a part takes inputs as they are.
    pub(super) fn takes_floats(&self) -> bool {
        self.parts.iter().any(|p| p.integer().is_none())
    }

    /// Outputs of each part.
    pub(super) fn part_outputs(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().map(Matrix::n_out)
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
