//! Why a choice was made: every candidate with its score.

use types::{RequestId, WorkerRef};

use crate::{Policy, Score};

/// Candidates kept for each role; the best come first.
pub(crate) const CANDIDATES_MAX: usize = 64;

/// Of one question to the table.
#[derive(Clone, PartialEq, Debug)]
pub struct Explanation {
    /// Whose.
    pub request: RequestId,
    /// Which of the request's choices.
    pub choice: u32,
    /// How workers were compared.
    pub policy: Policy,
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Best first, as they were offered; at most 64.
    pub decodes: Vec<Candidate>,
    /// Best first, for the best decode worker; at most 64.
    pub prefills: Vec<Candidate>,
}

/// One worker.
#[derive(Clone, PartialEq, Debug)]
pub struct Candidate {
    /// Which.
    pub worker: WorkerRef,
    /// Who would compute the prompt, or why the worker itself would. Of decode workers.
    pub partner: Option<Partner>,
    /// Tokens of the prompt that it is thought to hold.
    pub cached: u32,
    /// What was found against it, whatever its score: `avoided`, `suspect`, `draining`, `no_room`, `incompatible`,
    /// `other_numerics`, `no_partner`.
    pub against: Vec<&'static str>,
    /// Lower is better.
    pub score: Score,
}

/// Who computes the prompt.
#[derive(Clone, PartialEq, Debug)]
pub enum Partner {
    /// A prefill worker.
    Prefill(WorkerRef),
    /// The decode worker: why.
    None(&'static str),
}
