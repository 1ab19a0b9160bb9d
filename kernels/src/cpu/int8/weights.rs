//! Weights in strips of sixteen outputs.

use half::f16;

use super::BLOCK;
use crate::cpu::lanes::LANES;
use crate::memory::AlignedVec;
use crate::pool::Pool;
use crate::quant::QuantFormat;

/// How weights of a block are given back: `w = d * (u - offset) + m` with `u` unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Code {
    /// Nibbles, offset 8.
    Q4_0,
    /// Nibbles, offset 0, with `m`.
    Q4_1,
    /// Bytes, offset 128 (stored signed).
    Q8_0,
}

impl Code {
    /// Bytes of a block's codes for sixteen outputs.
    const fn code_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 => BLOCK * LANES / 2,
            Self::Q8_0 => BLOCK * LANES,
        }
    }

    /// Binary16 numbers of a block for each output.
    const fn n_scales(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q8_0 => 1,
            Self::Q4_1 => 2,
        }
    }
}

/// A matrix in strips of sixteen outputs.
///
/// A strip holds the codes of its blocks, then their scales (with `m`: all `d`, then all `m`). Codes of a block are
/// groups of 64 bytes: for each of sixteen outputs four consecutive inputs. Nibble groups hold the inputs of two such
/// groups, the first in the low halves.
pub(in crate::cpu) struct Int8Panels {
    pub(super) code: Code,
    n_blocks: usize,
    codes: AlignedVec<u8>,
    scales: AlignedVec<u16>,
}

impl Int8Panels {
    /// Whether matrices of that format can be packed.
    pub(in crate::cpu) fn takes(format: QuantFormat) -> bool {
        code_of(format).is_some()
    }

    /// Packs `n_strips` strips of rows in `format`; rows from `n_out` on are zero.
    pub(in crate::cpu) fn pack<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_strips: usize,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Self {
        let code = code_of(format).expect("the caller asked whether the format can be packed");
        let n_blocks = k / BLOCK;
        let mut codes = AlignedVec::zeroed(n_strips * n_blocks * code.code_bytes());
        let mut scales = AlignedVec::zeroed(n_strips * n_blocks * code.n_scales() * LANES);
        pool.chunks_mut(&mut codes, n_blocks * code.code_bytes(), |strip, codes| {
            for lane in 0..LANES.min(n_out.saturating_sub(strip * LANES)) {
                let blocks = row(strip * LANES + lane).chunks_exact(format.block_bytes());
                for (block, out) in blocks.zip(codes.chunks_exact_mut(code.code_bytes())) {
                    put_codes(code, block, lane, out);
                }
            }
        });
        pool.chunks_mut(&mut scales, n_blocks * code.n_scales() * LANES, |strip, scales| {
            for lane in 0..LANES.min(n_out.saturating_sub(strip * LANES)) {
                for (b, block) in row(strip * LANES + lane).chunks_exact(format.block_bytes()).enumerate() {
                    for scale in 0..code.n_scales() {
                        let bits = u16::from_le_bytes([block[2 * scale], block[2 * scale + 1]]);
                        scales[(scale * n_blocks + b) * LANES + lane] = bits;
                    }
                }
            }
        });
        Self { code, n_blocks, codes, scales }
    }

    pub(in crate::cpu) fn n_bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.scales)
    }

    /// Writes the weights of output `row`, with the rounding of [`dequantize`](crate::quant::dequantize).
    pub(in crate::cpu) fn read_row(&self, row: usize, out: &mut [f32]) {
        let (strip, lane) = (self.strip(row / LANES), row % LANES);
        let groups = self.code.code_bytes() / 64;
        let blocks = out.chunks_exact_mut(BLOCK).zip(strip.codes.chunks_exact(groups));
        for ((out, codes), (d, m)) in blocks.zip(strip.d.iter().zip(strip.m)) {
            let (d, m) = (f16::from_bits(d[lane]).to_f32(), f16::from_bits(m[lane]).to_f32());
            for (i, out) in out.iter_mut().enumerate() {
                let u = get_code(self.code, codes, lane, i);
                *out = match self.code {
                    Code::Q8_0 => f32::from((u ^ 0x80) as i8) * d,
                    Code::Q4_0 => f32::from(u as i8 - 8) * d,
                    Code::Q4_1 => f32::from(u) * d + m,
                };
            }
        }
    }

    pub(super) fn strip(&self, strip: usize) -> Strip<'_> {
        let codes = self.n_blocks * self.code.code_bytes();
        let scales = self.n_blocks * self.code.n_scales() * LANES;
        let codes = &self.codes[strip * codes..(strip + 1) * codes];
        let scales = &self.scales[strip * scales..(strip + 1) * scales];
        let (d, m) = scales.as_chunks::<LANES>().0.split_at(self.n_blocks);
        // Formats without minima do not read them.
        let m = if m.is_empty() { d } else { m };
        Strip { codes: codes.as_chunks().0, d, m }
    }
}

fn code_of(format: QuantFormat) -> Option<Code> {
    match format {
        QuantFormat::Q4_0 => Some(Code::Q4_0),
        QuantFormat::Q4_1 => Some(Code::Q4_1),
        QuantFormat::Q8_0 => Some(Code::Q8_0),
        _ => None,
    }
}

/// Writes one output's codes of one block.
fn put_codes(code: Code, block: &[u8], lane: usize, out: &mut [u8]) {
    let stored = &block[2 * code.n_scales()..];
    for i in 0..BLOCK {
        let (group, byte) = (i / 4, lane * 4 + i % 4);
        match code {
            Code::Q8_0 => out[group * 64 + byte] = stored[i] ^ 0x80,
            Code::Q4_0 | Code::Q4_1 => {
                let u = if i < BLOCK / 2 { stored[i] & 15 } else { stored[i - BLOCK / 2] >> 4 };
                out[group / 2 * 64 + byte] |= if group % 2 == 0 { u } else { u << 4 };
            }
        }
    }
}

/// The code that [`put_codes`] wrote for input `i` of a block.
fn get_code(code: Code, groups: &[[u8; 64]], lane: usize, i: usize) -> u8 {
    let (group, byte) = (i / 4, lane * 4 + i % 4);
    match code {
        Code::Q8_0 => groups[group][byte],
        Code::Q4_0 | Code::Q4_1 => groups[group / 2][byte] >> (group % 2 * 4) & 15,
    }
}

/// One strip's weights: groups of codes, and per block sixteen `d` and `m`.
#[derive(Clone, Copy)]
pub(super) struct Strip<'a> {
    pub(super) codes: &'a [[u8; 64]],
    pub(super) d: &'a [[u16; LANES]],
    pub(super) m: &'a [[u16; LANES]],
}
