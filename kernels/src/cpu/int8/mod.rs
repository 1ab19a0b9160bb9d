//! Matrix product of 8-bit inputs with packed 4-bit and 8-bit weights.
//!
//! Inputs are quantised per block of 32 (`q = round(x / d)`, `d = max |x| / 127`), with [`Inputs::Fine`] what is left
//! of each once more in steps of `d / 254`, which makes about 16 bits. A block's contribution to an output is an exact
//! integer sum, turned to float and added with one or two fused multiply-adds; blocks follow in order. So an output's
//! bits depend on its input row and its weights alone, on every instruction level.

mod inputs;
mod product;
mod weights;

pub use inputs::Inputs;
pub(super) use inputs::QuantizedRows;
pub(super) use product::{Int8Product, Output};
pub(super) use weights::Int8Panels;

/// Numbers that share a scale.
pub(super) const BLOCK: usize = 32;
