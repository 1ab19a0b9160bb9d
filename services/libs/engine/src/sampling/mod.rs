//! Draws the next token from a row of logits.
//!
//! Pure: the outcome is a function of the logits, the parameters, the choice's tokens so far, and
//! [`Draw`]. Nothing is carried from one draw to the next, so a choice can move to another worker,
//! or be computed again after preemption, without a change in its tokens.
//!
//! Order of processing: logit bias, repetition penalty, frequency and presence penalties, masking of
//! tokens that would end the choice too early; then, unless greedy, temperature, top-k, top-p, min-p.
//! The formulas are those of Hugging Face's logits processors, and OpenAI's for the frequency and
//! presence penalties. Ties go to the lowest token id everywhere, so exactly `k` tokens survive top-k.
//! Sums run in 64-bit floats in a fixed order.
//!
//! Not here: stop strings (they are about text) and the decision that a choice has ended.
//! Begin with [`sample`].

mod logprobs;
mod processors;
mod random;
mod select;
#[cfg(test)]
mod tests;

use types::{SamplingParams, StopParams, TokenId, TopLogprob};

pub use random::uniform;

/// Tokens of a choice so far.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// What followed it.
    pub generated: &'a [TokenId],
}

/// Which draw this is: with the seed, all of its randomness.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    /// Which of the request's choices.
    pub choice: u32,
    /// Index of the token to draw among the choice's generated tokens, from 0.
    pub position: u32,
}

/// A drawn token.
#[derive(Clone, PartialEq, Debug)]
pub struct Sampled {
    /// Which token.
    pub token: TokenId,
    /// Natural logarithm of its probability under the raw logits; `None` when not asked for.
    pub logprob: Option<f32>,
    /// Most likely tokens under the raw logits, ties by lowest id; impossible ones are left out.
    pub top: Vec<TopLogprob>,
}

/// Logits no token can be drawn from.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SamplingError {
    /// The model computed NaN or plus infinity.
    #[error("logit of token {token} is not a number or infinite")]
    NotFinite {
        /// First such token.
        token: TokenId,
    },
    /// Every token is impossible.
    #[error("no token is possible")]
    NothingLeft,
}

/// Draws one token. `logits`: raw, `[n_vocab]`; overwritten by the processed ones. `eos`: the model's
/// end-of-sequence tokens; with `ignore_eos` they are ordinary tokens.
///
/// Parameters are taken as validated; ids outside the vocabulary are passed over.
///
/// # Errors
/// [`SamplingError::NotFinite`] for NaN and plus infinity in the raw logits,
/// [`SamplingError::NothingLeft`] if every token ends up at minus infinity.
pub fn sample(
    logits: &mut [f32],
    params: &SamplingParams,
    stop: &StopParams,
    eos: &[TokenId],
    history: History<'_>,
    draw: Draw,
) -> Result<Sampled, SamplingError> {
    let raw_max = select::checked_max(logits)?;
    let report = params.logprobs.map(|n| logprobs::Raw::of(logits, raw_max, n as usize));
    processors::apply(logits, params, stop, eos, history);
    let token = if params.temperature == 0.0 {
        select::greedy(logits)?
    } else {
        select::random(logits, params, uniform(params.seed, draw))?
    };
    let (logprob, top) = match report {
        Some(report) => (Some(report.logprob(token)), report.top),
        None => (None, Vec::new()),
    };
    Ok(Sampled { token, logprob, top })
}
