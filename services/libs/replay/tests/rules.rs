//! The simulation on traces small enough to be reckoned by hand.

use std::time::Duration;

use replay::{Knowledge, PrefillTime, Setup, Trace};
use routing::Policy;

/// A second for every thousand tokens.
const TIME: PrefillTime = PrefillTime { fixed: 0.0, token: 1e-3, pair: 0.0 };

fn setup(policy: Policy, n_workers: usize, cache_blocks: usize) -> Setup {
    Setup { policy, knowledge: Knowledge::Events, n_workers, cache_blocks, time: TIME, speed: 1.0 }
}

/// Requests at so many milliseconds, with these blocks, all of them full.
fn trace(requests: &[(u64, &[u64])]) -> Trace {
    let line = |(at, ids): &(u64, &[u64])| {
        format!(
            r#"{{"timestamp": {at}, "input_length": {}, "output_length": 1, "hash_ids": {ids:?}}}"#,
            512 * ids.len()
        )
    };
    Trace::from_mooncake(&requests.iter().map(line).collect::<Vec<_>>().join("\n")).expect("a trace")
}

#[test]
fn queue_and_cache_are_counted() {
    let trace = trace(&[(0, &[1, 2]), (100, &[1, 2, 3]), (5000, &[1, 2]), (9000, &[9])]);
    assert_eq!((trace.n_blocks(), trace.n_distinct(), trace.ideal_hit_rate()), (8, 4, 0.5));
    let one = replay::run(&trace, &setup(Policy::Cost, 1, 100));
    // 1024 tokens; then 512 after waiting until 1.024; then the last token alone; then 512.
    let times = [1.024, 1.024 - 0.1 + 0.512, 0.001, 0.512];
    let mean = times.iter().sum::<f64>() / 4.0;
    assert!((one.first_token.mean.as_secs_f64() - mean).abs() < 1e-6, "{one:?}");
    assert_eq!((one.hit_rate, one.busiest), (0.5, 1.0));
    assert_eq!(one.first_token.p99, Duration::from_millis(1436));
    let none = replay::run(&trace, &setup(Policy::Cost, 1, 0));
    assert_eq!(none.hit_rate, 0.0);
    let small = replay::run(&trace, &setup(Policy::Cost, 1, 1));
    assert_eq!(small.hit_rate, 2.0 / 8.0, "the beginning alone stays");
}

#[test]
fn two_workers_share_what_comes_together() {
    let trace = trace(&[(0, &[1, 2]), (0, &[3, 4]), (10_000, &[3, 4, 5]), (10_000, &[1, 2, 6])]);
    for policy in [Policy::Cost, Policy::PrefixAware] {
        let two = replay::run(&trace, &setup(policy, 2, 100));
        assert_eq!((two.hit_rate, two.busiest), (0.4, 1.0), "{policy}");
        assert_eq!(two.first_token.p99, Duration::from_millis(1024), "{policy}");
    }
}

#[test]
fn bad_lines_are_named() {
    for (text, line) in [("{}", 1), ("\n{\"timestamp\": -1}", 2), ("[1]", 1)] {
        assert_eq!(Trace::from_mooncake(text).expect_err("refused").line, line, "{text}");
    }
    let back = r#"{"timestamp": 5, "input_length": 1, "output_length": 1, "hash_ids": []}
{"timestamp": 4, "input_length": 1, "output_length": 1, "hash_ids": []}"#;
    assert_eq!(Trace::from_mooncake(back).expect_err("refused").line, 2);
}
