//! Matrix product of quantised inputs with packed weights of 4 to 8 bits.
//!
//! Inputs are quantised per block of 32: `x = d * q`, with `q` in 8 bits ([`Inputs::Coarse`]) or in 16
//! ([`Inputs::Fine`]: half the speed on weights below 8 bits, the same on 8). A block's contribution to an output is an
//! exact integer sum, turned to float and added with one or two fused multiply-adds; blocks follow in order. So an
//! output's bits depend on its input row and its weights alone, on every instruction level.

mod inputs;
mod pack;
mod product;
mod records;
mod unpack;

pub use inputs::Inputs;
pub(super) use inputs::{Norm, QuantizedRows};
pub(super) use pack::IntegerWeights;
pub(super) use product::IntegerProduct;
pub(super) use unpack::ReadRow;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;
/// Groups of four numbers in a block.
const FOURS: usize = BLOCK / 4;
