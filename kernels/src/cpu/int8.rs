//! Matrix product of 8-bit inputs with packed 4-bit and 8-bit weights.
//!
//! Inputs are quantised per block of 32 (`q = round(x / d)`, `d = max |x| / 127`), with [`Inputs::Fine`] what is left
//! of each once more in steps of `d / 254`, which makes about 16 bits. A block's contribution to an output is an exact
//! integer sum, turned to float and added with one or two fused multiply-adds; blocks follow in order. So an output's
//! bits depend on its input row and its weights alone, on every instruction level.

use std::ops::Range;

use super::lanes::{Kernel, LANES, Lanes, launch};
use crate::memory::AlignedVec;
use crate::pool::Pool;
use crate::quant::QuantFormat;

/// Steps of the second code in one of the first.
const FINE_STEPS: f32 = 254.0;

/// How exactly a linear layer with 8-bit weights takes its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inputs {
    /// 8 bits.
    Coarse,
    /// Twice 8 bits: for twice the work, where rounding would show.
    Fine,
}

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;

/// How weights of a block are given back: `w = d * (u - offset) + m` with `u` unsigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Code {
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
pub(super) struct Int8Panels {
    code: Code,
    n_blocks: usize,
    codes: AlignedVec<u8>,
    scales: AlignedVec<u16>,
}

impl Int8Panels {
    /// Whether matrices of that format can be packed.
    pub(super) fn takes(format: QuantFormat) -> bool {
        code_of(format).is_some()
    }

    /// Packs `n_strips` strips of rows in `format`; rows from `n_out` on are zero.
    pub(super) fn pack<'a>(
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

    pub(super) fn n_bytes(&self) -> usize {
        size_of_val(&*self.codes) + size_of_val(&*self.scales)
    }

    fn strip(&self, strip: usize) -> Strip<'_> {
        let codes = self.n_blocks * self.code.code_bytes();
        let scales = self.n_blocks * self.code.n_scales() * LANES;
        let codes = &self.codes[strip * codes..(strip + 1) * codes];
        let scales = &self.scales[strip * scales..(strip + 1) * scales];
        let (d, m) = scales.as_chunks::<LANES>().0.split_at(self.n_blocks);
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

/// One strip's weights: groups of codes, and per block sixteen `d` and `m`.
#[derive(Clone, Copy)]
struct Strip<'a> {
    codes: &'a [[u8; 64]],
    d: &'a [[u16; LANES]],
    m: &'a [[u16; LANES]],
}

/// Input rows in 8 bits.
#[derive(Default)]
pub(super) struct QuantizedRows {
    fine: bool,
    n_blocks: usize,
    /// `[n_rows, n_blocks]`.
    blocks: Vec<Block>,
}

/// A block of inputs: `x = d * q`, or with fine inputs `x = d * (254 * q + r)`.
#[derive(Clone, Copy)]
struct Block {
    q: [i8; BLOCK],
    r: [i8; BLOCK],
    d: f32,
    /// Sums of `q` and of `r`.
    sums: [i32; 2],
    /// Sum of the inputs.
    total: f32,
}

const EMPTY: Block = Block { q: [0; BLOCK], r: [0; BLOCK], d: 0.0, sums: [0; 2], total: 0.0 };

impl QuantizedRows {
    /// Quantises rows of `k` elements, a multiple of 32.
    pub(super) fn fill(&mut self, pool: &mut Pool, isa: crate::Isa, x: &[f32], k: usize, inputs: Inputs) {
        /// Blocks of one task.
        const TASK_BLOCKS: usize = 256;
        let x = x.as_chunks::<BLOCK>().0;
        self.fine = inputs == Inputs::Fine;
        self.n_blocks = k / BLOCK;
        if self.blocks.len() < x.len() {
            self.blocks.resize(x.len(), EMPTY);
        }
        let fine = self.fine;
        pool.chunks_mut(&mut self.blocks[..x.len()], TASK_BLOCKS, |task, blocks| {
            launch(isa, Quantize { x: &x[task * TASK_BLOCKS..][..blocks.len()], blocks, fine });
        });
    }

    fn row(&self, row: usize) -> &[Block] {
        &self.blocks[row * self.n_blocks..(row + 1) * self.n_blocks]
    }
}

struct Quantize<'a> {
    x: &'a [[f32; BLOCK]],
    blocks: &'a mut [Block],
    fine: bool,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (x, block) in self.x.iter().zip(self.blocks) {
            if self.fine {
                quantize_fine(x, block);
            } else {
                quantize(x, block);
            }
        }
    }
}

// Plain float arithmetic: every level rounds it alike.

