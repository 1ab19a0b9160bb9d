//! Random arrivals, cancellations, transfers and preemptions against a model of what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use kvcache::Tenant;
use proptest::prelude::*;
use scheduler::{Cancelled, Claimed, Config, HoldId, Kind, Plan, ReservationId, Scheduler, SeqId, Submission, Verdict};
use types::{BlockHash, BlockIdx};

const BLOCK_TOKENS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Submit { prefill: bool, text: u8, n_prompt: usize, n_new: usize },
    Reserve { text: u8, n_prompt: usize, n_new: usize },
    Claim(usize),
    Land { pick: usize, handoff: bool, n_generated: usize },
    DropLanding(usize),
    ReleaseHold(usize),
    Cancel(usize),
    Plan,
    Complete { undone: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let prompt = prop_oneof![4 => 1..20usize, 1 => 20..90usize];
    let new = prop_oneof![3 => 1..12usize, 1 => 12..60usize];
    prop_oneof![
        3 => (any::<bool>(), 0..4u8, prompt.clone(), new.clone())
            .prop_map(|(prefill, text, n_prompt, n_new)| Op::Submit { prefill, text, n_prompt, n_new }),
        2 => (0..4u8, prompt, new).prop_map(|(text, n_prompt, n_new)| Op::Reserve { text, n_prompt, n_new }),
        2 => any::<usize>().prop_map(Op::Claim),
        2 => (any::<usize>(), any::<bool>(), 0..30usize)
            .prop_map(|(pick, handoff, n_generated)| Op::Land { pick, handoff, n_generated }),
        1 => any::<usize>().prop_map(Op::DropLanding),
        2 => any::<usize>().prop_map(Op::ReleaseHold),
        1 => any::<usize>().prop_map(Op::Cancel),
        8 => Just(Op::Plan),
        8 => any::<u8>().prop_map(|n| Op::Complete { undone: n < 10 }),
    ]
}

/// Name of block `at` of a text: texts 0 to 2 begin alike, text 3 is not named.
fn name(text: u8, at: usize) -> BlockHash {
    BlockHash(std::array::from_fn(|i| {
        if i > 0 {
            at as u8
        } else if at < 2 {
            0
        } else {
            text
        }
    }))
}

/// Names of the full blocks of the first `n_tokens` of a text.
fn names(text: u8, n_tokens: usize) -> Vec<BlockHash> {
    let n = if text < 3 { n_tokens / BLOCK_TOKENS } else { 0 };
    (0..n).map(|at| name(text, at)).collect()
}

/// What the model knows of a living sequence.
#[derive(Debug)]
struct Seq {
    text: u8,
    kind: Kind,
    n_tokens: usize,
    n_end: usize,
    n_computed: usize,
    /// Had a slice and was not preempted since.
    resident: bool,
    /// Has no blocks: it starts behind what it finds.
    anew: bool,
    cancelled: bool,
}

struct World {
    config: Config,
    n_blocks: u32,
    scheduler: Scheduler,
    now: Duration,
    seqs: BTreeMap<SeqId, Seq>,
    reservations: Vec<(ReservationId, u8, usize, usize)>,
    landings: Vec<(Claimed, u8, usize)>,
    /// What was written into the blocks that are full.
    memory: BTreeMap<BlockIdx, BlockHash>,
    n_found: usize,
    holds: BTreeMap<HoldId, Vec<BlockIdx>>,
    step: Vec<scheduler::Slice>,
    plans: Vec<Plan>,
}

impl World {
    fn new(config: Config, n_blocks: u32) -> Self {
        let tokens = NonZeroU32::new(BLOCK_TOKENS as u32).unwrap();
        Self {
            scheduler: Scheduler::new(config.clone(), n_blocks, tokens).unwrap(),
            config,
            n_blocks,
            now: Duration::ZERO,
            seqs: BTreeMap::new(),
            reservations: vec![],
            landings: vec![],
            memory: BTreeMap::new(),
            n_found: 0,
            holds: BTreeMap::new(),
            step: vec![],
            plans: vec![],
        }
    }

