//! Each rule as a small script and the steps it must give.
//!
//! A script's lines, with times in milliseconds and names of one letter:
//! `a = decode 40 +4` submits 40 tokens and up to 4 new ones; `a = prefill 40`; `cancel a`; `at 500` sets the
//! time; `plan` gives a step and leaves it running; `done` completes it; `step` does both. A sequence ends
//! when it has its tokens. A step prints as `a[0..16] b[3]!`: rows computed, `!` where a token is sampled;
//! `-a` where a sequence was preempted.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::time::Duration;

use kvcache::Tenant;
use scheduler::{Cancelled, Config, Kind, Refusal, Scheduler, SeqId, Step, Submission, Verdict};
use types::BlockHash;

const CONFIG: Config = Config {
    max_step_tokens: 16,
    max_running: 4,
    max_waiting: 4,
    reserve_cap_tokens: 8,
    tenant_percent: 50,
    age_after: Duration::from_millis(100),
};

struct Script {
    scheduler: Scheduler,
    now: Duration,
    names: BTreeMap<SeqId, (char, usize)>,
    tokens: BTreeMap<SeqId, usize>,
    running: Step,
    printed: String,
}

fn scheduler(config: &Config, n_blocks: u32) -> Scheduler {
    Scheduler::new(config.clone(), n_blocks, NonZeroU32::new(4).unwrap()).unwrap()
}

fn check(n_blocks: u32, script: &str, expected: &[&str]) {
    check_with(&CONFIG, n_blocks, script, expected);
}

#[track_caller]
fn check_with(config: &Config, n_blocks: u32, script: &str, expected: &[&str]) {
    let mut run = Script {
        scheduler: scheduler(config, n_blocks),
        now: Duration::ZERO,
        names: BTreeMap::new(),
        tokens: BTreeMap::new(),
        running: Step::default(),
        printed: String::new(),
    };
    for line in script.split(';') {
        run.line(&line.split_whitespace().collect::<Vec<_>>());
    }
    let printed: Vec<&str> = run.printed.lines().collect();
    assert_eq!(printed, expected);
}

impl Script {
    fn line(&mut self, words: &[&str]) {
        match *words {
            [name, "=", "decode", n, new] => self.submit(name, Kind::Decode, n, new),
            [name, "=", "prefill", n] => self.submit(name, Kind::Prefill, n, "+1"),
            ["cancel", name] => {
                let seq = self.seq(name);
                assert_ne!(self.scheduler.cancel(seq), Cancelled::Unknown);
            }
            ["at", ms] => self.now = Duration::from_millis(ms.parse().unwrap()),
            ["plan"] => self.plan(),
            ["done"] => self.done(),
            ["step"] => {
                self.plan();
                self.done();
            }
            ["steps", n] => (0..n.parse().unwrap()).for_each(|_| {
                self.plan();
                self.done();
            }),
            _ => panic!("{words:?}"),
        }
    }

    fn submit(&mut self, name: &str, kind: Kind, n: &str, new: &str) {
        let (n_tokens, new): (usize, usize) = (n.parse().unwrap(), new.trim_start_matches('+').parse().unwrap());
        let deadline = Duration::from_secs(3600);
        let submission = Submission { kind, n_tokens, max_tokens: n_tokens + new, deadline };
        let seq = self.scheduler.submit(self.now, submission).unwrap();
        self.names.insert(seq, (name.chars().next().unwrap(), n_tokens + new));
        self.tokens.insert(seq, n_tokens);
    }

    fn seq(&self, name: &str) -> SeqId {
        let (seq, _) = self.names.iter().find(|(_, (n, _))| name.starts_with(*n)).unwrap();
        *seq
    }

    fn plan(&mut self) {
        let plan = self.scheduler.plan(self.now);
        let mut parts = Vec::new();
        for seq in &plan.preempted {
            parts.push(format!("-{}", self.names[seq].0));
        }
        for slice in &plan.step.slices {
            let mut part = String::from(self.names[&slice.seq].0);
            match slice.n_tokens {
                1 => write!(part, "[{}]", slice.first).unwrap(),
                n => write!(part, "[{}..{}]", slice.first, slice.first + n).unwrap(),
            }
            parts.push(part + if slice.samples { "!" } else { "" });
        }
        writeln!(self.printed, "{}", parts.join(" ")).unwrap();
        self.running = plan.step;
    }