/// Scale of the codes and its inverse.
#[inline(always)]
fn scale(x: &[f32; BLOCK]) -> (f32, f32) {
    // As integers, magnitudes compare like floats, and NaN is above all: it must not get lost.
    let largest = x.iter().fold(0, |largest: u32, x| largest.max(x.to_bits() & 0x7FFF_FFFF));
    let largest = f32::from_bits(largest);
    (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

/// To nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits.
#[inline(always)]
fn round(x: f32) -> i32 {
    ((x + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4B40_0000)
}

#[inline(always)]
fn quantize(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut sum = 0;
    for (x, q) in x.iter().zip(&mut block.q) {
        *q = round(x * inverse) as i8;
        sum += i32::from(*q);
    }
    (block.d, block.sums[0], block.total) = (d, sum, d * sum as f32);
}

#[inline(always)]
fn quantize_fine(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut sums = [0; 2];
    for ((x, q), r) in x.iter().zip(&mut block.q).zip(&mut block.r) {
        let steps = x * inverse;
        let whole = round(steps) as i8;
        // The difference is exact, and at most half a step.
        (*q, *r) = (whole, round((steps - f32::from(whole)) * FINE_STEPS) as i8);
        sums[0] += i32::from(*q);
        sums[1] += i32::from(*r);
    }
    let d = d / FINE_STEPS;
    (block.d, block.sums) = (d, sums);
    block.total = d * (sums[0] as f32 * FINE_STEPS + sums[1] as f32);
}

/// Where results of a product go.
pub(super) trait Output {
    /// Takes outputs `first..first + 16` of the panel for a row.
    fn put<L: Lanes>(&self, l: L, row: usize, first: usize, result: L::F);
}

/// Strips times some rows.
pub(super) struct Int8Product<'a, O> {
    /// Weights.
    pub(super) weights: &'a Int8Panels,
    /// First strip, and how many.
    pub(super) strips: Range<usize>,
    /// Inputs.
    pub(super) x: &'a QuantizedRows,
    /// Which of them.
    pub(super) rows: Range<usize>,
    /// Where results go.
    pub(super) output: O,
}

impl<O: Output> Kernel for Int8Product<'_, O> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match (self.weights.code, self.x.fine) {
            (Code::Q4_0, false) => self.all::<L, false, 8, false, false>(l),
            (Code::Q4_1, false) => self.all::<L, false, 0, true, false>(l),
            (Code::Q8_0, false) => self.all::<L, true, 128, false, false>(l),
            (Code::Q4_0, true) => self.all::<L, false, 8, false, true>(l),
            (Code::Q4_1, true) => self.all::<L, false, 0, true, true>(l),
            (Code::Q8_0, true) => self.all::<L, true, 128, false, true>(l),
        }
    }
}

impl<O: Output> Int8Product<'_, O> {
    #[inline(always)]
    fn all<L: Lanes, const BYTES: bool, const OFFSET: i32, const MIN: bool, const FINE: bool>(&self, l: L) {
        for index in self.strips.clone() {
            let strip = self.weights.strip(index);
            let first = (index - self.strips.start) * LANES;
            let mut row = self.rows.start;
            while row < self.rows.end {
                row += match self.rows.end - row {
                    8.. if L::WIDE => self.tile::<L, 8, BYTES, OFFSET, MIN, FINE>(l, strip, row, first),
                    4.. if L::WIDE => self.tile::<L, 4, BYTES, OFFSET, MIN, FINE>(l, strip, row, first),
                    2.. => self.tile::<L, 2, BYTES, OFFSET, MIN, FINE>(l, strip, row, first),
                    _ => self.tile::<L, 1, BYTES, OFFSET, MIN, FINE>(l, strip, row, first),
                };
            }
        }
    }

    /// `R` rows times one strip; returns `R`.
    #[inline(always)]
    fn tile<L: Lanes, const R: usize, const BYTES: bool, const OFFSET: i32, const MIN: bool, const FINE: bool>(
        &self,
        l: L,
        strip: Strip<'_>,
        row: usize,
        first: usize,
    ) -> usize {
        let n_blocks = strip.d.len();
        let rows: [&[Block]; R] = std::array::from_fn(|r| &self.x.row(row + r)[..n_blocks]);
        let groups = if BYTES { 8 } else { 4 };
        let mut acc = [l.splat(0.0); R];
        for (b, codes) in strip.codes.chunks_exact(groups).enumerate() {
            let w: [L::B; 8] = std::array::from_fn(|g| {
                if BYTES {
                    l.load_bytes(&codes[g])
                } else if g % 2 == 0 {
                    l.low_nibbles(l.load_bytes(&codes[g / 2]))
                } else {
                    l.high_nibbles(l.load_bytes(&codes[g / 2]))
                }
            });
            let d = l.load_f16(&strip.d[b]);
            for r in 0..R {
                let block = &rows[r][b];
                let mut dot = l.to_float(block_dot(l, &w, &block.q, -OFFSET * block.sums[0]));
                if FINE {
                    let rest = l.to_float(block_dot(l, &w, &block.r, -OFFSET * block.sums[1]));
                    dot = l.fma(dot, l.splat(FINE_STEPS), rest);
                }
                acc[r] = l.fma(dot, l.mul(d, l.splat(block.d)), acc[r]);
                if MIN {
                    acc[r] = l.fma(l.load_f16(&strip.m[b]), l.splat(block.total), acc[r]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            self.output.put(l, row - self.rows.start + r, first, acc);
        }
        R
    }
}

/// Integer sums of one block for sixteen outputs, from `start`.
#[inline(always)]
fn block_dot<L: Lanes>(l: L, w: &[L::B; 8], x: &[i8; BLOCK], start: i32) -> L::I {
    let mut dot = l.splat_i32(start);
    for (w, x) in w.iter().zip(x.as_chunks::<4>().0) {
        dot = l.dot(dot, *w, *x);
    }
    dot
}
