//! Who is there: membership with leases, in etcd or by the same contract in memory.
//!
//! A process [joins](Registry::join) with a [`Member`] record under a lease that it keeps alive; everybody sees
//! everybody else in a [`View`]. The view survives outages of the registry, and so do memberships: they come back by
//! themselves. Not here: load, health, KV events (they flow from worker to router directly), leadership, locks.
//!
//! One client ([`Membership`] and the view behind [`Registry::members`]) runs on three backends: [`memory`] in
//! process, [`etcd`] over the network, and [`wire`], which serves a [`memory::MemoryStore`] to etcd clients.
//! Begin with [`Registry`]; the `conformance` tests hold the contract.

mod backend;
mod backoff;
mod cluster;
#[cfg(test)]
mod conformance;
pub mod etcd;
mod member;
mod membership;
pub mod memory;
mod mirror;
mod record;
mod session;
mod store;
pub mod wire;

use std::sync::Arc;

use tokio::sync::watch;

pub use crate::cluster::Timing;
pub use crate::member::{Member, Registered, View};
pub use crate::membership::Membership;

/// First part of every key of ours unless told otherwise.
pub const DEFAULT_PREFIX: &str = "baton";

/// Why a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Not `etcd://host:port[,host:port]`.
    #[error("registry address {url:?}: {reason}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The member cannot be stored.
    #[error("member {field}: {reason}")]
    Member {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The registry is being shut down.
    #[error("the registry client has ended")]
    Ended,
    /// The served registry's listener failed.
    #[error("registry server")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The contract. Dropping the last handle ends the view; memberships live on their own.
#[async_trait::async_trait]
pub trait Registry: Send + Sync {
    /// Registers `member` and keeps it registered. Returns at once, also while the registry is down: the membership's
    /// epoch is 0 until the registry has it.
    ///
    /// # Errors
    /// If the record can never be stored.
    async fn join(&self, member: Member) -> Result<Membership, RegistryError>;

    /// The view, which changes as members come, change and go.
    fn members(&self) -> watch::Receiver<Arc<View>>;
}

/// A client of the registry at `url`, `etcd://host:port[,host:port…]`. Does not wait for a connection.
///
/// # Errors
/// If `url` is not of that form.
pub fn connect(url: &str) -> Result<Arc<dyn Registry>, RegistryError> {
    let refused = |reason: &str| RegistryError::Address { url: url.to_owned(), reason: reason.to_owned() };
    let hosts = url.strip_prefix("etcd://").ok_or_else(|| refused("must begin with etcd://"))?;
    let endpoints: Vec<String> = hosts.trim_end_matches('/').split(',').map(str::to_owned).collect();
    Ok(Arc::new(etcd::EtcdRegistry::connect(&endpoints, DEFAULT_PREFIX)?))
}
