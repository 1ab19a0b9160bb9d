//! Rows of the embedding, one for each token.

use kernels::Isa;
use kernels::cpu::Linear;
use kernels::quant::{QuantFormat, dequantize};
use types::TokenId;

use crate::model::Tensor;

/// Where a token's row comes from. No number is held twice, and nothing is read from the files once they are loaded.
pub(super) enum Embedding {
    /// The head's weights are the embedding.
    Tied,
    /// Rows as stored.
    Stored { format: QuantFormat, dim: usize, bytes: Vec<u8> },
}

impl Embedding {
    /// A copy of the stored rows.
    pub(super) fn stored(tensor: &Tensor<'_>) -> Self {
        Self::Stored { format: tensor.format, dim: tensor.k, bytes: tensor.data().to_vec() }
    }

    /// Memory it takes beside the head.
    pub(super) fn n_bytes(&self) -> usize {
        match self {
            Self::Tied => 0,
            Self::Stored { bytes, .. } => bytes.len(),
        }
    }

    /// Writes the tokens' rows one after the other; the same bits from the head as from the stored bytes.
    pub(super) fn gather(&self, isa: Isa, head: &Linear, tokens: impl Iterator<Item = TokenId>, out: &mut [f32]) {
        match self {
            Self::Tied => {
                for (token, out) in tokens.zip(out.chunks_exact_mut(head.k())) {
                    head.read_row(isa, token as usize, out);
                }
            }
            Self::Stored { format, dim, bytes } => {
                let row_bytes = format.bytes_of(*dim);
                for (token, out) in tokens.zip(out.chunks_exact_mut(*dim)) {
                    dequantize(*format, &bytes[token as usize * row_bytes..][..row_bytes], out);
                }
            }
        }
    }
}
