//! Input rows, quantised per block.

use super::{BLOCK, FOURS};
use crate::Isa;
use crate::cpu::lanes::{Kernel, LANES, Lanes, launch};
use crate::cpu::norm;
use crate::pool::Pool;

/// How exactly a linear layer with integer weights takes its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inputs {
    /// 8 bits; 8-bit weights take 16 all the same.
    Coarse,
    /// 16 bits: where rounding would show.
    Fine,
}

/// Rows that lie side by side: a tile of the product reads them together.
pub(super) const GROUP: usize = 8;

/// Input rows in 8 bits, in 16, or both.
#[derive(Default)]
pub(in crate::cpu) struct QuantizedRows {
    n_blocks: usize,
    /// `[n_rows / 8, n_blocks]`: a block of eight rows, then the next block of the same rows. Words of four bytes.
    coarse: Vec<Block<FOURS>>,
    /// As above; words of two 16-bit numbers, the even two of four inputs, then the odd two.
    fine: Vec<Block<{ 2 * FOURS }>>,
}

/// A block of eight rows, in `W` words a row.
#[derive(Clone, Copy)]
pub(super) struct Block<const W: usize> {
    pub(super) words: [[i32; W]; GROUP],
    pub(super) d: [f32; GROUP],
    /// Sum of the inputs: `d` times the sum of the codes.
    pub(super) total: [f32; GROUP],
    /// Sums of the codes of either half.
    pub(super) sums: [[i32; 2]; GROUP],
}

impl<const W: usize> Block<W> {
    const EMPTY: Self = Self { words: [[0; W]; GROUP], d: [0.0; GROUP], total: [0.0; GROUP], sums: [[0; 2]; GROUP] };
}

/// Root-mean-square norm to apply before rounding.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Norm<'a> {
    /// One factor an element.
    pub(in crate::cpu) gain: &'a [f32],
    /// Added to the mean square.
    pub(in crate::cpu) eps: f32,
}

impl QuantizedRows {
    /// Quantises rows of `k` elements, a multiple of 32, to 8 bits, 16, or both.
    pub(in crate::cpu) fn fill(
        &mut self,
        pool: &mut Pool,
        isa: Isa,
        (x, k): (&[f32], usize),
        norm: Option<Norm<'_>>,
        (coarse, fine): (bool, bool),
    ) {
        self.n_blocks = k / BLOCK;
        let n = (x.len() / k).div_ceil(GROUP) * self.n_blocks;
        let rows = |group: usize| &x[group * GROUP * k..x.len().min((group + 1) * GROUP * k)];
        if coarse {
            self.coarse.resize(n.max(self.coarse.len()), Block::EMPTY);
            pool.chunks_mut(&mut self.coarse[..n], self.n_blocks, |group, blocks| {
                launch(isa, Quantize { x: rows(group), k, norm, blocks });
            });
        }
        if fine {
            self.fine.resize(n.max(self.fine.len()), Block::EMPTY);
            pool.chunks_mut(&mut self.fine[..n], self.n_blocks, |group, blocks| {
                launch(isa, Quantize { x: rows(group), k, norm, blocks });
            });
        }
    }
}

/// Where the blocks of one kind are.
pub(super) trait Blocks<const W: usize> {
    /// Blocks of the eight rows that `row` is one of.
    fn group(&self, row: usize) -> &[Block<W>];
}

impl Blocks<FOURS> for QuantizedRows {
    #[inline(always)]
    fn group(&self, row: usize) -> &[Block<FOURS>] {
        &self.coarse[row / GROUP * self.n_blocks..][..self.n_blocks]
    }
}

impl Blocks<{ 2 * FOURS }> for QuantizedRows {
    #[inline(always)]
    fn group(&self, row: usize) -> &[Block<{ 2 * FOURS }>] {
        &self.fine[row / GROUP * self.n_blocks..][..self.n_blocks]
    }
}

/// Up to eight rows.
struct Quantize<'a, const W: usize> {
    x: &'a [f32],
    k: usize,
    norm: Option<Norm<'a>>,
    blocks: &'a mut [Block<W>],
}

impl<const W: usize> Kernel for Quantize<'_, W> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (row, x) in self.x.chunks_exact(self.k).enumerate() {
            let scale = self.norm.map_or(1.0, |n| norm::scale(l, x, n.eps));
            for (b, (x, block)) in x.as_chunks::<BLOCK>().0.iter().zip(&mut *self.blocks).enumerate() {
                let mut x = *x;
                if let Some(Norm { gain, .. }) = self.norm {
                    let gain = gain.as_chunks::<BLOCK>().0[b].as_chunks::<LANES>().0;
                    for (x, gain) in x.as_chunks_mut::<LANES>().0.iter_mut().zip(gain) {
                        let normed = norm::apply(l, l.load(x), scale, l.load(gain));
                        l.store(x, normed);
                    }
                }
                quantize(&x, row, block);
            }
        }
    }
}

// Plain float arithmetic: every level rounds it alike. Loops over arrays, which compilers turn into vectors.

#[inline(always)]
fn quantize<const W: usize>(x: &[f32; BLOCK], row: usize, block: &mut Block<W>) {
    let steps = if W == FOURS { 127.0 } else { 32_767.0 };
    // As integers, magnitudes compare like floats, and NaN is above all: it must not get lost.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7FFF_FFFF);
    }
    let largest = f32::from_bits(largest);
    let (d, inverse) = (largest / steps, if largest > 0.0 { steps / largest } else { 0.0 });
    // To nearest, ties to even: adding 1.5 * 2^23 leaves the integer in the low bits.
    let mut codes = [0_i32; BLOCK];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = ((x * inverse + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4B40_0000);
    }
    let sum = |half: &[i32]| half.iter().fold(0_i32, |sum, code| sum.wrapping_add(*code));
    let sums = [sum(&codes[..BLOCK / 2]), sum(&codes[BLOCK / 2..])];
    let words = &mut block.words[row];
    if W == FOURS {
        for (word, codes) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
            *word = i32::from_le_bytes(codes.map(|code| code as u8));
        }
    } else {
        let pair = |a: i32, b: i32| (b << 16) | (a & 0xFFFF);
        for (words, codes) in words.as_chunks_mut::<2>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
            *words = [pair(codes[0], codes[2]), pair(codes[1], codes[3])];
        }
    }
    block.sums[row] = sums;
    block.d[row] = d;
    block.total[row] = d * sums[0].wrapping_add(sums[1]) as f32;
}
