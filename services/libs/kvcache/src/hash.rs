//! Prefix keys: names of blocks by content, chained from the sequence's start.
//!
//! A block's hash covers its tokens, its parent's hash and a secret key, so equal hashes mean equal
//! prefixes, and a tenant can neither guess nor reach another's blocks. The key is derived from all
//! that makes equal tokens have different KV.

use types::{BlockHash, Compatibility, TokenId};

/// What names of blocks cannot be guessed without. Never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(pub Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What the key of a chain is derived from: everything besides the tokens that the KV depends on, and
/// who may share it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrefixScope<'a> {
    /// The cluster's secret; may be empty on one machine.
    pub secret: &'a [u8],
    /// Only sequences of one tenant share blocks.
    pub tenant: &'a str,
    /// Adapter in use, empty without one.
    pub adapter: &'a str,
    /// The model, its KV geometry and RoPE state.
    pub model: &'a Compatibility,
}

/// Whose share of the cache a block takes: a tenant's name, digested.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tenant(pub u64);

impl Tenant {
    /// Of a tenant's name.
    pub fn named(name: &str) -> Self {
        let digest = blake3::hash(name.as_bytes());
        Self(u64::from_le_bytes(std::array::from_fn(|i| digest.as_bytes()[i])))
    }
}

/// Key of all chains of one scope.
#[derive(Clone, PartialEq, Eq)]
pub struct PrefixKey {
    key: [u8; blake3::KEY_LEN],
    tenant: Tenant,
}

impl PrefixKey {
    /// Derives the key of `scope`.
    pub fn derive(scope: &PrefixScope<'_>) -> Self {
        let geometry = format!("{:?}", scope.model.geometry);
        let fields: [&[u8]; 8] = [
            scope.secret,
            scope.tenant.as_bytes(),
            scope.adapter.as_bytes(),
            scope.model.model_digest.as_bytes(),
            scope.model.model_revision.as_bytes(),
            geometry.as_bytes(),
            scope.model.rope.as_bytes(),
            scope.model.attention.as_bytes(),
        ];
        let mut hasher = blake3::Hasher::new_derive_key("baton 2026-08 prefix key v1");
        for field in fields {
            // The length first, so that no two lists of fields read the same.
            hasher.update(&(field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        Self { key: *hasher.finalize().as_bytes(), tenant: Tenant::named(scope.tenant) }
    }

    /// The scope's tenant.
    pub fn tenant(&self) -> Tenant {
        self.tenant
    }

    /// The key of sequences whose keys are rotated otherwise: `state` tells the model's sets of frequencies apart.
    pub fn of_rope_state(&self, state: u8) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("baton 2026-11 prefix key of a rotary state v1");
        hasher.update(&self.key).update(&[state]);
        Self { key: *hasher.finalize().as_bytes(), ..*self }
    }

    /// Hash of a block that holds `tokens` and follows `parent` (`None`: the sequence's first).
    ///
    /// The number of tokens is hashed too: a part of a block never has the whole one's name.
    pub fn block_hash(&self, parent: Option<BlockHash>, tokens: &[TokenId]) -> BlockHash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&[u8::from(parent.is_some())]);
        hasher.update(&parent.map_or([0; 16], |hash| hash.0));
        hasher.update(&(tokens.len() as u64).to_le_bytes());
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        BlockHash(short)
    }
}

impl std::fmt::Debug for PrefixKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrefixKey(secret)")
    }
}

/// Hashes of the full blocks of `tokens`, in order. A last partial block has none: only full blocks
/// are shared.
///
/// # Panics
/// If `block_tokens` is 0.
pub fn block_hashes(key: &PrefixKey, tokens: &[TokenId], block_tokens: usize) -> Vec<BlockHash> {
    chain(key, tokens.chunks_exact(block_tokens))
}

/// Hash of the last, partial block; `None` if the last block is full (or there is none).
///
/// # Panics
/// If `block_tokens` is 0.
pub fn tail_hash(key: &PrefixKey, tokens: &[TokenId], block_tokens: usize) -> Option<BlockHash> {
    let tail = tokens.chunks_exact(block_tokens).remainder();
    let parent = block_hashes(key, tokens, block_tokens).last().copied();
    (!tail.is_empty()).then(|| key.block_hash(parent, tail))
}

/// One hash for every block that `tokens` take, the last partial one included: what a transfer
/// compares block by block.
///
/// # Panics
/// If `block_tokens` is 0.
pub fn sequence_hashes(key: &PrefixKey, tokens: &[TokenId], block_tokens: usize) -> Vec<BlockHash> {
    chain(key, tokens.chunks(block_tokens))
}

/// Names of a sequence's full blocks, growing with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    key: PrefixKey,
    block_tokens: usize,
    hashes: Vec<BlockHash>,
}

impl Chain {
    /// Names the full blocks of `tokens`.
    ///
    /// # Panics
    /// If `block_tokens` is 0.
    pub fn new(key: PrefixKey, tokens: &[TokenId], block_tokens: usize) -> Self {
        let hashes = block_hashes(&key, tokens, block_tokens);
        Self { key, block_tokens, hashes }
    }

    /// Whose blocks they are.
    pub fn tenant(&self) -> Tenant {
        self.key.tenant
    }