    fn done(&mut self) {
        let step = std::mem::take(&mut self.running);
        if step.is_empty() {
            return;
        }
        let verdict = |slice: &scheduler::Slice| {
            if !slice.samples {
                return Verdict::Advanced;
            }
            let tokens = self.tokens.get_mut(&slice.seq).unwrap();
            *tokens += 1;
            if *tokens == self.names[&slice.seq].1 { Verdict::Ended } else { Verdict::Sampled }
        };
        let verdicts: Vec<Verdict> = step.slices.iter().map(verdict).collect();
        self.scheduler.complete(&verdicts);
    }
}

#[test]
fn a_prompt_is_computed_in_chunks_and_then_token_by_token() {
    check(20, "a = decode 20 +3; steps 5", &["a[0..16]", "a[16..20]!", "a[20]!", "a[21]!", ""]);
    check(20, "a = prefill 20; steps 3", &["a[0..16]", "a[16..20]!", ""]);
}

#[test]
fn running_decodes_come_first_and_prompts_get_the_rest() {
    check(
        40,
        "a = decode 3 +9; b = decode 5 +9; step; c = decode 30 +2; steps 3",
        &["a[0..3]! b[0..5]!", "a[3]! b[5]! c[0..14]", "a[4]! b[6]! c[14..28]", "a[5]! b[7]! c[28..30]!"],
    );
}

#[test]
fn the_oldest_prompt_has_half_and_the_others_share_by_size_until_they_age() {
    let script = "a = decode 60 +1; b = decode 20 +1; c = decode 6 +1";
    check(60, &format!("{script}; steps 3"), &["a[0..8] c[0..6]! b[0..2]", "a[8..16] b[2..10]", "a[16..24] b[10..18]"]);
    check(60, &format!("{script}; at 100; steps 2"), &["a[0..8] b[0..8]", "a[8..16] b[8..16]"]);
}

#[test]
fn who_does_not_fit_is_overtaken_until_it_has_aged() {
    let script = "a = decode 20 +1; step; b = decode 20 +1; c = decode 4 +1";
    check(8, &format!("{script}; step"), &["a[0..16]", "a[16..20]! c[0..4]!"]);
    check(8, &format!("{script}; at 100; steps 3"), &["a[0..16]", "a[16..20]!", "b[0..12] c[0..4]!", "b[12..20]!"]);
}

#[test]
fn no_more_run_than_places_and_no_more_wait_than_the_queue_holds() {
    let config = Config { max_running: 1, max_waiting: 2, ..CONFIG };
    check_with(&config, 20, "a = decode 2 +2; b = decode 2 +1; steps 3", &["a[0..2]!", "a[2]!", "b[0..2]!"]);
    let mut full = scheduler(&config, 20);
    let submission = Submission { kind: Kind::Decode, n_tokens: 2, max_tokens: 3, deadline: Duration::from_secs(1) };
    full.submit(Duration::ZERO, submission).unwrap();
    full.submit(Duration::ZERO, submission).unwrap();
    assert_eq!(full.submit(Duration::ZERO, submission), Err(Refusal::QueueFull { n: 2 }));
}

#[test]
fn the_youngest_is_preempted_and_comes_back_with_all_it_had() {
    // Six blocks of four. Each is admitted with 4 + 8 rows promised, and wants 4 + 19.
    check(
        6,
        "a = decode 4 +20; b = decode 4 +20; steps 10",
        &[
            "a[0..4]! b[0..4]!",
            "a[4]! b[4]!",
            "a[5]! b[5]!",
            "a[6]! b[6]!",
            "a[7]! b[7]!",
            "a[8]! b[8]!",
            "a[9]! b[9]!",
            "a[10]! b[10]!",
            "a[11]! b[11]!",
            "-b a[12]!",
        ],
    );
    let mut run = "a = decode 4 +20; b = decode 4 +20; steps 9; step".to_owned();
    run.push_str("; steps 10; plan; done; step; step");
    let config = CONFIG;
    let mut world = Script {
        scheduler: scheduler(&config, 6),
        now: Duration::ZERO,
        names: BTreeMap::new(),
        tokens: BTreeMap::new(),
        running: Step::default(),
        printed: String::new(),
    };
    run.split(';').for_each(|line| world.line(&line.split_whitespace().collect::<Vec<_>>()));
    let lines: Vec<&str> = world.printed.lines().collect();
    assert_eq!(lines[19..21], ["a[22]!", "b[0..13]!"], "b comes back when a has ended");
}

