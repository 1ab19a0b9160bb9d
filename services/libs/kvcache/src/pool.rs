//! The block pool: owners, free list, accounting.

use std::num::NonZeroU32;

use types::BlockIdx;

/// All blocks of a worker and their owners.
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
    /// Without an owner.
    pub free: u32,
    /// With at least one request as owner.
    pub request: u32,
    /// With at least one transfer as owner.
    pub transfer: u32,
}

/// Fewer blocks are free than were asked for; nothing was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{wanted} blocks wanted, {free} free")]
pub struct OutOfBlocks {
    /// Blocks asked for.
    pub wanted: u32,
    /// Blocks without an owner.
    pub free: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Owners {
    request: u32,
    transfer: u32,
}

impl BlockPool {
    /// A pool of `n_blocks` free blocks of `block_tokens` tokens.
    pub fn new(n_blocks: u32, block_tokens: NonZeroU32) -> Self {
        Self {
            block_tokens: block_tokens.get() as usize,
            owners: vec![Owners::default(); n_blocks as usize],
            free: (0..n_blocks).rev().map(BlockIdx).collect(),
            n_request: 0,
            n_transfer: 0,
        }
    }

    /// Blocks in the pool.
    pub fn n_total(&self) -> u32 {
        self.owners.len() as u32
    }

    /// Blocks without an owner.
    pub fn n_free(&self) -> u32 {
        self.free.len() as u32
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

    /// Takes `n` free blocks for a request.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; nothing is taken.
    pub fn allocate(&mut self, n: u32) -> Result<RequestBlocks, OutOfBlocks> {
        let mut owned = self.empty();
        self.grow(&mut owned, n)?;
        Ok(owned)
    }

    /// Takes `n` more free blocks, appended to `owned`.
    ///
    /// # Errors
    /// [`OutOfBlocks`]; nothing is taken.
    pub fn grow(&mut self, owned: &mut RequestBlocks, n: u32) -> Result<(), OutOfBlocks> {
        if n > self.n_free() {
            return Err(OutOfBlocks { wanted: n, free: self.n_free() });
        }
        let rest = self.free.len() - n as usize;
        for block in self.free.drain(rest..).rev() {
            self.owners[block.0 as usize].request = 1;
            owned.blocks.push(block);
        }
        self.n_request += n;
        Ok(())
    }

    /// Makes a transfer a further owner of a request's blocks.
    pub fn share(&mut self, owned: &RequestBlocks) -> TransferBlocks {
        for block in &owned.blocks {
            let owners = &mut self.owners[block.0 as usize];
            owners.transfer += 1;
            self.n_transfer += u32::from(owners.transfer == 1);
        }
        TransferBlocks { blocks: owned.blocks.clone() }
    }

    /// Ends a request's ownership; blocks without a transfer become free.
    pub fn release(&mut self, owned: RequestBlocks) {
        for block in owned.blocks.into_iter().rev() {
            let owners = &mut self.owners[block.0 as usize];
            owners.request = owners.request.checked_sub(1).expect("a value of ownership is counted once");
            self.n_request -= u32::from(owners.request == 0);
            self.free_if_unowned(block);
        }
    }

    /// Ends a transfer's ownership; blocks without a request become free.
    pub fn release_transfer(&mut self, owned: TransferBlocks) {
        for block in owned.blocks.into_iter().rev() {
            let owners = &mut self.owners[block.0 as usize];
            owners.transfer = owners.transfer.checked_sub(1).expect("a value of ownership is counted once");
            self.n_transfer -= u32::from(owners.transfer == 0);
            self.free_if_unowned(block);
        }
    }

    /// Where the blocks are.
    pub fn accounting(&self) -> PoolAccounting {
        PoolAccounting {
            total: self.n_total(),
            free: self.n_free(),
            request: self.n_request,
            transfer: self.n_transfer,
        }
    }

    fn free_if_unowned(&mut self, block: BlockIdx) {
        if self.owners[block.0 as usize] == Owners::default() {
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
    /// The blocks, in sequence order.
    pub fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }
}
