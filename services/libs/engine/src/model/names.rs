//! Names of tensors in the two kinds of files.

/// What a tensor is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    /// `[n_vocab, dim]`.
    Embedding,
    /// `[dim]`, of a layer.
    AttentionNorm(usize),
    /// `[n_q * head_dim, dim]`, of a layer; the other projections by analogy.
    Query(usize),
    /// Of a layer.
    Key(usize),
    /// Of a layer.
    Value(usize),
    /// `[dim, n_q * head_dim]`, of a layer.
    AttentionOutput(usize),
    /// `[dim]`, of a layer.
    FeedForwardNorm(usize),
    /// `[ff_dim, dim]`, of a layer.
    Gate(usize),
    /// `[ff_dim, dim]`, of a layer.
    Up(usize),
    /// `[dim, ff_dim]`, of a layer.
    Down(usize),
    /// `[dim]`.
    FinalNorm,
    /// `[n_vocab, dim]`.
    Head,
}

impl Role {
    /// Name without `.weight` or `.bias` in a Hugging Face checkpoint.
    pub(super) fn huggingface(self) -> String {
        let layer = |l: usize, name: &str| format!("model.layers.{l}.{name}");
        match self {
            Self::Embedding => "model.embed_tokens".into(),
            Self::AttentionNorm(l) => layer(l, "input_layernorm"),
            Self::Query(l) => layer(l, "self_attn.q_proj"),
            Self::Key(l) => layer(l, "self_attn.k_proj"),
            Self::Value(l) => layer(l, "self_attn.v_proj"),
            Self::AttentionOutput(l) => layer(l, "self_attn.o_proj"),
            Self::FeedForwardNorm(l) => layer(l, "post_attention_layernorm"),
            Self::Gate(l) => layer(l, "mlp.gate_proj"),
            Self::Up(l) => layer(l, "mlp.up_proj"),
            Self::Down(l) => layer(l, "mlp.down_proj"),
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
            Self::AttentionOutput(l) => layer(l, "attn_output"),
            Self::FeedForwardNorm(l) => layer(l, "ffn_norm"),
            Self::Gate(l) => layer(l, "ffn_gate"),
            Self::Up(l) => layer(l, "ffn_up"),
            Self::Down(l) => layer(l, "ffn_down"),
            Self::FinalNorm => "output_norm".into(),
            Self::Head => "output".into(),
        }
    }
}
