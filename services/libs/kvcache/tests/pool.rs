//! The pool against a model so simple that it is right by sight: a list of owners for each block.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use kvcache::{BlockPool, OutOfBlocks, PoolAccounting, RequestBlocks, TransferBlocks};
use proptest::prelude::*;
use types::BlockIdx;

#[derive(Clone, Debug)]
enum Op {
    Allocate(u32),
    Grow(usize, u32),
    Share(usize),
    Release(usize),
    ReleaseTransfer(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..12u32).prop_map(Op::Allocate),
        (any::<usize>(), 0..4u32).prop_map(|(i, n)| Op::Grow(i, n)),
        any::<usize>().prop_map(Op::Share),
        any::<usize>().prop_map(Op::Release),
        any::<usize>().prop_map(Op::ReleaseTransfer),
    ]
}

/// The real pool, and beside it who was told to own what.
struct Pair {
    pool: BlockPool,
    requests: Vec<RequestBlocks>,
    transfers: Vec<TransferBlocks>,
}

impl Pair {
    fn apply(&mut self, op: &Op) {
        let free = self.pool.n_free();
        match *op {
            Op::Allocate(n) => match self.pool.allocate(n) {
                Ok(owned) => {
                    assert_eq!(owned.len(), n);
                    self.requests.push(owned);
                }
                Err(error) => assert_eq!(error, OutOfBlocks { wanted: n, free }),
            },
            Op::Grow(i, n) if !self.requests.is_empty() => {
                let i = i % self.requests.len();
                let before = self.requests[i].blocks().to_vec();
                let grown = self.pool.grow(&mut self.requests[i], n);
                assert_eq!(grown.is_ok(), n <= free);
                assert_eq!(self.requests[i].blocks()[..before.len()], before[..], "growing only appends");
            }
            Op::Share(i) if !self.requests.is_empty() => {
                let owned = &self.requests[i % self.requests.len()];
                self.transfers.push(self.pool.share(owned));
                assert_eq!(self.transfers.last().unwrap().blocks(), owned.blocks());
            }
            Op::Release(i) if !self.requests.is_empty() => {
                let owned = self.requests.swap_remove(i % self.requests.len());
                self.pool.release(owned);
            }
            Op::ReleaseTransfer(i) if !self.transfers.is_empty() => {
                let owned = self.transfers.swap_remove(i % self.transfers.len());
                self.pool.release_transfer(owned);
            }
            _ => {}
        }
    }

    fn check(&self) {
        let of_requests: Vec<BlockIdx> = self.requests.iter().flat_map(|r| r.blocks().to_vec()).collect();
        let request: BTreeSet<BlockIdx> = of_requests.iter().copied().collect();
        assert_eq!(of_requests.len(), request.len(), "a block has one request");
        let transfer: BTreeSet<BlockIdx> = self.transfers.iter().flat_map(|t| t.blocks().to_vec()).collect();
        let owned: BTreeSet<_> = request.union(&transfer).collect();
        assert!(owned.iter().all(|block| block.0 < self.pool.n_total()));
        let expected = PoolAccounting {
            total: self.pool.n_total(),
            free: self.pool.n_total() - owned.len() as u32,
            request: request.len() as u32,
            transfer: transfer.len() as u32,
        };
        assert_eq!(self.pool.accounting(), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn owners_and_free_blocks_add_up_after_every_step(n in 0..40u32, ops in prop::collection::vec(op(), 0..120)) {
        let pool = BlockPool::new(n, NonZeroU32::new(16).unwrap());
        let mut pair = Pair { pool, requests: vec![], transfers: vec![] };
        pair.check();
        for op in &ops {
            pair.apply(op);
            pair.check();
        }
        pair.requests.drain(..).for_each(|owned| pair.pool.release(owned));
        pair.transfers.drain(..).for_each(|owned| pair.pool.release_transfer(owned));
        prop_assert_eq!(pair.pool.n_free(), n);
        prop_assert_eq!(pair.pool.allocate(n).map(|owned| owned.len()), Ok(n), "each block is free exactly once");
    }
}

#[test]
fn a_block_under_transfer_outlives_its_request() {
    let mut pool = BlockPool::new(2, NonZeroU32::new(16).unwrap());
    let request = pool.allocate(1).unwrap();
    let transfer = pool.share(&request);
    pool.release(request);
    assert_eq!(pool.accounting(), PoolAccounting { total: 2, free: 1, request: 0, transfer: 1 });
    let other = pool.allocate(1).unwrap();
    assert_ne!(other.blocks(), transfer.blocks());
    pool.release_transfer(transfer);
    pool.release(other);
    assert_eq!(pool.n_free(), 2);
}
