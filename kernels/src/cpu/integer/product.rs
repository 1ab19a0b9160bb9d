//! Strips of weights times rows of inputs.

use std::ops::Range;

use super::FOURS;
use super::inputs::{Block, Blocks, GROUP, QuantizedRows};
use super::pack::IntegerWeights;
use super::records::{Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0, Record};
use crate::cpu::columns::Columns;
use crate::cpu::lanes::{Kernel, LANES, Lanes};
use crate::quant::QuantFormat;

/// Strips times some rows.
pub(in crate::cpu) struct IntegerProduct<'a> {
    /// Weights.
    pub(in crate::cpu) weights: &'a IntegerWeights,
    /// First strip, and how many.
    pub(in crate::cpu) strips: Range<usize>,
    /// Inputs.
    pub(in crate::cpu) x: &'a QuantizedRows,
    /// Whether to take those in 16 bits.
    pub(in crate::cpu) fine: bool,
    /// Which of them; the first is a multiple of 8.
    pub(in crate::cpu) rows: Range<usize>,
    /// Where results go.
    pub(in crate::cpu) columns: Columns<'a>,
}

impl Kernel for IntegerProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match (self.weights.format, self.fine) {
            (QuantFormat::Q4_0, false) => self.all::<L, Q4_0, FOURS>(l),
            (QuantFormat::Q4_0, true) => self.all::<L, Q4_0, { 2 * FOURS }>(l),
            (QuantFormat::Q4_1, false) => self.all::<L, Q4_1, FOURS>(l),
            (QuantFormat::Q4_1, true) => self.all::<L, Q4_1, { 2 * FOURS }>(l),
            (QuantFormat::Q4K, false) => self.all::<L, Q4K, FOURS>(l),
            (QuantFormat::Q4K, true) => self.all::<L, Q4K, { 2 * FOURS }>(l),
            (QuantFormat::Q5K, false) => self.all::<L, Q5K, FOURS>(l),
            (QuantFormat::Q5K, true) => self.all::<L, Q5K, { 2 * FOURS }>(l),
            (QuantFormat::Q6K, false) => self.all::<L, Q6K, FOURS>(l),
            (QuantFormat::Q6K, true) => self.all::<L, Q6K, { 2 * FOURS }>(l),
            (QuantFormat::Q8_0, _) => self.all::<L, Q8_0, { 2 * FOURS }>(l),
            (QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16, _) => unreachable!("not packed here"),
        }
    }
}

impl IntegerProduct<'_> {
    #[inline(always)]
    fn all<L: Lanes, R: Record, const W: usize>(&self, l: L)
    where
        QuantizedRows: Blocks<W>,
    {
        for index in self.strips.clone() {
            let strip = self.weights.strip::<R>(index);
            let first = (index - self.strips.start) * LANES;
            let mut row = self.rows.start;
            while row < self.rows.end {
                let left = (self.rows.end - row).min(L::TILE_ROWS);
                row += match left {
                    8.. => self.tile::<L, R, W, 8>(l, strip, row, first),
                    4.. => self.tile::<L, R, W, 4>(l, strip, row, first),
                    2.. => self.tile::<L, R, W, 2>(l, strip, row, first),
                    _ => self.tile::<L, R, W, 1>(l, strip, row, first),
                };
            }
        }
    }

    /// `N` rows times one strip; returns `N`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "indices stand in several arrays")]
    fn tile<L: Lanes, R: Record, const W: usize, const N: usize>(
        &self,
        l: L,
        strip: &[R],
        row: usize,
        first: usize,
    ) -> usize
    where
        QuantizedRows: Blocks<W>,
    {
        if N > L::TILE_ROWS {
            return N; // Never reached; keeps levels from compiling tiles that they do not use.
        }
        let first_row = row % GROUP;
        let mut acc = [l.splat(0.0); N];
        for (record, block) in strip.iter().zip(self.x.group(row)) {
            // A tile begins at a multiple of its rows and lies in one group.
            for half in 0..R::SCALES {
                let dots = dots::<L, R, W, N>(l, record, block, first_row, half);
                let d = record.d(l, half);
                for r in 0..N {
                    let d = l.mul(d, l.splat(block.d[first_row + r]));
                    acc[r] = l.fma(l.to_float(dots[r]), d, acc[r]);
                }
            }
            if R::MIN {
                let m = record.m(l);
                for r in 0..N {
                    acc[r] = l.fma(m, l.splat(block.total[first_row + r]), acc[r]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            self.columns.put(l, row - self.rows.start + r, first, acc);
        }
        N
    }
}

/// Exact sums of one block, or of half of it, of `N` rows for sixteen outputs.
#[inline(always)]
fn dots<L: Lanes, R: Record, const W: usize, const N: usize>(
    l: L,
    record: &R,
    block: &Block<W>,
    first_row: usize,
    half: usize,
) -> [L::I; N] {
    let pairs = half * FOURS / 2 / R::SCALES..(half + 1) * FOURS / 2 / R::SCALES;
    let words: [&[i32; W]; N] = std::array::from_fn(|r| &block.words[first_row + r]);
    if W == FOURS && R::SMALL {
        let mut sums = [l.small(); N];
        for pair in pairs {
            for (i, codes) in record.codes(l, pair).into_iter().enumerate() {
                for r in 0..N {
                    sums[r] = l.small_dot(sums[r], codes, words[r][2 * pair + i]);
                }
            }
        }
        let mut wide = [l.splat_i32(0); N];
        for r in 0..N {
            wide[r] = l.small_sum(sums[r]);
            if R::OFFSET != 0 {
                wide[r] = l.add_i32(wide[r], l.splat_i32(offset::<R, W>(block, first_row + r, half)));
            }
        }
        return wide;
    }
    let mut sums = [l.splat_i32(0); N];
    for (r, sum) in sums.iter_mut().enumerate() {
        *sum = l.splat_i32(offset::<R, W>(block, first_row + r, half));
    }
    for pair in pairs {
        for (i, codes) in record.codes(l, pair).into_iter().enumerate() {
            let four = 2 * pair + i;
            if W == FOURS {
                for r in 0..N {
                    sums[r] = l.dot(sums[r], codes, words[r][four]);
                }
            } else {
                let (even, odd) =
                    if R::SIGNED { (l.even_signed(codes), l.odd_signed(codes)) } else { (l.even(codes), l.odd(codes)) };
                for r in 0..N {
                    sums[r] = l.dot_pairs(sums[r], even, words[r][2 * four]);
                    sums[r] = l.dot_pairs(sums[r], odd, words[r][2 * four + 1]);
                }
            }
        }
    }
    sums
}

/// What is left of a sum when the codes' offset is taken off.
#[inline(always)]
fn offset<R: Record, const W: usize>(block: &Block<W>, row: usize, half: usize) -> i32 {
    let sums = block.sums[row];
    let sum = if R::SCALES == 1 { sums[0].wrapping_add(sums[1]) } else { sums[half] };
    sum.wrapping_mul(-R::OFFSET)
}
