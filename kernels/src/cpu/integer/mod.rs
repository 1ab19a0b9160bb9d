//! Matrix product of quantised inputs with packed weights of 4 to 8 bits.
//!
//! Inputs are quantised per block of 32: `x = d * q`, with `q` in 16 bits where a block stands out of its row, and for
//! weights in 8 bits, and in 8 bits elsewhere (twice the speed). A block's contribution to an output is an
//! exact integer sum, turned to float and added with one or two fused multiply-adds; blocks follow in order. So an
//! output's bits depend on its input row and its weights alone, on every instruction level.

mod inputs;
mod pack;
mod product;
mod records;
mod unpack;

pub(super) use inputs::{Norm, Quantized, Rounding};
pub(super) use pack::IntegerWeights;
pub(super) use product::IntegerProduct;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;
/// Groups of four numbers in a block.
const FOURS: usize = BLOCK / 4;
