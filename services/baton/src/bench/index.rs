//! `baton bench index`: the prefix index on one core, and recorded arrivals against the routing policies.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use index::{Config, PrefixIndex};
use replay::{Knowledge, Outcome, PrefillTime, Setup, Trace};
use routing::Policy;
use serde_json::{Value, json};
use types::{BlockHash, Epoch, KvEvent, KvEventBatch, WorkerId, WorkerRef};

use super::args::BenchIndexArgs;

/// Blocks of a conversation, and how many of them begin its group.
const CHAIN: usize = 128;
const SHARED: usize = 32;
/// Conversations that begin alike.
const GROUP: usize = 16;
const N_WORKERS: usize = 8;
const NOW: Duration = Duration::ZERO;

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn run(args: &BenchIndexArgs) -> anyhow::Result<()> {
    args.validate()?;
    let speed = measure(args.blocks);
    let mut replays = Vec::new();
    for path in &args.trace {
        replays.extend(replay(path, args)?);
    }
    if args.json {
        println!("{}", json!({ "index": speed, "replays": replays }));
        return Ok(());
    }
    let figure = |name: &str| speed[name].as_f64().unwrap_or_default();
    println!("{} resident blocks, one core", args.blocks);
    for name in ["store_ops_per_s", "churn_ops_per_s"] {
        println!("  {name:<20} {:>12.0}", figure(name));
    }
    for name in ["lookup_p50_us", "lookup_p99_us", "absent_p50_us", "absent_p99_us", "bytes_per_block"] {
        println!("  {name:<20} {:>12.2}", figure(name));
    }
    if !replays.is_empty() {
        println!(
            "\n{:<22} {:<13} {:<8} {:>8} {:>6} {:>9} {:>9} {:>7}",
            "trace", "policy", "knows", "cache", "ideal", "p50 s", "p99 s", "busiest"
        );
    }
    for line in &replays {
        let text = |name: &str| line[name].as_str().unwrap_or_default();
        let number = |name: &str| line[name].as_f64().unwrap_or_default();
        println!(
            "{:<22} {:<13} {:<8} {:>8} {:>5.1}% {:>9.3} {:>9.3} {:>7.2}",
            text("trace"),
            text("policy"),
            text("knowledge"),
            number("cache_blocks"),
            100.0 * number("share_of_ideal"),
            number("first_token_p50_s"),
            number("first_token_p99_s"),
            number("busiest"),
        );
    }
    Ok(())
}

/// Names as random as hashes: of block `at` of conversation `n`, whose group shares its first ones.
fn conversation(n: usize) -> Vec<BlockHash> {
    let name = |n: usize, at: usize| {
        let mut state = (n as u64) << 20 ^ at as u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        };
        BlockHash((u128::from(next()) << 64 | u128::from(next())).to_be_bytes())
    };
    let group = |at: usize| if at < SHARED { n / GROUP * GROUP } else { n };
    (0..CHAIN).map(|at| name(group(at), at)).collect()
}

