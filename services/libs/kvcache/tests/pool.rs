//! The pool against a model so simple that it is right by sight: a list of owners for each block, and the content
//! that each block was last filled with.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use kvcache::{BlockPool, OutOfBlocks, PoolAccounting, RequestBlocks, Tenant, TransferBlocks};
use proptest::prelude::*;
use proptest::test_runner::{TestError, TestRunner};
use types::{BlockHash, BlockIdx, KvEvent};

#[derive(Clone, Debug)]
enum Op {
    /// A request for a text of so many blocks: shares what is there, allocates the rest.
    Start {
        tenant: u8,
        words: Vec<u8>,
    },
    Grow(usize, u8),
    /// Fills and seals the next block.
    Seal(usize),
    Share(usize),
    Release(usize),
    ReleaseTransfer(usize),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        // Few words, so that beginnings are often alike.
        6 => (0..2u8, prop::collection::vec(0..2u8, 0..8)).prop_map(|(tenant, words)| Op::Start { tenant, words }),
        2 => (any::<usize>(), 0..2u8).prop_map(|(i, word)| Op::Grow(i, word)),
        12 => any::<usize>().prop_map(Op::Seal),
        2 => any::<usize>().prop_map(Op::Share),
        4 => any::<usize>().prop_map(Op::Release),
        2 => any::<usize>().prop_map(Op::ReleaseTransfer),
        1 => any::<u8>().prop_map(|n| if n < 20 { Op::Clear } else { Op::Seal(0) }),
    ]
}

/// A text's name: the tenant and all words up to here, so equal names are equal prefixes.
fn name(tenant: u8, words: &[u8]) -> BlockHash {
    let mut name = [0xff; 16];
    name[0] = tenant;
    name[1..=words.len()].copy_from_slice(words);
    BlockHash(name)
}

struct Request {
    tenant: u8,
    words: Vec<u8>,
    blocks: RequestBlocks,
    /// What the model believes that it owns.
    believed: Vec<BlockIdx>,
    n_full: usize,
    /// Index of the transfer that shares its blocks.
    transfer: Option<u64>,
}

/// The real pool, and beside it who was told to own what, and what lies in the blocks.
struct World {
    pool: BlockPool,
    requests: Vec<Request>,
    transfers: BTreeMap<u64, TransferBlocks>,
    n_transfers: u64,
    /// Content of each block: the name of the text that was written into it.
    memory: BTreeMap<BlockIdx, BlockHash>,
    /// What a listener knows.
    known: BTreeMap<BlockHash, Option<BlockHash>>,
    /// The protection that is under test is taken away: shared blocks are used without being owned.
    unprotected: bool,
}

impl World {
    fn new(n: u32, unprotected: bool) -> Self {
        Self {
            pool: BlockPool::new(n, NonZeroU32::new(16).unwrap(), 50),
            requests: vec![],
            transfers: BTreeMap::new(),
            n_transfers: 0,
            memory: BTreeMap::new(),
            known: BTreeMap::new(),
            unprotected,
        }
    }

    fn apply(&mut self, op: &Op) {
        let available = self.pool.n_available();
        match *op {
            Op::Start { tenant, ref words } => self.start(tenant, words),
            Op::Grow(i, word) if !self.requests.is_empty() => {
                let i = i % self.requests.len();
                let request = &mut self.requests[i];
                if request.words.len() < 12 {
                    let grown = self.pool.grow(&mut request.blocks, 1);
                    assert_eq!(grown.is_ok(), available > 0);
                    if grown.is_ok() {
                        let fresh = *request.blocks.blocks().last().unwrap();
                        self.take_fresh(&[fresh]);
                        let request = &mut self.requests[i];
                        request.words.push(word);
                        request.believed.push(fresh);
                    }
                }
            }
            Op::Seal(i) if !self.requests.is_empty() => {
                let i = i % self.requests.len();
                self.seal(i);
            }
            Op::Share(i) if !self.requests.is_empty() => {
                let i = i % self.requests.len();
                let request = &mut self.requests[i];
                if request.transfer.is_none() {
                    let transfer = self.pool.share(&request.blocks);
                    assert_eq!(transfer.blocks(), request.blocks.blocks());
                    self.n_transfers += 1;
                    request.transfer = Some(self.n_transfers);
                    self.transfers.insert(self.n_transfers, transfer);
                }
            }
            Op::Release(i) if !self.requests.is_empty() => {
                let request = self.requests.swap_remove(i % self.requests.len());
                self.pool.release(request.blocks);
            }
            Op::ReleaseTransfer(i) if !self.transfers.is_empty() => {
                let key = *self.transfers.keys().nth(i % self.transfers.len()).unwrap();
                self.pool.release_transfer(self.transfers.remove(&key).unwrap());
            }
            Op::Clear => self.pool.clear_cache(),
            _ => {}
        }
    }

