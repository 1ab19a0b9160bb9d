//! Names of tensors in the two kinds of files.

use crate::model::Norms;

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// `[n_vocab, dim]`.
    Embedding,
    /// `[dim]`, of a layer: of attention's input.
    AttentionNorm(usize),
    /// `[n_q * head_dim, dim]`, of a layer; the other projections by analogy.
    Query(usize),
    /// Of a layer.
    Key(usize),
    /// Of a layer.
    Value(usize),
    /// Of a layer: query, key and value one below the other.
    QueryKeyValue(usize),
    /// `[head_dim]` or `[n_q * head_dim]`, of a layer.
    QueryNorm(usize),
    /// `[head_dim]` or `[n_kv * head_dim]`, of a layer.
    KeyNorm(usize),
    /// `[dim, n_q * head_dim]`, of a layer.
    AttentionOutput(usize),
    /// `[dim]`, of a layer: of attention's output.
    AttentionPostNorm(usize),
    /// `[dim]`, of a layer: of the feed-forward part's input.
    FeedForwardNorm(usize),
    /// `[ff_dim, dim]`, of a layer.
    Gate(usize),
    /// `[ff_dim, dim]`, of a layer.
    Up(usize),
    /// Of a layer: gate and up one below the other.
    GateUp(usize),
    /// `[dim, ff_dim]`, of a layer.
    Down(usize),
    /// `[dim]`, of a layer: of the feed-forward part's output.
    FeedForwardPostNorm(usize),
    /// `[dim]`.
    FinalNorm,
    /// `[n_vocab, dim]`.
    Head,
}

impl Role {
    /// Name without `.weight` or `.bias` in a Hugging Face checkpoint.
    pub(super) fn huggingface(self, norms: Norms) -> String {
        let layer = |l: usize, name: &str| format!("model.layers.{l}.{name}");
        match self {
            Self::Embedding => "model.embed_tokens".into(),
            Self::AttentionNorm(l) => layer(l, "input_layernorm"),
            Self::Query(l) => layer(l, "self_attn.q_proj"),
            Self::Key(l) => layer(l, "self_attn.k_proj"),
            Self::Value(l) => layer(l, "self_attn.v_proj"),
            Self::QueryKeyValue(l) => layer(l, "self_attn.qkv_proj"),
            Self::QueryNorm(l) => layer(l, "self_attn.q_norm"),
            Self::KeyNorm(l) => layer(l, "self_attn.k_norm"),
            Self::AttentionOutput(l) => layer(l, "self_attn.o_proj"),
            // The same name for two things: what comes after attention.
            Self::FeedForwardNorm(l) if norms == Norms::Before => layer(l, "post_attention_layernorm"),
            Self::AttentionPostNorm(l) => layer(l, "post_attention_layernorm"),
            Self::FeedForwardNorm(l) => layer(l, "pre_feedforward_layernorm"),
            Self::Gate(l) => layer(l, "mlp.gate_proj"),
            Self::Up(l) => layer(l, "mlp.up_proj"),
            Self::GateUp(l) => layer(l, "mlp.gate_up_proj"),
            Self::Down(l) => layer(l, "mlp.down_proj"),
            Self::FeedForwardPostNorm(l) => layer(l, "post_feedforward_layernorm"),
            Self::FinalNorm => "model.norm".into(),
            Self::Head => "lm_head".into(),
        }
    }

    /// Name without `.weight` or `.bias` in a GGUF file.
    pub(super) fn gguf(self) -> String {
        let layer = |l: usize, name: &str| format!("blk.{l}.{name}");
        match self {
            Self::Embedding => "token_embd".into(),
            Self::AttentionNorm(l) => layer(l, "attn_norm"),
            Self::Query(l) => layer(l, "attn_q"),
            Self::Key(l) => layer(l, "attn_k"),
            Self::Value(l) => layer(l, "attn_v"),
            Self::QueryKeyValue(l) => layer(l, "attn_qkv"),
            Self::QueryNorm(l) => layer(l, "attn_q_norm"),
            Self::KeyNorm(l) => layer(l, "attn_k_norm"),
            Self::AttentionOutput(l) => layer(l, "attn_output"),
            Self::AttentionPostNorm(l) => layer(l, "post_attention_norm"),
            Self::FeedForwardNorm(l) => layer(l, "ffn_norm"),
            Self::Gate(l) => layer(l, "ffn_gate"),
            Self::Up(l) | Self::GateUp(l) => layer(l, "ffn_up"),
            Self::Down(l) => layer(l, "ffn_down"),
            Self::FeedForwardPostNorm(l) => layer(l, "post_ffw_norm"),
            Self::FinalNorm => "output_norm".into(),
            Self::Head => "output".into(),
        }
    }
}
