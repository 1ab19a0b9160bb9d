//! Working memory of a step, kept from one to the next.

use kernels::cpu::RopeTable;

/// Buffers, one row per token of the step; they grow to the largest step seen.
#[derive(Default)]
pub(super) struct Scratch {
    /// Residual stream.
    pub(super) x: Vec<f32>,
    /// After a norm.
    pub(super) normed: Vec<f32>,
    /// Queries, keys, values.
    pub(super) qkv: Vec<f32>,
    /// Result of attention.
    pub(super) attended: Vec<f32>,
    /// Gates and ups.
    pub(super) gate_up: Vec<f32>,
    /// After the gate.
    pub(super) gated: Vec<f32>,
    /// Output of a part that is normalised before it joins the residual stream.
    pub(super) branch: Vec<f32>,
    /// Cosines and sines of each rotary embedding.
    pub(super) ropes: Vec<RopeTable>,
}

/// The first `len` elements, made if need be.
pub(super) fn sized(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Moves the rows `wanted` (ascending) of `row_len` elements to the front.
pub(super) fn keep_rows(buffer: &mut [f32], row_len: usize, wanted: &[usize]) {
    for (to, &from) in wanted.iter().enumerate() {
        buffer.copy_within(from * row_len..(from + 1) * row_len, to * row_len);
    }
}
