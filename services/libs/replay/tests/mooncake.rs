//! Replays of recorded arrivals. They need the traces beside the checkout and say loudly when they are absent.

#![allow(clippy::print_stderr, reason = "a test that was skipped says so")]

use std::path::PathBuf;

use replay::{Knowledge, PrefillTime, Setup, Trace};
use routing::Policy;

/// Requests of a shortened replay.
const N: usize = 3000;

fn trace(name: &str) -> Option<Trace> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../../shared");
    let shared = std::env::var_os("BATON_SHARED").map_or_else(beside, PathBuf::from);
    let path = shared.join("traces").join(format!("mooncake-{name}.jsonl"));
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(Trace::from_mooncake(&text).expect("a trace")),
        Err(error) => {
            eprintln!("NO TRACE at {} ({error}): this check did not run", path.display());
            None
        }
    }
}

fn setup(trace: &Trace, policy: Policy, knowledge: Knowledge) -> Setup {
    let cache_blocks = trace.n_distinct() / 4;
    Setup { policy, knowledge, n_workers: 8, cache_blocks, time: PrefillTime::A100X4_13B, speed: 1.0 }
}

#[test]
fn cost_finds_what_is_cached_and_keeps_the_tail_short() {
    for name in ["conversation", "synthetic"] {
        let Some(mut trace) = trace(name) else { return };
        trace.arrivals.truncate(N);
        let ideal = trace.ideal_hit_rate();
        let blind = replay::run(&trace, &setup(&trace, Policy::LeastLoaded, Knowledge::Events));
        for knowledge in [Knowledge::Events, Knowledge::Choices] {
            let cost = replay::run(&trace, &setup(&trace, Policy::Cost, knowledge));
            let share = cost.hit_rate / ideal;
            assert!(share >= 0.85, "{name}, {knowledge:?}: {share} of the ideal {ideal}: {cost:?}");
            let (ours, theirs) = (cost.first_token.p99, blind.first_token.p99);
            assert!(ours <= theirs, "{name}, {knowledge:?}: p99 {ours:?}, least-loaded {theirs:?}");
        }
        assert!(blind.hit_rate < 0.7 * ideal, "{name}: a policy that does not look finds {}", blind.hit_rate);
    }
}

#[test]
fn a_replay_is_a_function_of_its_trace() {
    let Some(mut trace) = trace("synthetic") else { return };
    trace.arrivals.truncate(500);
    for policy in Policy::ALL {
        let setup = setup(&trace, policy, Knowledge::Events);
        assert_eq!(replay::run(&trace, &setup), replay::run(&trace, &setup), "{policy}");
    }
}
