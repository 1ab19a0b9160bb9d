//! Lanes as four 128-bit registers.
//!
//! Every 64-bit Arm machine has these instructions: there is nothing to detect.

use std::arch::aarch64::*;

use super::{Kernel, LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Neon;

/// Runs `kernel` with these instructions.
pub(super) fn launch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon)
}

/// An intrinsic, or an expression of intrinsics.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: the target has these instructions (this file is compiled for no other); memory operands lie in
        // arrays of exactly the size that the instructions read or write, unaligned forms.
        unsafe { $e }
    };
}

type Quad = [float32x4_t; 4];
type Ints = [int32x4_t; 4];
type Bytes = [uint8x16_t; 4];

#[inline(always)]
fn each<A: Copy, B: Copy, R>(a: [A; 4], b: [B; 4], f: impl Fn(A, B) -> R) -> [R; 4] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// `a > b ? a : b`: the instruction of that name treats NaN and zeros otherwise.
#[inline(always)]
fn greater(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    op!(vbslq_f32(vcgtq_f32(a, b), a, b))
}

/// Lanes of four registers to one number: 16 to 8 to 4 to 2 to 1.
#[inline(always)]
fn fold(x: Quad, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> f32 {
    op!({
        let x = f(f(x[0], x[2]), f(x[1], x[3]));
        let x = f(x, vextq_f32::<2>(x, x));
        vgetq_lane_f32::<0>(f(x, vextq_f32::<1>(x, x)))
    })
}

/// Products of all bytes, neighbours added: two of 127 * 127 fit 16 bits.
#[inline(always)]
fn pairs(w: uint8x16_t, x: int8x16_t) -> int16x8_t {
    op!({
        let w = vreinterpretq_s8_u8(w);
        vpaddq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x))
    })
}

#[inline(always)]
fn word(x: i32) -> int8x16_t {
    op!(vreinterpretq_s8_s32(vdupq_n_s32(x)))
}

/// Transposes 4 rows of 4.
#[inline(always)]
fn transpose4(r: [float32x4_t; 4]) -> [float32x4_t; 4] {
    op!({
        let (a, b) = (vtrn1q_f32(r[0], r[1]), vtrn2q_f32(r[0], r[1]));
        let (c, d) = (vtrn1q_f32(r[2], r[3]), vtrn2q_f32(r[2], r[3]));
        let wide = vreinterpretq_f64_f32;
        let low = |x, y| vreinterpretq_f32_f64(vtrn1q_f64(wide(x), wide(y)));
        let high = |x, y| vreinterpretq_f32_f64(vtrn2q_f64(wide(x), wide(y)));
        [low(a, c), low(b, d), high(a, c), high(b, d)]
    })
}