    fn apply(&mut self, op: &Op) {
        self.now += Duration::from_millis(3);
        match *op {
            Op::Submit { prefill, text, n_prompt, n_new } => {
                let kind = if prefill { Kind::Prefill } else { Kind::Decode };
                self.submit(kind, text, n_prompt, n_new);
            }
            Op::Reserve { text, n_prompt, n_new } => {
                let deadline = self.now + Duration::from_millis(200);
                if let Ok((id, _)) = self.scheduler.reserve(n_prompt, n_new, deadline) {
                    self.reservations.push((id, text, n_prompt, n_new));
                }
            }
            Op::Claim(pick) if !self.reservations.is_empty() => {
                let (id, text, n_prompt, n_new) = self.reservations.swap_remove(pick % self.reservations.len());
                let names = names(text, n_prompt);
                let claimed = self.scheduler.claim(id, &names).expect("not expired: the model removes those");
                assert_eq!((claimed.blocks.len(), claimed.n_prompt), (n_prompt.div_ceil(BLOCK_TOKENS), n_prompt));
                assert!(claimed.n_cached * BLOCK_TOKENS < n_prompt, "something is left to compute");
                self.check_content(&claimed.blocks[..claimed.n_cached], &names);
                self.n_found += claimed.n_cached;
                self.check_unowned(&claimed.blocks[claimed.n_cached..]);
                self.memory.retain(|block, _| !claimed.blocks[claimed.n_cached..].contains(block));
                self.holds.insert(claimed.hold, claimed.blocks.clone());
                self.landings.push((claimed, text, n_new));
            }
            Op::Land { pick, handoff, n_generated } if !self.landings.is_empty() => {
                let (claimed, text, n_new) = self.landings.swap_remove(pick % self.landings.len());
                let (id, n_prompt) = (claimed.landing, claimed.n_prompt);
                let n_generated = if handoff { 1 } else { n_generated.min(n_new) };
                let n_computed = if handoff { n_prompt } else { claimed.n_cached * BLOCK_TOKENS };
                let n_tokens = n_prompt + n_generated;
                let n_end = (n_prompt + n_new).max(n_tokens + 1);
                let submission =
                    Submission { kind: Kind::Decode, n_tokens, max_tokens: n_end, deadline: Duration::MAX };
                match self.scheduler.submit_landed(self.now, id, n_computed, submission).unwrap() {
                    Ok(seq) => {
                        for (at, block) in claimed.blocks.iter().enumerate().take(n_computed / BLOCK_TOKENS) {
                            self.memory.insert(*block, name(text, at));
                        }
                        self.insert(seq, (Kind::Decode, text), n_tokens, n_end, n_computed);
                        self.seqs.get_mut(&seq).unwrap().anew = false;
                    }
                    Err(_) => self.scheduler.cancel_landing(id),
                }
            }
            Op::DropLanding(pick) if !self.landings.is_empty() => {
                let (claimed, ..) = self.landings.swap_remove(pick % self.landings.len());
                self.scheduler.cancel_landing(claimed.landing);
            }
            Op::ReleaseHold(pick) if !self.holds.is_empty() => {
                let hold = *self.holds.keys().nth(pick % self.holds.len()).unwrap();
                self.holds.remove(&hold);
                self.scheduler.release_hold(hold);
            }
            Op::Cancel(pick) if !self.seqs.is_empty() => {
                let seq = *self.seqs.keys().nth(pick % self.seqs.len()).unwrap();
                match self.scheduler.cancel(seq) {
                    Cancelled::Now => drop(self.seqs.remove(&seq)),
                    Cancelled::WithStep => self.seqs.get_mut(&seq).unwrap().cancelled = true,
                    Cancelled::Unknown => panic!("{seq:?} is here"),
                }
            }
            Op::Plan if self.step.is_empty() => self.plan(),
            Op::Complete { undone } if !self.step.is_empty() => self.complete(undone),
            _ => {}
        }
        let expired = self.scheduler.expire(self.now);
        assert!(expired.sequences.is_empty());
        self.reservations.retain(|(id, ..)| !expired.reservations.contains(id));
        self.check();
    }

