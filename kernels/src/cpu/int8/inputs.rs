//! Input rows in 8 bits.

use super::BLOCK;
use crate::Isa;
use crate::cpu::lanes::{Kernel, Lanes, launch};
use crate::pool::Pool;

/// How exactly a linear layer with 8-bit weights takes its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inputs {
    /// 8 bits.
    Coarse,
    /// Twice 8 bits: for twice the work, where rounding would show.
    Fine,
}

/// Steps of the second code in one of the first.
pub(super) const FINE_STEPS: f32 = 254.0;

/// Rows that lie side by side in [`QuantizedRows`]: a tile of the product reads them together.
pub(super) const GROUP: usize = 8;

/// Input rows in 8 bits.
#[derive(Default)]
pub(in crate::cpu) struct QuantizedRows {
    pub(super) fine: bool,
    n_blocks: usize,
    /// `[n_rows / 8, n_blocks, 8]`: a block of eight rows, then the next block of the same rows.
    blocks: Vec<[Block; GROUP]>,
}

/// A block of inputs: `x = d * q`, or with fine inputs `x = d * (254 * q + r)`.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) q: [i8; BLOCK],
    pub(super) r: [i8; BLOCK],
    pub(super) d: f32,
    /// Sums of `q` and of `r`.
    pub(super) sums: [i32; 2],
    /// Sum of the inputs.
    pub(super) total: f32,
}

const EMPTY: Block = Block { q: [0; BLOCK], r: [0; BLOCK], d: 0.0, sums: [0; 2], total: 0.0 };

impl QuantizedRows {
    /// Quantises rows of `k` elements, a multiple of 32.
    pub(in crate::cpu) fn fill(&mut self, pool: &mut Pool, isa: Isa, x: &[f32], k: usize, inputs: Inputs) {
        self.fine = inputs == Inputs::Fine;
        self.n_blocks = k / BLOCK;
        let n_rows = x.len() / k;
        let n = n_rows.div_ceil(GROUP) * self.n_blocks;
        if self.blocks.len() < n {
            self.blocks.resize(n, [EMPTY; GROUP]);
        }
        let fine = self.fine;
        pool.chunks_mut(&mut self.blocks[..n], self.n_blocks, |group, blocks| {
            let x = &x[group * GROUP * k..x.len().min((group + 1) * GROUP * k)];
            launch(isa, Quantize { x, k, blocks, fine });
        });
    }

    /// Blocks of the eight rows that `row` is one of.
    pub(super) fn group(&self, row: usize) -> &[[Block; GROUP]] {
        let group = row / GROUP;
        &self.blocks[group * self.n_blocks..(group + 1) * self.n_blocks]
    }
}

/// Up to eight rows.
struct Quantize<'a> {
    x: &'a [f32],
    k: usize,
    blocks: &'a mut [[Block; GROUP]],
    fine: bool,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, _: L) {
        for (row, x) in self.x.chunks_exact(self.k).enumerate() {
            for (x, blocks) in x.as_chunks::<BLOCK>().0.iter().zip(&mut *self.blocks) {
                if self.fine {
                    quantize_fine(x, &mut blocks[row]);
                } else {
                    quantize(x, &mut blocks[row]);
                }
            }
        }
    }
}

// Plain float arithmetic: every level rounds it alike. Loops over arrays, which compilers turn into vectors.

/// Scale of the codes and its inverse.
#[inline(always)]
fn scale(x: &[f32; BLOCK]) -> (f32, f32) {
    // As integers, magnitudes compare like floats, and NaN is above all: it must not get lost.
    let mut largest = 0;
    for x in x {
        largest = largest.max(x.to_bits() & 0x7FFF_FFFF);
    }
    let largest = f32::from_bits(largest);
    (largest / 127.0, if largest > 0.0 { 127.0 / largest } else { 0.0 })
}

/// Codes of numbers counted in steps, to nearest, ties to even, and their sum: adding 1.5 * 2^23 leaves the integer
/// in the low bits.
#[inline(always)]
fn codes(steps: &[f32; BLOCK], codes: &mut [i8; BLOCK]) -> i32 {
    let mut sum = 0_i32;
    for i in 0..BLOCK {
        let code = ((steps[i] + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4B40_0000);
        codes[i] = code as i8;
        sum = sum.wrapping_add(code);
    }
    sum
}

#[inline(always)]
fn quantize(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut steps = *x;
    for step in &mut steps {
        *step *= inverse;
    }
    block.sums[0] = codes(&steps, &mut block.q);
    (block.d, block.total) = (d, d * block.sums[0] as f32);
}

#[inline(always)]
fn quantize_fine(x: &[f32; BLOCK], block: &mut Block) {
    let (d, inverse) = scale(x);
    let mut steps = *x;
    for step in &mut steps {
        *step *= inverse;
    }
    block.sums[0] = codes(&steps, &mut block.q);
    for (step, q) in steps.iter_mut().zip(&block.q) {
        // The difference is exact, and at most half a step.
        *step = (*step - f32::from(*q)) * FINE_STEPS;
    }
    block.sums[1] = codes(&steps, &mut block.r);
    block.d = d / FINE_STEPS;
    block.total = block.d * (block.sums[0] as f32 * FINE_STEPS + block.sums[1] as f32);
}
