//! A sequence's tokens and parameters: what the engine's thread needs of it, and when it ends.

use std::sync::Arc;

use engine::sampling::{Draw, History, Sampled};
use kvcache::Tenant;
use kvcache::hash::Chain;
use tokio::sync::watch;
use types::{BlockHash, FinishReason, SamplingParams, StopParams, Token, TokenId};

/// Goes to the engine's thread with each step and comes back with its outcome.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    n_prompt: usize,
    /// Tokens at which it ends, prompt included.
    max_tokens: usize,
    choice: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopParams,
    /// Names of its full blocks, if they are shared.
    names: Option<Chain>,
    n_named: usize,
    /// Ticks when KV is published; only where somebody reads it.
    pub(crate) progress: Option<watch::Sender<u64>>,
}

/// Where a sequence ends and what it starts from.
pub(crate) struct Parts {
    pub(crate) prompt: Arc<[TokenId]>,
    pub(crate) generated: Vec<TokenId>,
    pub(crate) choice: u32,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: StopParams,
    pub(crate) max_tokens: usize,
    pub(crate) names: Option<Chain>,
}

impl Sequence {
    pub(crate) fn new(parts: Parts) -> Self {
        let n_prompt = parts.prompt.len();
        let mut tokens = parts.prompt.to_vec();
        tokens.extend(&parts.generated);
        Self {
            tokens,
            n_prompt,
            max_tokens: parts.max_tokens,
            choice: parts.choice,
            sampling: parts.sampling,
            stop: parts.stop,
            names: parts.names,
            n_named: 0,
            progress: None,
        }
    }

    pub(crate) fn n_prompt(&self) -> usize {
        self.n_prompt
    }

    /// Names of the full blocks that it has now and had not when this was asked last; and whose they are.
    pub(crate) fn new_names(&mut self) -> Option<(Tenant, &[BlockHash])> {
        let names = self.names.as_mut()?;
        names.extend(&self.tokens);
        let n_before = std::mem::replace(&mut self.n_named, names.hashes().len());
        Some((names.tenant(), &names.hashes()[n_before..]))
    }

    pub(crate) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    pub(crate) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    pub(crate) fn history(&self) -> History<'_> {
        let (prompt, generated) = self.tokens.split_at(self.n_prompt);
        History { prompt, generated }
    }

    /// The draw of the next token.
    pub(crate) fn draw(&self) -> Draw {
        Draw { choice: self.choice, position: self.position() }
    }

    /// Appends a drawn token and decides whether it is the last.
    pub(crate) fn accept(&mut self, sampled: Sampled, eos: &[TokenId]) -> Token {
        let position = self.position();
        self.tokens.push(sampled.token);
        let ends_text = !self.stop.ignore_eos && eos.contains(&sampled.token);
        let finish = if ends_text || self.stop.stop_token_ids.contains(&sampled.token) {
            Some(FinishReason::Stop)
        } else {
            (self.tokens.len() >= self.max_tokens).then_some(FinishReason::Length)
        };
        Token { id: sampled.token, position, logprob: sampled.logprob, top: sampled.top, finish }
    }

    /// Index of the next token among the generated ones.
    fn position(&self) -> u32 {
        u32::try_from(self.tokens.len() - self.n_prompt).expect("a model's context is below 2^32 tokens")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds tokens and tells where and why it ended.
    fn check(stop: StopParams, max_context: usize, feed: &[TokenId], expected: Option<(u32, FinishReason)>) {
        let prompt = Arc::from([5, 6, 7]);
        let sampling = SamplingParams::default();
        let max_tokens = (3 + stop.max_tokens as usize).min(max_context);
        let mut sequence =
            Sequence::new(Parts { prompt, generated: vec![], choice: 0, sampling, stop, max_tokens, names: None });
        for &token in feed {
            let token = sequence.accept(Sampled { token, logprob: None, top: vec![] }, &[1, 2]);
            if let Some(finish) = token.finish {
                assert_eq!(expected, Some((token.position, finish)));
                return;
            }
        }
        assert_eq!(expected, None);
    }

    #[test]
    fn ends_as_the_parameters_say() {
        use FinishReason::{Length, Stop};
        let stop = |max_tokens| StopParams { max_tokens, ..StopParams::default() };
        check(stop(5), 100, &[9, 9, 2, 9], Some((2, Stop)));
        check(stop(5), 100, &[9, 9, 9, 9], None);
        check(stop(4), 100, &[9, 9, 9, 9], Some((3, Length)));
        check(stop(4), 100, &[9, 9, 9, 1], Some((3, Stop)));
        check(stop(40), 5, &[9, 9, 9, 9], Some((1, Length)));
        check(StopParams { ignore_eos: true, ..stop(4) }, 100, &[1, 2, 9], None);
        check(StopParams { stop_token_ids: vec![9], ..stop(4) }, 100, &[8, 9], Some((1, Stop)));
        check(StopParams { ignore_eos: true, stop_token_ids: vec![2], ..stop(4) }, 100, &[1, 2], Some((1, Stop)));
    }
}
