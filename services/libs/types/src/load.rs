//! What a worker says about itself.

/// Pushed by workers to routers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Sequences admitted to no step yet.
    pub n_waiting: u32,
    /// Prompt tokens of the waiting sequences that are still to be computed.
    pub n_waiting_tokens: u32,
    /// Sequences in the running batch.
    pub n_running: u32,
    /// Blocks in the pool.
    pub blocks_total: u32,
    /// Blocks without an owner.
    pub blocks_free: u32,
    /// Takes no new work.
    pub draining: bool,
    /// Steps computed since start.
    pub steps: u64,
}

/// Where every block is. At rest `request` and `transfer` are 0 and `free + cached == total`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accounting {
    /// Blocks in the pool.
    pub total: u32,
    /// Without an owner and without content worth keeping.
    pub free: u32,
    /// With at least one request as owner.
    pub request: u32,
    /// With at least one transfer as owner.
    pub transfer: u32,
    /// Without an owner, kept for their content.
    pub cached: u32,
    /// Requests known to the worker.
    pub n_requests: u32,
    /// Open streams that carry them.
    pub n_streams: u32,
}
