//! Where a worker serves its KV besides gRPC.

/// Addresses of the transports that a worker serves besides gRPC; empty: not that one.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct KvEndpoints {
    /// `host:port` of raw TCP.
    pub tcp: String,
    /// Path of the unix socket of shared memory.
    pub shm: String,
    /// Names the running system on which that path means something.
    pub host: String,
}
