//! Lanes as two 256-bit registers.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// Exists only inside [`launch`].
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs `kernel` with these instructions.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn launch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// An intrinsic, or an expression of intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` exists only inside `launch`, whose caller vouched for the instructions; memory operands
        // lie in arrays of exactly the size that the instructions read or write, unaligned forms.
        unsafe { $e }
    };
}

/// An expression of intrinsics of either half of a pair. Not `map`: what a closure does may be compiled without the
/// level's instructions.
macro_rules! both {
    ($x:ident => $e:expr) => {
        [
            {
                let $x = $x[0];
                op!($e)
            },
            {
                let $x = $x[1];
                op!($e)
            },
        ]
    };
}

type Pair = [__m256; 2];

impl Lanes for Avx2 {
    type F = Pair;
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    /// Sums of pairs in 16 bits: eight times two products of 15 * 127 fit.
    type S = [__m256i; 2];
    const WIDE: bool = false;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            op!(_mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()));
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        [op!(_mm256_set1_ps(x)); 2]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Pair {
        op!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Pair) {
        op!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Pair {
        op!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().add(8).cast())),
        ])
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Pair {
        op!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.as_ptr().add(8).cast()));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high))]
        })
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES], x: Pair) {
        let halves: [__m128i; 2] = both!(x => _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x));
        op!({
            _mm_storeu_si128(to.as_mut_ptr().cast(), halves[0]);
            _mm_storeu_si128(to.as_mut_ptr().add(8).cast(), halves[1]);
        })
    }
    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        op!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn fnma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        op!([_mm256_fnmadd_ps(a[0], b[0], c[0]), _mm256_fnmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        op!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn scale_by_power(self, x: Pair, biased: Pair) -> Pair {
        let half = |x, biased| {
            op!({
                let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(biased));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), power))
            })
        };
        [half(x[0], biased[0]), half(x[1], biased[1])]
    }
    #[inline(always)]
    fn first(self, n: usize, x: Pair, rest: Pair) -> Pair {
        op!({
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let n = n.min(LANES) as i32;
            let low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n), index));
            let high = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8), index));
            [_mm256_blendv_ps(rest[0], x[0], low), _mm256_blendv_ps(rest[1], x[1], high)]
        })
    }
    #[inline(always)]
    fn transpose(self, r: [Pair; LANES]) -> [Pair; LANES] {
        let mut out = r;
        for half in 0..2 {
            let low = op!(transpose8(std::array::from_fn(|i| r[8 * half + i][0])));
            let high = op!(transpose8(std::array::from_fn(|i| r[8 * half + i][1])));
            for i in 0..8 {
                out[i][half] = low[i];
                out[8 + i][half] = high[i];
            }
        }
        out
    }
    #[inline(always)]
    fn transpose_halves(self, rows: [&[u16; LANES]; LANES], out: &mut [[u16; LANES]; LANES]) {
        op!(transpose_halves(rows, out))
    }
    #[inline(always)]
    fn sum(self, x: Pair) -> f32 {
        op!({
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn largest(self, x: Pair) -> f32 {
        op!({
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Pair {
        let bytes = op!(_mm_loadu_si128(from.as_ptr().cast()));
        let x = [bytes, op!(_mm_srli_si128::<8>(bytes))];
        both!(x => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Pair {
        let bytes = op!(_mm_loadu_si128(from.as_ptr().cast()));
        let x = [bytes, op!(_mm_srli_si128::<8>(bytes))];
        both!(x => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [__m256i; 2] {
        [op!(_mm256_set1_epi32(x)); 2]
    }
    #[inline(always)]
    fn add_i32(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        op!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 4 * LANES]) -> [__m256i; 2] {
        op!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from.as_ptr().add(32).cast())])
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; 4 * LANES], x: [__m256i; 2]) {
        op!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(32).cast(), x[1]);
        })
    }
    #[inline(always)]
    fn bits(self, x: [__m256i; 2], left: u32, right: u32, mask: u8) -> [__m256i; 2] {
        both!(x => {
            let x = _mm256_sll_epi16(x, _mm_cvtsi32_si128(left as i32));
            let x = _mm256_srl_epi16(x, _mm_cvtsi32_si128(right as i32));
            _mm256_and_si256(x, _mm256_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        op!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn even(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_and_si256(x, _mm256_set1_epi16(0xFF)))
    }
    #[inline(always)]
    fn odd(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_srli_epi16::<8>(x))
    }
    #[inline(always)]
    fn even_signed(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)))
    }
    #[inline(always)]
    fn odd_signed(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_srai_epi16::<8>(x))
    }
    #[inline(always)]
    fn small(self) -> [__m256i; 2] {
        [op!(_mm256_setzero_si256()); 2]
    }
    #[inline(always)]
    fn small_dot(self, acc: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        op!({
            let x = _mm256_set1_epi32(x);
            let half = |acc, w| _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x));
            [half(acc[0], w[0]), half(acc[1], w[1])]
        })
    }
    #[inline(always)]
    fn small_sum(self, x: [__m256i; 2]) -> [__m256i; 2] {
        both!(x => _mm256_madd_epi16(x, _mm256_set1_epi16(1)))
    }
    #[inline(always)]
    fn dot(self, acc: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        // Two products of 127 * 127 fit 16 bits: nothing saturates.
        let one = self.small_dot(self.small(), w, x);
        self.add_i32(acc, self.small_sum(one))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: [__m256i; 2], w: [__m256i; 2], x: i32) -> [__m256i; 2] {
        op!({
            let x = _mm256_set1_epi32(x);
            let half = |acc, w| _mm256_add_epi32(acc, _mm256_madd_epi16(w, x));
            [half(acc[0], w[0]), half(acc[1], w[1])]
        })
    }
    #[inline(always)]
    fn to_float(self, x: [__m256i; 2]) -> Pair {
        both!(x => _mm256_cvtepi32_ps(x))
    }
}

