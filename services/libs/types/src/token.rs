//! Generated tokens and the handoff record.

use crate::TokenId;

/// Why a choice ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FinishReason {
    /// End-of-sequence token, stop token or stop string.
    Stop,
    /// `max_tokens` or the model's context.
    Length,
}

/// An alternative at one position.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TopLogprob {
    /// Which token.
    pub token: TokenId,
    /// Natural logarithm.
    pub logprob: f32,
}

/// One generated token.
#[derive(Clone, PartialEq, Debug)]
pub struct Token {
    /// Which token.
    pub id: TokenId,
    /// Index among the choice's generated tokens, from 0.
    pub position: u32,
    /// Of the model's distribution before penalties and temperature; `None` when not asked for.
    pub logprob: Option<f32>,
    /// Most likely first, ties by lowest id.
    pub top: Vec<TopLogprob>,
    /// Set on the choice's last token.
    pub finish: Option<FinishReason>,
}

/// What decode needs besides the KV; all other state is re-derived by replay.
#[derive(Clone, PartialEq, Debug)]
pub struct Handoff {
    /// Sampled by prefill.
    pub first: Token,
    /// Position of the first generated token in the sequence, prompt included.
    pub position: u32,
    /// Which of the request's choices.
    pub choice: u32,
    /// The choice's seed.
    pub seed: u64,
    /// For drafters; empty without one.
    pub hidden_state: Vec<u8>,
    /// Every token generated so far, the first included: penalties are re-derived from it.
    pub generated: Vec<TokenId>,
}
