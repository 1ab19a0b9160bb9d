//! Strips of weights times rows of inputs.

use std::ops::Range;

use bytemuck::Pod;

use super::FOURS;
use super::inputs::{Block, GROUP, QuantizedRows, Wide};
use super::pack::IntegerWeights;
use super::records::{Opened, Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0, Record};
use crate::cpu::columns::Columns;
use crate::cpu::lanes::{Kernel, LANES, Lanes};
use crate::quant::QuantFormat;

/// Rows that make it worth taking a strip's records apart first.
const MANY_ROWS: usize = 16;

/// Strips times some rows.
pub(in crate::cpu) struct IntegerProduct<'a> {
    /// Weights.
    pub(in crate::cpu) weights: &'a IntegerWeights,
    /// First strip, and how many.
    pub(in crate::cpu) strips: Range<usize>,
    /// Inputs.
    pub(in crate::cpu) x: &'a QuantizedRows,
    /// Which of them; the first is a multiple of 8.
    pub(in crate::cpu) rows: Range<usize>,
    /// Where results go.
    pub(in crate::cpu) columns: Columns<'a>,
}

impl Kernel for IntegerProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.weights.format {
            QuantFormat::Q4_0 => self.all::<L, Q4_0>(l),
            QuantFormat::Q4_1 => self.all::<L, Q4_1>(l),
            QuantFormat::Q4K => self.all::<L, Q4K>(l),
            QuantFormat::Q5K => self.all::<L, Q5K>(l),
            QuantFormat::Q6K => self.all::<L, Q6K>(l),
            QuantFormat::Q8_0 => self.all::<L, Q8_0>(l),
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => unreachable!("not packed here"),
        }
    }
}

impl IntegerProduct<'_> {
    #[inline(always)]
    fn all<L: Lanes, R: Record + Pod>(&self, l: L) {
        // Whole tiles of many rows; the rest needs a strip once or twice.
        let n_tiles = if self.rows.len() < MANY_ROWS { 0 } else { self.rows.len() / L::TILE_ROWS };
        let mut opened: Vec<Opened<R>> = Vec::new();
        for index in self.strips.clone() {
            let strip = self.weights.strip::<R>(index);
            let first = (index - self.strips.start) * LANES;
            let mut row = self.rows.start;
            if n_tiles > 0 {
                opened.clear();
                for record in strip {
                    opened.push(Opened::new(l, record));
                }
                for _ in 0..n_tiles {
                    row += match L::TILE_ROWS {
                        8.. => self.tile::<L, _, 8>(l, &opened, row, first),
                        4.. => self.tile::<L, _, 4>(l, &opened, row, first),
                        _ => self.tile::<L, _, 1>(l, &opened, row, first),
                    };
                }
            }
            while row < self.rows.end {
                let left = (self.rows.end - row).min(L::TILE_ROWS);
                row += match left {
                    8.. => self.tile::<L, R, 8>(l, strip, row, first),
                    4.. => self.tile::<L, R, 4>(l, strip, row, first),
                    2.. => self.tile::<L, R, 2>(l, strip, row, first),
                    _ => self.tile::<L, R, 1>(l, strip, row, first),
                };
            }
        }
    }

    /// `N` rows times one strip; returns `N`.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "indices stand in several arrays")]
    fn tile<L: Lanes, R: Record, const N: usize>(&self, l: L, strip: &[R], row: usize, first: usize) -> usize {
        if N > L::TILE_ROWS {
            return N; // Never reached; keeps levels from compiling tiles that they do not use.
        }
        // A tile begins at a multiple of its rows and lies in one group.
        let first_row = row % GROUP;
        let (blocks, wide) = self.x.group(row);
        let mut acc = [l.splat(0.0); N];
        for ((record, block), wide) in strip.iter().zip(blocks).zip(wide) {
            // The codes of a coarse row are the same numbers in 16 bits: its sums do not depend on its neighbours.
            let fine = R::SIGNED || (block.fine >> first_row) & (0xFF >> (GROUP - N)) != 0;
            for half in 0..R::SCALES {
                let sums = if fine {
                    fine_sums::<L, R, N>(l, record, block, wide, first_row, half)
                } else {
                    coarse_sums::<L, R, N>(l, record, block, first_row, half)
                };
                let d = record.d(l, half);
                for r in 0..N {
                    let d = l.mul(d, l.splat(block.d[first_row + r]));
                    acc[r] = l.fma(l.to_float(sums[r]), d, acc[r]);
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

/// Pairs of groups of codes in a half, or in the block if that has one scale.
#[inline(always)]
fn pairs<R: Record>(half: usize) -> Range<usize> {
    half * FOURS / 2 / R::SCALES..(half + 1) * FOURS / 2 / R::SCALES
}

/// Exact sums of one block, or of half of it, of `N` rows for sixteen outputs; inputs in 8 bits.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices stand in several arrays")]
fn coarse_sums<L: Lanes, R: Record, const N: usize>(
    l: L,
    record: &R,
    block: &Block,
    first_row: usize,
    half: usize,
) -> [L::I; N] {
    let words = &block.words[first_row..][..N];
    let mut out = [l.splat_i32(0); N];
    if R::SMALL {
        let mut sums = [l.small(); N];
        for pair in pairs::<R>(half) {
            for (i, codes) in record.codes(l, pair).into_iter().enumerate() {
                for r in 0..N {
                    sums[r] = l.small_dot(sums[r], codes, words[r][2 * pair + i]);
                }
            }
        }
        for r in 0..N {
            out[r] = l.small_sum(sums[r]);
            if R::OFFSET != 0 {
                out[r] = l.add_i32(out[r], l.splat_i32(offset::<R>(block, first_row + r, half)));
            }
        }
        return out;
    }
    for r in 0..N {
        out[r] = l.splat_i32(offset::<R>(block, first_row + r, half));
    }
    for pair in pairs::<R>(half) {
        for (i, codes) in record.codes(l, pair).into_iter().enumerate() {
            for r in 0..N {
                out[r] = l.dot(out[r], codes, words[r][2 * pair + i]);
            }
        }
    }
    out
}

/// As [`coarse_sums`]; inputs in 16 bits.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices stand in several arrays")]
fn fine_sums<L: Lanes, R: Record, const N: usize>(
    l: L,
    record: &R,
    block: &Block,
    wide: &Wide,
    first_row: usize,
    half: usize,
) -> [L::I; N] {
    let words = &wide[first_row..][..N];
    let mut out = [l.splat_i32(0); N];
    for r in 0..N {
        out[r] = l.splat_i32(offset::<R>(block, first_row + r, half));
    }
    for pair in pairs::<R>(half) {
        for (i, codes) in record.codes(l, pair).into_iter().enumerate() {
            let four = 2 * pair + i;
            let (even, odd) =
                if R::SIGNED { (l.even_signed(codes), l.odd_signed(codes)) } else { (l.even(codes), l.odd(codes)) };
            for r in 0..N {
                out[r] = l.dot_pairs(out[r], even, words[r][2 * four]);
                out[r] = l.dot_pairs(out[r], odd, words[r][2 * four + 1]);
            }
        }
    }
    out
}

/// What is left of a sum when the codes' offset is taken off.
#[inline(always)]
fn offset<R: Record>(block: &Block, row: usize, half: usize) -> i32 {
    let sums = block.sums[row];
    let sum = if R::SCALES == 1 { sums[0].wrapping_add(sums[1]) } else { sums[half] };
    sum.wrapping_mul(-R::OFFSET)
}
