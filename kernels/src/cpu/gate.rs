//! What gates of a feed-forward layer go through.

use super::lanes::Lanes;
use super::math::{gelu_tanh, silu};

/// What a gate goes through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))`.
    GeluTanh,
}

impl Activation {
    #[inline(always)]
    pub(super) fn apply<L: Lanes>(self, l: L, x: L::F) -> L::F {
        match self {
            Self::Silu => silu(l, x),
            Self::GeluTanh => gelu_tanh(l, x),
        }
    }
}
