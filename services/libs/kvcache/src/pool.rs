//! The block pool: owners, free list, accounting.

use std::num::NonZeroU32;

use types::{BlockHash, BlockIdx, KvEvent};

use crate::Tenant;
use crate::cache::Cache;

/// All blocks of a worker, their owners, and the content that can be shared.
///
/// A block is *free*; or has owners and is *filling*; or has owners and is *sealed*: full, and under a name by which
/// others find it; or was sealed and has no owner: *cached*. A cached block gives way when free ones are too few.
///
/// Ownership is a value: [`RequestBlocks`] and [`TransferBlocks`] can be neither copied nor made up,
/// and giving one back consumes it, so a block cannot be given back twice or by the wrong kind of
/// owner.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    owners: Vec<Owners>,
    /// Last given back, first taken: its memory is the warmest.
    free: Vec<BlockIdx>,
    n_request: u32,
    n_transfer: u32,
    cache: Cache,
}

/// Blocks owned by a request, in sequence order.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping it leaks the blocks: give them back to the pool"]
pub struct RequestBlocks {
    blocks: Vec<BlockIdx>,
}

/// Blocks owned by a transfer, in sequence order.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropping it leaks the blocks: give them back to the pool"]
pub struct TransferBlocks {
    blocks: Vec<BlockIdx>,
}

/// Where the blocks are. `request` and `transfer` overlap in blocks that have owners of both kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolAccounting {
    /// Blocks in the pool.
    pub total: u32,
    /// Without an owner and without content.
    pub free: u32,
    /// With at least one request as owner.
    pub request: u32,
    /// With at least one transfer as owner.
    pub transfer: u32,
    /// Without an owner, kept for their content.
    pub cached: u32,
}

/// Fewer blocks are available than were asked for; nothing was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{wanted} blocks wanted, {available} available")]
pub struct OutOfBlocks {
    /// Blocks asked for.
    pub wanted: u32,
    /// Blocks without an owner.
    pub available: u32,
}

/// What a look for shared blocks would give.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hit {
    /// Blocks found.
    pub n_blocks: u32,
    /// Those among them that have an owner: sharing them takes no room.
    pub n_owned: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owners {
    request: u32,
    transfer: u32,
}

impl BlockPool {
    /// A pool of `n_blocks` free blocks of `block_tokens` tokens. While one tenant has more cached blocks than
    /// `tenant_percent` of the pool, its blocks give way before those of others.
    pub fn new(n_blocks: u32, block_tokens: NonZeroU32, tenant_percent: u8) -> Self {
        let share = u64::from(n_blocks) * u64::from(tenant_percent.min(100)) / 100;
        Self {
            block_tokens: block_tokens.get() as usize,
            owners: vec![Owners::default(); n_blocks as usize],
            free: (0..n_blocks).rev().map(BlockIdx).collect(),
            n_request: 0,
            n_transfer: 0,
            // At most `n_blocks`.
            cache: Cache::new(n_blocks, share as u32),
        }
    }

    /// Blocks in the pool.
    pub fn n_total(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Blocks without an owner: free or cached.
    pub fn n_available(&self) -> u32 {
        self.free.len() as u32 + self.cache.n_idle()
    }

    /// Tokens in a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that `n_tokens` tokens take; `u32::MAX` when the number is beyond any pool.
    pub fn blocks_for(&self, n_tokens: usize) -> u32 {
        u32::try_from(n_tokens.div_ceil(self.block_tokens)).unwrap_or(u32::MAX)
    }

    /// An owner of nothing yet, to be grown.
    pub fn empty(&self) -> RequestBlocks {
        RequestBlocks { blocks: Vec::new() }
    }

    /// Takes `n` blocks for a request: free ones, then cached ones, whose content is lost.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; nothing is taken.
    pub fn allocate(&mut self, n: u32) -> Result<RequestBlocks, OutOfBlocks> {
        let mut owned = self.empty();
        self.grow(&mut owned, n)?;
        Ok(owned)
    }

    /// Takes `n` more blocks as [`allocate`](Self::allocate) does, appended to `owned`.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; nothing is taken.
    pub fn grow(&mut self, owned: &mut RequestBlocks, n: u32) -> Result<(), OutOfBlocks> {
        if n > self.n_available() {
            return Err(OutOfBlocks { wanted: n, available: self.n_available() });
        }
        for _ in 0..n {
            let block = self.free.pop().or_else(|| self.cache.evict()).expect("so many are available");
            self.own(block);
            owned.blocks.push(block);
        }
        Ok(())
    }

    /// How far the chain `hashes` is here.
    pub fn peek(&self, hashes: &[BlockHash]) -> Hit {
        let found = hashes.iter().map_while(|&hash| self.cache.get(hash));
        found.fold(Hit::default(), |hit, block| Hit {
            n_blocks: hit.n_blocks + 1,
            n_owned: hit.n_owned + u32::from(!self.is_unowned(block)),
        })
    }

    /// Makes a request an owner of the blocks of the chain `hashes`, as far as they are here. They are full: nothing
    /// may be written into them.
    pub fn share_prefix(&mut self, hashes: &[BlockHash]) -> RequestBlocks {
        let blocks: Vec<BlockIdx> = hashes.iter().map_while(|&hash| self.cache.get(hash)).collect();
        for &block in &blocks {
            self.own(block);
        }
        RequestBlocks { blocks }
    }

    /// Seals block `at` of `owned`, which is full of the rows that `hash` names: from now on others can share it.
    /// Blocks are sealed in order; one whose predecessor is not sealed stays as it is.
    ///
    /// If another block of that name is here, one of the two is enough: an idle one gives its name up, one with an
    /// owner takes the place of ours, also in `transfer` if it has ours, which it keeps besides.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn seal(
        &mut self,
        owned: &mut RequestBlocks,
        transfer: Option<&mut TransferBlocks>,
        at: usize,
        hash: BlockHash,
        tenant: Tenant,
    ) {
        let parent = at.checked_sub(1).map(|before| self.cache.hash(owned.blocks[before]));
        let ours = owned.blocks[at];
        let (None | Some(Some(_)), None) = (parent, self.cache.hash(ours)) else { return };
        match self.cache.get(hash) {
            None => self.cache.insert(ours, hash, parent.flatten(), tenant),
            Some(theirs) if self.is_unowned(theirs) => {
                self.cache.relocate(theirs, ours);
                self.free.push(theirs);
            }
            Some(theirs) => {
                self.own(theirs);
                owned.blocks[at] = theirs;
                self.disown(ours);
                // What a transfer owns has its beginning with it.
                if let Some(transfer) = transfer.filter(|transfer| transfer.blocks.get(at) == Some(&ours)) {
                    self.own_by_transfer(theirs);
                    transfer.blocks.push(theirs);
                }
            }
        }
    }

