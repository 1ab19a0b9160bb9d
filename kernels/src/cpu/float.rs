//! Products with weights in float formats.
//!
//! Each output is one chain of fused multiply-adds over `k` from 0 up, starting at 0, whatever the tile. Weights of 16
//! bits stay so in memory and are widened, exactly, as they are used: the bits of the results are those of the same
//! numbers in float32, at half the bytes.

use std::ops::Range;

use half::{bf16, f16};

use super::columns::Columns;
use super::lanes::{Kernel, LANES, Lanes};
use crate::memory::{AlignedVec, Number};
use crate::pool::Pool;
use crate::quant::QuantFormat;

/// A matrix in strips of sixteen outputs: `[n_strips][k][16]`; outputs that are missing in the last strips are zero.
pub(super) enum FloatStrips {
    /// IEEE binary32.
    F32(AlignedVec<f32>),
    /// IEEE binary16.
    F16(AlignedVec<f16>),
    /// The upper half of a binary32.
    Bf16(AlignedVec<bf16>),
}

impl FloatStrips {
    /// Packs, in float32, rows that the function writes into the given `k` floats.
    pub(super) fn pack(
        pool: &mut Pool,
        n_strips: usize,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) -> Self {
        Self::F32(strips(pool, n_strips, n_out, k, &|o, out| row(o, out)))
    }

    /// Packs, as stored, rows in a format of 16 bits; `None` if `format` is another.
    pub(super) fn pack_stored<'a>(
        pool: &mut Pool,
        format: QuantFormat,
        n_strips: usize,
        n_out: usize,
        k: usize,
        row: &(dyn Fn(usize) -> &'a [u8] + Sync),
    ) -> Option<Self> {
        match format {
            QuantFormat::F16 => {
                Some(Self::F16(strips(pool, n_strips, n_out, k, &|o, out| read(row(o), out, f16::from_le_bytes))))
            }
            QuantFormat::BF16 => {
                Some(Self::Bf16(strips(pool, n_strips, n_out, k, &|o, out| read(row(o), out, bf16::from_le_bytes))))
            }
            _ => None,
        }
    }

    /// Writes the weights of output `row`, as many as `out` is long.
    pub(super) fn read_row(&self, row: usize, out: &mut [f32]) {
        fn read<T: Copy>(all: &[T], row: usize, out: &mut [f32], number: impl Fn(T) -> f32) {
            let strip = &all[row / LANES * out.len() * LANES..][..out.len() * LANES];
            strip.chunks_exact(LANES).zip(out).for_each(|(lanes, out)| *out = number(lanes[row % LANES]));
        }
        match self {
            Self::F32(all) => read(all, row, out, |w| w),
            Self::F16(all) => read(all, row, out, f16::to_f32),
            Self::Bf16(all) => read(all, row, out, bf16::to_f32),
        }
    }

    /// Memory it takes.
    pub(super) fn n_bytes(&self) -> usize {
        match self {
            Self::F32(all) => size_of_val(&**all),
            Self::F16(all) => size_of_val(&**all),
            Self::Bf16(all) => size_of_val(&**all),
        }
    }
}

/// Rows, each written by the function, as strips.
fn strips<T: Number + Default + Send>(
    pool: &mut Pool,
    n_strips: usize,
    n_out: usize,
    k: usize,
    row: &(dyn Fn(usize, &mut [T]) + Sync),
) -> AlignedVec<T> {
    let mut all = AlignedVec::zeroed(n_strips * k * LANES);
    pool.chunks_mut(&mut all, k * LANES, |strip, out| {
        let mut source = vec![T::default(); k];
        for lane in 0..LANES.min(n_out.saturating_sub(strip * LANES)) {
            row(strip * LANES + lane, &mut source);
            for (lanes, &w) in out.chunks_exact_mut(LANES).zip(&source) {
                lanes[lane] = w;
            }
        }
    });
    all
}

fn read<T>(bytes: &[u8], out: &mut [T], number: impl Fn([u8; 2]) -> T) {
    let (bytes, _) = bytes.as_chunks();
    assert_eq!(bytes.len(), out.len(), "a row has k numbers");
    bytes.iter().zip(out).for_each(|(bytes, out)| *out = number(*bytes));
}