    fn start(&mut self, tenant: u8, words: &[u8]) {
        let names: Vec<BlockHash> = (1..=words.len()).map(|n| name(tenant, &words[..n])).collect();
        let hit = self.pool.peek(&names);
        let n_new = names.len() as u32 - hit.n_blocks;
        let mut blocks = self.pool.share_prefix(&names);
        assert_eq!(blocks.len(), hit.n_blocks);
        // The rows that it goes on from are those of its own text.
        for (block, name) in blocks.blocks().iter().zip(&names) {
            assert_eq!(self.memory.get(block), Some(name), "content of another text");
        }
        let mut believed = blocks.blocks().to_vec();
        if self.unprotected {
            self.pool.release(std::mem::replace(&mut blocks, self.pool.empty()));
        }
        let available = self.pool.n_available();
        if let Err(error) = self.pool.grow(&mut blocks, n_new) {
            assert_eq!(error, OutOfBlocks { wanted: n_new, available });
            return self.pool.release(blocks);
        }
        let fresh = blocks.blocks()[blocks.len() as usize - n_new as usize..].to_vec();
        self.take_fresh(&fresh);
        believed.extend(&fresh);
        let n_full = hit.n_blocks as usize;
        self.requests.push(Request { tenant, words: words.to_vec(), blocks, believed, n_full, transfer: None });
    }

    /// Blocks that come to a new owner to be overwritten: nobody else may have them.
    fn take_fresh(&mut self, fresh: &[BlockIdx]) {
        for block in fresh {
            assert!(self.requests.iter().all(|request| !request.believed.contains(block)), "{block:?} is in use");
            assert!(self.transfers.values().all(|transfer| !transfer.blocks().contains(block)), "under transfer");
            self.memory.remove(block);
        }
    }

    fn seal(&mut self, i: usize) {
        let request = &mut self.requests[i];
        if self.unprotected || request.n_full == request.words.len() {
            return;
        }
        let at = request.n_full;
        let hash = name(request.tenant, &request.words[..=at]);
        let before = request.blocks.blocks()[at];
        self.memory.insert(before, hash);
        let transfer = request.transfer.and_then(|key| self.transfers.get_mut(&key));
        self.pool.seal(&mut request.blocks, transfer, at, hash, Tenant(request.tenant.into()));
        let after = request.blocks.blocks()[at];
        assert_eq!(self.memory.get(&after), Some(&hash), "exchanged for other content");
        request.believed[at] = after;
        request.n_full += 1;
    }

    fn check(&mut self) {
        self.listen();
        let request: BTreeSet<BlockIdx> = self.requests.iter().flat_map(|r| r.believed.clone()).collect();
        let transfer: BTreeSet<BlockIdx> = self.transfers.values().flat_map(|t| t.blocks().to_vec()).collect();
        let owned: BTreeSet<_> = request.union(&transfer).copied().collect();
        assert!(owned.iter().all(|block| block.0 < self.pool.n_total()));
        let found = self.pool.accounting();
        let total = self.pool.n_total();
        let expected = PoolAccounting {
            total,
            free: total - owned.len() as u32 - found.cached,
            request: request.len() as u32,
            transfer: transfer.len() as u32,
            cached: found.cached,
        };
        assert_eq!(found, expected);
        assert_eq!(self.pool.n_available(), found.free + found.cached);
        // Only sealed blocks lie with several requests.
        for request in &self.requests {
            for (at, block) in request.believed.iter().enumerate().skip(request.n_full) {
                let n = self.requests.iter().filter(|other| other.believed.contains(block)).count();
                assert_eq!(n, 1, "block {at} is being filled by two");
            }
        }
        // What can be shared is what a listener knows, and a chain is there from its beginning.
        for (hash, parent) in &self.known {
            assert_eq!(self.pool.peek(&[*hash]).n_blocks, 1, "{hash:?} is not there");
            assert!(parent.is_none_or(|parent| self.known.contains_key(&parent)), "a block without its parent");
        }
        let n_busy = self.known.keys().filter(|hash| self.pool.peek(&[**hash]).n_owned == 1).count() as u32;
        assert_eq!(self.known.len() as u32, n_busy + found.cached, "cached blocks have names");
    }