    /// Forgets all content, of blocks with owners too.
    pub fn clear_cache(&mut self) {
        self.free.extend(self.cache.clear());
    }

    /// What happened to the content since it was asked last, in order.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.cache.take_events()
    }

    /// All content that can be shared: [`KvEvent::Stored`], parents before children.
    pub fn snapshot(&self) -> Vec<KvEvent> {
        self.cache.snapshot()
    }

    /// Makes a transfer a further owner of a request's blocks.
    pub fn share(&mut self, owned: &RequestBlocks) -> TransferBlocks {
        for &block in &owned.blocks {
            self.own_by_transfer(block);
        }
        TransferBlocks { blocks: owned.blocks.clone() }
    }

    /// Ends a request's ownership; blocks without another owner become cached if sealed, else free.
    pub fn release(&mut self, owned: RequestBlocks) {
        // The last first, so that a chain is evicted from its end.
        for block in owned.blocks.into_iter().rev() {
            self.disown(block);
        }
    }

    /// Ends a transfer's ownership; blocks without another owner become cached if sealed, else free.
    pub fn release_transfer(&mut self, owned: TransferBlocks) {
        for block in owned.blocks.into_iter().rev() {
            let owners = &mut self.owners[block.0 as usize];
            owners.transfer = owners.transfer.checked_sub(1).expect("a value of ownership is counted once");
            self.n_transfer -= u32::from(owners.transfer == 0);
            self.rest_if_unowned(block);
        }
    }

    /// Where the blocks are.
    pub fn accounting(&self) -> PoolAccounting {
        PoolAccounting {
            total: self.n_total(),
            free: self.free.len() as u32,
            request: self.n_request,
            transfer: self.n_transfer,
            cached: self.cache.n_idle(),
        }
    }

    fn is_unowned(&self, block: BlockIdx) -> bool {
        self.owners[block.0 as usize] == Owners::default()
    }

    fn own(&mut self, block: BlockIdx) {
        self.cache.make_busy(block);
        let owners = &mut self.owners[block.0 as usize];
        owners.request += 1;
        self.n_request += u32::from(owners.request == 1);
    }

    /// One request less.
    fn disown(&mut self, block: BlockIdx) {
        let owners = &mut self.owners[block.0 as usize];
        owners.request = owners.request.checked_sub(1).expect("a value of ownership is counted once");
        self.n_request -= u32::from(owners.request == 0);
        self.rest_if_unowned(block);
    }

    /// Of a block that has an owner.
    fn own_by_transfer(&mut self, block: BlockIdx) {
        let owners = &mut self.owners[block.0 as usize];
        owners.transfer += 1;
        self.n_transfer += u32::from(owners.transfer == 1);
    }

    fn rest_if_unowned(&mut self, block: BlockIdx) {
        if self.is_unowned(block) && !self.cache.make_idle(block) {
            self.free.push(block);
        }
    }
}

impl RequestBlocks {
    /// The blocks, in sequence order.
    pub fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    /// Owns nothing.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

impl TransferBlocks {
    /// The blocks, in sequence order; behind them those that took the place of some.
    pub fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }
}