/// A stored number that lanes widen exactly.
trait Stored: Sized {
    fn load<L: Lanes>(l: L, from: &[Self; LANES]) -> L::F;
}

impl Stored for f32 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[f32; LANES]) -> L::F {
        l.load(from)
    }
}

impl Stored for f16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[f16; LANES]) -> L::F {
        l.load_f16(bytemuck::cast_ref(from))
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn load<L: Lanes>(l: L, from: &[bf16; LANES]) -> L::F {
        l.load_bf16(bytemuck::cast_ref(from))
    }
}

/// Strips times some rows.
pub(super) struct FloatProduct<'a> {
    pub(super) weights: &'a FloatStrips,
    /// Which strips: one or two.
    pub(super) strips: Range<usize>,
    /// `[n_rows, k]`.
    pub(super) x: &'a [f32],
    pub(super) k: usize,
    pub(super) columns: Columns<'a>,
}

impl Kernel for FloatProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.weights {
            FloatStrips::F32(all) => self.all(l, all),
            FloatStrips::F16(all) => self.all(l, all),
            FloatStrips::Bf16(all) => self.all(l, all),
        }
    }
}

impl FloatProduct<'_> {
    /// Tiles as large as the registers hold; few rows take two strips at once, for the memory's sake.
    #[inline(always)]
    fn all<L: Lanes, T: Stored>(&self, l: L, all: &[T]) {
        let strip = |s| all[s * self.k * LANES..(s + 1) * self.k * LANES].as_chunks().0;
        let both = [strip(self.strips.start), strip(self.strips.start + 1)];
        let n_rows = self.x.len() / self.k;
        let mut row = 0;
        while row < n_rows {
            row += if L::WIDE {
                match n_rows - row {
                    8.. => self.tile::<L, T, 8, 2>(l, both, row, 0),
                    4.. => self.tile::<L, T, 4, 2>(l, both, row, 0),
                    2.. => self.tile::<L, T, 2, 2>(l, both, row, 0),
                    _ => self.tile::<L, T, 1, 2>(l, both, row, 0),
                }
            } else {
                match n_rows - row {
                    6.. => self.one_by_one::<L, T, 6>(l, both, row),
                    5 => self.one_by_one::<L, T, 5>(l, both, row),
                    4 => self.one_by_one::<L, T, 4>(l, both, row),
                    3 => self.one_by_one::<L, T, 3>(l, both, row),
                    2 => self.tile::<L, T, 2, 2>(l, both, row, 0),
                    _ => self.tile::<L, T, 1, 2>(l, both, row, 0),
                }
            };
        }
    }

    /// Rows `row..row + R` times one strip, then the other; returns `R`.
    #[inline(always)]
    fn one_by_one<L: Lanes, T: Stored, const R: usize>(&self, l: L, both: [&[[T; LANES]]; 2], row: usize) -> usize {
        self.tile::<L, T, R, 1>(l, [both[0]], row, 0);
        self.tile::<L, T, R, 1>(l, [both[1]], row, 1)
    }

    /// Rows `row..row + R` times `V` strips, the first of which is number `first`; returns `R`.
    #[inline(always)]
    fn tile<L: Lanes, T: Stored, const R: usize, const V: usize>(
        &self,
        l: L,
        strips: [&[[T; LANES]]; V],
        row: usize,
        first: usize,
    ) -> usize {
        let k = self.k;
        let strips = strips.map(|s| &s[..k]);
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[(row + r) * k..][..k]);
        let mut acc = [[l.splat(0.0); V]; R];
        for i in 0..k {
            // A loop and no closure: one that is not inlined would be compiled without the level's instructions.
            let mut w = [l.splat(0.0); V];
            for v in 0..V {
                w[v] = T::load(l, &strips[v][i]);
            }
            for r in 0..R {
                let x = l.splat(x[r][i]);
                for v in 0..V {
                    acc[r][v] = l.fma(x, w[v], acc[r][v]);
                }
            }
        }
        for (r, acc) in acc.into_iter().enumerate() {
            for (v, acc) in acc.into_iter().enumerate() {
                self.columns.put(l, row + r, (first + v) * LANES, acc);
            }
        }
        R
    }
}
