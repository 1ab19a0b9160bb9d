//! Lanes as an array: runs everywhere, and says what the others must compute.

use half::f16;

use super::{LANES, Lanes};

#[derive(Clone, Copy)]
pub(super) struct Scalar;

#[inline(always)]
fn zip(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn fold(x: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut x = x;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

impl Lanes for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [u8; 4 * LANES];
    type S = [i32; LANES];
    const WIDE: bool = false;
    const TILE_ROWS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Self::F) {
        *to = x;
    }
    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Self::F {
        from.map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Self::F {
        from.map(|x| f32::from_bits(u32::from(x) << 16))
    }
    #[inline(always)]
    fn store_f16(self, to: &mut [u16; LANES], x: Self::F) {
        *to = x.map(|x| f16::from_f32(x).to_bits());
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn fnma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| (-a[i]).mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn scale_by_power(self, x: Self::F, biased: Self::F) -> Self::F {
        zip(x, biased, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn first(self, n: usize, x: Self::F, rest: Self::F) -> Self::F {
        std::array::from_fn(|i| if i < n { x[i] } else { rest[i] })
    }
    #[inline(always)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
    }
    #[inline(always)]
    fn sum(self, x: Self::F) -> f32 {
        fold(x, |a, b| a + b)
    }
    #[inline(always)]
    fn largest(self, x: Self::F) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; LANES]) -> Self::F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::F {
        from.map(f32::from)
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn load_bytes(self, from: &[u8; 4 * LANES]) -> Self::B {
        *from
    }
    #[inline(always)]
    fn store_bytes(self, to: &mut [u8; 4 * LANES], x: Self::B) {
        *to = x;
    }
    #[inline(always)]
    fn bits(self, x: Self::B, left: u32, right: u32, mask: u8) -> Self::B {
        x.map(|x| (u32::from(x) << left >> right) as u8 & mask)
    }
    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn even(self, x: Self::B) -> Self::B {
        std::array::from_fn(|i| if i % 2 == 0 { x[i] } else { 0 })
    }
    #[inline(always)]
    fn odd(self, x: Self::B) -> Self::B {
        std::array::from_fn(|i| if i % 2 == 0 { x[i + 1] } else { 0 })
    }
    #[inline(always)]
    fn even_signed(self, x: Self::B) -> Self::B {
        std::array::from_fn(|i| if i % 2 == 0 { x[i] } else { ((x[i - 1] as i8) >> 7) as u8 })
    }
    #[inline(always)]
    fn odd_signed(self, x: Self::B) -> Self::B {
        std::array::from_fn(|i| if i % 2 == 0 { x[i + 1] } else { ((x[i] as i8) >> 7) as u8 })
    }
    #[inline(always)]
    fn small(self) -> Self::S {
        [0; LANES]
    }
    #[inline(always)]
    fn small_dot(self, acc: Self::S, w: Self::B, x: i32) -> Self::S {
        self.dot(acc, w, x)
    }
    #[inline(always)]
    fn small_sum(self, x: Self::S) -> Self::I {
        x
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        std::array::from_fn(|i| (0..4).fold(acc[i], |sum, j| sum + i32::from(w[4 * i + j]) * x[j]))
    }
    #[inline(always)]
    fn dot_pairs(self, acc: Self::I, w: Self::B, x: i32) -> Self::I {
        let x = [i32::from(x as i16), x >> 16];
        let pair = |i: usize| i32::from(i16::from_le_bytes([w[i], w[i + 1]]));
        std::array::from_fn(|i| acc[i] + pair(4 * i) * x[0] + pair(4 * i + 2) * x[1])
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        x.map(|x| x as f32)
    }
}
