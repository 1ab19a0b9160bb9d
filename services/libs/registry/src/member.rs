//! Who is there, as the rest of the program sees it.

use std::collections::BTreeMap;

use tokio::time::Instant;
use types::{Compatibility, Epoch, KvEndpoints, Role, WorkerId, WorkerRef};

/// What a process says about itself when it joins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Name; one living process has it at a time.
    pub id: WorkerId,
    /// What the process does.
    pub role: Role,
    /// `host:port` of the worker or client API over gRPC.
    pub rpc_address: String,
    /// `host:port` of KV data, empty without.
    pub kv_address: String,
    /// Where KV data is served besides.
    pub kv_endpoints: KvEndpoints,
    /// `host:port` of the admin port, empty without.
    pub admin_address: String,
    /// `host:port` of the client API over HTTP, empty without.
    pub http_address: String,
    /// Served model's name, empty without.
    pub model: String,
    /// Longest sequence, tokens; 0 without a model.
    pub max_context: u32,
    /// What peers must share with it; `None` for roles without a KV cache.
    pub compatibility: Option<Compatibility>,
    /// What computes, for people; empty without.
    pub device: String,
    /// Takes no new work.
    pub draining: bool,
}

/// A member and its incarnation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// What it said.
    pub member: Member,
    /// Grows with each registration of the same name.
    pub epoch: Epoch,
}

impl Registered {
    /// The incarnation's name.
    pub fn worker(&self) -> WorkerRef {
        WorkerRef { id: self.member.id.clone(), epoch: self.epoch }
    }
}

impl std::ops::Deref for Registered {
    type Target = Member;

    fn deref(&self) -> &Member {
        &self.member
    }
}

/// Everyone who is there, as of the last word from the registry.
#[derive(Clone, Debug)]
pub struct View {
    /// Members by name. Survives outages of the registry.
    pub members: BTreeMap<WorkerId, Registered>,
    /// Whether the registry answers now.
    pub connected: bool,
    /// When the registry was last heard; the view is at most this old. Advances without waking receivers.
    pub updated: Instant,
}

impl View {
    /// Nobody known yet.
    pub(crate) fn empty() -> Self {
        Self { members: BTreeMap::new(), connected: false, updated: Instant::now() }
    }

    /// The members of one role.
    pub fn of_role(&self, role: Role) -> impl Iterator<Item = &Registered> {
        self.members.values().filter(move |r| r.member.role == role)
    }
}