    fn listen(&mut self) {
        for event in self.pool.take_events() {
            tell(&mut self.known, event);
        }
        let mut told = BTreeMap::new();
        self.pool.snapshot().into_iter().for_each(|event| tell(&mut told, event));
        assert_eq!(told, self.known, "the events add up to the snapshot");
    }
}

/// Applies an event as a listener does; each must make sense where it comes.
fn tell(known: &mut BTreeMap<BlockHash, Option<BlockHash>>, event: KvEvent) {
    match event {
        KvEvent::Stored { hashes, mut parent } => {
            assert!(!hashes.is_empty() && parent.is_none_or(|parent| known.contains_key(&parent)));
            for hash in hashes {
                assert_eq!(known.insert(hash, parent), None, "stored twice");
                parent = Some(hash);
            }
        }
        KvEvent::Removed { hashes } => {
            for hash in hashes {
                assert!(known.remove(&hash).is_some(), "removed, and was not there");
                assert!(!known.values().any(|parent| *parent == Some(hash)), "a parent went before its child");
            }
        }
        KvEvent::Cleared => known.clear(),
    }
}

fn run(n: u32, ops: &[Op], unprotected: bool) {
    let mut world = World::new(n, unprotected);
    world.check();
    for op in ops {
        world.apply(op);
        world.check();
    }
    let World { mut pool, requests, transfers, .. } = world;
    requests.into_iter().for_each(|request| pool.release(request.blocks));
    transfers.into_values().for_each(|owned| pool.release_transfer(owned));
    let rest = pool.accounting();
    assert_eq!((rest.request, rest.transfer, rest.free + rest.cached), (0, 0, n));
    let all: BTreeSet<BlockIdx> = pool.allocate(n).unwrap().blocks().iter().copied().collect();
    assert_eq!(all.len() as u32, n, "each block is there exactly once");
    assert_eq!(pool.snapshot(), vec![], "cached blocks gave way");
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) }
}

fn cases() -> impl Strategy<Value = (u32, Vec<Op>)> {
    (0..24u32, prop::collection::vec(op(), 0..120))
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn owners_content_and_free_blocks_add_up_after_every_step((n, ops) in cases()) {
        run(n, &ops, false);
    }
}

/// Positive control: the test above fails when blocks are shared without being owned.
#[test]
fn sharing_without_owning_is_noticed() {
    // Something to share first: `unprotected` seals nothing itself.
    let failed = TestRunner::new(config()).run(&cases(), |(n, ops)| {
        let mut world = World::new(n, false);
        for op in &ops[..ops.len() / 2] {
            world.apply(op);
        }
        world.unprotected = true;
        for op in &ops[ops.len() / 2..] {
            world.apply(op);
            world.check();
        }
        Ok(())
    });
    assert!(matches!(failed, Err(TestError::Fail(..))), "nothing noticed: {failed:?}");
}

fn pool(n: u32, tenant_percent: u8) -> BlockPool {
    BlockPool::new(n, NonZeroU32::new(16).unwrap(), tenant_percent)
}

/// A text's blocks computed, sealed and let go.
fn fill(pool: &mut BlockPool, tenant: u8, words: &[u8]) {
    let mut owned = pool.allocate(words.len() as u32).unwrap();
    for at in 0..words.len() {
        pool.seal(&mut owned, None, at, name(tenant, &words[..=at]), Tenant(tenant.into()));
    }
    pool.release(owned);
}

