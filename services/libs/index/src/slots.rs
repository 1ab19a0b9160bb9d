//! Hash table from block hashes to node numbers, of a size that never changes.
//!
//! Open addressing with linear probing; a removal shifts its followers back, so there are no tombstones, no rehashing and
//! no pause. A general map would double at some load, which a byte budget forbids.

use types::BlockHash;

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// Slots per hundred nodes: three quarters are in use at most.
const SLOTS_PER_100: usize = 134;

/// Entries are found by a tag of 32 bits; whoever asks compares the whole hash.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    node: u32,
}

const EMPTY: Slot = Slot { tag: 0, node: NIL };

impl Slots {
    /// Bytes that a table for `n` nodes takes.
    pub(crate) fn bytes(n: usize) -> usize {
        Self::len_for(n) * size_of::<Slot>()
    }

    /// For at most `n` nodes. Whoever does not know `seed` cannot choose hashes that collide.
    pub(crate) fn new(n: usize, seed: u64) -> Self {
        Self { slots: vec![EMPTY; Self::len_for(n)], seed }
    }

    fn len_for(n: usize) -> usize {
        n.saturating_mul(SLOTS_PER_100) / 100 + 2
    }

    /// The node of `hash`; `is_it` compares whole hashes.
    pub(crate) fn find(&self, hash: &BlockHash, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let tag = self.tag(hash);
        let mut at = self.home(tag);
        loop {
            let slot = self.slots[at];
            if slot.node == NIL {
                return None;
            }
            if slot.tag == tag && is_it(slot.node) {
                return Some(slot.node);
            }
            at = self.after(at);
        }
    }

    /// Adds a node that is not there. There must be an empty slot besides the one it takes.
    pub(crate) fn insert(&mut self, hash: &BlockHash, node: u32) {
        let tag = self.tag(hash);
        let mut at = self.home(tag);
        while self.slots[at].node != NIL {
            at = self.after(at);
        }
        self.slots[at] = Slot { tag, node };
    }

    /// Takes a node out that is there.
    pub(crate) fn remove(&mut self, hash: &BlockHash, node: u32) {
        let mut hole = self.home(self.tag(hash));
        while self.slots[hole].node != node {
            assert!(self.slots[hole].node != NIL, "only what was inserted is removed");
            hole = self.after(hole);
        }
        let mut at = self.after(hole);
        while self.slots[at].node != NIL {
            // An entry may move back to the hole unless its home lies between the two.
            if self.distance(self.home(self.slots[at].tag), at) >= self.distance(hole, at) {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.slots[hole] = EMPTY;
    }

    pub(crate) fn clear(&mut self) {
        self.slots.fill(EMPTY);
    }

    fn tag(&self, hash: &BlockHash) -> u32 {
        let half = |at: usize| u64::from_le_bytes(hash.0[at..at + 8].try_into().expect("eight bytes"));
        // The hashes are random; the multiplication spreads what the seed hides (Knuth's multiplicative hashing).
        let mixed = (half(0) ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ half(8);
        (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
    }

    /// Where a tag belongs: tags are spread evenly over the slots, whose number need not be a power of two.
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn hash(n: u64) -> BlockHash {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        bytes[8..].copy_from_slice(&n.wrapping_mul(0x0123_4567_89ab_cdef).to_le_bytes());
        BlockHash(bytes)
    }

    #[test]
    fn equals_a_map_when_full_and_under_churn() {
        let n = 300;
        let (mut slots, mut map) = (Slots::new(n, 7), HashMap::new());
        let mut state = 1_u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = (state >> 33) % 400;
            match map.remove(&key) {
                Some(node) => slots.remove(&hash(key), node),
                None if map.len() < n => {
                    slots.insert(&hash(key), key as u32);
                    map.insert(key, key as u32);
                }
                None => {}
            }
            let asked = (state >> 20) % 400;
            let found = slots.find(&hash(asked), |node| u64::from(node) == asked);
            assert_eq!(found, map.get(&asked).copied());
        }
        assert!(map.len() > 150, "the table was well filled");
        slots.clear();
        assert!(map.keys().all(|&key| slots.find(&hash(key), |_| true).is_none()));
    }
}
