//! The index against a naive model, under random histories of several workers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use index::{Config, PrefixIndex};
use proptest::prelude::*;
use types::{BlockHash, Epoch, KvEvent, KvEventBatch, WorkerId, WorkerRef};

const N_WORKERS: usize = 5;
const NOW: Duration = Duration::ZERO;

fn worker(n: usize) -> WorkerRef {
    WorkerRef { id: WorkerId::new(format!("w{n}")), epoch: Epoch(1) }
}

/// A path in a tree: block `i` is named by the first `i + 1` steps, as a chained hash names it.
fn chain(path: &[u8]) -> Vec<BlockHash> {
    (1..=path.len())
        .map(|n| {
            let mut bytes = [0; 16];
            bytes[0] = n as u8;
            bytes[1..=n].copy_from_slice(&path[..n]);
            BlockHash(bytes)
        })
        .collect()
}

fn is_prefix(a: &[u8], b: &[u8]) -> bool {
    b.starts_with(a)
}

/// For each worker the set of paths that it holds, closed under prefixes.
#[derive(Default)]
struct Model(BTreeMap<usize, BTreeSet<Vec<u8>>>);

impl Model {
    fn of(&mut self, worker: usize) -> &mut BTreeSet<Vec<u8>> {
        self.0.entry(worker).or_default()
    }

    fn store(&mut self, worker: usize, path: &[u8], from: usize) -> usize {
        let held = self.of(worker);
        if from > 0 && !held.contains(&path[..from]) {
            return 0;
        }
        held.extend((from + 1..=path.len()).map(|n| path[..n].to_vec()));
        path.len() - from
    }

    fn remove(&mut self, worker: usize, path: &[u8]) -> usize {
        let held = self.of(worker);
        let before = held.len();
        if held.contains(path) {
            held.retain(|p| !is_prefix(path, p));
        }
        before - held.len()
    }

    fn leading(&mut self, worker: usize, path: &[u8]) -> usize {
        (1..=path.len()).take_while(|&n| self.of(worker).contains(&path[..n])).count()
    }

    fn n_distinct(&self) -> usize {
        self.0.values().flatten().collect::<BTreeSet<_>>().len()
    }
}

#[derive(Clone, Debug)]
enum Op {
    Store { worker: usize, path: Vec<u8>, from: usize },
    Remove { worker: usize, path: Vec<u8> },
    Clear { worker: usize },
    Rejoin { worker: usize },
    Ask { path: Vec<u8> },
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0_u8..2, 1..9)
}

fn op() -> impl Strategy<Value = Op> {
    let worker = || 0..N_WORKERS;
    prop_oneof![
        6 => (worker(), path(), 0_usize..8).prop_map(|(worker, path, from)| {
            let from = from.min(path.len() - 1);
            Op::Store { worker, path, from }
        }),
        3 => (worker(), path()).prop_map(|(worker, path)| Op::Remove { worker, path }),
        1 => worker().prop_map(|worker| Op::Clear { worker }),
        1 => worker().prop_map(|worker| Op::Rejoin { worker }),
        6 => path().prop_map(|path| Op::Ask { path }),
    ]
}

/// Feeds both with the same history; the index numbers its batches.
struct Pair {
    index: PrefixIndex,
    model: Model,
    next: [u64; N_WORKERS],
}

impl Pair {
    fn new(bytes: usize) -> Self {
        let mut pair = Self {
            index: PrefixIndex::new(Config { bytes, ..Config::default() }),
            model: Model::default(),
            next: [1; N_WORKERS],
        };
        (0..N_WORKERS).for_each(|w| pair.snapshot(w));
        pair
    }

    fn send(&mut self, worker_number: usize, event: KvEvent) -> index::Applied {
        let id = self.next[worker_number];
        self.next[worker_number] += 1;
        self.index.apply(&worker(worker_number), &KvEventBatch { id, events: vec![event] }).expect("no gap")
    }

