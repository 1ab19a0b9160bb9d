//! Lanes as one 512-bit register.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// Exists only inside [`launch`].
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

/// Runs `kernel` with these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn launch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512(()))
}

/// An intrinsic, or an expression of intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` exists only inside `launch`, whose caller vouched for the instructions; memory operands
        // are references to arrays of exactly the size that the instruction reads or writes, unaligned forms.
        unsafe { $e }
    };
}

impl Lanes for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    type S = __m512i;
    const WIDE: bool = true;
    const TILE_ROWS: usize = 8;

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            op!(_mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()));
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> __m512 {
        op!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: __m512) {
        op!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> __m512 {
        op!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> __m512 {
        op!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        })
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES], x: __m512) {
        op!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn fnma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        op!(_mm512_fnmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        op!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn scale_by_power(self, x: __m512, biased: __m512) -> __m512 {
        op!({
            let power = _mm512_slli_epi32::<23>(_mm512_castps_si512(biased));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), power))
        })
    }
    #[inline(always)]
    fn first(self, n: usize, x: __m512, rest: __m512) -> __m512 {
        let mask = ((1_u32 << n.min(LANES)) - 1) as u16;
        op!(_mm512_mask_blend_ps(mask, rest, x))
    }
    #[inline(always)]
    fn transpose(self, r: [__m512; LANES]) -> [__m512; LANES] {
        op!({
            let mut t = r;
            // Pairs of rows, then pairs of pairs: 4x4 blocks transposed within each 128-bit quarter.
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let mut u = t;
            for i in 0..4 {
                let (a, b) = (_mm512_castps_pd(t[4 * i]), _mm512_castps_pd(t[4 * i + 2]));
                let (c, d) = (_mm512_castps_pd(t[4 * i + 1]), _mm512_castps_pd(t[4 * i + 3]));
                u[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                u[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                u[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
                u[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
            }
            // Quarter q of u[4 * i + c] holds column 4 * q + c of rows 4 * i .. 4 * i + 4: transpose the quarters.
            let mut out = u;
            for c in 0..4 {
                let ab_low = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]);
                let ab_high = _mm512_shuffle_f32x4::<0xDD>(u[c], u[4 + c]);
                let cd_low = _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]);
                let cd_high = _mm512_shuffle_f32x4::<0xDD>(u[8 + c], u[12 + c]);
                out[c] = _mm512_shuffle_f32x4::<0x88>(ab_low, cd_low);
                out[8 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_low, cd_low);
                out[4 + c] = _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high);
                out[12 + c] = _mm512_shuffle_f32x4::<0xDD>(ab_high, cd_high);
            }
            out
        })
    }
    #[inline(always)]
    fn transpose_halves(self, rows: [&[u16; LANES]; LANES], out: &mut [[u16; LANES]; LANES]) {
        op!(super::avx2::transpose_halves(rows, out))
    }
    #[inline(always)]
    fn sum(self, x: __m512) -> f32 {
        op!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn largest(self, x: __m512) -> f32 {
        op!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        })
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> __m512 {
        op!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m512i {
        op!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn add_i32(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 4 * LANES]) -> __m512i {
        op!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; 4 * LANES], x: __m512i) {
        op!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x))
    }
    #[inline(always)]
    fn bits(self, x: __m512i, left: u32, right: u32, mask: u8) -> __m512i {
        op!({
            let x = _mm512_sll_epi16(x, _mm_cvtsi32_si128(left as i32));
            let x = _mm512_srl_epi16(x, _mm_cvtsi32_si128(right as i32));
            _mm512_and_si512(x, _mm512_set1_epi8(mask as i8))
        })
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn even(self, x: __m512i) -> __m512i {
        op!(_mm512_and_si512(x, _mm512_set1_epi16(0xFF)))
    }
    #[inline(always)]
    fn odd(self, x: __m512i) -> __m512i {
        op!(_mm512_srli_epi16::<8>(x))
    }
    #[inline(always)]
    fn even_signed(self, x: __m512i) -> __m512i {
        op!(_mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(x)))
    }
    #[inline(always)]
    fn odd_signed(self, x: __m512i) -> __m512i {
        op!(_mm512_srai_epi16::<8>(x))
    }
    #[inline(always)]
    fn small(self) -> __m512i {
        op!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn small_dot(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn small_sum(self, x: __m512i) -> __m512i {
        x
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        op!(_mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: __m512i, w: __m512i, x: i32) -> __m512i {
        op!(_mm512_dpwssd_epi32(acc, w, _mm512_set1_epi32(x)))
    }
    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        op!(_mm512_cvtepi32_ps(x))
    }
}
