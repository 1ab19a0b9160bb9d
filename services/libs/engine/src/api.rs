//! What an engine is: the trait, its input, its errors.

use std::ops::ControlFlow;
use std::sync::Arc;

use kernels::affinity::PinError;
use kernels::kv::{ArenaError, KvArena};
use types::{BlockIdx, Compatibility, TokenId};

/// A model on a device. One thread owns it.
pub trait Engine: Send {
    /// What is loaded.
    fn model(&self) -> &Arc<ModelInfo>;

    /// Memory of its KV cache.
    fn arena(&self) -> &Arc<KvArena>;

    /// One step: computes every slice's tokens, appends their KV to the slice's blocks, and writes logits.
    ///
    /// `logits` is cleared, then gets one row of `n_vocab` floats per wanted row, in slice order. `on_layer(l)` is
    /// called when layer `l`'s KV of this step is published in the arena; `Break` ends the step.
    ///
    /// A row's logits and KV are a function of its sequence alone: neither the other slices, nor how the sequence
    /// was cut into slices, nor the number of threads changes a bit.
    ///
    /// # Errors
    /// [`EngineError`]; all input is checked before anything is computed. After [`EngineError::Aborted`] and
    /// [`EngineError::Arena`] some layers hold this step's rows and others do not: the blocks must be reset.
    fn forward(
        &mut self,
        slices: &[Slice<'_>],
        logits: &mut Vec<f32>,
        on_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(), EngineError>;

    /// Binds the calling thread, which is to be the one that calls [`forward`](Self::forward), to its core, if this
    /// engine's threads are bound to cores.
    ///
    /// # Errors
    /// [`PinError`] if it cannot be bound; the engine works all the same.
    fn bind_thread(&mut self) -> Result<(), PinError> {
        Ok(())
    }
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// At least one.
    pub tokens: &'a [TokenId],
    /// Position of each token for the rotary embedding, from 0; below the model's `max_context`.
    pub positions: &'a [u32],
    /// KV row of `tokens[0]`: the number of rows that the sequence's blocks hold already.
    pub first_row: u32,
    /// Most tokens that the sequence will ever have, prompt and answer: the same in all its slices, on every worker.
    /// Models with two sets of rotary frequencies choose by it.
    pub max_tokens: u32,
    /// The sequence's blocks in order, enough for all rows up to this slice's last. The same block must not stand
    /// in two slices of a step.
    pub blocks: &'a [BlockIdx],
    /// Which rows each token sees.
    pub mask: Mask<'a>,
    /// Whose logits are wanted.
    pub logits: LogitRows,
}

/// Which KV rows a token attends to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mask<'a> {
    /// All rows up to its own.
    Causal,
    /// All rows before the slice, then its ancestors within the slice, then itself: one entry per token, the index
    /// of its parent inside the slice (before its own), or `None` for a child of the last row before the slice.
    /// A token's bits equal those of the same path computed alone.
    Ancestors(&'a [Option<u32>]),
}

/// Rows of a slice whose logits are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogitRows {
    /// None: a prompt's earlier chunks.
    None,
    /// The last token's.
    Last,
    /// Every token's.
    All,
}

impl LogitRows {
    /// How many of `n_tokens` rows.
    pub fn count(self, n_tokens: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Last => n_tokens.min(1),
            Self::All => n_tokens,
        }
    }
}

/// What is loaded.
#[derive(Clone, PartialEq, Debug)]
pub struct ModelInfo {
    /// As served.
    pub name: String,
    /// Model family, e.g. `llama`.
    pub architecture: String,
    /// Logits per row.
    pub n_vocab: usize,
    /// Most tokens of a sequence.
    pub max_context: usize,
    /// Begin-of-sequence token.
    pub bos: Option<TokenId>,
    /// End-of-sequence tokens, ascending.
    pub eos: Vec<TokenId>,
    /// What another worker must share.
    pub compatibility: Compatibility,
    /// Memory that the weights take.
    pub weight_bytes: u64,
    /// What computes, for people: `cpu/` and the instruction level. It decides the speed, never the bits.
    pub device: String,
    /// Sequences of more tokens than this have rotary frequencies of their own; `None`: all have the same.
    pub rope_switch: Option<usize>,
}

impl ModelInfo {
    /// Most tokens that a sequence will ever have: prompt and answer, cut at the context.
    pub fn max_tokens(&self, n_prompt: usize, max_new: u32) -> usize {
        n_prompt.saturating_add(max_new as usize).min(self.max_context)
    }

    /// Which of the model's rotary frequencies a sequence of at most `max_tokens` tokens has. The same tokens have
    /// another KV under another.
    pub fn rope_state(&self, max_tokens: usize) -> u8 {
        u8::from(self.rope_switch.is_some_and(|most| max_tokens > most))
    }
}

/// Why a step was not computed.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum EngineError {
    /// `on_layer` asked for it.
    #[error("step aborted")]
    Aborted,
    /// A slice that cannot be computed; nothing was.
    #[error("slice {slice}: {problem}")]
    Slice {
        /// Index of the slice in the step.
        slice: usize,
        /// What is wrong with it.
        problem: SliceProblem,
    },
    /// The KV cache refused.
    #[error(transparent)]
    Arena(#[from] ArenaError),
}

/// What is wrong with a slice.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SliceProblem {
    /// No tokens.
    #[error("no tokens")]
    Empty,
    /// `positions` or the mask has another length than `tokens`.
    #[error("{field} has {found} entries for {n_tokens} tokens")]
    Length {
        /// Which field.
        field: &'static str,
        /// Its entries.
        found: usize,
        /// Tokens.
        n_tokens: usize,
    },
    /// Not in the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab}")]
    Token {
        /// Which.
        token: TokenId,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// Beyond the model's context.
    #[error("position {position} is beyond the context of {max_context} tokens")]
    Context {
        /// Which position or row.
        position: usize,
        /// The model's limit.
        max_context: usize,
    },
    /// More rows than the sequence was to have tokens.
    #[error("{n_rows} rows of a sequence of at most {max_tokens} tokens")]
    MaxTokens {
        /// Rows up to the slice's last.
        n_rows: usize,
        /// As the slice says.
        max_tokens: u32,
    },
    /// The block table is too short.
    #[error("{n_rows} rows need {needed} blocks, the table has {found}")]
    Blocks {
        /// Rows up to the slice's last.
        n_rows: usize,
        /// Blocks that takes.
        needed: usize,
        /// Blocks given.
        found: usize,
    },
    /// No such block.
    #[error("block {block} is outside a pool of {n_blocks}")]
    Block {
        /// Which.
        block: u32,
        /// Blocks there are.
        n_blocks: usize,
    },
    /// The block is written twice in this step.
    #[error("block {block} is written by two slices")]
    Shared {
        /// Which.
        block: u32,
    },
    /// The cache holds other rows than the slice continues from.
    #[error("block {block} holds {found} rows of layer {layer}, the slice expects {expected}")]
    Rows {
        /// Which block.
        block: u32,
        /// Which layer.
        layer: usize,
        /// Rows that should be there.
        expected: usize,
        /// Rows that are.
        found: usize,
    },
    /// A parent that is not an earlier token of the slice.
    #[error("token {index} has parent {parent}, which does not precede it")]
    Parent {
        /// Which token.
        index: usize,
        /// Its parent.
        parent: u32,
    },
}