    fn snapshot(&mut self, worker: usize) {
        self.send(worker, KvEvent::Cleared);
        self.model.of(worker).clear();
    }

    fn leading(&mut self, path: &[u8]) -> BTreeMap<WorkerRef, u32> {
        self.index.lookup(&chain(path), NOW).into_iter().map(|m| (m.worker.clone(), m.n_blocks)).collect()
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Store { worker, path, from } => {
                let hashes = chain(path);
                let parent = from.checked_sub(1).map(|n| hashes[n]);
                let applied = self.send(*worker, KvEvent::Stored { parent, hashes: hashes[*from..].to_vec() });
                prop_assert_eq!(applied.stored, self.model.store(*worker, path, *from));
                prop_assert_eq!(applied.stored + applied.unattached, path.len() - from);
            }
            Op::Remove { worker, path } => {
                let hash = *chain(path).last().expect("not empty");
                let applied = self.send(*worker, KvEvent::Removed { hashes: vec![hash] });
                prop_assert_eq!(applied.removed, self.model.remove(*worker, path));
            }
            Op::Clear { worker } => self.snapshot(*worker),
            Op::Rejoin { worker: n } => {
                self.index.leave(&worker(*n));
                prop_assert_eq!(self.index.n_told(&worker(*n)), 0);
                self.snapshot(*n);
            }
            Op::Ask { path } => {
                let got = self.leading(path);
                for n in 0..N_WORKERS {
                    let want = self.model.leading(n, path);
                    prop_assert_eq!(got.get(&worker(n)).copied().unwrap_or(0) as usize, want, "worker {}", n);
                }
            }
        }
        prop_assert_eq!(self.index.stats().told_blocks, self.model.n_distinct());
        for n in 0..N_WORKERS {
            prop_assert_eq!(self.index.n_told(&worker(n)), self.model.of(n).len());
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn equals_the_naive_model_while_there_is_room(ops in prop::collection::vec(op(), 1..120)) {
        let mut pair = Pair::new(1 << 20);
        for op in &ops {
            pair.step(op)?;
        }
        prop_assert_eq!(pair.index.stats().evicted, 0);
    }

    /// With room for a few blocks only, an answer may be too low, never too high, and the budget holds.
    #[test]
    fn never_promises_what_a_worker_lacks(ops in prop::collection::vec(op(), 1..200), n_bytes in 0_usize..4000) {
        let mut pair = Pair::new(n_bytes);
        for op in &ops {
            match op {
                Op::Store { worker, path, from } => {
                    let hashes = chain(path);
                    let parent = from.checked_sub(1).map(|n| hashes[n]);
                    pair.send(*worker, KvEvent::Stored { parent, hashes: hashes[*from..].to_vec() });
                    pair.model.store(*worker, path, *from);
                }
                Op::Ask { path } => {
                    for (who, n) in pair.leading(path) {
                        let number = (0..N_WORKERS).find(|&n| worker(n) == who).expect("one of ours");
                        prop_assert!(n as usize <= pair.model.leading(number, path));
                    }
                }
                Op::Remove { worker, path } => {
                    let hash = *chain(path).last().expect("not empty");
                    pair.send(*worker, KvEvent::Removed { hashes: vec![hash] });
                    pair.model.remove(*worker, path);
                }
                Op::Clear { worker } => pair.snapshot(*worker),
                Op::Rejoin { worker: n } => {
                    pair.index.leave(&worker(*n));
                    pair.snapshot(*n);
                }
            }
            let stats = pair.index.stats();
            prop_assert!(stats.bytes <= n_bytes.max(48), "{} of {n_bytes} bytes", stats.bytes);
            prop_assert!(stats.told_blocks <= pair.index.n_told_max());
            let told: usize = (0..N_WORKERS).map(|n| pair.index.n_told(&worker(n))).sum();
            prop_assert!(told >= stats.told_blocks, "each block has a holder");
        }
    }
}