#[test]
fn a_cancelled_sequence_ends_at_once_or_with_its_step() {
    check(20, "a = decode 20 +3; cancel a; step", &[""]);
    check(20, "a = decode 20 +3; step; cancel a; step", &["a[0..16]", ""]);
    check(20, "a = decode 20 +3; plan; cancel a; done; step", &["a[0..16]", ""]);
    let mut scheduler = scheduler(&CONFIG, 20);
    let submission = Submission { kind: Kind::Decode, n_tokens: 9, max_tokens: 12, deadline: Duration::MAX };
    let (a, b) = (scheduler.submit(Duration::ZERO, submission), scheduler.submit(Duration::ZERO, submission));
    scheduler.plan(Duration::ZERO);
    assert_eq!(scheduler.cancel(a.unwrap()), Cancelled::WithStep);
    assert!(!scheduler.step_is_moot(), "b still wants it");
    assert_eq!(scheduler.stats().blocks.free, 14, "its blocks are being written");
    assert_eq!(scheduler.cancel(b.unwrap()), Cancelled::WithStep);
    assert!(scheduler.step_is_moot());
    scheduler.complete(&[Verdict::Sampled, Verdict::Advanced]);
    assert!(scheduler.is_empty());
    assert_eq!((scheduler.stats().blocks.free, scheduler.stats().promised_blocks), (20, 0));
    assert_eq!(scheduler.cancel(a.unwrap()), Cancelled::Unknown);
}

#[test]
fn deadlines_end_what_waits_and_what_runs() {
    let mut scheduler = scheduler(&Config { max_running: 1, ..CONFIG }, 20);
    let ms = Duration::from_millis;
    let submission = |deadline| Submission { kind: Kind::Decode, n_tokens: 9, max_tokens: 12, deadline };
    let a = scheduler.submit(ms(0), submission(ms(30))).unwrap();
    let b = scheduler.submit(ms(0), submission(ms(20))).unwrap();
    let (r, _) = scheduler.reserve(8, 8, ms(10)).unwrap();
    scheduler.plan(ms(0));
    assert_eq!(scheduler.next_deadline(), Some(ms(10)));
    assert_eq!(scheduler.expire(ms(10)).reservations, [r]);
    assert_eq!(scheduler.expire(ms(20)).sequences, [b]);
    assert_eq!(scheduler.expire(ms(40)).sequences, [a]);
    assert_eq!(scheduler.next_deadline(), None, "what is ending has no deadline any more");
    assert!(scheduler.step_is_moot());
    scheduler.complete(&[Verdict::Advanced]);
    assert!(scheduler.is_empty());
}

#[test]
fn room_is_promised_then_allocated_then_a_sequences() {
    let mut scheduler = scheduler(&CONFIG, 10);
    let later = Duration::from_secs(9);
    assert_eq!(scheduler.reserve(36, 9, later), Err(Refusal::TooLong { needed: 11, total: 10 }));
    let (id, n_blocks) = scheduler.reserve(9, 20, later).unwrap();
    assert_eq!(n_blocks, 5, "9 + 8 rows: new tokens count up to the cap");
    assert_eq!(scheduler.reserve(20, 20, later), Err(Refusal::NoRoom { needed: 7, available: 5 }));
    assert_eq!(scheduler.stats().blocks.free, 10);
    let claimed = scheduler.claim(id, &[]).unwrap();
    assert_eq!((claimed.blocks.len(), scheduler.claim(id, &[])), (3, None));
    let stats = scheduler.stats();
    assert_eq!((stats.blocks.free, stats.blocks.request, stats.blocks.transfer, stats.promised_blocks), (7, 3, 3, 2));
    let submission = Submission { kind: Kind::Decode, n_tokens: 10, max_tokens: 12, deadline: later };
    let seq = scheduler.submit_landed(Duration::ZERO, claimed.landing, 9, submission).unwrap().unwrap();
    scheduler.release_hold(claimed.hold);
    let plan = scheduler.plan(Duration::ZERO);
    assert_eq!((plan.step.slices[0].first, plan.step.slices[0].samples), (9, true));
    assert_eq!(scheduler.blocks(seq), claimed.blocks);
    scheduler.complete(&[Verdict::Ended]);
    assert_eq!((scheduler.stats().blocks.free, scheduler.stats().promised_blocks), (10, 0));
    assert!(scheduler.submit_landed(Duration::ZERO, claimed.landing, 9, submission).is_none());
}

