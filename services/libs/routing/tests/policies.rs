//! The policies, each by what it is for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use routing::{Ask, Choice, InFlight, NoPrefill, Observation, Partner, Policy, Rules, Work, WorkerInfo, WorkerTable};
use types::{
    Compatibility, Epoch, KvElement, KvGeometry, LayerKv, LayerKvKind, Load, RequestId, Role, WorkerId, WorkerRef,
};

const WORK: Work = Work { n_prompt: 4000, n_new: 100 };
const NOW: Duration = Duration::from_secs(100);

fn worker(role: Role, n: usize) -> WorkerInfo {
    let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 1, head_dim: 8 }, window: None };
    WorkerInfo {
        kv_endpoints: types::KvEndpoints::default(),
        worker: WorkerRef { id: WorkerId::new(format!("{role}-{n:02}")), epoch: Epoch(1) },
        role,
        model: "m".into(),
        rpc_address: String::new(),
        kv_address: String::new(),
        admin_address: String::new(),
        max_context: 1 << 20,
        compatibility: Some(Compatibility {
            protocol: (1, 1),
            model_digest: String::new(),
            model_revision: String::new(),
            geometry: KvGeometry { block_tokens: 16, element: KvElement::F32, layers: vec![layer] },
            rope: String::new(),
            attention: String::new(),
            quantization: String::new(),
            adapters: vec![],
            drafter: String::new(),
            numerics: String::new(),
        }),
        device: String::new(),
        draining: false,
    }
}

struct Bench {
    table: WorkerTable,
    cached: BTreeMap<WorkerRef, u32>,
    next: u128,
}

impl Bench {
    fn new(policy: Policy, n_prefill: usize, n_decode: usize) -> Self {
        Self::with(Rules { policy, local_tokens: 0 }, n_prefill, n_decode)
    }

    fn with(rules: Rules, n_prefill: usize, n_decode: usize) -> Self {
        let mut table = WorkerTable::new("m", rules);
        let prefills = (0..n_prefill).map(|n| worker(Role::Prefill, n));
        table.set_members(prefills.chain((0..n_decode).map(|n| worker(Role::Decode, n))));
        Self { table, cached: BTreeMap::new(), next: 0 }
    }

    fn choose(&mut self, work: Work) -> Choice {
        let turn = self.next as u64;
        self.next += 1;
        let request = RequestId(self.next);
        let ask = Ask { request, choice: 0, work, cached: &self.cached, avoid: &[], begun: None, turn };
        self.table.choose(&ask, NOW)
    }

    fn pair(&mut self) -> (usize, Option<usize>) {
        let best = self.choose(WORK).pairs.into_iter().next().expect("a decode worker");
        (number(&best.decode), best.prefill.ok().map(|p| number(&p)))
    }

    fn holds(&mut self, role: Role, n: usize, tokens: u32) {
        self.cached.insert(worker(role, n).worker, tokens);
    }

    fn report(&mut self, role: Role, n: usize, load: Load) {
        self.table.report(&worker(role, n).worker, load);
    }
}

fn number(info: &WorkerInfo) -> usize {
    info.worker.id.as_str().rsplit('-').next().expect("a number").parse().expect("a number")
}

#[test]
fn each_policy_has_a_name() {
    for policy in Policy::ALL {
        assert_eq!(policy.as_str().parse(), Ok(policy));
    }
    assert!("Cost".parse::<Policy>().is_err());
}

#[test]
fn round_robin_takes_turns_on_both_sides() {
    let mut bench = Bench::new(Policy::RoundRobin, 3, 2);
    let pairs: Vec<_> = (0..6).map(|_| bench.pair()).collect();
    assert_eq!(pairs, [(0, Some(0)), (1, Some(1)), (0, Some(2)), (1, Some(0)), (0, Some(1)), (1, Some(2))]);
}

#[test]
fn power_of_two_takes_the_less_loaded_of_two_and_the_same_for_the_same_request() {
    let mut bench = Bench::new(Policy::PowerOfTwo, 8, 1);
    bench.report(Role::Prefill, 3, Load { n_waiting_tokens: 9000, ..Load::default() });
    let mut counts = [0; 8];
    for _ in 0..800 {
        counts[bench.pair().1.expect("a prefill worker")] += 1;
        bench.next -= 1;
        let again = bench.pair().1;
        bench.next -= 1;
        assert_eq!(again, bench.pair().1);
    }
    assert_eq!(counts[3], 0, "the other one of the two is always less loaded");
    let others = counts.iter().enumerate().filter(|(n, _)| *n != 3).map(|(_, c)| *c);
    assert!(others.clone().all(|c| (60..200).contains(&c)), "{counts:?}");
}

