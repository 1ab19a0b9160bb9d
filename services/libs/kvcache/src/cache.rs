//! What is in the blocks: sealed blocks by name, and which of them goes first.
//!
//! **Invariant** A block's parent is here as long as the block is.
//! **Invariant** Who owns a block here owns its parent too, so what follows an idle block is idle.

use std::collections::{BTreeMap, BTreeSet};

use types::{BlockHash, BlockIdx, KvEvent};

use crate::Tenant;

/// Sealed blocks. Busy: with an owner. Idle: kept for their content, evicted when room is needed.
#[derive(Debug)]
pub(crate) struct Cache {
    /// One a block of the pool; `None`: it is not sealed.
    entries: Vec<Option<Entry>>,
    by_hash: BTreeMap<BlockHash, BlockIdx>,
    /// Idle blocks without children, by when they became idle.
    leaves: BTreeSet<(u64, BlockIdx)>,
    tenants: BTreeMap<Tenant, TenantUse>,
    /// Those with more idle blocks than their share; the share bounds how many there can be.
    over: BTreeSet<Tenant>,
    /// Idle blocks that a tenant keeps when room is short.
    share: u32,
    n_idle: u32,
    /// Counts the blocks that became idle.
    clock: u64,
    events: Vec<KvEvent>,
}

#[derive(Debug)]
struct Entry {
    hash: BlockHash,
    parent: Option<BlockHash>,
    tenant: Tenant,
    /// Sealed blocks that follow it.
    n_children: u32,
    /// `None`: busy.
    idle_since: Option<u64>,
}

#[derive(Debug, Default)]
struct TenantUse {
    n_idle: u32,
    leaves: BTreeSet<(u64, BlockIdx)>,
}

impl Cache {
    /// Nothing sealed in a pool of `n_blocks`.
    pub(crate) fn new(n_blocks: u32, share: u32) -> Self {
        Self {
            entries: (0..n_blocks).map(|_| None).collect(),
            by_hash: BTreeMap::new(),
            leaves: BTreeSet::new(),
            tenants: BTreeMap::new(),
            over: BTreeSet::new(),
            share,
            n_idle: 0,
            clock: 0,
            events: Vec::new(),
        }
    }

    pub(crate) fn n_idle(&self) -> u32 {
        self.n_idle
    }

    /// The block of that name.
    pub(crate) fn get(&self, hash: BlockHash) -> Option<BlockIdx> {
        self.by_hash.get(&hash).copied()
    }

    /// The name of a sealed block.
    pub(crate) fn hash(&self, block: BlockIdx) -> Option<BlockHash> {
        self.entries[block.0 as usize].as_ref().map(|entry| entry.hash)
    }

    /// Seals a busy block. Its name must be new, its parent here.
    pub(crate) fn insert(&mut self, block: BlockIdx, hash: BlockHash, parent: Option<BlockHash>, tenant: Tenant) {
        if let Some(parent) = parent {
            self.entry_of(parent).n_children += 1;
        }
        let entry = Entry { hash, parent, tenant, n_children: 0, idle_since: None };
        self.entries[block.0 as usize] = Some(entry);
        self.by_hash.insert(hash, block);
        match self.events.last_mut() {
            Some(KvEvent::Stored { hashes, .. }) if hashes.last().copied() == parent => hashes.push(hash),
            _ => self.events.push(KvEvent::Stored { hashes: vec![hash], parent }),
        }
    }

    /// Gives the name of the idle block `from` to the busy block `to`, which has the same content.
    pub(crate) fn relocate(&mut self, from: BlockIdx, to: BlockIdx) {
        self.make_busy(from);
        let entry = self.entries[from.0 as usize].take().expect("a sealed block has an entry");
        self.by_hash.insert(entry.hash, to);
        self.entries[to.0 as usize] = Some(entry);
    }

    /// The block has no owner any more. False: it is not sealed, so nothing keeps it.
    pub(crate) fn make_idle(&mut self, block: BlockIdx) -> bool {
        let Some(entry) = self.entries[block.0 as usize].as_mut() else { return false };
        self.clock += 1;
        entry.idle_since = Some(self.clock);
        let (tenant, is_leaf) = (entry.tenant, entry.n_children == 0);
        self.n_idle += 1;
        let used = self.tenants.entry(tenant).or_default();
        used.n_idle += 1;
        if used.n_idle > self.share {
            self.over.insert(tenant);
        }
        if is_leaf {
            self.add_leaf(block);
        }
        true
    }