    fn submit(&mut self, kind: Kind, text: u8, n_prompt: usize, n_new: usize) {
        let (n_tokens, max_tokens) = (n_prompt, n_prompt + n_new);
        let submission = Submission { kind, n_tokens, max_tokens, deadline: Duration::MAX };
        if let Ok(seq) = self.scheduler.submit(self.now, submission) {
            let n_end = if kind == Kind::Prefill { n_tokens + 1 } else { max_tokens };
            self.insert(seq, (kind, text), n_tokens, n_end, 0);
        }
    }

    fn insert(&mut self, id: SeqId, what: (Kind, u8), n_tokens: usize, n_end: usize, n_computed: usize) {
        let (kind, text) = what;
        let seq = Seq { text, kind, n_tokens, n_end, n_computed, resident: false, anew: true, cancelled: false };
        assert!(self.seqs.last_key_value().is_none_or(|(last, _)| *last < id), "ids follow arrival");
        self.seqs.insert(id, seq);
        self.scheduler.name_blocks(id, Tenant(0), &names(text, n_tokens));
    }

    fn plan(&mut self) {
        let before = self.owned();
        let plan = self.scheduler.plan(self.now);
        for seq in &plan.preempted {
            let seq = self.seqs.get_mut(seq).unwrap();
            assert_eq!(seq.kind, Kind::Decode, "held blocks are not taken away");
            (seq.n_computed, seq.resident, seq.anew) = (0, false, true);
        }
        for start in &plan.started {
            let slice = plan.step.slices.iter().find(|slice| slice.seq == start.seq).unwrap();
            assert_eq!(start.n_computed, slice.first);
            assert_eq!(start.hold.is_some(), self.seqs[&start.seq].kind == Kind::Prefill);
            let blocks = self.scheduler.blocks(start.seq).to_vec();
            self.holds.extend(start.hold.map(|hold| (hold, blocks)));
        }
        let of_holds: BTreeSet<BlockIdx> = before.holds;
        assert!(plan.fresh.iter().all(|block| !of_holds.contains(block)), "a block under transfer changed hands");
        self.memory.retain(|block, _| !plan.fresh.contains(block));
        assert!(plan.step.n_tokens() <= self.config.max_step_tokens, "budget");
        assert!(plan.step.slices.len() <= self.config.max_running, "places");
        let others = self.landings.len() + self.holds.len() + self.reservations.len();
        let stuck = plan.step.is_empty() && !self.seqs.is_empty() && others == 0;
        assert!(!stuck, "work waits, nothing runs, and nothing will change that: {:?}", self.seqs);
        let in_step: BTreeSet<SeqId> = plan.step.slices.iter().map(|slice| slice.seq).collect();
        assert_eq!(in_step.len(), plan.step.slices.len(), "one slice each");
        for (id, seq) in &self.seqs {
            let decoding = seq.resident && seq.n_tokens - seq.n_computed == 1;
            assert!(!decoding || in_step.contains(id), "a running decode was skipped");
        }
        for slice in &plan.step.slices {
            let seq = self.seqs.get_mut(&slice.seq).unwrap();
            let end = slice.first + slice.n_tokens;
            if std::mem::take(&mut seq.anew) {
                assert_eq!(slice.first % BLOCK_TOKENS, 0, "whole blocks are shared");
                seq.n_computed = slice.first;
                self.n_found += slice.first / BLOCK_TOKENS;
            }
            assert_eq!(slice.first, seq.n_computed);
            let (names, n_full) = (names(seq.text, end), slice.first / BLOCK_TOKENS);
            check_content(&self.memory, &self.scheduler.blocks(slice.seq)[..n_full.min(names.len())], &names);
            assert!(slice.n_tokens > 0 && end <= seq.n_tokens);
            assert_eq!(slice.samples, end == seq.n_tokens);
            assert!(self.scheduler.blocks(slice.seq).len() * BLOCK_TOKENS >= end, "rows without blocks");
            seq.resident = true;
        }
        self.step = plan.step.slices.clone();
        self.plans.push(plan);
    }

