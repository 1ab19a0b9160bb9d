//! The KV cache's shape as a type: two workers compare it before a byte moves.

/// Element type of stored keys and values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvElement {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    F16,
    /// 2 bytes.
    Bf16,
}

impl KvElement {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What one layer stores per token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LayerKvKind {
    /// Keys and values of `n_kv_heads` heads (MHA, GQA, MQA).
    Grouped {
        /// KV heads.
        n_kv_heads: u32,
        /// Elements of one head.
        head_dim: u32,
    },
    /// Multi-head latent attention: a compressed vector and a rotated part, no separate values.
    Latent {
        /// Elements of the compressed vector.
        compressed_dim: u32,
        /// Elements of the rotated part.
        rope_dim: u32,
    },
}

/// One layer's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LayerKv {
    /// What is stored.
    pub kind: LayerKvKind,
    /// Sliding window in tokens; `None`: full attention.
    pub window: Option<u32>,
}

/// Shape of the whole cache.
///
/// A *cell* is one block of one layer, the unit of storage and transfer. For grouped heads it holds
/// keys `[n_kv_heads, block_tokens, head_dim]`, then values of the same shape, row-major.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KvGeometry {
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Element type.
    pub element: KvElement,
    /// Layers, in order.
    pub layers: Vec<LayerKv>,
}

impl KvGeometry {
    /// Elements that layer `layer` stores per token.
    pub fn token_elements(&self, layer: usize) -> usize {
        match self.layers[layer].kind {
            LayerKvKind::Grouped { n_kv_heads, head_dim } => 2 * n_kv_heads as usize * head_dim as usize,
            LayerKvKind::Latent { compressed_dim, rope_dim } => (compressed_dim + rope_dim) as usize,
        }
    }

    /// Bytes of one cell of layer `layer`.
    pub fn cell_bytes(&self, layer: usize) -> usize {
        self.token_elements(layer) * self.block_tokens as usize * self.element.size()
    }

    /// Bytes of one block over all layers.
    pub fn block_bytes(&self) -> usize {
        (0..self.layers.len()).map(|l| self.cell_bytes(l)).sum()
    }

    /// Blocks that `n_tokens` tokens take.
    pub fn blocks_for(&self, n_tokens: usize) -> usize {
        n_tokens.div_ceil(self.block_tokens as usize)
    }
}