    /// One a full block, in order.
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// The sequence is `tokens` now, of which those named before are a beginning. Returns the names that are new.
    pub fn extend(&mut self, tokens: &[TokenId]) -> &[BlockHash] {
        let n_before = self.hashes.len();
        for block in tokens.chunks_exact(self.block_tokens).skip(n_before) {
            self.hashes.push(self.key.block_hash(self.hashes.last().copied(), block));
        }
        &self.hashes[n_before..]
    }

    /// One name for every block of `tokens`, the sequence as it is now, the last partial one included: what a transfer
    /// compares block by block.
    pub fn with_tail(&self, tokens: &[TokenId]) -> Vec<BlockHash> {
        let tail = tokens.get(self.hashes.len() * self.block_tokens..).unwrap_or_default();
        let tail = (!tail.is_empty()).then(|| self.key.block_hash(self.hashes.last().copied(), tail));
        self.hashes.iter().copied().chain(tail).collect()
    }
}

fn chain<'a>(key: &PrefixKey, blocks: impl Iterator<Item = &'a [TokenId]>) -> Vec<BlockHash> {
    blocks
        .scan(None, |parent, tokens| {
            *parent = Some(key.block_hash(*parent, tokens));
            *parent
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use types::{KvElement, KvGeometry, LayerKv, LayerKvKind};

    fn model() -> Compatibility {
        let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 3, head_dim: 64 }, window: None };
        Compatibility {
            protocol: (1, 1),
            model_digest: "digest".into(),
            model_revision: String::new(),
            geometry: KvGeometry { block_tokens: 4, element: KvElement::F16, layers: vec![layer; 2] },
            rope: "default".into(),
            attention: "causal".into(),
            quantization: "f16".into(),
            adapters: vec![],
            drafter: String::new(),
            numerics: "f32".into(),
        }
    }

    fn key(model: &Compatibility) -> PrefixKey {
        PrefixKey::derive(&PrefixScope { secret: b"s", tenant: "t", adapter: "", model })
    }

    #[test]
    fn every_block_has_one_name_and_a_partial_one_its_own() {
        let key = key(&model());
        let tokens: Vec<u32> = (0..11).collect();
        let full = block_hashes(&key, &tokens, 4);
        let all = sequence_hashes(&key, &tokens, 4);
        assert_eq!((full.len(), all.len()), (2, 3));
        assert_eq!(full[..], all[..2]);
        assert_eq!(tail_hash(&key, &tokens, 4), Some(all[2]));
        assert_eq!(tail_hash(&key, &tokens[..8], 4), None);
        assert_eq!(tail_hash(&key, &[], 4), None);
        let whole = sequence_hashes(&key, &[8, 9, 10, 11], 4);
        assert_ne!(whole[0], key.block_hash(None, &[8, 9, 10]), "a part is not the whole");
    }

    #[test]
    fn a_chain_that_grows_has_the_names_of_the_whole() {
        let key = key(&model());
        let tokens: Vec<u32> = (0..23).collect();
        let mut chain = Chain::new(key.clone(), &tokens[..6], 4);
        let mut new = chain.hashes().to_vec();
        for n in 7..=23 {
            new.extend(chain.extend(&tokens[..n]).to_vec());
            assert_eq!(new, block_hashes(&key, &tokens[..n], 4));
            assert_eq!(chain.with_tail(&tokens[..n]), sequence_hashes(&key, &tokens[..n], 4));
        }
        assert_eq!((chain.hashes(), chain.tenant()), (&new[..], Tenant::named("t")));
    }

    #[test]
    fn a_change_reaches_its_block_and_all_after_it_and_none_before() {
        let key = key(&model());
        let tokens: Vec<u32> = (0..12).collect();
        let plain = block_hashes(&key, &tokens, 4);
        for changed in 0..12 {
            let mut other = tokens.clone();
            other[changed] += 100;
            let hashes = block_hashes(&key, &other, 4);
            for block in 0..3 {
                assert_eq!(hashes[block] == plain[block], block < changed / 4, "token {changed}, block {block}");
            }
        }
        let repeated = block_hashes(&key, &[7; 12], 4);
        assert_eq!(repeated.iter().collect::<BTreeSet<_>>().len(), 3, "equal tokens elsewhere are another block");
    }

    #[test]
    fn each_field_of_the_scope_makes_another_chain() {
        let base = model();
        let changed = |change: fn(&mut Compatibility)| {
            let mut model = base.clone();
            change(&mut model);
            key(&model)
        };
        let scope = PrefixScope { secret: b"s", tenant: "t", adapter: "", model: &base };
        let keys = [
            PrefixKey::derive(&scope),
            PrefixKey::derive(&PrefixScope { secret: b"", tenant: "st", ..scope }),
            PrefixKey::derive(&PrefixScope { secret: b"st", tenant: "", ..scope }),
            PrefixKey::derive(&PrefixScope { tenant: "", adapter: "t", ..scope }),
            changed(|m| m.model_digest = "other".into()),
            changed(|m| m.model_revision = "r2".into()),
            changed(|m| m.geometry.element = KvElement::F32),
            changed(|m| m.rope = "yarn".into()),
            changed(|m| m.attention = "softcap".into()),
            key(&base).of_rope_state(0),
            key(&base).of_rope_state(1),
        ];
        let hashes: BTreeSet<_> = keys.iter().map(|key| key.block_hash(None, &[1, 2, 3, 4])).collect();
        assert_eq!(hashes.len(), keys.len());
    }
}
