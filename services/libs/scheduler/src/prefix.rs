//! Blocks that are shared by name: what a sequence finds, and what it leaves to others.

use kvcache::{Hit, Tenant};
use types::{BlockHash, KvEvent};

use crate::sequence::Sequence;
use crate::{Scheduler, SeqId};

/// Names of a sequence's full blocks, as far as its tokens are known. Without names nothing is shared.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pub(crate) tenant: Tenant,
    pub(crate) hashes: Vec<BlockHash>,
    /// Blocks that were sealed, or found sealed.
    pub(crate) n_sealed: usize,
}

impl Scheduler {
    /// Names further full blocks of a sequence's tokens, in order, beginning with those that it was submitted with.
    /// Its blocks are sealed under these names when their rows are computed; those that are go at once. Nothing
    /// happens if the sequence is gone.
    ///
    /// Before its first admission: the sequence starts behind those of its blocks that are here.
    pub fn name_blocks(&mut self, seq: SeqId, tenant: Tenant, hashes: &[BlockHash]) {
        if let Some(sequence) = self.sequences.get_mut(&seq) {
            sequence.names.tenant = tenant;
            sequence.names.hashes.extend(hashes);
            self.seal(seq);
        }
    }

    /// Forgets the content of all blocks.
    pub fn clear_cache(&mut self) {
        self.pool.clear_cache();
    }

    /// What became of named blocks since this was asked last, in order.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.pool.take_events()
    }

    /// All named blocks: [`KvEvent::Stored`], parents before children.
    pub fn snapshot(&self) -> Vec<KvEvent> {
        self.pool.snapshot()
    }

    /// Seals the blocks whose rows are computed.
    pub(crate) fn seal(&mut self, seq: SeqId) {
        let sequence = self.sequences.get_mut(&seq).expect("a sequence seals while it is here");
        let n_full = (sequence.n_computed / self.pool.block_tokens()).min(sequence.names.hashes.len());
        for at in sequence.names.n_sealed..n_full {
            let transfer = sequence.hold.and_then(|hold| self.holds.get_mut(&hold));
            let (hash, tenant) = (sequence.names.hashes[at], sequence.names.tenant);
            self.pool.seal(&mut sequence.blocks, transfer, at, hash, tenant);
        }
        sequence.names.n_sealed = sequence.names.n_sealed.max(n_full);
    }

    /// What a sequence without blocks would find.
    pub(crate) fn peek(&self, sequence: &Sequence) -> Hit {
        self.pool.peek(self.sharable(sequence))
    }

    /// Gives a sequence without blocks those of its blocks that are here.
    pub(crate) fn share_prefix(&mut self, seq: SeqId) {
        let blocks = self.pool.share_prefix(self.sharable(&self.sequences[&seq]));
        let sequence = self.sequences.get_mut(&seq).expect("a sequence that is admitted is here");
        sequence.n_computed = blocks.len() as usize * self.pool.block_tokens();
        sequence.names.n_sealed = blocks.len() as usize;
        sequence.blocks = blocks;
    }

    /// Names of the blocks that a sequence can do without computing: something must be left to sample from.
    fn sharable<'a>(&self, sequence: &'a Sequence) -> &'a [BlockHash] {
        let hashes = &sequence.names.hashes;
        &hashes[..hashes.len().min((sequence.n_tokens - 1) / self.pool.block_tokens())]
    }
}
