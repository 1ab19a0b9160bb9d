//! How a block of weights of sixteen outputs lies in memory, a record per format.
//!
//! Codes are groups of 64 bytes: for each of sixteen outputs four consecutive inputs. Nibbles hold the inputs of two
//! such groups, the first in the low halves; what is above a nibble lies in planes of its own. A weight is
//! `d * (u - offset) + m` with `u` unsigned, or `d * i` with `i` signed.

use std::marker::PhantomData;

use bytemuck::{Pod, Zeroable};

use super::FOURS;
use crate::cpu::lanes::{LANES, Lanes};

/// Codes of a group.
pub(super) type Group = [u8; 4 * LANES];
/// A binary16 for each output.
pub(super) type Halves = [u16; LANES];

/// A block of weights of sixteen outputs.
pub(super) trait Record {
    /// Whether codes are signed bytes, for inputs in 16 bits alone.
    const SIGNED: bool = false;
    /// Whether codes are at most 15.
    const SMALL: bool = false;
    /// Scales of an output in a block: 1, or 2 for halves of a block.
    const SCALES: usize = 1;
    /// Whether there is an `m`.
    const MIN: bool = false;
    /// Subtracted from codes.
    const OFFSET: i32 = 0;

    /// Codes of groups `2 * pair` and `2 * pair + 1`.
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2];

    /// `d` of half `half`, or of the whole block.
    fn d<L: Lanes>(&self, l: L, half: usize) -> L::F;

    /// `m`.
    #[inline(always)]
    fn m<L: Lanes>(&self, l: L) -> L::F {
        l.splat(0.0)
    }
}

#[inline(always)]
fn nibbles<L: Lanes>(l: L, codes: &Group) -> [L::B; 2] {
    let codes = l.load_bytes(codes);
    [l.bits(codes, 0, 0, 15), l.bits(codes, 0, 4, 15)]
}

macro_rules! record {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Pod, Zeroable)]
        #[repr(C)]
        pub(super) struct $name {
            $(pub(super) $field: $type,)*
        }
    };
}

record! {
    /// `d * (u - 8)`.
    Q4_0 { codes: [Group; FOURS / 2], d: Halves }
}
record! {
    /// `d * u + m`.
    Q4_1 { codes: [Group; FOURS / 2], d: Halves, m: Halves }
}
record! {
    /// `d * i`.
    Q8_0 { codes: [Group; FOURS], d: Halves }
}
record! {
    /// `(d * scale) * u - (dmin * min)`.
    Q4K { codes: [Group; FOURS / 2], d: Halves, dmin: Halves, scale: [u8; LANES], min: [u8; LANES] }
}
record! {
    /// As Q4_K with fifth bits: those of groups 0 to 3 are bits 4 to 7 of `high`, those of groups 4 to 7 bits 0 to 3.
    Q5K { codes: [Group; FOURS / 2], high: Group, d: Halves, dmin: Halves, scale: [u8; LANES], min: [u8; LANES] }
}
record! {
    /// `(d * scale) * (u - 32)`, a scale for either half of the block. Upper two bits of group `g` are in plane
    /// `g / 4`: bits 4, 6, 0 and 2 and those above them for `g % 4` = 0, 1, 2 and 3.
    Q6K { codes: [Group; FOURS / 2], high: [Group; 2], d: Halves, scale: [[i8; LANES]; 2] }
}

impl Record for Q4_0 {
    const SMALL: bool = true;
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        nibbles(l, &self.codes[pair])
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, _: usize) -> L::F {
        l.load_f16(&self.d)
    }
}

impl Record for Q4_1 {
    const SMALL: bool = true;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        nibbles(l, &self.codes[pair])
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, _: usize) -> L::F {
        l.load_f16(&self.d)
    }
    #[inline(always)]
    fn m<L: Lanes>(&self, l: L) -> L::F {
        l.load_f16(&self.m)
    }
}

