//! Which workers hold which blocks: a forest of prefixes in a fixed amount of memory.
//!
//! **Invariant** Who holds a block holds all before it. So the holders along a chain only become fewer, and a search can
//! jump. **Invariant** Nothing is allocated after construction. **Invariant** A block without a holder is not there.
//!
//! When there is no room, the block that was not used for longest among those without a successor goes; the block
//! before it takes its place in the order, unless it was used since: whole tails go first, then what they hung on.

use types::BlockHash;

use crate::slots::{NIL, Slots};

/// Workers in one word of holders.
pub(crate) const WORD: usize = u64::BITS as usize;

/// See the module.
#[derive(Debug)]
pub(crate) struct Tree {
    slots: Slots,
    nodes: Vec<Node>,
    /// `words` for each node: a bit for each worker.
    holders: Vec<u64>,
    words: usize,
    n_max: usize,
    free: u32,
    n_live: usize,
    newest: u32,
    oldest: u32,
    n_evicted: u64,
    /// Blocks of each worker.
    held: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    hash: BlockHash,
    parent: u32,
    /// Among the children of one parent.
    next: u32,
    previous: u32,
    links: Links,
}

#[derive(Clone, Copy, Debug)]
enum Links {
    /// In the order of use.
    Leaf {
        newer: u32,
        older: u32,
    },
    /// `used`: since its first child came.
    Inner {
        first_child: u32,
        used: bool,
    },
    Free {
        next: u32,
    },
}

impl Tree {
    /// Bytes that each block takes, at most `words * 64` workers given.
    pub(crate) const fn block_bytes(words: usize) -> usize {
        size_of::<Node>() + words * size_of::<u64>()
    }

    /// Takes at most `bytes`, which hold as many blocks as fit.
    pub(crate) fn new(bytes: usize, words: usize, seed: u64) -> Self {
        let takes = |n: usize| n * Self::block_bytes(words) + Slots::bytes(n);
        let mut n_max = (bytes / Self::block_bytes(words)).min(NIL as usize - 1);
        while n_max > 0 && takes(n_max) > bytes {
            n_max -= (takes(n_max) - bytes).div_ceil(2 * Self::block_bytes(words)).min(n_max);
        }
        Self {
            slots: Slots::new(n_max, seed),
            nodes: Vec::with_capacity(n_max),
            holders: vec![0; n_max * words],
            words,
            n_max,
            free: NIL,
            n_live: 0,
            newest: NIL,
            oldest: NIL,
            n_evicted: 0,
            held: vec![0; words * WORD],
        }
    }

    /// Most blocks.
    pub(crate) fn n_max(&self) -> usize {
        self.n_max
    }

    pub(crate) fn n_blocks(&self) -> usize {
        self.n_live
    }

    pub(crate) fn n_evicted(&self) -> u64 {
        self.n_evicted
    }

    /// Blocks that a worker holds.
    pub(crate) fn n_held(&self, worker: usize) -> usize {
        self.held[worker]
    }

