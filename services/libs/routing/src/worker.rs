//! A worker as routing sees it, and the work it is asked to take.

use types::{Compatibility, KvEndpoints, Role, WorkerRef};

/// Blocks are this long where a worker does not say, tokens.
const BLOCK_TOKENS: u32 = 16;

/// What a worker said about itself when it joined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerInfo {
    /// Which incarnation.
    pub worker: WorkerRef,
    /// Prefill or decode.
    pub role: Role,
    /// Served model's name.
    pub model: String,
    /// Control plane, `host:port`.
    pub rpc_address: String,
    /// KV data plane, `host:port`.
    pub kv_address: String,
    /// Where its KV is served besides.
    pub kv_endpoints: KvEndpoints,
    /// Admin port, `host:port`, may be empty.
    pub admin_address: String,
    /// Longest sequence, tokens.
    pub max_context: u32,
    /// What peers must share with it.
    pub compatibility: Option<Compatibility>,
    /// What computes, for people.
    pub device: String,
    /// Takes no new work.
    pub draining: bool,
}

/// What a choice will cost its workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Work {
    /// Tokens to prefill.
    pub n_prompt: u32,
    /// Tokens to generate at most.
    pub n_new: u32,
}

/// Pairs of tokens that attend to each other take as long as one token's products: two of them per layer and head
/// against all weights, for the shape of a model of eight billion parameters.
const PAIRS_PER_TOKEN: u128 = 50_000;

impl Work {
    /// What the prompt costs a worker that holds `cached` of its tokens: the others, and the pairs they are in, counted
    /// in tokens.
    pub fn prompt_cost(&self, cached: u32) -> u64 {
        let (all, cached) = (u128::from(self.n_prompt), u128::from(cached.min(self.n_prompt)));
        let pairs = all * all - cached * cached;
        u64::try_from(all - cached + pairs / PAIRS_PER_TOKEN).unwrap_or(u64::MAX)
    }
}

impl WorkerInfo {
    /// What decides the bits of its answers, empty if it does not say.
    pub fn numerics(&self) -> &str {
        self.compatibility.as_ref().map_or("", |c| &c.numerics)
    }

    /// Blocks of this worker that `work` takes at most.
    pub(crate) fn blocks(&self, work: Work) -> u64 {
        (u64::from(work.n_prompt) + u64::from(work.n_new)).div_ceil(u64::from(self.block_tokens()))
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> u32 {
        self.compatibility.as_ref().map_or(BLOCK_TOKENS, |c| c.geometry.block_tokens.max(1))
    }

    /// Why blocks cannot go from `prefill` to this worker; `None` if they can.
    pub(crate) fn mismatch(&self, prefill: &Self) -> Option<String> {
        match (&self.compatibility, &prefill.compatibility) {
            (Some(ours), Some(theirs)) => {
                // The cheap comparison first: explaining formats every field.
                if ours == theirs {
                    return None;
                }
                let differ: Vec<String> = ours
                    .mismatches(theirs)
                    .into_iter()
                    .map(|m| format!("{} is {} here and {} at {}", m.field, m.theirs, m.ours, self.worker.id))
                    .collect();
                (!differ.is_empty()).then(|| differ.join("; "))
            }
            (None, _) => Some(format!("{} has no compatibility document", self.worker.id)),
            (_, None) => Some("it has no compatibility document".into()),
        }
    }
}