    fn complete(&mut self, undone: bool) {
        let mut verdicts = Vec::new();
        for slice in std::mem::take(&mut self.step) {
            let seq = self.seqs.get_mut(&slice.seq).unwrap();
            let verdict = match () {
                () if undone => Verdict::Undone,
                () if !slice.samples => Verdict::Advanced,
                () if seq.n_tokens + 1 == seq.n_end => Verdict::Ended,
                () => Verdict::Sampled,
            };
            verdicts.push(verdict);
            if !undone {
                let blocks = self.scheduler.blocks(slice.seq);
                let (begin, end) = (slice.first / BLOCK_TOKENS, (slice.first + slice.n_tokens) / BLOCK_TOKENS);
                for (at, block) in blocks.iter().enumerate().take(end).skip(begin) {
                    let before = self.memory.insert(*block, name(seq.text, at));
                    assert_eq!(before, None, "written into a full block");
                }
                if verdict == Verdict::Sampled && (seq.n_tokens + 1).is_multiple_of(BLOCK_TOKENS) {
                    let names = names(seq.text, seq.n_tokens + 1);
                    self.scheduler.name_blocks(slice.seq, Tenant(0), &names[names.len().saturating_sub(1)..]);
                }
            }
            if verdict == Verdict::Ended || seq.cancelled {
                self.seqs.remove(&slice.seq);
            } else if verdict != Verdict::Undone {
                seq.n_computed += slice.n_tokens;
                seq.n_tokens += usize::from(slice.samples);
            }
        }
        self.scheduler.complete(&verdicts);
    }

    fn owned(&self) -> Owned {
        let mut requests = Vec::new();
        for seq in self.seqs.keys() {
            requests.extend_from_slice(self.scheduler.blocks(*seq));
        }
        for (claimed, ..) in &self.landings {
            requests.extend_from_slice(&claimed.blocks);
        }
        Owned { requests, holds: self.holds.values().flatten().copied().collect() }
    }

    fn check_content(&self, blocks: &[BlockIdx], names: &[BlockHash]) {
        check_content(&self.memory, blocks, names);
    }

    fn check_unowned(&self, blocks: &[BlockIdx]) {
        let owned = self.owned();
        assert!(blocks.iter().all(|block| !owned.requests.contains(block) && !owned.holds.contains(block)));
    }

    fn check(&self) {
        let owned = self.owned();
        let requests: BTreeSet<BlockIdx> = owned.requests.iter().copied().collect();
        let mut open = owned.requests.iter().filter(|block| !self.memory.contains_key(block)).collect::<Vec<_>>();
        let n_open = open.len();
        open.sort();
        open.dedup();
        assert_eq!(open.len(), n_open, "a block that is not full is of two sequences");
        let stats = self.scheduler.stats();
        let blocks = stats.blocks;
        assert_eq!(blocks.request, requests.len() as u32);
        assert!(blocks.transfer >= owned.holds.len() as u32, "a transfer may own what took a block's place too");
        let n_owned = requests.union(&owned.holds).count() as u32;
        assert!(blocks.free + blocks.cached <= self.n_blocks - n_owned, "conservation");
        if self.holds.is_empty() {
            assert_eq!(blocks.free + blocks.cached, self.n_blocks - n_owned, "conservation");
        }
        assert!(stats.promised_blocks <= blocks.free + blocks.cached, "promises can be kept");
        assert_eq!(stats.n_waiting + stats.n_running, self.seqs.len());
    }

