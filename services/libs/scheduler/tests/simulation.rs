//! Random arrivals, cancellations, transfers and preemptions against a model of what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;
use scheduler::{
    Cancelled, Config, HoldId, Kind, LandingId, Plan, ReservationId, Scheduler, SeqId, Submission, Verdict,
};
use types::BlockIdx;

const BLOCK_TOKENS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Submit { prefill: bool, n_prompt: usize, n_new: usize },
    Reserve { n_prompt: usize, n_new: usize },
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
        3 => (any::<bool>(), prompt.clone(), new.clone())
            .prop_map(|(prefill, n_prompt, n_new)| Op::Submit { prefill, n_prompt, n_new }),
        2 => (prompt, new).prop_map(|(n_prompt, n_new)| Op::Reserve { n_prompt, n_new }),
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

/// What the model knows of a living sequence.
#[derive(Debug)]
struct Seq {
    kind: Kind,
    n_tokens: usize,
    n_end: usize,
    n_computed: usize,
    /// Had a slice and was not preempted since.
    resident: bool,
    cancelled: bool,
}

struct World {
    config: Config,
    n_blocks: u32,
    scheduler: Scheduler,
    now: Duration,
    seqs: BTreeMap<SeqId, Seq>,
    reservations: Vec<(ReservationId, usize, usize)>,
    landings: Vec<(LandingId, Vec<BlockIdx>, usize, usize)>,
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
            holds: BTreeMap::new(),
            step: vec![],
            plans: vec![],
        }
    }

    fn apply(&mut self, op: &Op) {
        self.now += Duration::from_millis(3);
        match *op {
            Op::Submit { prefill, n_prompt, n_new } => {
                let kind = if prefill { Kind::Prefill } else { Kind::Decode };
                self.submit(kind, n_prompt, n_new);
            }
            Op::Reserve { n_prompt, n_new } => {
                let deadline = self.now + Duration::from_millis(200);
                if let Ok((id, _)) = self.scheduler.reserve(n_prompt, n_new, deadline) {
                    self.reservations.push((id, n_prompt, n_new));
                }
            }
            Op::Claim(pick) if !self.reservations.is_empty() => {
                let (id, n_prompt, n_new) = self.reservations.swap_remove(pick % self.reservations.len());
                let claimed = self.scheduler.claim(id).expect("not expired: the model removes those");
                assert_eq!(claimed.blocks.len(), n_prompt.div_ceil(BLOCK_TOKENS));
                self.check_unowned(&claimed.blocks);
                self.holds.insert(claimed.hold, claimed.blocks.clone());
                self.landings.push((claimed.landing, claimed.blocks, n_prompt, n_new));
            }
            Op::Land { pick, handoff, n_generated } if !self.landings.is_empty() => {
                let (id, _, n_prompt, n_new) = self.landings.swap_remove(pick % self.landings.len());
                let n_generated = if handoff { 1 } else { n_generated.min(n_new) };
                let n_computed = if handoff { n_prompt } else { 0 };
                let n_tokens = n_prompt + n_generated;
                let n_end = (n_prompt + n_new).max(n_tokens + 1);
                let submission =
                    Submission { kind: Kind::Decode, n_tokens, max_tokens: n_end, deadline: Duration::MAX };
                match self.scheduler.submit_landed(self.now, id, n_computed, submission).unwrap() {
                    Ok(seq) => self.insert(seq, Kind::Decode, n_tokens, n_end, n_computed),
                    Err(_) => self.scheduler.cancel_landing(id),
                }
            }
            Op::DropLanding(pick) if !self.landings.is_empty() => {
                let (id, ..) = self.landings.swap_remove(pick % self.landings.len());
                self.scheduler.cancel_landing(id);
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

    fn submit(&mut self, kind: Kind, n_prompt: usize, n_new: usize) {
        let (n_tokens, max_tokens) = (n_prompt, n_prompt + n_new);
        let submission = Submission { kind, n_tokens, max_tokens, deadline: Duration::MAX };
        if let Ok(seq) = self.scheduler.submit(self.now, submission) {
            let n_end = if kind == Kind::Prefill { n_tokens + 1 } else { max_tokens };
            self.insert(seq, kind, n_tokens, n_end, 0);
        }
    }

    fn insert(&mut self, id: SeqId, kind: Kind, n_tokens: usize, n_end: usize, n_computed: usize) {
        let seq = Seq { kind, n_tokens, n_end, n_computed, resident: false, cancelled: false };
        assert!(self.seqs.last_key_value().is_none_or(|(last, _)| *last < id), "ids follow arrival");
        self.seqs.insert(id, seq);
    }

    fn plan(&mut self) {
        let before = self.owned();
        let plan = self.scheduler.plan(self.now);
        for seq in &plan.preempted {
            let seq = self.seqs.get_mut(seq).unwrap();
            assert_eq!(seq.kind, Kind::Decode, "held blocks are not taken away");
            (seq.n_computed, seq.resident) = (0, false);
        }
        for start in &plan.started {
            assert_eq!(start.hold.is_some(), self.seqs[&start.seq].kind == Kind::Prefill);
            let blocks = self.scheduler.blocks(start.seq).to_vec();
            self.holds.extend(start.hold.map(|hold| (hold, blocks)));
        }
        let of_holds: BTreeSet<BlockIdx> = before.holds;
        assert!(plan.fresh.iter().all(|block| !of_holds.contains(block)), "a block under transfer changed hands");
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
            assert_eq!(slice.first, seq.n_computed);
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
        for (_, blocks, ..) in &self.landings {
            requests.extend_from_slice(blocks);
        }
        Owned { requests, holds: self.holds.values().flatten().copied().collect() }
    }

    fn check_unowned(&self, blocks: &[BlockIdx]) {
        let owned = self.owned();
        assert!(blocks.iter().all(|block| !owned.requests.contains(block) && !owned.holds.contains(block)));
    }

    fn check(&self) {
        let owned = self.owned();
        let requests: BTreeSet<BlockIdx> = owned.requests.iter().copied().collect();
        assert_eq!(requests.len(), owned.requests.len(), "a block of two sequences");
        let stats = self.scheduler.stats();
        let blocks = stats.blocks;
        assert_eq!((blocks.request, blocks.transfer), (requests.len() as u32, owned.holds.len() as u32));
        assert_eq!(blocks.free, self.n_blocks - requests.union(&owned.holds).count() as u32, "conservation");
        assert!(stats.promised_blocks <= blocks.free, "promises can be kept");
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
        assert_eq!(self.scheduler.stats().blocks.free, self.n_blocks);
        assert_eq!(self.scheduler.stats().promised_blocks, 0);
    }
}

struct Owned {
    requests: Vec<BlockIdx>,
    holds: BTreeSet<BlockIdx>,
}

fn config() -> impl Strategy<Value = Config> {
    (1..40usize, 1..8usize, 1..10usize, 1..40usize, 0..100u64).prop_map(|(step, running, waiting, cap, age)| Config {
        max_step_tokens: step.max(running),
        max_running: running,
        max_waiting: waiting,
        reserve_cap_tokens: cap,
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
            age_after: Duration::from_millis(60),
        };
        let mut world = World::new(config, 24);
        for _ in 0..6 {
            world.submit(Kind::Decode, n_short, n_new);
        }
        world.submit(Kind::Decode, n_long, n_new);
        let long = *world.seqs.last_key_value().unwrap().0;
        let mut born: BTreeMap<SeqId, usize> = BTreeMap::new();
        for step in 0..600 {
            while world.scheduler.stats().n_waiting < 8 {
                world.submit(Kind::Decode, n_short, n_new);
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
