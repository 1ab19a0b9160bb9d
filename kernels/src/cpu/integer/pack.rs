//! From stored rows to records.

use bytemuck::Pod;

use super::inputs::Rounding;
use super::records::{Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0, Record};
use super::{BLOCK, FOURS};
use crate::cpu::lanes::LANES;
use crate::memory::AlignedVec;
use crate::pool::Pool;
use crate::quant::{QuantFormat, k_blocks};

/// A matrix in strips of sixteen outputs; a strip is its blocks' records one after the other.
pub(in crate::cpu) struct IntegerWeights {
    pub(super) format: QuantFormat,
    n_blocks: usize,
    bytes: AlignedVec<u8>,
}

impl IntegerWeights {
    /// Whether matrices of that format can be packed.
    pub(in crate::cpu) fn takes(format: QuantFormat) -> bool {
        record_bytes(format).is_some()
    }

    /// Packs `n_strips` strips of rows of `k` elements, whole blocks of `format`; rows from `n_out` on are zero.
    pub(in crate::cpu) fn pack<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_strips: usize,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Self {
        let record = record_bytes(format).expect("the caller asked whether the format can be packed");
        let n_blocks = k / BLOCK;
        let mut bytes = AlignedVec::zeroed(n_strips * n_blocks * record);
        pool.chunks_mut(&mut bytes, n_blocks * record, |strip, bytes| {
            for lane in 0..LANES.min(n_out.saturating_sub(strip * LANES)) {
                let stored = row(strip * LANES + lane);
                match format {
                    QuantFormat::Q4_0 => small(stored, bytes, lane, q4_0),
                    QuantFormat::Q4_1 => small(stored, bytes, lane, q4_1),
                    QuantFormat::Q8_0 => small(stored, bytes, lane, q8_0),
                    QuantFormat::Q4K => large(stored, bytes, lane, q4k),
                    QuantFormat::Q5K => large(stored, bytes, lane, q5k),
                    QuantFormat::Q6K => large(stored, bytes, lane, q6k),
                    QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => unreachable!("not packed here"),
                }
            }
        });
        Self { format, n_blocks, bytes }
    }

    pub(in crate::cpu) fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// How inputs are to be rounded: weights of 8 bits are multiplied in 16 anyway.
    pub(in crate::cpu) fn rounding(&self) -> Rounding {
        if self.format == QuantFormat::Q8_0 { Rounding::Fine } else { Rounding::Mixed }
    }

    /// Records of a strip; `R` is the format's.
    pub(super) fn strip<R: Record + Pod>(&self, strip: usize) -> &[R] {
        let bytes = self.n_blocks * size_of::<R>();
        bytemuck::cast_slice(&self.bytes[strip * bytes..(strip + 1) * bytes])
    }
}

fn record_bytes(format: QuantFormat) -> Option<usize> {
    match format {
        QuantFormat::Q4_0 => Some(size_of::<Q4_0>()),
        QuantFormat::Q4_1 => Some(size_of::<Q4_1>()),
        QuantFormat::Q8_0 => Some(size_of::<Q8_0>()),
        QuantFormat::Q4K => Some(size_of::<Q4K>()),
        QuantFormat::Q5K => Some(size_of::<Q5K>()),
        QuantFormat::Q6K => Some(size_of::<Q6K>()),
        QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => None,
    }
}

/// Formats whose blocks are ours.
fn small<R: Record + Pod, const B: usize>(
    stored: &[u8],
    bytes: &mut [u8],
    lane: usize,
    put: fn(&[u8; B], usize, &mut R),
) {
    let records: &mut [R] = bytemuck::cast_slice_mut(bytes);
    for (block, record) in stored.as_chunks::<B>().0.iter().zip(records) {
        put(block, lane, record);
    }
}

/// Formats with eight of our blocks in one; `put` gets the number of ours in theirs.
fn large<R: Record + Pod, const B: usize>(
    stored: &[u8],
    bytes: &mut [u8],
    lane: usize,
    put: fn(&[u8; B], usize, usize, &mut R),
) {
    let records: &mut [R] = bytemuck::cast_slice_mut(bytes);
    for (block, records) in stored.as_chunks::<B>().0.iter().zip(records.chunks_exact_mut(k_blocks::ELEMENTS / BLOCK)) {
        for (i, record) in records.iter_mut().enumerate() {
            put(block, i, lane, record);
        }
    }
}

fn half(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Writes the low four bits of one output's codes.
fn put_nibbles(codes: &mut [[u8; 4 * LANES]; FOURS / 2], lane: usize, code: impl Fn(usize) -> u8) {
    for i in 0..BLOCK {
        let (group, byte) = (i / 4, lane * 4 + i % 4);
        codes[group / 2][byte] |= (code(i) & 15) << (4 * (group % 2));
    }
}

/// Code `i` of a block of nibbles whose low halves are the first sixteen.
fn split_nibble(nibbles: &[u8], i: usize) -> u8 {
    if i < BLOCK / 2 { nibbles[i] & 15 } else { nibbles[i - BLOCK / 2] >> 4 }
}

fn q4_0(block: &[u8; 18], lane: usize, out: &mut Q4_0) {
    put_nibbles(&mut out.codes, lane, |i| split_nibble(&block[2..], i));
    out.d[lane] = half(block, 0);
}

fn q4_1(block: &[u8; 20], lane: usize, out: &mut Q4_1) {
    put_nibbles(&mut out.codes, lane, |i| split_nibble(&block[4..], i));
    (out.d[lane], out.m[lane]) = (half(block, 0), half(block, 2));
}

fn q8_0(block: &[u8; 34], lane: usize, out: &mut Q8_0) {
    for (i, &code) in block[2..].iter().enumerate() {
        out.codes[i / 4][lane * 4 + i % 4] = code;
    }
    out.d[lane] = half(block, 0);
}

fn q4k(block: &[u8; k_blocks::Q4K_BYTES], group: usize, lane: usize, out: &mut Q4K) {
    put_nibbles(&mut out.codes, lane, |i| k_blocks::q4k_code(block, group, i));
    (out.d[lane], out.dmin[lane]) = (half(block, 0), half(block, 2));
    (out.scale[lane], out.min[lane]) = k_blocks::packed_scale(block, group);
}

fn q5k(block: &[u8; k_blocks::Q5K_BYTES], group: usize, lane: usize, out: &mut Q5K) {
    let code = |i| k_blocks::q5k_code(block, group, i);
    put_nibbles(&mut out.codes, lane, code);
    for i in 0..BLOCK {
        out.high[lane * 4 + i % 4] |= (code(i) >> 4) << ((i / 4 + 4) % 8);
    }
    (out.d[lane], out.dmin[lane]) = (half(block, 0), half(block, 2));
    (out.scale[lane], out.min[lane]) = k_blocks::packed_scale(block, group);
}

fn q6k(block: &[u8; k_blocks::Q6K_BYTES], group: usize, lane: usize, out: &mut Q6K) {
    let code = |i| k_blocks::q6k_code(block, group * BLOCK + i);
    put_nibbles(&mut out.codes, lane, code);
    for i in 0..BLOCK {
        let four = i / 4;
        out.high[four / 4][lane * 4 + i % 4] |= (code(i) >> 4) << [4, 6, 0, 2][four % 4];
    }
    out.d[lane] = half(block, k_blocks::Q6K_BYTES - 2);
    for (half, scale) in out.scale.iter_mut().enumerate() {
        scale[lane] = k_blocks::q6k_scale(block, group * 2 + half);
    }
}