#[test]
fn prefix_aware_follows_the_cache_until_the_load_is_uneven() {
    let mut bench = Bench::new(Policy::PrefixAware, 4, 1);
    bench.holds(Role::Prefill, 2, 3000);
    assert_eq!(bench.pair().1, Some(2));
    bench.report(Role::Prefill, 2, Load { n_running: 8, ..Load::default() });
    assert_eq!(bench.pair().1, Some(2));
    bench.report(Role::Prefill, 2, Load { n_running: 9, n_waiting_tokens: 10, ..Load::default() });
    assert_eq!(bench.pair().1, Some(0));
}

#[test]
fn cost_weighs_the_cache_against_the_queue() {
    let mut bench = Bench::new(Policy::Cost, 3, 1);
    bench.holds(Role::Prefill, 1, 3000);
    bench.report(Role::Prefill, 1, Load { n_waiting_tokens: 2500, ..Load::default() });
    assert_eq!(bench.pair().1, Some(1), "waiting for 2500 tokens is shorter than computing 3000");
    bench.report(Role::Prefill, 1, Load { n_waiting_tokens: 4000, ..Load::default() });
    assert_ne!(bench.pair().1, Some(1));
}

#[test]
fn cost_learns_who_is_slow() {
    let mut bench = Bench::new(Policy::Cost, 2, 1);
    for n in 0..8 {
        for _ in 0..20 {
            let time = Duration::from_millis(if n % 2 == 0 { 400 } else { 100 });
            let seen = Observation::Prompt { cost: 1000, time };
            bench.table.observe(&worker(Role::Prefill, n % 2).worker, seen, NOW);
        }
    }
    bench.report(Role::Prefill, 1, Load { n_waiting_tokens: 4000, ..Load::default() });
    assert_eq!(bench.pair().1, Some(1), "twice the work at four times the speed");
    bench.report(Role::Prefill, 1, Load { n_waiting_tokens: 40_000, ..Load::default() });
    assert_eq!(bench.pair().1, Some(0));
}

#[test]
fn cost_chooses_the_pair_and_counts_what_is_moved() {
    let mut bench = Bench::new(Policy::Cost, 2, 3);
    bench.holds(Role::Decode, 2, 3900);
    assert_eq!(bench.pair().0, 2, "fewer blocks to move");
    let busy = Load { n_running: 30, blocks_total: 10_000, blocks_free: 3_000, ..Load::default() };
    bench.report(Role::Decode, 2, busy);
    assert_ne!(bench.pair().0, 2, "its steps are slower by more");
    let full = Load { blocks_total: 10_000, blocks_free: 300, ..Load::default() };
    (0..3).for_each(|n| bench.report(Role::Decode, n, full));
    bench.report(Role::Decode, 1, Load { blocks_free: 3_000, ..full });
    bench.cached.clear();
    assert_eq!(bench.pair().0, 1, "room");
}

#[test]
fn an_idle_cluster_is_used_evenly() {
    let mut bench = Bench::new(Policy::Cost, 4, 4);
    let mut counts = BTreeMap::<_, u32>::new();
    (0..1600).for_each(|_| *counts.entry(bench.pair()).or_default() += 1);
    assert_eq!(counts.len(), 16, "every pair");
    assert!(counts.values().all(|c| (60..150).contains(c)), "{counts:?}");
}

#[test]
fn a_prompt_that_decode_mostly_holds_or_that_is_short_is_not_handed_over() {
    for policy in Policy::ALL {
        let mut bench = Bench::with(Rules { policy, local_tokens: 64 }, 1, 2);
        let first = |choice: &Choice| choice.pairs[0].prefill.clone().map(|p| p.worker.clone());
        assert!(first(&bench.choose(WORK)).is_ok());
        assert_eq!(first(&bench.choose(Work { n_prompt: 64, n_new: 1 })), Err(NoPrefill::Local));
        assert!(first(&bench.choose(Work { n_prompt: 65, n_new: 1 })).is_ok());
        bench.holds(Role::Decode, 1, 3936);
        let of_1 = bench.choose(WORK).pairs.into_iter().find(|p| number(&p.decode) == 1).expect("offered");
        assert_eq!((of_1.prefill, of_1.cached), (Err(NoPrefill::Local), 3936));
    }
    let mut bench = Bench::with(Rules { policy: Policy::Cost, local_tokens: 64 }, 1, 2);
    bench.holds(Role::Decode, 1, 3936);
    let best = bench.choose(WORK).pairs.swap_remove(0);
    assert_eq!((number(&best.decode), best.prefill), (1, Err(NoPrefill::Local)), "and cost prefers it");
    let mut never = Bench::with(Rules { policy: Policy::Cost, local_tokens: 0 }, 1, 1);
    never.holds(Role::Decode, 0, 4000);
    assert!(never.choose(WORK).pairs[0].prefill.is_ok(), "the last token is always computed");
}