#[test]
fn blocks_under_transfer_outlive_their_sequence() {
    let mut scheduler = scheduler(&CONFIG, 2);
    let submission = Submission { kind: Kind::Prefill, n_tokens: 5, max_tokens: 6, deadline: Duration::MAX };
    scheduler.submit(Duration::ZERO, submission).unwrap();
    let plan = scheduler.plan(Duration::ZERO);
    let hold = plan.started[0].hold.unwrap();
    scheduler.complete(&[Verdict::Ended]);
    scheduler.submit(Duration::ZERO, submission).unwrap();
    assert!(scheduler.plan(Duration::ZERO).step.is_empty(), "the reader has them still");
    scheduler.release_hold(hold);
    assert_eq!(scheduler.plan(Duration::ZERO).step.n_tokens(), 5);
}

#[test]
fn a_reservation_does_not_overtake_who_waits() {
    let mut scheduler = scheduler(&Config { max_running: 1, ..CONFIG }, 10);
    let submission = Submission { kind: Kind::Decode, n_tokens: 12, max_tokens: 20, deadline: Duration::MAX };
    scheduler.submit(Duration::ZERO, submission).unwrap();
    scheduler.plan(Duration::ZERO);
    scheduler.submit(Duration::ZERO, submission).unwrap();
    let refused = scheduler.reserve(4, 4, Duration::MAX);
    assert_eq!(refused, Err(Refusal::NoRoom { needed: 2, available: 0 }));
}

#[test]
fn blocks_given_up_in_the_queue_go_to_who_waits_longest_in_the_same_plan() {
    let mut scheduler = scheduler(&CONFIG, 10);
    let submission =
        |n_tokens| Submission { kind: Kind::Decode, n_tokens, max_tokens: n_tokens + 1, deadline: Duration::MAX };
    let (id, n_blocks) = scheduler.reserve(4, 4, Duration::MAX).unwrap();
    assert_eq!(n_blocks, 2);
    let claimed = scheduler.claim(id, &[]).unwrap();
    scheduler.release_hold(claimed.hold);
    let old = scheduler.submit(Duration::ZERO, submission(36)).unwrap();
    let now = Duration::from_millis(100);
    // Came with two blocks' room and needs three; the old one needs nine and closes the queue.
    let landed = scheduler.submit_landed(now, claimed.landing, 0, submission(12)).unwrap().unwrap();
    let plan = scheduler.plan(now);
    assert_eq!((plan.preempted, plan.step.slices[0].seq, plan.step.slices.len()), (vec![landed], old, 1));
}

/// Sequences that begin alike take the room of their beginning once.
#[test]
fn shared_blocks_take_room_once() {
    for (named, n_running) in [(true, 3), (false, 1)] {
        let mut scheduler = scheduler(&CONFIG, 10);
        let hashes: Vec<BlockHash> = (0..6).map(|at| BlockHash([at; 16])).collect();
        let submit = |scheduler: &mut Scheduler| {
            let submission =
                Submission { kind: Kind::Decode, n_tokens: 25, max_tokens: 29, deadline: Duration::from_secs(60) };
            let seq = scheduler.submit(Duration::ZERO, submission).unwrap();
            scheduler.name_blocks(seq, Tenant(0), if named { &hashes } else { &[] });
        };
        submit(&mut scheduler);
        for verdict in [Verdict::Advanced, Verdict::Sampled] {
            assert_eq!(scheduler.plan(Duration::ZERO).step.slices.len(), 1);
            scheduler.complete(&[verdict]);
        }
        submit(&mut scheduler);
        submit(&mut scheduler);
        let plan = scheduler.plan(Duration::ZERO);
        assert_eq!(plan.step.slices.len(), n_running, "7 blocks each, of 10");
        let firsts: Vec<usize> = plan.step.slices.iter().map(|slice| slice.first).collect();
        assert_eq!(firsts[1..], [24, 24][..n_running - 1], "behind what the first has computed");
    }
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let cases = [
        (Config { max_step_tokens: 0, ..CONFIG }, "max_step_tokens must be at least 1"),
        (Config { max_running: 0, ..CONFIG }, "max_running must be at least 1"),
        (Config { max_waiting: 0, ..CONFIG }, "max_waiting must be at least 1"),
        (Config { reserve_cap_tokens: 0, ..CONFIG }, "reserve_cap_tokens must be at least 1"),
        (Config { tenant_percent: 101, ..CONFIG }, "tenant_percent is 101, above 100"),
        (Config { max_running: 17, ..CONFIG }, "max_running is 17, above max_step_tokens, which is 16"),
    ];
    for (config, message) in cases {
        assert_eq!(config.validate().unwrap_err().to_string(), message);
    }
}