    /// Bytes allocated, all of them from the beginning on.
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>()
            + self.holders.capacity() * size_of::<u64>()
            + Slots::bytes(self.n_max)
    }

    /// A worker holds blocks that follow `parent` (`None`: from the beginning). Returns how many of them were taken: all,
    /// unless it does not hold the parent, they hang elsewhere already, or there is no room for the whole chain.
    pub(crate) fn insert(&mut self, worker: usize, parent: Option<BlockHash>, hashes: &[BlockHash]) -> usize {
        let mut at = match parent.map(|hash| self.find(&hash)) {
            None => NIL,
            Some(Some(node)) if self.holds(node, worker) => node,
            Some(_) => return 0,
        };
        for (n, hash) in hashes.iter().enumerate() {
            match self.find(hash) {
                Some(node) if self.nodes[node as usize].parent != at => return n,
                Some(node) => at = node,
                None => {
                    self.touch(at);
                    if self.n_live == self.n_max && (self.oldest == at || !self.evict()) {
                        return n;
                    }
                    at = self.attach(*hash, at);
                }
            }
            self.hold(at, worker);
        }
        self.touch(at);
        hashes.len()
    }

    /// A worker does not hold a block any more, nor what follows it. Returns how many blocks it lost.
    pub(crate) fn remove(&mut self, worker: usize, hash: &BlockHash) -> usize {
        let Some(root) = self.find(hash).filter(|&node| self.holds(node, worker)) else { return 0 };
        let before = self.held[worker];
        let mut at = root;
        loop {
            while let Some(child) = self.first_holding(self.first_child(at), worker) {
                at = child;
            }
            loop {
                let Node { parent, next, .. } = self.nodes[at as usize];
                self.release(at, worker);
                if at == root {
                    return before - self.held[worker];
                }
                if let Some(sibling) = self.first_holding(next, worker) {
                    at = sibling;
                    break;
                }
                at = parent;
            }
        }
    }

    /// A worker holds nothing any more. Looks at every block.
    pub(crate) fn remove_all(&mut self, worker: usize) {
        if self.held[worker] == 0 {
            return;
        }
        for node in 0..self.nodes.len() as u32 {
            if !self.holds(node, worker) {
                continue;
            }
            // Successors that come later in memory are still there; the last one to go takes this one along.
            let mut at = node;
            self.unmark(at, worker);
            while at != NIL && self.is_orphan_leaf(at) {
                let parent = self.nodes[at as usize].parent;
                self.detach(at);
                at = parent;
            }
        }
    }

    /// Forgets everything; what was evicted stays counted.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.nodes.clear();
        self.holders.fill(0);
        self.held.fill(0);
        (self.free, self.n_live, self.newest, self.oldest) = (NIL, 0, NIL, NIL);
    }

    /// The longest known beginning of `hashes` was used.
    pub(crate) fn use_prefix(&mut self, hashes: &[BlockHash]) {
        if let Some((_, node)) = self.deepest(hashes) {
            self.touch(node);
        }
    }

    /// Raises `counts[worker]` to the number of leading `hashes` that the worker holds.
    pub(crate) fn lookup(&self, hashes: &[BlockHash], counts: &mut [u32]) {
        let Some(first) = hashes.first().and_then(|hash| self.find(hash)) else { return };
        let Some(last) = self.deepest(hashes) else { return };
        self.ends_between(hashes, (0, first), last, counts);
        self.raise(|word| self.word(last.1, word), last.0 + 1, counts);
    }

    /// The last of `hashes` that is there, by galloping: what is there has all before it.
    fn deepest(&self, hashes: &[BlockHash]) -> Option<(usize, u32)> {
        let mut low = (0, self.find(hashes.first()?)?);
        let mut step = 1;
        let mut high = hashes.len();
        while low.0 + step < high {
            match self.find(&hashes[low.0 + step]) {
                Some(node) => {
                    low = (low.0 + step, node);
                    step *= 2;
                }
                None => high = low.0 + step,
            }
        }
        while low.0 + 1 < high {
            let middle = low.0 + (high - low.0) / 2;
            match self.find(&hashes[middle]) {
                Some(node) => low = (middle, node),
                None => high = middle,
            }
        }
        Some(low)
    }

    /// Notes those who hold `low` and not `high`: the chain between is halved wherever holders differ.
    fn ends_between(&self, hashes: &[BlockHash], low: (usize, u32), high: (usize, u32), counts: &mut [u32]) {
        if (0..self.words).all(|word| self.word(low.1, word) == self.word(high.1, word)) {
            return;
        }
        let middle = low.0 + (high.0 - low.0) / 2;
        match self.find(&hashes[middle]) {
            Some(node) if middle > low.0 => {
                self.ends_between(hashes, low, (middle, node), counts);
                self.ends_between(hashes, (middle, node), high, counts);
            }
            _ => self.raise(|word| self.word(low.1, word) & !self.word(high.1, word), low.0 + 1, counts),
        }
    }

    fn raise(&self, holders: impl Fn(usize) -> u64, n: usize, counts: &mut [u32]) {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        for word in 0..self.words {
            let mut bits = holders(word);
            while bits != 0 {
                let worker = word * WORD + bits.trailing_zeros() as usize;
                counts[worker] = counts[worker].max(n);
                bits &= bits - 1;
            }
        }
    }

    fn find(&self, hash: &BlockHash) -> Option<u32> {
        self.slots.find(hash, |node| self.nodes[node as usize].hash == *hash)
    }

    fn word(&self, node: u32, word: usize) -> u64 {
        self.holders[node as usize * self.words + word]
    }

    fn holds(&self, node: u32, worker: usize) -> bool {
        self.word(node, worker / WORD) >> (worker % WORD) & 1 == 1
    }

    fn hold(&mut self, node: u32, worker: usize) {
        if !self.holds(node, worker) {
            self.holders[node as usize * self.words + worker / WORD] |= 1 << (worker % WORD);
            self.held[worker] += 1;
        }
    }

    fn unmark(&mut self, node: u32, worker: usize) {
        self.holders[node as usize * self.words + worker / WORD] &= !(1 << (worker % WORD));
        self.held[worker] -= 1;
    }

    fn release(&mut self, node: u32, worker: usize) {
        self.unmark(node, worker);
        if self.is_orphan_leaf(node) {
            self.detach(node);
        }
    }

    fn is_orphan_leaf(&self, node: u32) -> bool {
        matches!(self.nodes[node as usize].links, Links::Leaf { .. })
            && (0..self.words).all(|word| self.word(node, word) == 0)
    }

    fn first_child(&self, node: u32) -> u32 {
        match self.nodes[node as usize].links {
            Links::Inner { first_child, .. } => first_child,
            Links::Leaf { .. } | Links::Free { .. } => NIL,
        }
    }

    fn first_holding(&self, mut sibling: u32, worker: usize) -> Option<u32> {
        while sibling != NIL && !self.holds(sibling, worker) {
            sibling = self.nodes[sibling as usize].next;
        }
        (sibling != NIL).then_some(sibling)
    }

    /// Makes room for one block; false if there is none to be made.
    fn evict(&mut self) -> bool {
        let node = self.oldest;
        if node == NIL {
            return false;
        }
        for word in 0..self.words {
            let mut bits = self.word(node, word);
            while bits != 0 {
                self.held[word * WORD + bits.trailing_zeros() as usize] -= 1;
                bits &= bits - 1;
            }
            self.holders[node as usize * self.words + word] = 0;
        }
        self.detach(node);
        self.n_evicted += 1;
        true
    }

    /// Adds a leaf; there must be room.
    fn attach(&mut self, hash: BlockHash, parent: u32) -> u32 {
        let mut new = Node { hash, parent, next: NIL, previous: NIL, links: Links::Leaf { newer: NIL, older: NIL } };
        if parent != NIL {
            let used = match self.nodes[parent as usize].links {
                Links::Inner { first_child, used } => {
                    new.next = first_child;
                    used
                }
                Links::Leaf { .. } => {
                    self.unlink(parent);
                    false
                }
                Links::Free { .. } => unreachable!("a parent is there"),
            };
            let node = if self.free == NIL { self.nodes.len() as u32 } else { self.free };
            if new.next != NIL {
                self.nodes[new.next as usize].previous = node;
            }
            self.nodes[parent as usize].links = Links::Inner { first_child: node, used };
        }
        let node = match self.free {
            NIL => {
                assert!(self.nodes.len() < self.n_max, "room was made before");
                self.nodes.push(new);
                self.nodes.len() as u32 - 1
            }
            node => {
                let Links::Free { next } = self.nodes[node as usize].links else {
                    unreachable!("the free list has free nodes")
                };
                self.free = next;
                self.nodes[node as usize] = new;
                node
            }
        };
        self.link_between(node, NIL, self.newest);
        self.slots.insert(&hash, node);
        self.n_live += 1;
        node
    }

    /// Takes a leaf away.
    fn detach(&mut self, node: u32) {
        let Node { hash, parent, next, previous, links } = self.nodes[node as usize];
        let Links::Leaf { newer, older } = links else { unreachable!("only leaves go") };
        self.unlink(node);
        if next != NIL {
            self.nodes[next as usize].previous = previous;
        }
        if previous != NIL {
            self.nodes[previous as usize].next = next;
        } else if parent != NIL
            && let Links::Inner { used, .. } = self.nodes[parent as usize].links
        {
            match next {
                NIL if used => self.link_between(parent, NIL, self.newest),
                NIL => self.link_between(parent, newer, older),
                first_child => self.nodes[parent as usize].links = Links::Inner { first_child, used },
            }
        }
        self.slots.remove(&hash, node);
        self.nodes[node as usize].links = Links::Free { next: self.free };
        self.free = node;
        self.n_live -= 1;
    }

    fn touch(&mut self, node: u32) {
        if node == NIL || node == self.newest {
            return;
        }
        match &mut self.nodes[node as usize].links {
            Links::Inner { used, .. } => *used = true,
            Links::Leaf { .. } => {
                self.unlink(node);
                self.link_between(node, NIL, self.newest);
            }
            Links::Free { .. } => unreachable!("a node that is there is touched"),
        }
    }

    fn link_between(&mut self, node: u32, newer: u32, older: u32) {
        self.nodes[node as usize].links = Links::Leaf { newer, older };
        self.set_older(newer, node);
        self.set_newer(older, node);
    }

    fn unlink(&mut self, node: u32) {
        let Links::Leaf { newer, older } = self.nodes[node as usize].links else {
            unreachable!("only leaves are in the order of use")
        };
        self.set_older(newer, older);
        self.set_newer(older, newer);
    }

    fn set_older(&mut self, of: u32, to: u32) {
        match of {
            NIL => self.newest = to,
            of => {
                if let Links::Leaf { older, .. } = &mut self.nodes[of as usize].links {
                    *older = to;
                }
            }
        }
    }

    fn set_newer(&mut self, of: u32, to: u32) {
        match of {
            NIL => self.oldest = to,
            of => {
                if let Links::Leaf { newer, .. } = &mut self.nodes[of as usize].links {
                    *newer = to;
                }
            }
        }
    }
}