    /// Nothing new comes, transfers end, and everything must end too.
    fn finish(&mut self) {
        for _ in 0..20_000 {
            if self.scheduler.is_empty() {
                break;
            }
            self.apply(&Op::Complete { undone: false });
            self.apply(&Op::Plan);
            self.apply(&Op::ReleaseHold(0));
            self.apply(&Op::DropLanding(0));
        }
        assert!(self.scheduler.is_empty(), "left: {:?} {:?}", self.seqs, self.scheduler.stats());
        let blocks = self.scheduler.stats().blocks;
        assert_eq!(blocks.free + blocks.cached, self.n_blocks);
        assert_eq!(self.scheduler.stats().promised_blocks, 0);
    }
}

/// Full blocks hold what their names say.
fn check_content(memory: &BTreeMap<BlockIdx, BlockHash>, blocks: &[BlockIdx], names: &[BlockHash]) {
    for (at, block) in blocks.iter().enumerate() {
        assert_eq!(memory.get(block), Some(&names[at]), "block {at} is another text's");
    }
}

struct Owned {
    requests: Vec<BlockIdx>,
    holds: BTreeSet<BlockIdx>,
}

/// Sequences of one text in a pool with room: the later ones start behind what the earlier ones left.
#[test]
fn the_simulation_does_share() {
    let config = Config {
        max_step_tokens: 16,
        max_running: 4,
        max_waiting: 8,
        reserve_cap_tokens: 8,
        tenant_percent: 50,
        age_after: Duration::from_millis(60),
    };
    let mut world = World::new(config, 60);
    for (text, n_found) in [(0, 0), (0, 4), (0, 8), (1, 10)] {
        world.submit(Kind::Decode, text, 18, 6);
        world.finish();
        assert_eq!(world.n_found, n_found);
    }
}

fn config() -> impl Strategy<Value = Config> {
    (1..40usize, 1..8usize, 1..10usize, 1..40usize, 0..100u64).prop_map(|(step, running, waiting, cap, age)| Config {
        max_step_tokens: step.max(running),
        max_running: running,
        max_waiting: waiting,
        reserve_cap_tokens: cap,
        tenant_percent: 50,
        age_after: Duration::from_millis(age),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn whatever_happens_the_rules_hold_and_everything_ends(
        config in config(),
        n_blocks in 1..60u32,
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let run = || {
            let mut world = World::new(config.clone(), n_blocks);
            ops.iter().for_each(|op| world.apply(op));
            world.finish();
            world.plans
        };
        prop_assert_eq!(run(), run(), "the same input gives the same plans");
    }

    /// Short prompts keep coming, as many as the queue takes, in a pool too small for all: neither a long
    /// prompt nor a late short one may starve.
    #[test]
    fn nobody_starves_in_a_crowd(n_long in 30..90usize, n_short in 1..12usize, n_new in 1..8usize) {
        let config = Config {
            max_step_tokens: 16,
            max_running: 4,
            max_waiting: 8,
            reserve_cap_tokens: 4,
            tenant_percent: 50,
            age_after: Duration::from_millis(60),
        };
        let mut world = World::new(config, 24);
        for _ in 0..6 {
            world.submit(Kind::Decode, 3, n_short, n_new);
        }
        world.submit(Kind::Decode, 3, n_long, n_new);
        let long = *world.seqs.last_key_value().unwrap().0;
        let mut born: BTreeMap<SeqId, usize> = BTreeMap::new();
        for step in 0..600 {
            while world.scheduler.stats().n_waiting < 8 {
                world.submit(Kind::Decode, 3, n_short, n_new);
                born.insert(*world.seqs.last_key_value().unwrap().0, step);
            }
            world.apply(&Op::Plan);
            world.apply(&Op::Complete { undone: false });
            prop_assert!(step < 100 || !world.seqs.contains_key(&long), "the long one starves");
            for (seq, birth) in &born {
                prop_assert!(step - birth < 100 || !world.seqs.contains_key(seq), "{:?} starves", seq);
            }
        }
    }
}
