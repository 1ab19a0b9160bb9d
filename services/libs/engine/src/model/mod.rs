//! What a model is, as far as the forward pass needs to know, read from its files.
//!
//! [`ModelConfig`] describes a dense decoder as plain data; the forward pass is one function driven by it. A family
//! (`family/`) reads its settings from `config.json` or a GGUF file's metadata into that data.

mod checks;
mod family;
mod gguf;
mod huggingface;
mod names;
mod rope;
mod weights;

use kernels::cpu::Activation;
use types::TokenId;

pub(crate) use names::Role;
pub(crate) use rope::Rope;
pub(crate) use weights::{ModelFiles, Tensor, Weights};

/// Shape, constants and structure of a decoder.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ModelConfig {
    /// Family.
    pub(crate) architecture: &'static str,
    /// Vocabulary.
    pub(crate) n_vocab: usize,
    /// Elements of the residual stream.
    pub(crate) dim: usize,
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
    /// What differs between layers, in order.
    pub(crate) layers: Vec<LayerConfig>,
    /// Rotary embeddings that layers choose from; all with the same number of pairs.
    pub(crate) ropes: Vec<Rope>,
    /// Where a layer's norms are.
    pub(crate) norms: Norms,
    /// Norm of queries and keys, before they are rotated.
    pub(crate) head_norm: Option<HeadNorm>,
    /// Of the feed-forward gate.
    pub(crate) activation: Activation,
    /// Multiplies the embeddings.
    pub(crate) embedding_scale: Option<f32>,
    /// Multiplies attention's scores.
    pub(crate) score_scale: f32,
    /// Soft cap of attention's scores.
    pub(crate) score_cap: Option<f32>,
    /// Soft cap of the logits.
    pub(crate) logit_cap: Option<f32>,
    /// How the files keep the weights.
    pub(crate) storage: Storage,
    /// Begin-of-sequence token.
    pub(crate) bos: Option<TokenId>,
    /// End-of-sequence tokens, ascending.
    pub(crate) eos: Vec<TokenId>,
}

/// What differs between layers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LayerConfig {
    /// Most rows that a query sees, its own and those before it; `None`: all.
    pub(crate) window: Option<usize>,
    /// Which of the rotary embeddings.
    pub(crate) rope: usize,
}

/// Where a layer's norms are: around attention and around the feed-forward part alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Norms {
    /// Of each part's input.
    Before,
    /// Of each part's output, before it is added to the residual stream.
    After,
    /// Of both.
    Both,
}

/// What a norm of queries and keys covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeadNorm {
    /// Each head by itself.
    PerHead,
    /// All query heads together, all key heads together.
    Whole,
}

/// How the files keep the weights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Storage {
    /// The output layer is the embedding.
    pub(crate) tied: bool,
    /// Biases of query, key and value projections.
    pub(crate) qkv_bias: Biases,
    /// Biases of attention's output projection.
    pub(crate) output_bias: Biases,
    /// Biases of the feed-forward projections.
    pub(crate) mlp_bias: Biases,
    /// Query, key and value are one tensor, gate and up another.
    pub(crate) fused: bool,
    /// Norms are stored less one.
    pub(crate) gains_less_one: bool,
    /// Rotary pairs of query and key rows are neighbours instead of half a head apart.
    pub(crate) interleaved: bool,
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

impl Norms {
    /// Whether a part's input is normalised.
    pub(crate) fn before(self) -> bool {
        self != Self::After
    }

    /// Whether a part's output is normalised.
    pub(crate) fn after(self) -> bool {
        self != Self::Before
    }
}

impl ModelConfig {
    /// Canonical text of everything that decides the numbers besides the weights.
    pub(crate) fn describe(&self) -> String {
        let Self { architecture, n_vocab, dim, ff_dim, norm_eps, norms, activation, embedding_scale, .. } = self;
        let (n_layers, logit_cap, tied) = (self.layers.len(), self.logit_cap, self.storage.tied);
        format!(
            "{architecture} n_vocab={n_vocab} dim={dim} n_layers={n_layers} ff_dim={ff_dim} norms={norms:?} \
             norm_eps={norm_eps:e} activation={activation:?} embedding_scale={embedding_scale:?} \
             logit_cap={logit_cap:?} tied={tied} attention=({}) rope=({})",
            self.describe_attention(),
            self.describe_rope()
        )
    }

    /// Canonical text of attention.
    pub(crate) fn describe_attention(&self) -> String {
        let Self { n_q, n_kv, head_dim, head_norm, score_scale, score_cap, .. } = self;
        let windows: Vec<_> = self.layers.iter().map(|l| l.window.map_or("-".into(), |w| w.to_string())).collect();
        format!(
            "causal n_q={n_q} n_kv={n_kv} head_dim={head_dim} scale={score_scale} cap={score_cap:?} \
             head_norm={head_norm:?} windows={}",
            windows.join(",")
        )
    }

    /// Canonical text of the rotary embeddings and which layer uses which.
    pub(crate) fn describe_rope(&self) -> String {
        let ropes: Vec<_> = self.ropes.iter().map(Rope::describe).collect();
        let layers: Vec<_> = self.layers.iter().map(|l| l.rope.to_string()).collect();
        if ropes.len() == 1 { ropes.concat() } else { format!("{} layers={}", ropes.join("; "), layers.join("")) }
    }
}

/// What scores are multiplied by where queries are as if of `n` elements.
fn score_scale(n: f64) -> f32 {
    1.0 / (n as f32).sqrt()
}