#[test]
fn every_candidate_is_explained_by_terms_that_add_up() {
    let mut bench = Bench::new(Policy::Cost, 3, 2);
    bench.holds(Role::Prefill, 1, 3000);
    bench.table.suspect(&worker(Role::Prefill, 0).worker, NOW, NOW * 2);
    let Choice { pairs, explanation } = bench.choose(WORK);
    assert_eq!((explanation.policy, explanation.n_prompt), (Policy::Cost, 4000));
    let order: Vec<_> = explanation.decodes.iter().map(|c| &c.worker).collect();
    assert_eq!(order, pairs.iter().map(|p| &p.decode.worker).collect::<Vec<_>>());
    let best = &explanation.decodes[0];
    assert_eq!(best.partner, Some(Partner::Prefill(worker(Role::Prefill, 1).worker)));
    let names: Vec<_> = best.score.terms.iter().map(|t| t.name).collect();
    assert_eq!(names, ["pace", "room", "spread", "queue", "prefill", "spread", "transfer"]);
    let sum: f64 = best.score.terms.iter().map(|t| t.value).sum();
    assert!((best.score.total() - sum).abs() < 1e-12 && sum > 0.0);
    let prefills: Vec<_> = explanation.prefills.iter().map(|c| (c.worker.id.as_str(), c.cached)).collect();
    assert_eq!(prefills, [("prefill-01", 3000), ("prefill-02", 0), ("prefill-00", 0)]);
    assert_eq!(explanation.prefills[2].against, ["suspect"]);
}

/// Requests that share a prompt of 4,000 tokens and end in 100 of their own come as fast as eight workers can compute
/// their ends. Each worker computes 10,000 tokens a second, in order, and holds the shared part after its first.
/// `counted`: the router counts what it has given out. Returns the fullest worker's share of the work, as a multiple of the
/// mean, and how many hold the shared part.
fn hot_prefix(policy: Policy, counted: bool) -> (f64, usize) {
    const RATE: u64 = 10_000;
    let work = Work { n_prompt: 4100, n_new: 10 };
    let mut bench = Bench::new(policy, 8, 1);
    let mut queues: Vec<VecDeque<(u64, Option<InFlight>)>> = (0..8).map(|_| VecDeque::new()).collect();
    let mut loads = [0_u64; 8];
    // A tick is the time of one token; a request comes every 100 / 8 tokens, a tenth more often than can be served.
    let mut n_requests = 0;
    for tick in 0..200_000_u64 {
        for queue in &mut queues {
            if let Some((left, _)) = queue.front_mut() {
                *left -= 1;
                if *left == 0 {
                    queue.pop_front();
                }
            }
        }
        if tick * 11 / 125 == n_requests {
            continue;
        }
        n_requests += 1;
        let best = bench.choose(work).pairs.swap_remove(0);
        let prefill = best.prefill.expect("a prefill worker");
        let n = number(&prefill);
        let tokens = work.n_prompt - best.cached;
        let guard = bench.table.start_prompt(&prefill.worker, work, best.cached).expect("it is there");
        queues[n].push_back((u64::from(tokens), counted.then_some(guard)));
        loads[n] += u64::from(tokens);
        bench.cached.insert(prefill.worker.clone(), 4000);
        let seen = Observation::Prompt {
            cost: work.prompt_cost(best.cached),
            time: Duration::from_secs_f64(f64::from(tokens) / RATE as f64),
        };
        bench.table.observe(&prefill.worker, seen, NOW);
    }
    let mean = loads.iter().sum::<u64>() as f64 / 8.0;
    (*loads.iter().max().expect("eight") as f64 / mean, bench.cached.len())
}

#[test]
fn a_hot_prefix_does_not_melt_its_worker() {
    for policy in [Policy::Cost, Policy::PrefixAware] {
        let (most, n_holders) = hot_prefix(policy, true);
        assert_eq!(n_holders, 8, "{policy}: it was computed elsewhere once queues had grown");
        assert!(most <= 1.3, "{policy}: the fullest worker has {most} times the mean");
        let (most, _) = hot_prefix(policy, false);
        assert!(most > 4.0, "{policy}: without its queue in sight one worker gets most of it: {most}");
    }
}