fn names(tenant: u8, words: &[u8]) -> Vec<BlockHash> {
    (1..=words.len()).map(|n| name(tenant, &words[..n])).collect()
}

#[test]
fn a_block_under_transfer_outlives_its_request() {
    let mut pool = pool(2, 100);
    let request = pool.allocate(1).unwrap();
    let transfer = pool.share(&request);
    pool.release(request);
    assert_eq!(pool.accounting(), PoolAccounting { total: 2, free: 1, request: 0, transfer: 1, cached: 0 });
    let other = pool.allocate(1).unwrap();
    assert_ne!(other.blocks(), transfer.blocks());
    pool.release_transfer(transfer);
    pool.release(other);
    assert_eq!(pool.n_available(), 2);
}

#[test]
fn the_chain_used_longest_ago_goes_first_and_from_its_end() {
    let mut pool = pool(6, 100);
    fill(&mut pool, 0, &[1, 2, 3]);
    fill(&mut pool, 0, &[4, 5, 6]);
    let used = pool.share_prefix(&names(0, &[1, 2, 3]));
    pool.release(used);
    pool.take_events();
    let owned = pool.allocate(4).unwrap();
    let [a, b, c] = [&[4][..], &[4, 5], &[4, 5, 6]].map(|words| name(0, words));
    let removed = KvEvent::Removed { hashes: vec![c, b, a, name(0, &[1, 2, 3])] };
    assert_eq!(pool.take_events(), vec![removed]);
    assert_eq!(pool.peek(&names(0, &[1, 2, 3])).n_blocks, 2);
    assert_eq!(pool.allocate(3).unwrap_err(), OutOfBlocks { wanted: 3, available: 2 });
    pool.release(owned);
}

#[test]
fn a_tenant_above_its_share_gives_way_first() {
    for (percent, kept) in [(50, 3), (100, 0)] {
        let mut pool = pool(10, percent);
        fill(&mut pool, 1, &[1, 2, 3]);
        fill(&mut pool, 2, &[1, 2, 3, 4, 5, 6, 7]);
        // Tenant 1's blocks are the older ones.
        fill(&mut pool, 2, &[9]);
        fill(&mut pool, 2, &[8]);
        fill(&mut pool, 2, &[7]);
        assert_eq!(pool.peek(&names(1, &[1, 2, 3])).n_blocks, kept, "share of {percent} %");
        assert_eq!(pool.accounting().cached, 10, "no block is given up before it must be");
    }
}

#[test]
fn of_two_blocks_with_one_name_one_is_enough() {
    let mut pool = pool(8, 100);
    let seal = |pool: &mut BlockPool, owned: &mut RequestBlocks, transfer: Option<&mut TransferBlocks>| {
        let mut transfer = transfer;
        for at in 0..2 {
            pool.seal(owned, transfer.as_deref_mut(), at, name(0, &[1, 2][..=at]), Tenant(0));
        }
    };
    let (mut first, mut second) = (pool.allocate(2).unwrap(), pool.allocate(2).unwrap());
    let mut transfer = pool.share(&second);
    let own = second.blocks().to_vec();
    seal(&mut pool, &mut first, None);
    seal(&mut pool, &mut second, Some(&mut transfer));
    assert_eq!(second.blocks(), first.blocks(), "the one that others use stays");
    assert_eq!(transfer.blocks()[..2], own[..], "who reads goes on reading where it began");
    pool.release(first);
    pool.release(second);
    assert_eq!(pool.accounting(), PoolAccounting { total: 8, free: 4, request: 0, transfer: 4, cached: 0 });
    pool.release_transfer(transfer);
    assert_eq!(pool.accounting(), PoolAccounting { total: 8, free: 6, request: 0, transfer: 0, cached: 2 });
    let mut third = pool.allocate(2).unwrap();
    let own = third.blocks().to_vec();
    seal(&mut pool, &mut third, None);
    assert_eq!(third.blocks(), own, "an idle one gives its name up");
    assert_eq!(pool.accounting(), PoolAccounting { total: 8, free: 6, request: 2, transfer: 0, cached: 0 });
    pool.release(third);
    assert_eq!(pool.take_events().len(), 1, "for those outside nothing changed");
}
