//! Names of a prompt's blocks, as the workers name them.

use std::sync::Arc;

use kvcache::hash::{PrefixKey, PrefixScope, Secret, block_hashes};
use routing::WorkerInfo;
use types::{BlockHash, Compatibility, TokenId};

/// How some workers name blocks: those that share a scope share names.
#[derive(Clone, Debug)]
pub(crate) struct Naming {
    secret: Secret,
    model: Arc<Compatibility>,
    /// The key of requests without a tenant.
    key: PrefixKey,
}

impl PartialEq for Naming {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Naming {
    /// Of a worker; `None`: it does not say what its blocks depend on.
    pub(crate) fn of(info: &WorkerInfo, secret: &Secret) -> Option<Self> {
        let model = Arc::new(info.compatibility.clone()?);
        Some(Self { secret: secret.clone(), key: prefix_key(secret, "", &model), model })
    }

    pub(crate) fn block_tokens(&self) -> u32 {
        self.model.geometry.block_tokens.max(1)
    }

    fn key(&self, tenant: &str) -> PrefixKey {
        if tenant.is_empty() { self.key.clone() } else { prefix_key(&self.secret, tenant, &self.model) }
    }
}

/// The key under which workers name the blocks of a tenant's prompts.
///
/// A sequence of more tokens than the model's first set of rotary frequencies serves has other names on the workers: it
/// is not found, so it is placed as if nothing were cached.
fn prefix_key(secret: &Secret, tenant: &str, model: &Compatibility) -> PrefixKey {
    PrefixKey::derive(&PrefixScope { secret: &secret.0, tenant, adapter: "", model }).of_rope_state(0)
}

/// The names of one prompt's full blocks, in each naming that workers have.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(Naming, Vec<BlockHash>)>);

impl Names {
    pub(crate) fn new(namings: Vec<Naming>, tenant: &str, prompt: &[TokenId]) -> Self {
        let named = namings.into_iter().map(|naming| {
            let hashes = block_hashes(&naming.key(tenant), prompt, naming.block_tokens() as usize);
            (naming, hashes)
        });
        Self(named.collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Naming, Vec<BlockHash>)> {
        self.0.iter()
    }

    pub(crate) fn under(&self, naming: &Naming) -> &[BlockHash] {
        self.0.iter().find(|(n, _)| n == naming).map_or(&[], |(_, hashes)| hashes)
    }
}
