//! The index's rules, one by one.

use std::time::Duration;

use index::{ApplyError, Config, PrefixIndex, Resync};
use types::{BlockHash, Epoch, KvEvent, KvEventBatch, WorkerId, WorkerRef};

const NOW: Duration = Duration::from_secs(1000);

fn worker(name: &str, epoch: u64) -> WorkerRef {
    WorkerRef { id: WorkerId::new(name), epoch: Epoch(epoch) }
}

/// Blocks of conversation `n`: each name is random, as a hash is.
fn blocks(n: u64, range: std::ops::Range<u64>) -> Vec<BlockHash> {
    let mix = |x: u64| (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let name = |i: u64| u128::from(mix(n + 1)) << 64 | u128::from(mix(mix(n + 1) ^ i));
    range.map(|i| BlockHash(name(i).to_be_bytes())).collect()
}

fn stored(parent: Option<BlockHash>, hashes: Vec<BlockHash>) -> KvEvent {
    KvEvent::Stored { parent, hashes }
}

fn batch(id: u64, events: Vec<KvEvent>) -> KvEventBatch {
    KvEventBatch { id, events }
}

fn snapshot(id: u64, hashes: Vec<BlockHash>) -> KvEventBatch {
    batch(id, vec![KvEvent::Cleared, stored(None, hashes)])
}

fn index() -> PrefixIndex {
    PrefixIndex::new(Config { bytes: 1 << 20, ..Config::default() })
}

fn held(index: &mut PrefixIndex, who: &WorkerRef, hashes: &[BlockHash], now: Duration) -> u32 {
    index.lookup(hashes, now).iter().find(|m| m.worker == who).map_or(0, |m| m.n_blocks)
}

#[test]
fn each_break_of_a_stream_is_typed_and_mended_by_a_snapshot() {
    let (mut index, a) = (index(), worker("a", 5));
    let prompt = blocks(1, 0..8);
    let wanted = |why| Err(ApplyError::ResyncWanted { worker: worker("a", 5), why });
    assert_eq!(index.apply(&a, &batch(0, vec![stored(None, prompt.clone())])), wanted(Resync::First));
    assert!(index.apply(&a, &snapshot(3, prompt[..4].to_vec())).is_ok());
    let more = batch(4, vec![stored(Some(prompt[3]), prompt[4..6].to_vec())]);
    assert_eq!(index.apply(&a, &more).map(|a| a.stored), Ok(2));
    assert_eq!(index.apply(&a, &more).map(|a| a.stored), Ok(0), "it was applied before");
    let gap = Resync::Gap { last: 4, got: 6 };
    assert_eq!(index.apply(&a, &batch(6, vec![KvEvent::Cleared; 0])), wanted(gap));
    assert_eq!(held(&mut index, &a, &prompt, NOW), 6, "what is known stays until the snapshot comes");
    assert_eq!(index.apply(&a, &batch(7, vec![])), wanted(gap));
    assert!(index.apply(&a, &snapshot(8, prompt[..1].to_vec())).is_ok());
    assert_eq!(held(&mut index, &a, &prompt, NOW), 1);
    index.reconnected(&a);
    assert_eq!(index.resume_after(&a), Some(8), "what was applied is whole");
    assert!(index.apply(&a, &snapshot(0, prompt[..2].to_vec())).is_ok(), "a piece of a snapshot");
    index.reconnected(&a);
    assert_eq!(index.resume_after(&a), None);
    assert_eq!(index.apply(&a, &batch(9, vec![])), wanted(Resync::Reconnected));
    assert_eq!(index.stats().resyncs, 4);
}

#[test]
fn epochs_fence() {
    let mut index = index();
    let (old, new) = (worker("a", 5), worker("a", 6));
    let prompt = blocks(1, 0..8);
    index.apply(&old, &snapshot(1, prompt.clone())).expect("a snapshot");
    let first = ApplyError::ResyncWanted { worker: new.clone(), why: Resync::First };
    assert_eq!(index.apply(&new, &batch(1, vec![])), Err(first), "ids are of an incarnation");
    assert!(index.lookup(&prompt, NOW).is_empty(), "a new incarnation holds nothing");
    let older = ApplyError::OlderEpoch { worker: old.clone(), present: Epoch(6) };
    assert_eq!(index.apply(&old, &snapshot(1, prompt.clone())), Err(older));
    index.leave(&old);
    index.apply(&new, &snapshot(2, prompt.clone())).expect("a snapshot");
    index.leave(&old);
    assert_eq!(held(&mut index, &new, &prompt, NOW), 8, "the leaving of an incarnation does not touch another");
    index.leave(&new);
    assert!(index.lookup(&prompt, NOW).is_empty());
    assert_eq!(index.stats().told_blocks, 0);
}

#[test]
fn tails_of_what_was_not_used_longest_go_first() {
    let (mut index, a) = (index(), worker("a", 1));
    let n_max = index.n_told_max() as u64;
    let n = n_max / 4;
    index.apply(&a, &batch(1, vec![KvEvent::Cleared])).expect("a snapshot");
    for conversation in 0..4 {
        let event = stored(None, blocks(conversation, 0..n));
        index.apply(&a, &batch(2 + conversation, vec![event])).expect("in order");
    }
    assert_eq!(index.stats().evicted, 0, "they just fit");
    index.chosen(&a, &blocks(0, 0..n), NOW);
    index.apply(&a, &batch(6, vec![stored(None, blocks(9, 0..n + n / 2))])).expect("in order");
    let lengths: Vec<_> = (0..4).map(|c| u64::from(held(&mut index, &a, &blocks(c, 0..n), NOW))).collect();
    let rest = n_max - (n + n / 2) - 2 * n;
    assert_eq!(lengths, [n, 0, rest, n], "1 is the oldest, then 2 from its end; 0 was used");
    assert_eq!(index.stats().evicted, n + (n - rest));
    // What was evicted here cannot be hung onto, and says so.
    let applied =
        index.apply(&a, &batch(7, vec![stored(Some(blocks(1, 3..4)[0]), blocks(1, 4..6))])).expect("in order");
    assert_eq!((applied.stored, applied.unattached), (0, 2));
}

#[test]
fn a_beginning_that_was_used_does_not_go_with_its_tail() {
    let (mut index, a) = (index(), worker("a", 1));
    let n_max = index.n_told_max() as u64;
    let whole = blocks(0, 0..n_max);
    index.apply(&a, &snapshot(1, whole.clone())).expect("a snapshot");
    let more = |n: u64| batch(n, vec![stored(None, blocks(n, 0..n_max / 4))]);
    index.chosen(&a, &whole[..100], NOW);
    index.apply(&a, &more(2)).expect("in order");
    index.apply(&a, &more(3)).expect("in order");
    index.apply(&a, &more(4)).expect("in order");
    index.apply(&a, &more(5)).expect("in order");
    assert_eq!(held(&mut index, &a, &whole, NOW), 100, "the tail has gone, its beginning was used after that of 2");
    assert!(u64::from(held(&mut index, &a, &blocks(2, 0..n_max / 4), NOW)) < n_max / 4);
}

#[test]
fn a_shared_beginning_outlives_its_ends() {
    let (mut index, a) = (index(), worker("a", 1));
    let n_max = index.n_told_max() as u64;
    let shared = blocks(0, 0..10);
    index.apply(&a, &snapshot(1, shared.clone())).expect("a snapshot");
    for n in 1..=2 * n_max {
        let event = stored(Some(shared[9]), blocks(n, 0..3));
        assert_eq!(index.apply(&a, &batch(1 + n, vec![event])).expect("in order").stored, 3);
    }
    assert_eq!(held(&mut index, &a, &shared, NOW), 10);
    assert!(index.stats().evicted > n_max);
}

#[test]
fn guesses_end_and_give_way_to_events() {
    let config = Config { bytes: 1 << 20, guess_lifetime: Duration::from_secs(100), ..Config::default() };
    let (mut index, a, b) = (PrefixIndex::new(config), worker("a", 1), worker("b", 1));
    let prompt = blocks(1, 0..8);
    index.chosen(&a, &prompt, NOW);
    assert!(index.lookup(&prompt, NOW).is_empty(), "it is not there");
    index.join(&a);
    index.join(&b);
    index.chosen(&a, &prompt[..5], NOW);
    let after = |seconds| NOW + Duration::from_secs(seconds);
    assert_eq!(held(&mut index, &a, &prompt, after(49)), 5);
    assert_eq!(held(&mut index, &b, &prompt, after(49)), 0);
    index.chosen(&b, &prompt, after(60));
    assert_eq!(held(&mut index, &a, &prompt, after(99)), 5);
    assert_eq!(held(&mut index, &a, &prompt, after(120)), 0, "not renewed in time");
    assert_eq!(held(&mut index, &b, &prompt, after(120)), 8);
    assert_eq!(held(&mut index, &b, &prompt, after(1000)), 0, "nothing was asked for long");
    index.chosen(&b, &prompt, after(1000));
    index.apply(&b, &snapshot(1, prompt[..2].to_vec())).expect("a snapshot");
    assert_eq!(held(&mut index, &b, &prompt, after(1000)), 2, "it says itself what it holds");
}

#[test]
fn more_than_64_workers_get_room_and_are_asked_again() {
    let mut index = index();
    let all: Vec<_> = (0..65).map(|n| worker(&format!("w{n}"), 1)).collect();
    let prompt = blocks(1, 0..4);
    for who in &all[..64] {
        index.apply(who, &snapshot(1, prompt.clone())).expect("a snapshot");
    }
    let n_max = index.n_told_max();
    assert_eq!(index.lookup(&prompt, NOW).len(), 64);
    index.apply(&all[64], &snapshot(1, prompt.clone())).expect("a snapshot");
    assert_eq!(index.lookup(&prompt, NOW).len(), 1);
    assert!(index.n_told_max() < n_max && index.stats().bytes <= 1 << 20);
    let first = ApplyError::ResyncWanted { worker: all[0].clone(), why: Resync::First };
    assert_eq!(index.apply(&all[0], &batch(1, vec![])), Err(first));
    index.apply(&all[0], &snapshot(1, prompt.clone())).expect("a snapshot");
    assert_eq!(index.lookup(&prompt, NOW).len(), 2);
}

/// A peer that names a block with two different parents, or as its own, changes nothing for others.
#[test]
fn contradictions_are_left_out() {
    let (mut index, a, b) = (index(), worker("a", 1), worker("b", 1));
    let prompt = blocks(1, 0..4);
    index.apply(&a, &snapshot(1, prompt.clone())).expect("a snapshot");
    let lies = vec![
        KvEvent::Cleared,
        stored(None, vec![prompt[2], prompt[1], prompt[0]]),
        stored(None, vec![blocks(2, 0..1)[0]; 3]),
        stored(Some(prompt[3]), vec![prompt[0]]),
        KvEvent::Removed { hashes: prompt.clone() },
    ];
    let applied = index.apply(&b, &batch(1, lies)).expect("a snapshot");
    assert_eq!((applied.stored, applied.removed, applied.unattached), (1, 0, 6));
    assert_eq!(held(&mut index, &a, &prompt, NOW), 4);
    assert_eq!(held(&mut index, &b, &prompt, NOW), 0);
}

#[test]
fn a_block_takes_at_most_64_bytes() {
    let index = PrefixIndex::new(Config { bytes: 128 << 20, ..Config::default() });
    assert!(index.stats().bytes <= 128 << 20);
    assert!((64 << 20) / index.n_told_max() <= 64, "{} blocks", index.n_told_max());
}
