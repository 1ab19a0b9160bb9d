//! Names of a prompt's blocks, as the workers name them.

use kvcache::hash::{PrefixKey, PrefixScope, block_hashes};
use routing::WorkerInfo;
use types::{BlockHash, Compatibility, TokenId};

/// How some workers name blocks: those that share a scope share names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Naming {
    key: PrefixKey,
    block_tokens: u32,
}

impl Naming {
    /// Of a worker; `None`: it does not say what its blocks depend on.
    pub(crate) fn of(info: &WorkerInfo) -> Option<Self> {
        let model = info.compatibility.as_ref()?;
        Some(Self { key: prefix_key(model), block_tokens: model.geometry.block_tokens.max(1) })
    }

    pub(crate) fn block_tokens(&self) -> u32 {
        self.block_tokens
    }
}

/// The key under which workers name the blocks of a tenant's prompts.
///
/// There is one tenant. A sequence of more tokens than the model's first set of rotary frequencies serves has other
/// names on the workers: it is not found, so it is placed as if nothing were cached.
fn prefix_key(model: &Compatibility) -> PrefixKey {
    PrefixKey::derive(&PrefixScope { secret: &[], tenant: "", adapter: "", model }).of_rope_state(0)
}

/// The names of one prompt's full blocks, in each naming that workers have.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<(Naming, Vec<BlockHash>)>);

impl Names {
    pub(crate) fn new(namings: Vec<Naming>, prompt: &[TokenId]) -> Self {
        let named = namings.into_iter().map(|naming| {
            let hashes = block_hashes(&naming.key, prompt, naming.block_tokens as usize);
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
