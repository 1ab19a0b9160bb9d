//! Sixteen float lanes, on each instruction level.
//!
//! Kernels are written once, over [`Lanes`]. Every operation gives the same bits on every level: each is either a
//! single correctly rounded IEEE operation per lane, or a fixed sequence of such.

#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::Isa;
use crate::isa::Level;

/// Floats in a vector of lanes.
pub(crate) const LANES: usize = 16;

/// Operations on sixteen floats. A value of an implementing type is the proof that the machine has the instructions;
/// implementations call intrinsics on the strength of it.
pub(crate) trait Lanes: Copy + Send + Sync {
    /// Sixteen floats.
    type F: Copy;
    /// Sixteen 32-bit integers.
    type I: Copy;
    /// Sixteen groups of four bytes.
    type B: Copy;
    /// Sums of products of small codes, on their way to `I`.
    type S: Copy;

    /// Whether registers are many and wide: tiles of 8 rows x 32 outputs instead of 4 x 16.
    const WIDE: bool;
    /// Rows of a tile of integer products, at most 8.
    const TILE_ROWS: usize;

    /// Asks for the bytes to be brought near. A hint: nothing is read.
    #[inline(always)]
    fn prefetch(self, _: &[u8]) {}

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    fn store(self, to: &mut [f32; LANES], x: Self::F);
    /// From IEEE binary16, exactly.
    fn load_f16(self, from: &[u16; LANES]) -> Self::F;
    /// From the upper half of a binary32, exactly.
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F;
    /// To IEEE binary16, to nearest, ties to even.
    fn store_f16(self, to: &mut [u16; LANES], x: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`, rounded once.
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b` per lane: `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b` per lane: `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Adds `n << 23` to the bits of `x`, where `biased` is `n + 1.5 * 2^23`: `x * 2^n` while the result is normal.
    fn scale_by_power(self, x: Self::F, biased: Self::F) -> Self::F;
    /// Lanes below `n` of `x`, the others `rest`.
    fn first(self, n: usize, x: Self::F, rest: Self::F) -> Self::F;
    /// Lane `i` of row `j` goes to lane `j` of row `i`.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];
    /// As [`Lanes::transpose`], of 16-bit numbers.
    #[inline(always)]
    fn transpose_halves(self, rows: [&[u16; LANES]; LANES], out: &mut [[u16; LANES]; LANES]) {
        for (j, row) in rows.into_iter().enumerate() {
            for (out, x) in out.iter_mut().zip(row) {
                out[j] = *x;
            }
        }
    }
    /// Sum of the lanes: 16 to 8 to 4 to 2 to 1, lane `i` with lane `i + half` each time.
    fn sum(self, x: Self::F) -> f32;
    /// Largest lane, in the order of [`Lanes::sum`].
    fn largest(self, x: Self::F) -> f32;

    /// Sixteen numbers of 0..=255.
    fn load_u8(self, from: &[u8; LANES]) -> Self::F;
    /// Sixteen numbers of -128..=127.
    fn load_i8(self, from: &[i8; LANES]) -> Self::F;
    fn splat_i32(self, x: i32) -> Self::I;
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    fn load_bytes(self, from: &[u8; 4 * LANES]) -> Self::B;
    fn store_bytes(self, to: &mut [u8; 4 * LANES], x: Self::B);
    /// `(x << left >> right) & mask` of each byte; `mask` keeps no bit that a neighbouring byte shifts in.
    fn bits(self, x: Self::B, left: u32, right: u32, mask: u8) -> Self::B;
    fn or(self, a: Self::B, b: Self::B) -> Self::B;
    /// Bytes 0 and 2 of each group as two 16-bit numbers.
    fn even(self, x: Self::B) -> Self::B;
    /// Bytes 1 and 3 of each group as two 16-bit numbers.
    fn odd(self, x: Self::B) -> Self::B;
    /// As [`Lanes::even`], signed bytes.
    fn even_signed(self, x: Self::B) -> Self::B;
    /// As [`Lanes::odd`], signed bytes.
    fn odd_signed(self, x: Self::B) -> Self::B;
    /// No products yet.
    fn small(self) -> Self::S;
    /// As [`Lanes::dot`] for bytes of `w` up to 15; at most eight are summed before [`Lanes::small_sum`].
    fn small_dot(self, acc: Self::S, w: Self::B, x: i32) -> Self::S;
    fn small_sum(self, x: Self::S) -> Self::I;
    /// `acc + w[0] * x[0] + .. + w[3] * x[3]` per lane, exactly: bytes of `w` up to 127, those of the word `x` signed
    /// and not -128.
    fn dot(self, acc: Self::I, w: Self::B, x: i32) -> Self::I;
    /// `acc + w[0] * x[0] + w[1] * x[1]` per lane, exactly: signed 16-bit numbers, those of the word `x` not -32768.
    fn dot_pairs(self, acc: Self::I, w: Self::B, x: i32) -> Self::I;
    /// To float, to nearest; exact below 2^24.
    fn to_float(self, x: Self::I) -> Self::F;
}

/// A computation that is compiled for every level.
pub(crate) trait Kernel {
    /// Its result.
    type Output;

    /// Implementations and everything they call are `#[inline(always)]`, so that they are compiled with the
    /// instructions of the level that runs them.
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// Runs `kernel` with the instructions of `isa`.
pub(crate) fn launch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa.level() {
        Level::Scalar => kernel.run(scalar::Scalar),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::launch(kernel),
        // SAFETY: an `Isa` of this level exists only if the machine has avx2, fma and f16c (`Isa::available`).
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => unsafe { avx2::launch(kernel) },
        // SAFETY: an `Isa` of this level exists only if the machine has the features named there.
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => unsafe { avx512::launch(kernel) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on the same inputs, as bits.
    struct AllOperations<'a>(&'a [[f32; LANES]; LANES]);

    impl Kernel for AllOperations<'_> {
        type Output = Vec<u32>;

        fn run<L: Lanes>(self, l: L) -> Vec<u32> {
            let mut out = Vec::new();
            let mut keep = |x: L::F| {
                let mut a = [0.0; LANES];
                l.store(&mut a, x);
                out.extend(a.map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }));
            };
            let rows = self.0.map(|r| l.load(&r));
            for triple in rows.windows(3) {
                let (a, b, c) = (triple[0], triple[1], triple[2]);
                keep(l.add(a, b));
                keep(l.sub(a, b));
                keep(l.mul(a, b));
                keep(l.div(a, b));
                keep(l.fma(a, b, c));
                keep(l.fnma(a, b, c));
                keep(l.max(a, b));
                keep(l.min(a, b));
                keep(l.splat(l.sum(a)));
                keep(l.splat(l.largest(b)));
                let mut half = [0; LANES];
                l.store_f16(&mut half, a);
                keep(l.load_f16(&half));
                keep(l.load_bf16(&half));
                for n in 0..=LANES {
                    keep(l.first(n, a, b));
                }
            }
            for row in l.transpose(rows) {
                keep(row);
            }
            let bytes: [u8; 4 * LANES] = std::array::from_fn(|i| (i * 37 + i / 7) as u8);
            let bytes = l.load_bytes(&bytes);
            let mut stored = [0; 4 * LANES];
            l.store_bytes(&mut stored, bytes);
            let bytes = l.load_bytes(&stored);
            let halves: [[u16; LANES]; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| (i * 16 + j) as u16));
            let mut columns = [[0; LANES]; LANES];
            l.transpose_halves(halves.each_ref(), &mut columns);
            for column in &columns {
                keep(l.load_f16(column));
            }
            let start = l.splat_i32(-70_000);
            for x in [[127, -127, 1, -1], [-127; 4], [127; 4], [3, 0, -9, 77_i8]] {
                let word = i32::from_le_bytes(x.map(|x| x as u8));
                keep(l.to_float(l.dot(start, l.bits(bytes, 0, 1, 127), word)));
                for codes in [l.bits(bytes, 0, 0, 15), l.bits(bytes, 0, 4, 15)] {
                    let sums = (0..8).fold(l.small(), |sums, _| l.small_dot(sums, codes, word));
                    keep(l.to_float(l.add_i32(l.small_sum(sums), start)));
                }
            }
            for (left, right, mask) in [(0, 3, 16), (4, 0, 48), (4, 3, 16), (4, 2, 48), (0, 2, 48)] {
                keep(l.to_float(l.dot(start, l.bits(bytes, left, right, mask), 0x0102_0304)));
            }
            keep(l.to_float(l.dot(start, l.or(l.bits(bytes, 0, 4, 3), l.bits(bytes, 0, 0, 64)), 0x7F01_FF02)));
            for x in [[32_767, -32_767], [-1, 77_i16]] {
                let word = (i32::from(x[1]) << 16) | (i32::from(x[0]) & 0xFFFF);
                for pairs in [l.even(bytes), l.odd(bytes), l.even_signed(bytes), l.odd_signed(bytes)] {
                    keep(l.to_float(l.dot_pairs(start, pairs, word)));
                }
            }
            keep(l.load_u8(&std::array::from_fn(|i| (i * 17) as u8)));
            keep(l.load_i8(&std::array::from_fn(|i| (i * 17) as i8)));
            let powers = std::array::from_fn(|i| 12_582_912.0 + i as f32 * 7.0 - 60.0);
            keep(l.scale_by_power(l.splat(1.3), l.load(&powers)));
            out
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let mut seed = 1_u64;
        let mut inputs = [[0.0; LANES]; LANES];
        for x in inputs.as_flattened_mut() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let magnitude = [1.0, 1e-3, 1e4, 1e-30][(seed >> 62) as usize];
            *x = ((seed >> 40) as f32 / 16_777_216.0 - 0.5) * magnitude;
        }
        inputs[3][2] = f32::NAN;
        inputs[4][2] = f32::INFINITY;
        inputs[5][9] = -0.0;
        inputs[6][9] = 0.0;
        let expected = launch(Isa::SCALAR, AllOperations(&inputs));
        for isa in Isa::available() {
            assert_eq!(launch(isa, AllOperations(&inputs)), expected, "{isa}");
        }
    }
}