/// Fills an index with `n_blocks` blocks and times what a router does with it.
fn measure(n_blocks: usize) -> Value {
    let bytes = n_blocks.saturating_mul(2 * 64);
    let mut index = PrefixIndex::new(Config { bytes, ..Config::default() });
    let workers: Vec<_> =
        (0..N_WORKERS).map(|n| WorkerRef { id: WorkerId::new(format!("prefill-{n}")), epoch: Epoch(1) }).collect();
    let mut ids = [0_u64; N_WORKERS];
    let mut apply = |index: &mut PrefixIndex, worker: usize, events: Vec<KvEvent>| {
        ids[worker] += 1;
        index.apply(&workers[worker], &KvEventBatch { id: ids[worker], events }).expect("batches come in order")
    };
    for worker in 0..N_WORKERS {
        apply(&mut index, worker, vec![KvEvent::Cleared]);
    }
    let store = |n: usize| KvEvent::Stored { hashes: conversation(n), parent: None };
    // A worker for each group, and a second one for every other conversation: holders differ along a chain.
    let holder = |n: usize| n / GROUP % N_WORKERS;
    let second = |n: usize| (holder(n) + 1 + n % (N_WORKERS - 1)) % N_WORKERS;

    let (mut n, mut n_ops, mut spent) = (0, 0, Duration::ZERO);
    while index.stats().told_blocks + CHAIN <= n_blocks {
        for worker in [holder(n), second(n)].into_iter().take(1 + n % 2) {
            let event = store(n);
            let begin = Instant::now();
            apply(&mut index, worker, vec![event]);
            spent += begin.elapsed();
            n_ops += CHAIN;
        }
        n += 1;
    }
    let (n_conversations, resident) = (n, index.stats().told_blocks);
    let store_rate = n_ops as f64 / spent.as_secs_f64();

    let lookup = |index: &mut PrefixIndex, prompts: &mut dyn Iterator<Item = Vec<BlockHash>>| {
        let mut times: Vec<f64> = prompts
            .map(|hashes| {
                let begin = Instant::now();
                std::hint::black_box(index.lookup(&hashes, NOW));
                begin.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 99 / 100])
    };
    let n_lookups = 200_000.min(20 * n_conversations);
    let pick = |i: usize| i.wrapping_mul(2_654_435_761) % n_conversations.max(1);
    let present = lookup(&mut index, &mut (0..n_lookups).map(|i| conversation(pick(i))));
    let absent = lookup(&mut index, &mut (0..n_lookups).map(|i| conversation(pick(i) + (1 << 40))));

    // Steady state of a full cache: the last quarter of a conversation goes and comes back.
    let (mut n_ops, mut spent) = (0, Duration::ZERO);
    for i in 0..n_conversations {
        let (n, tail) = (pick(i), CHAIN * 3 / 4);
        let hashes = conversation(n);
        let removed = KvEvent::Removed { hashes: hashes[tail..].iter().rev().copied().collect() };
        let stored = KvEvent::Stored { hashes: hashes[tail..].to_vec(), parent: Some(hashes[tail - 1]) };
        let begin = Instant::now();
        apply(&mut index, holder(n), vec![removed, stored]);
        spent += begin.elapsed();
        n_ops += 2 * (CHAIN - tail);
    }
    let churn_rate = n_ops as f64 / spent.as_secs_f64();

    json!({
        "resident_blocks": resident, "blocks_per_prompt": CHAIN, "workers": N_WORKERS,
        "store_ops_per_s": store_rate, "churn_ops_per_s": churn_rate,
        "lookup_p50_us": present.0, "lookup_p99_us": present.1,
        "absent_p50_us": absent.0, "absent_p99_us": absent.1,
        "bytes_per_block": bytes as f64 / 2.0 / index.n_told_max() as f64,
    })
}

/// Every policy on one trace: with a cache of the given part of its distinct blocks on each worker, and with that part
/// divided among them.
fn replay(path: &Path, args: &BenchIndexArgs) -> anyhow::Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let trace = Trace::from_mooncake(&text).with_context(|| path.display().to_string())?;
    let ideal = trace.ideal_hit_rate();
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let part = (trace.n_distinct() as f64 * args.cache) as usize;
    let mut lines = Vec::new();
    for cache_blocks in [part, part / args.workers] {
        for policy in Policy::ALL {
            let known = [Knowledge::Events, Knowledge::Choices];
            for knowledge in known.into_iter().take(1 + usize::from(policy.is_prefix_aware())) {
                let time = PrefillTime::A100X4_13B;
                let setup = Setup { policy, knowledge, n_workers: args.workers, cache_blocks, time, speed: args.speed };
                let begin = Instant::now();
                let Outcome { hit_rate, predicted_hit_rate, first_token, busiest, utilization } =
                    replay::run(&trace, &setup);
                lines.push(json!({
                    "trace": name, "policy": policy.as_str(),
                    "knowledge": match knowledge {
                        _ if !policy.is_prefix_aware() => "none",
                        Knowledge::Events => "events",
                        Knowledge::Choices => "choices",
                    },
                    "workers": args.workers, "cache_blocks": cache_blocks, "speed": args.speed,
                    "hit_rate": hit_rate, "predicted_hit_rate": predicted_hit_rate,
                    "ideal_hit_rate": ideal, "share_of_ideal": hit_rate / ideal,
                    "first_token_mean_s": first_token.mean.as_secs_f64(),
                    "first_token_p50_s": first_token.p50.as_secs_f64(),
                    "first_token_p99_s": first_token.p99.as_secs_f64(),
                    "busiest": busiest, "utilization": utilization,
                    "wall_s": begin.elapsed().as_secs_f64(),
                }));
            }
        }
    }
    Ok(lines)
}
