//! The last choices of workers and their reasons, for people.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use routing::{Candidate, Explanation, Partner};
use serde_json::{Value, json};
use types::{RequestId, WorkerRef};

/// Choices remembered.
const N_MAX: usize = 1024;

/// A ring: the oldest makes way.
#[derive(Default)]
pub(crate) struct Explanations(Mutex<VecDeque<Explained>>);

/// One placement.
struct Explained {
    explanation: Explanation,
    /// From 1.
    attempt: u64,
    unix_ms: u64,
    decode: WorkerRef,
    prefill: Partner,
}

impl Explanations {
    /// Keeps why an attempt went to these workers.
    pub(crate) fn keep(&self, explanation: Explanation, attempt: u64, decode: WorkerRef, prefill: Partner) {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == N_MAX {
            ring.pop_front();
        }
        ring.push_back(Explained { explanation, attempt, unix_ms, decode, prefill });
    }

    /// Everything remembered about a request; `None` if that is nothing.
    pub(crate) fn of(&self, request: RequestId) -> Option<Value> {
        let ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let placements: Vec<_> =
            ring.iter().filter(|e| e.explanation.request == request).map(Explained::to_json).collect();
        (!placements.is_empty()).then(|| json!({ "request": request.to_string(), "placements": placements }))
    }
}

impl Explained {
    fn to_json(&self) -> Value {
        let Explanation { choice, policy, n_prompt, decodes, prefills, .. } = &self.explanation;
        json!({
            "choice": choice, "attempt": self.attempt, "unix_ms": self.unix_ms,
            "policy": policy.as_str(), "prompt_tokens": n_prompt,
            "decode": self.decode.to_string(), "prefill": partner(&self.prefill),
            "decodes": decodes.iter().map(candidate).collect::<Vec<_>>(),
            "prefills": prefills.iter().map(candidate).collect::<Vec<_>>(),
        })
    }
}

fn candidate(candidate: &Candidate) -> Value {
    let terms = candidate.score.terms.iter();
    json!({
        "worker": candidate.worker.to_string(),
        "prefill": candidate.partner.as_ref().map(partner),
        "cached_tokens": candidate.cached,
        "against": candidate.against,
        "score": candidate.score.total(),
        "terms": terms.map(|term| json!({ "name": term.name, "value": term.value })).collect::<Vec<_>>(),
    })
}

/// A worker, or why there is none.
fn partner(partner: &Partner) -> Value {
    match partner {
        Partner::Prefill(worker) => json!({ "worker": worker.to_string() }),
        Partner::None(why) => json!({ "none": why }),
    }
}
