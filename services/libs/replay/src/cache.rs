//! A worker's prefix cache: blocks, least recently used first out.

use std::collections::{BTreeMap, HashMap};

use types::BlockHash;

/// Holds at most so many blocks. A beginning is always used after what follows it, so tails go first.
#[derive(Debug)]
pub(crate) struct Cache {
    n_max: usize,
    used: HashMap<BlockHash, u64>,
    order: BTreeMap<u64, BlockHash>,
    next: u64,
}

impl Cache {
    pub(crate) fn new(n_max: usize) -> Self {
        Self { n_max, used: HashMap::new(), order: BTreeMap::new(), next: 0 }
    }

    /// Leading blocks that are there.
    pub(crate) fn n_leading(&self, blocks: &[BlockHash]) -> usize {
        blocks.iter().take_while(|block| self.used.contains_key(*block)).count()
    }

    /// All of a prompt's blocks were used, or are new. Returns those that had to go.
    pub(crate) fn insert(&mut self, blocks: &[BlockHash]) -> Vec<BlockHash> {
        // What cannot stay is not taken.
        for block in blocks.iter().take(self.n_max).rev() {
            if let Some(before) = self.used.insert(*block, self.next) {
                self.order.remove(&before);
            }
            self.order.insert(self.next, *block);
            self.next += 1;
        }
        let n_over = self.used.len().saturating_sub(self.n_max);
        let gone: Vec<_> = (0..n_over).filter_map(|_| self.order.pop_first()).map(|(_, block)| block).collect();
        for block in &gone {
            self.used.remove(block);
        }
        gone
    }
}