impl Record for Q8_0 {
    const SIGNED: bool = true;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        [l.load_bytes(&self.codes[2 * pair]), l.load_bytes(&self.codes[2 * pair + 1])]
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, _: usize) -> L::F {
        l.load_f16(&self.d)
    }
}

/// `-(dmin * min)`: as the format's definition subtracts it.
#[inline(always)]
fn minimum<L: Lanes>(l: L, dmin: &Halves, min: &[u8; LANES]) -> L::F {
    l.mul(l.sub(l.splat(-0.0), l.load_f16(dmin)), l.load_u8(min))
}

impl Record for Q4K {
    const SMALL: bool = true;
    const MIN: bool = true;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        nibbles(l, &self.codes[pair])
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, _: usize) -> L::F {
        l.mul(l.load_f16(&self.d), l.load_u8(&self.scale))
    }
    #[inline(always)]
    fn m<L: Lanes>(&self, l: L) -> L::F {
        minimum(l, &self.dmin, &self.min)
    }
}

impl Record for Q5K {
    const MIN: bool = true;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        let [low, high] = nibbles(l, &self.codes[pair]);
        let plane = l.load_bytes(&self.high);
        let (left, right) = if pair < 2 { (0, 2 * pair as u32) } else { (4, 2 * pair as u32 - 4) };
        [l.or(low, l.bits(plane, left, right, 16)), l.or(high, l.bits(plane, left, right + 1, 16))]
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, _: usize) -> L::F {
        l.mul(l.load_f16(&self.d), l.load_u8(&self.scale))
    }
    #[inline(always)]
    fn m<L: Lanes>(&self, l: L) -> L::F {
        minimum(l, &self.dmin, &self.min)
    }
}

impl Record for Q6K {
    const SCALES: usize = 2;
    const OFFSET: i32 = 32;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        let [low, high] = nibbles(l, &self.codes[pair]);
        let plane = l.load_bytes(&self.high[pair / 2]);
        let left = if pair.is_multiple_of(2) { 0 } else { 4 };
        [l.or(low, l.bits(plane, left, 0, 48)), l.or(high, l.bits(plane, left, 2, 48))]
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, half: usize) -> L::F {
        l.mul(l.load_f16(&self.d), l.load_i8(&self.scale[half]))
    }
}

/// A block whose codes and factors are taken apart already: for many rows of inputs, that is done once.
pub(super) struct Opened<R> {
    codes: [Group; FOURS],
    d: [[f32; LANES]; 2],
    m: [f32; LANES],
    of: PhantomData<R>,
}

impl<R: Record> Opened<R> {
    #[inline(always)]
    pub(super) fn new<L: Lanes>(l: L, record: &R) -> Self {
        let mut opened =
            Self { codes: [[0; 4 * LANES]; FOURS], d: [[0.0; LANES]; 2], m: [0.0; LANES], of: PhantomData };
        for (pair, to) in opened.codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [first, second] = record.codes(l, pair);
            l.store_bytes(&mut to[0], first);
            l.store_bytes(&mut to[1], second);
        }
        for (half, to) in opened.d.iter_mut().enumerate().take(R::SCALES) {
            l.store(to, record.d(l, half));
        }
        l.store(&mut opened.m, record.m(l));
        opened
    }
}

impl<R: Record> Record for Opened<R> {
    const SIGNED: bool = R::SIGNED;
    const SMALL: bool = R::SMALL;
    const SCALES: usize = R::SCALES;
    const MIN: bool = R::MIN;
    const OFFSET: i32 = R::OFFSET;

    #[inline(always)]
    fn codes<L: Lanes>(&self, l: L, pair: usize) -> [L::B; 2] {
        [l.load_bytes(&self.codes[2 * pair]), l.load_bytes(&self.codes[2 * pair + 1])]
    }
    #[inline(always)]
    fn d<L: Lanes>(&self, l: L, half: usize) -> L::F {
        l.load(&self.d[half])
    }
    #[inline(always)]
    fn m<L: Lanes>(&self, l: L) -> L::F {
        l.load(&self.m)
    }
}