    /// The block, if it is sealed and idle, has an owner again.
    pub(crate) fn make_busy(&mut self, block: BlockIdx) {
        let Some(entry) = self.entries[block.0 as usize].as_mut() else { return };
        let Some(since) = entry.idle_since.take() else { return };
        let tenant = entry.tenant;
        self.n_idle -= 1;
        self.leaves.remove(&(since, block));
        let used = self.tenants.get_mut(&tenant).expect("who has idle blocks is counted");
        used.n_idle -= 1;
        used.leaves.remove(&(since, block));
        if used.n_idle <= self.share {
            self.over.remove(&tenant);
        }
        if used.n_idle == 0 {
            self.tenants.remove(&tenant);
        }
    }

    /// Takes the content of one idle block away: of the one that was idle longest among those without children, of
    /// a tenant above its share if there is one. `None`: no block is idle.
    pub(crate) fn evict(&mut self) -> Option<BlockIdx> {
        let oldest_over = self.over.iter().filter_map(|tenant| self.tenants[tenant].leaves.first()).min();
        let &(_, block) = oldest_over.or_else(|| self.leaves.first())?;
        self.make_busy(block);
        let entry = self.entries[block.0 as usize].take().expect("a leaf is sealed");
        self.by_hash.remove(&entry.hash);
        match self.events.last_mut() {
            Some(KvEvent::Removed { hashes }) => hashes.push(entry.hash),
            _ => self.events.push(KvEvent::Removed { hashes: vec![entry.hash] }),
        }
        if let Some(parent) = entry.parent {
            let parent_entry = self.entry_of(parent);
            parent_entry.n_children -= 1;
            if parent_entry.n_children == 0 && parent_entry.idle_since.is_some() {
                self.add_leaf(self.by_hash[&parent]);
            }
        }
        Some(block)
    }

    /// Forgets all content. Returns the blocks that were idle.
    pub(crate) fn clear(&mut self) -> Vec<BlockIdx> {
        let idle = |(block, entry): (usize, &Option<Entry>)| {
            entry.as_ref().and_then(|entry| entry.idle_since).map(|_| BlockIdx(block as u32))
        };
        let blocks = self.entries.iter().enumerate().filter_map(idle).collect();
        let (clock, events) = (self.clock, vec![KvEvent::Cleared]);
        *self = Self { clock, events, ..Self::new(self.entries.len() as u32, self.share) };
        blocks
    }

    /// What happened since it was asked last.
    pub(crate) fn take_events(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.events)
    }

    /// All that is sealed, as chains, parents before children.
    pub(crate) fn snapshot(&self) -> Vec<KvEvent> {
        let mut children: BTreeMap<Option<BlockHash>, Vec<BlockHash>> = BTreeMap::new();
        for entry in self.entries.iter().flatten() {
            children.entry(entry.parent).or_default().push(entry.hash);
        }
        // Beginnings of chains that are still to be told, each with its parent.
        let mut open: Vec<(Option<BlockHash>, BlockHash)> =
            children.remove(&None).unwrap_or_default().into_iter().map(|hash| (None, hash)).collect();
        let mut events = Vec::new();
        while let Some((parent, first)) = open.pop() {
            let mut hashes = vec![first];
            let mut last = first;
            while let Some(mut next) = children.remove(&Some(last)) {
                let parent = last;
                last = next.pop().expect("who is a parent has a child");
                open.extend(next.into_iter().map(|hash| (Some(parent), hash)));
                hashes.push(last);
            }
            events.push(KvEvent::Stored { hashes, parent });
        }
        events
    }

    fn add_leaf(&mut self, block: BlockIdx) {
        let entry = self.entries[block.0 as usize].as_ref().expect("a leaf is sealed");
        let since = entry.idle_since.expect("a leaf is idle");
        let used = self.tenants.get_mut(&entry.tenant).expect("who has idle blocks is counted");
        used.leaves.insert((since, block));
        self.leaves.insert((since, block));
    }

    fn entry_of(&mut self, hash: BlockHash) -> &mut Entry {
        let block = self.by_hash[&hash];
        self.entries[block.0 as usize].as_mut().expect("what has a name is sealed")
    }
}
