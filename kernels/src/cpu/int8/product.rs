//! Strips of weights times rows of inputs.

use std::ops::Range;

use super::BLOCK;
use super::inputs::{Block, FINE_STEPS, GROUP, QuantizedRows};
use super::weights::{Code, Int8Panels, Strip};
use crate::cpu::lanes::{Kernel, LANES, Lanes};

/// Where results of a product go.
pub(in crate::cpu) trait Output {
    /// Takes outputs `first..first + 16` of the panel for a row.
    fn put<L: Lanes>(&self, l: L, row: usize, first: usize, result: L::F);
}

/// Strips times some rows.
pub(in crate::cpu) struct Int8Product<'a, O> {
    /// Weights.
    pub(in crate::cpu) weights: &'a Int8Panels,
    /// First strip, and how many.
    pub(in crate::cpu) strips: Range<usize>,
    /// Inputs.
    pub(in crate::cpu) x: &'a QuantizedRows,
    /// Which of them.
    pub(in crate::cpu) rows: Range<usize>,
    /// Where results go.
    pub(in crate::cpu) output: O,
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