/// Transposes 8 rows of 8.
///
/// # Safety
/// The machine has AVX.
#[inline(always)]
unsafe fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller vouches for the instructions; registers only.
    unsafe {
        let mut t = r;
        for i in 0..4 {
            t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
            t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
        }
        let mut u = t;
        for i in 0..2 {
            u[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
            u[4 * i + 1] = _mm256_shuffle_ps::<0xEE>(t[4 * i], t[4 * i + 2]);
            u[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
            u[4 * i + 3] = _mm256_shuffle_ps::<0xEE>(t[4 * i + 1], t[4 * i + 3]);
        }
        let mut out = u;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(u[c], u[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(u[c], u[4 + c]);
        }
        out
    }
}

/// Transposes 16-bit numbers: 8 x 8 within 128 bits, then the quarters.
#[target_feature(enable = "avx2")]
pub(super) fn transpose_halves(rows: [&[u16; LANES]; LANES], out: &mut [[u16; LANES]; LANES]) {
    let first = transpose_eight(&rows, 0);
    let second = transpose_eight(&rows, 8);
    for column in 0..8 {
        let (a, b) = (first[column], second[column]);
        let (low, high) = (_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b));
        // SAFETY: stores to arrays of exactly 32 bytes, unaligned forms.
        unsafe {
            _mm256_storeu_si256(out[column].as_mut_ptr().cast(), low);
            _mm256_storeu_si256(out[8 + column].as_mut_ptr().cast(), high);
        }
    }
}

/// Columns of eight rows from `first` on: `c` and `c + 8` in the two halves of register `c`.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_eight(rows: &[&[u16; LANES]; LANES], first: usize) -> [__m256i; 8] {
    let mut r = [_mm256_setzero_si256(); 8];
    for i in 0..8 {
        // SAFETY: a load from an array of exactly 32 bytes, unaligned form.
        r[i] = unsafe { _mm256_loadu_si256(rows[first + i].as_ptr().cast()) };
    }
    // Pairs of rows, then pairs of pairs, then those.
    let mut t = r;
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
    }
    let mut u = t;
    for base in [0, 4] {
        for i in 0..2 {
            u[base + 2 * i] = _mm256_unpacklo_epi32(t[base + i], t[base + 2 + i]);
            u[base + 2 * i + 1] = _mm256_unpackhi_epi32(t[base + i], t[base + 2 + i]);
        }
    }
    let mut columns = u;
    for i in 0..4 {
        columns[2 * i] = _mm256_unpacklo_epi64(u[i], u[4 + i]);
        columns[2 * i + 1] = _mm256_unpackhi_epi64(u[i], u[4 + i]);
    }
    columns
}
