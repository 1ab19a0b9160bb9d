//! What callers ask of a worker.

use std::sync::Arc;
use std::time::Duration;

use engine::ModelInfo;
use kernels::kv::KvArena;
use kvcache::hash::Chain;
use tokio::time::Instant;
use types::{Failure, Handoff, RequestId, SamplingParams, StopParams, TokenId};

use crate::{Hold, Landing, fail};

/// One choice of one request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SeqKey {
    /// The request.
    pub request: RequestId,
    /// Which of its choices.
    pub choice: u32,
}

/// A prompt to compute, its first token to sample, its blocks to hold for a transfer.
#[derive(Clone, Debug)]
pub struct PrefillJob {
    /// Whose.
    pub key: SeqKey,
    /// At least one token, fewer than the model's context.
    pub prompt: Arc<[TokenId]>,
    /// How to draw the first token.
    pub sampling: SamplingParams,
    /// When the choice ends.
    pub stop: StopParams,
    /// Names of the prompt's full blocks, from [`WorkerHandle::names`](crate::WorkerHandle::names); `None`: its KV is
    /// neither taken from others nor left to them.
    pub names: Option<Chain>,
    /// Fails afterwards.
    pub deadline: Instant,
}

/// A sequence to continue to its end.
#[derive(Debug)]
pub struct DecodeJob {
    /// Whose; that of the landing.
    pub key: SeqKey,
    /// At least one token, fewer than the model's context.
    pub prompt: Arc<[TokenId]>,
    /// How to draw.
    pub sampling: SamplingParams,
    /// When the choice ends.
    pub stop: StopParams,
    /// Names of the prompt's full blocks, from [`WorkerHandle::names`](crate::WorkerHandle::names); `None`: its KV is
    /// neither taken from others nor left to them.
    pub names: Option<Chain>,
    /// Fails afterwards.
    pub deadline: Instant,
    /// What is here already.
    pub start: DecodeStart,
}

/// Where a decode begins.
#[derive(Debug)]
pub enum DecodeStart {
    /// The prompt's KV is in the landing's blocks, complete and checked; the first token was sampled
    /// by prefill and is not given out again.
    Handoff {
        /// Blocks of the prompt.
        landing: Landing,
        /// Prefill's record.
        handoff: Handoff,
    },
    /// Nothing is here but the landing's cached blocks: compute the rest of the prompt (and what was generated
    /// before, which is not given out again), then go on. Whatever was written into the landing's other blocks is
    /// thrown away; nobody may be writing into them any more.
    Recompute {
        /// Blocks of the prompt.
        landing: Landing,
        /// Tokens given out before, in order; may be empty.
        generated: Vec<TokenId>,
    },
}

/// Room for a sequence, kept until claimed or expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// Names it in [`WorkerHandle::claim`](crate::WorkerHandle::claim); never used twice, by no incarnation.
    pub id: [u8; 16],
    /// Blocks kept.
    pub n_blocks: u32,
}

/// A prefill whose computing has begun.
#[derive(Debug)]
pub struct Started {
    /// Keeps the prompt's blocks for a transfer.
    pub hold: Hold,
    /// Time spent waiting for the first step.
    pub queue_time: Duration,
    /// Tokens of the prompt whose KV was here.
    pub n_cached: u32,
}

impl PrefillJob {
    /// Checks what can be checked without the worker's state.
    pub(crate) fn check(&self, model: &ModelInfo) -> Result<(), Failure> {
        check(model, &self.prompt, &[], &self.sampling, &self.stop)
    }
}

impl DecodeJob {
    /// Checks what can be checked without the worker's state.
    pub(crate) fn check(&self, model: &ModelInfo) -> Result<(), Failure> {
        let generated = match &self.start {
            DecodeStart::Handoff { handoff, .. } => &handoff.generated,
            DecodeStart::Recompute { generated, .. } => generated,
        };
        check(model, &self.prompt, generated, &self.sampling, &self.stop)
    }
}

fn check(
    model: &ModelInfo,
    prompt: &[TokenId],
    generated: &[TokenId],
    sampling: &SamplingParams,
    stop: &StopParams,
) -> Result<(), Failure> {
    let n_tokens = prompt.len().saturating_add(generated.len());
    if prompt.is_empty() || n_tokens >= model.max_context {
        let most = model.max_context.saturating_sub(1);
        return Err(Failure::invalid("prompt", format!("{n_tokens} tokens, there must be 1 to {most}")));
    }
    if let Some(token) = prompt.iter().chain(generated).find(|&&token| token as usize >= model.n_vocab) {
        let n_vocab = model.n_vocab;
        return Err(Failure::invalid("prompt", format!("token {token} is not in the vocabulary of {n_vocab}")));
    }
    if generated.len() >= stop.max_tokens as usize {
        return Err(Failure::invalid("max_tokens", "all tokens were generated before"));
    }
    sampling.validate(model.n_vocab).map_err(fail::invalid)?;
    stop.validate(model.n_vocab).map_err(fail::invalid)
}

/// Whether the record and the KV in the landing's blocks are those of the prompt: every cell of every
/// layer has just the prompt's rows. What the rows hold was checked by the transfer.
pub(crate) fn check_handoff(
    arena: &KvArena,
    landing: &Landing,
    prompt: &[TokenId],
    sampling: &SamplingParams,
    handoff: &Handoff,
) -> Result<(), Failure> {
    let first = &handoff.first;
    if handoff.position as usize != prompt.len() || first.position != 0 || handoff.generated != [first.id] {
        return Err(fail::handoff("the handoff record is not that of a prompt's first token"));
    }
    if handoff.choice != landing.key.choice || handoff.seed != sampling.seed {
        return Err(fail::handoff("the handoff record is of another choice or seed"));
    }
    if first.finish.is_some() {
        return Err(fail::handoff("the sequence ended with its first token"));
    }
    let block_tokens = arena.block_tokens();
    for (block, rows) in landing.blocks().iter().zip(prompt.chunks(block_tokens).map(<[TokenId]>::len)) {
        for layer in 0..arena.n_layers() {
            let found = arena.rows(layer, block.0);
            if found != rows {
                let message = format!("layer {layer} of a block has {found} rows of KV, not {rows}");
                return Err(fail::handoff(message));
            }
        }
    }
    Ok(())
}
