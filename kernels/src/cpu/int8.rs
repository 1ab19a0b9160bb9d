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

/// One strip's weights: groups of codes, and per block sixteen `d` and `m`.
#[derive(Clone, Copy)]
struct Strip<'a> {
    codes: &'a [[u8; 64]],
    d: &'a [[u16; LANES]],
    m: &'a [[u16; LANES]],
}

/// Rows that lie side by side in [`QuantizedRows`]: a tile of the product reads them together.
pub(super) const GROUP: usize = 8;

/// Input rows in 8 bits.
#[derive(Default)]
pub(super) struct QuantizedRows {
    fine: bool,
    n_blocks: usize,
    /// `[n_rows / 8, n_blocks, 8]`: a block of eight rows, then the next block of the same rows.
    blocks: Vec<[Block; GROUP]>,
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
        self.fine = inputs == Inputs::Fine;
        self.n_blocks = k / BLOCK;
        let n_rows = x.len() / k;
        let n = n_rows.div_ceil(GROUP) * self.n_blocks;
        if self.blocks.len() < n {
            self.blocks.resize(n, [EMPTY; GROUP]);
        }
        let fine = self.fine;
        pool.chunks_mut(&mut self.blocks[..n], self.n_blocks, |group, blocks| {
            let x = &x[group * GROUP * k..x.len().min((group + 1) * GROUP * k)];
            launch(isa, Quantize { x, k, blocks, fine });
        });
    }

    /// Blocks of the eight rows that `row` is one of.
    fn group(&self, row: usize) -> &[[Block; GROUP]] {
        let group = row / GROUP;
        &self.blocks[group * self.n_blocks..(group + 1) * self.n_blocks]
    }
}

/// Up to eight rows.
struct Quantize<'a> {
    x: &'a [f32],
    k: usize,
    blocks: &'a mut [[Block; GROUP]],
    fine: bool,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (row, x) in self.x.chunks_exact(self.k).enumerate() {
            for (x, blocks) in x.as_chunks::<BLOCK>().0.iter().zip(&mut *self.blocks) {
                if self.fine {
                    quantize_fine(x, &mut blocks[row]);
                } else {
                    quantize(x, &mut blocks[row]);
                }
            }
        }
    }
}

// Plain float arithmetic: every level rounds it alike. Loops over arrays, which compilers turn into vectors.

/// Scale of the codes and its inverse.
#[inline(always)]
fn scale(x: &[f32; BLOCK]) -> (f32, f32) {
    // As integers, magnitudes compare like floats, and NaN is above all: it must not get lost.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7FFF_FFFF);
    }
    let largest = f32::from_bits(largest);
    (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

/// Codes of numbers counted in steps, to nearest, ties to even, and their sum: adding 1.5 * 2^23 leaves the integer
/// in the low bits.
#[inline(always)]
fn codes(steps: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> i32 {
    let mut sum = 0_i32;
    for i in 0..BLOCK {
        let code = ((steps[i] + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4B40_0000);
        codes[i] = code as i8;
        sum = sum.wrapping_add(code);
    }
    sum
}

#[inline(always)]
fn quantize(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut steps = [0.0; BLOCK];
    for i in 0..BLOCK {
        steps[i] = x[i] * inverse;
    }
    block.sums[0] = codes(&steps, &mut block.q);
    (block.d, block.total) = (d, d * block.sums[0] as f32);
}

#[inline(always)]
fn quantize_fine(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut steps = [0.0; BLOCK];
    for i in 0..BLOCK {
        steps[i] = x[i] * inverse;
    }
    block.sums[0] = codes(&steps, &mut block.q);
    for i in 0..BLOCK {
        // The difference is exact, and at most half a step.
        steps[i] = (steps[i] - f32::from(block.q[i])) * FINE_STEPS;
    }
    block.sums[1] = codes(&steps, &mut block.r);
    block.d = d / FINE_STEPS;
    block.total = block.d * (block.sums[0] as f32 * FINE_STEPS + block.sums[1] as f32);
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
        let blocks = self.x.group(row);
        let first_row = row % GROUP;
        let code_groups = if BYTES { 8 } else { 4 };
        let mut acc = [l.splat(0.0); R];
        let strip = strip.codes.chunks_exact(code_groups).zip(strip.d).zip(strip.m);
        for (((codes, d), m), blocks) in strip.zip(blocks) {
            let w: [L::B; 8] = std::array::from_fn(|g| {
                if BYTES {
                    l.load_bytes(&codes[g])
                } else if g % 2 == 0 {
                    l.low_nibbles(l.load_bytes(&codes[g / 2]))
                } else {
                    l.high_nibbles(l.load_bytes(&codes[g / 2]))
                }
            });
            let blocks: &[Block; R] = blocks[first_row..].first_chunk().expect("a tile lies in one group");
            let mut dots = dots(l, &w, blocks, |b| (&b.q, b.sums[0].wrapping_mul(-OFFSET)));
            if FINE {
                let rest = self::dots(l, &w, blocks, |b| (&b.r, b.sums[1].wrapping_mul(-OFFSET)));
                for r in 0..R {
                    dots[r] = l.fma(dots[r], l.splat(FINE_STEPS), rest[r]);
                }
            }
            let d = l.load_f16(d);
            for r in 0..R {
                acc[r] = l.fma(dots[r], l.mul(d, l.splat(blocks[r].d)), acc[r]);
            }
            if MIN {
                let m = l.load_f16(m);
                for r in 0..R {
                    acc[r] = l.fma(m, l.splat(blocks[r].total), acc[r]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            self.output.put(l, row - self.rows.start + r, first, acc);
        }
        R
    }
}

/// Exact sums of one block of `R` rows for sixteen outputs, as floats. `codes` gives a row's codes and its start.
#[inline(always)]
fn dots<L: Lanes, const R: usize>(
    l: L,
    w: &[L::B; 8],
    blocks: &[Block; R],
    codes: impl Fn(&Block) -> (&[i8; BLOCK], i32),
) -> [L::F; R] {
    let mut dots: [L::I; R] = std::array::from_fn(|r| l.splat_i32(codes(&blocks[r]).1));
    let x: [&[[i8; 4]; 8]; R] =
        std::array::from_fn(|r| codes(&blocks[r]).0.as_chunks::<4>().0.first_chunk().expect("32 codes are 8 fours"));
    for g in 0..8 {
        for r in 0..R {
            dots[r] = l.dot(dots[r], w[g], x[r][g]);
        }
    }
    std::array::from_fn(|r| l.to_float(dots[r]))
}