impl Lanes for Neon {
    type F = Quad;
    type I = Ints;
    type B = Bytes;
    /// Sums of pairs in 16 bits: eight times two products of 15 * 127 fit.
    type S = [int16x8_t; 4];
    const WIDE: bool = false;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn splat(self, x: f32) -> Quad {
        op!([vdupq_n_f32(x); 4])
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Quad {
        op!(std::array::from_fn(|i| vld1q_f32(from.as_ptr().add(4 * i))))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Quad) {
        op!({
            for (i, x) in x.into_iter().enumerate() {
                vst1q_f32(to.as_mut_ptr().add(4 * i), x);
            }
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Quad {
        op!({
            let halves = |i| vld1_u16(from.as_ptr().add(4 * i));
            std::array::from_fn(|i| vcvt_f32_f16(vreinterpret_f16_u16(halves(i))))
        })
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Quad {
        op!(std::array::from_fn(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.as_ptr().add(4 * i))))))
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES], x: Quad) {
        op!({
            for (i, x) in x.into_iter().enumerate() {
                vst1_u16(to.as_mut_ptr().add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(x)));
            }
        })
    }
    #[inline(always)]
    fn add(self, a: Quad, b: Quad) -> Quad {
        op!(each(a, b, |a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn sub(self, a: Quad, b: Quad) -> Quad {
        op!(each(a, b, |a, b| vsubq_f32(a, b)))
    }
    #[inline(always)]
    fn mul(self, a: Quad, b: Quad) -> Quad {
        op!(each(a, b, |a, b| vmulq_f32(a, b)))
    }
    #[inline(always)]
    fn div(self, a: Quad, b: Quad) -> Quad {
        op!(each(a, b, |a, b| vdivq_f32(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        op!(std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])))
    }
    #[inline(always)]
    fn fnma(self, a: Quad, b: Quad, c: Quad) -> Quad {
        op!(std::array::from_fn(|i| vfmsq_f32(c[i], a[i], b[i])))
    }
    #[inline(always)]
    fn max(self, a: Quad, b: Quad) -> Quad {
        each(a, b, greater)
    }
    #[inline(always)]
    fn min(self, a: Quad, b: Quad) -> Quad {
        op!(each(a, b, |a, b| vbslq_f32(vcltq_f32(a, b), a, b)))
    }
    #[inline(always)]
    fn scale_by_power(self, x: Quad, biased: Quad) -> Quad {
        op!({
            each(x, biased, |x, biased| {
                let power = vshlq_n_s32::<23>(vreinterpretq_s32_f32(biased));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x), power))
            })
        })
    }
    #[inline(always)]
    fn first(self, n: usize, x: Quad, rest: Quad) -> Quad {
        op!({
            let n = vdupq_n_u32(n.min(LANES) as u32);
            let index: [u32; LANES] = std::array::from_fn(|i| i as u32);
            std::array::from_fn(|i| {
                let index = vld1q_u32(index.as_ptr().add(4 * i));
                vbslq_f32(vcltq_u32(index, n), x[i], rest[i])
            })
        })
    }
    #[inline(always)]
    fn transpose(self, rows: [Quad; LANES]) -> [Quad; LANES] {
        let mut out = rows;
        for i in 0..4 {
            for j in 0..4 {
                let block = transpose4(std::array::from_fn(|r| rows[4 * i + r][j]));
                for (r, row) in block.into_iter().enumerate() {
                    out[4 * j + r][i] = row;
                }
            }
        }
        out
    }
    #[inline(always)]
    fn sum(self, x: Quad) -> f32 {
        op!(fold(x, |a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn largest(self, x: Quad) -> f32 {
        fold(x, greater)
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Quad {
        op!({
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            words.map(|x| vcvtq_f32_u32(x))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Quad {
        op!({
            let bytes = vld1q_s8(from.as_ptr());
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let words = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            words.map(|x| vcvtq_f32_s32(x))
        })
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Ints {
        op!([vdupq_n_s32(x); 4])
    }
    #[inline(always)]
    fn add_i32(self, a: Ints, b: Ints) -> Ints {
        op!(each(a, b, |a, b| vaddq_s32(a, b)))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 4 * LANES]) -> Bytes {
        op!(std::array::from_fn(|i| vld1q_u8(from.as_ptr().add(16 * i))))
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; 4 * LANES], x: Bytes) {
        for (i, x) in x.into_iter().enumerate() {
            op!(vst1q_u8(to.as_mut_ptr().add(16 * i), x));
        }
    }
    #[inline(always)]
    fn bits(self, x: Bytes, left: u32, right: u32, mask: u8) -> Bytes {
        op!({
            let (left, right) = (vdupq_n_s16(left as i16), vdupq_n_s16(-(right as i16)));
            x.map(|x| {
                let shifted = vshlq_u16(vshlq_u16(vreinterpretq_u16_u8(x), left), right);
                vandq_u8(vreinterpretq_u8_u16(shifted), vdupq_n_u8(mask))
            })
        })
    }
    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        op!(each(a, b, |a, b| vorrq_u8(a, b)))
    }
    #[inline(always)]
    fn even(self, x: Bytes) -> Bytes {
        op!(x.map(|x| vreinterpretq_u8_u16(vandq_u16(vreinterpretq_u16_u8(x), vdupq_n_u16(0xFF)))))
    }
    #[inline(always)]
    fn odd(self, x: Bytes) -> Bytes {
        op!(x.map(|x| vreinterpretq_u8_u16(vshrq_n_u16::<8>(vreinterpretq_u16_u8(x)))))
    }
    #[inline(always)]
    fn even_signed(self, x: Bytes) -> Bytes {
        op!({
            x.map(|x| {
                let high = vshlq_n_s16::<8>(vreinterpretq_s16_u8(x));
                vreinterpretq_u8_s16(vshrq_n_s16::<8>(high))
            })
        })
    }
    #[inline(always)]
    fn odd_signed(self, x: Bytes) -> Bytes {
        op!(x.map(|x| vreinterpretq_u8_s16(vshrq_n_s16::<8>(vreinterpretq_s16_u8(x)))))
    }
    #[inline(always)]
    fn small(self) -> [int16x8_t; 4] {
        op!([vdupq_n_s16(0); 4])
    }
    #[inline(always)]
    fn small_dot(self, acc: [int16x8_t; 4], w: Bytes, x: i32) -> [int16x8_t; 4] {
        op!(each(acc, w, |acc, w| vaddq_s16(acc, pairs(w, word(x)))))
    }
    #[inline(always)]
    fn small_sum(self, x: [int16x8_t; 4]) -> Ints {
        op!(x.map(|x| vpaddlq_s16(x)))
    }
    #[inline(always)]
    fn dot(self, acc: Ints, w: Bytes, x: i32) -> Ints {
        op!(each(acc, w, |acc, w| vpadalq_s16(acc, pairs(w, word(x)))))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Ints, w: Bytes, x: i32) -> Ints {
        op!({
            let x = vreinterpretq_s16_s8(word(x));
            each(acc, w, |acc, w| {
                let w = vreinterpretq_s16_u8(w);
                vaddq_s32(acc, vpaddq_s32(vmull_s16(vget_low_s16(w), vget_low_s16(x)), vmull_high_s16(w, x)))
            })
        })
    }
    #[inline(always)]
    fn to_float(self, x: Ints) -> Quad {
        op!(x.map(|x| vcvtq_f32_s32(x)))
    }
}
