//! What a model is, as far as the forward pass needs to know, read from its files.

mod checks;
mod gguf;
mod huggingface;
mod names;
mod rope;
mod weights;

use types::TokenId;

pub(crate) use names::Role;
pub(crate) use rope::Rope;
pub(crate) use weights::{ModelFiles, Tensor, Weights};

/// Shape and constants of a llama-family model.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ModelConfig {
    /// Family.
    pub(crate) architecture: &'static str,
    /// Vocabulary.
    pub(crate) n_vocab: usize,
    /// Elements of the residual stream.
    pub(crate) dim: usize,
    /// Layers.
    pub(crate) n_layers: usize,
    /// Query heads, a multiple of `n_kv`.
    pub(crate) n_q: usize,
    /// Key and value heads.
    pub(crate) n_kv: usize,
    /// Elements of a head, even.
    pub(crate) head_dim: usize,
    /// Elements of the feed-forward layer.
    pub(crate) ff_dim: usize,
    /// Added to the mean square in norms.
    pub(crate) norm_eps: f32,
    /// Most tokens of a sequence.
    pub(crate) max_context: usize,
    /// Rotary embedding.
    pub(crate) rope: Rope,
    /// Whether the output layer is the embedding.
    pub(crate) tied: bool,
    /// Whether query, key, value and output projections have biases.
    pub(crate) attention_bias: Biases,
    /// Whether the feed-forward projections have biases.
    pub(crate) mlp_bias: Biases,
    /// Begin-of-sequence token.
    pub(crate) bos: Option<TokenId>,
    /// End-of-sequence tokens, ascending.
    pub(crate) eos: Vec<TokenId>,
}

/// Whether biases are there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Biases {
    /// None, by the configuration.
    None,
    /// All, by the configuration.
    All,
    /// Those that the file has: it does not say.
    Present,
}

impl ModelConfig {
    /// Canonical text of everything that decides the numbers besides the weights.
    pub(crate) fn describe(&self) -> String {
        let Self { architecture, n_vocab, dim, n_layers, n_q, n_kv, head_dim, ff_dim, norm_eps, tied, .. } = self;
        format!(
            "{architecture} n_vocab={n_vocab} dim={dim} n_layers={n_layers} n_q={n_q} n_kv={n_kv} \
             head_dim={head_dim} ff_dim={ff_dim} norm_eps={norm_eps:e} tied={tied} rope=({})",
            self.rope.describe()
        )
    }
}
