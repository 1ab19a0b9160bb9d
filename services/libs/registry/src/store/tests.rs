//! The store against a model, and its limits.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::state::State;
use super::{
    Compare, CompareOp, CompareTarget, Event, EventKind, KeyRange, KeyValue, MemoryStore, Op, Put, StoreError,
};

fn put(key: &str, value: &str) -> Op {
    Op::Put(Put { key: key.into(), value: Some(value.into()), lease: Some(0) })
}

fn all() -> KeyRange {
    KeyRange::prefix("")
}

type Contents = BTreeMap<Vec<u8>, KeyValue>;

fn apply(contents: &mut Contents, event: &Event) {
    match &event.kind {
        EventKind::Put(kv) => drop(contents.insert(kv.key.clone(), kv.clone())),
        EventKind::Delete(key) => drop(contents.remove(key)),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Txn(Vec<(u8, Option<u8>)>),
    Lease(u8, Vec<u8>),
    Revoke(u8),
    Compact,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::btree_map(0..6u8, prop::option::of(any::<u8>()), 1..4)
            .prop_map(|ops| Step::Txn(ops.into_iter().collect())),
        1 => (0..3u8, prop::collection::vec(0..6u8, 0..3)).prop_map(|(lease, keys)| Step::Lease(lease, keys)),
        1 => (0..3u8).prop_map(Step::Revoke),
        1 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    /// Whatever happens, the past can be read as it was, and replaying changes from any kept revision on gives the
    /// present.
    #[test]
    fn history_is_exact(steps in steps()) {
        let now = Instant::from_std(std::time::Instant::now());
        let mut state = State::new(1);
        let mut past: BTreeMap<i64, Contents> = BTreeMap::from([(1, Contents::new())]);
        let mut compacted = 0;
        for step in steps {
            match step {
                Step::Txn(ops) => {
                    let ops: Vec<Op> = ops
                        .into_iter()
                        .map(|(key, value)| match value {
                            Some(value) => Op::Put(Put { key: vec![key], value: Some(vec![value]), lease: Some(0) }),
                            None => Op::Delete(KeyRange::key([key])),
                        })
                        .collect();
                    state.transact(&[], &ops, &[]).expect("sound");
                }
                Step::Lease(lease, keys) => {
                    let id = i64::from(lease) + 1;
                    let _ = state.grant(id, Duration::from_secs(9), now);
                    for key in keys {
                        let put = Op::Put(Put { key: vec![key], value: Some(vec![]), lease: Some(id) });
                        state.transact(&[], &[put], &[]).expect("sound");
                        past.insert(state.revision(), contents(&state, 0));
                    }
                }
                Step::Revoke(lease) => drop(state.revoke(i64::from(lease) + 1)),
                Step::Compact if state.revision() > compacted => {
                    compacted = state.revision();
                    state.compact(compacted).expect("not yet");
                }
                Step::Compact => {}
            }
            past.insert(state.revision(), contents(&state, 0));
        }
        let present = contents(&state, 0);
        for (&revision, wanted) in &past {
            if revision < compacted {
                prop_assert_eq!(state.range(&all(), revision), Err(StoreError::Compacted(compacted)));
                prop_assert!(state.events_since(&all(), revision, 10).is_err());
                continue;
            }
            let mut replayed = contents(&state, revision);
            prop_assert_eq!(&replayed, wanted, "at {}", revision);
            let events = state.events_since(&all(), revision + 1, usize::MAX).expect("kept");
            prop_assert!(events.is_sorted_by_key(|e| e.revision));
            for event in &events {
                prop_assert_eq!(event.prev.as_ref(), replayed.get(event.key()));
                apply(&mut replayed, event);
            }
            prop_assert_eq!(&replayed, &present, "from {}", revision);
        }
        let leased: usize = state.lease_ids().iter().map(|&id| state.lease(id, now).expect("listed").keys.len()).sum();
        prop_assert_eq!(leased, present.values().filter(|kv| kv.lease != 0).count());
    }
}

fn contents(state: &State, revision: i64) -> Contents {
    let found = state.range(&all(), revision).expect("kept");
    found.into_iter().map(|kv| (kv.key.clone(), kv)).collect()
}

#[test]
fn a_refused_transaction_does_nothing() {
    let mut state = State::new(1);
    state.transact(&[], &[put("a", "1")], &[]).expect("sound");
    let before = (state.revision(), contents(&state, 0));
    let lease = |id| Op::Put(Put { key: b"b".into(), value: Some(vec![]), lease: Some(id) });
    let keep = Op::Put(Put { key: b"absent".into(), value: None, lease: Some(0) });
    let big = Op::Put(Put { key: b"b".into(), value: Some(vec![0; 2_000_000]), lease: Some(0) });
    for (second, error) in [
        (put("a", "3"), StoreError::DuplicateKey),
        (Op::Delete(KeyRange::prefix("a")), StoreError::DuplicateKey),
        (put("", "3"), StoreError::EmptyKey),
        (lease(77), StoreError::LeaseNotFound),
        (keep, StoreError::KeyNotFound),
        (big, StoreError::TooLarge),
        (Op::Range(all(), 1000), StoreError::FutureRevision),
    ] {
        assert_eq!(state.transact(&[], &[put("a", "2"), second], &[]), Err(error));
        assert_eq!((state.revision(), contents(&state, 0)), before);
    }
    let many = vec![Op::Delete(KeyRange::key("x")); 129];
    assert_eq!(state.transact(&[], &many, &[]), Err(StoreError::TooLarge));
}

#[test]
fn conditions_decide_the_branch() {
    let mut state = State::new(1);
    state.transact(&[], &[put("a", "1"), put("b", "1")], &[]).expect("sound");
    state.transact(&[], &[put("a", "2")], &[]).expect("sound");
    let mut check = |range: KeyRange, target: CompareTarget, op, wanted: bool| {
        let compare = Compare { range, target, op };
        let done = state.transact(std::slice::from_ref(&compare), &[], &[]).expect("sound");
        assert_eq!(done.succeeded, wanted, "{compare:?}");
    };
    use CompareOp::{Equal, Greater, Less, NotEqual};
    check(KeyRange::key("a"), CompareTarget::Version(2), Equal, true);
    check(KeyRange::key("a"), CompareTarget::CreateRevision(2), Equal, true);
    check(KeyRange::key("a"), CompareTarget::ModRevision(2), Greater, true);
    check(KeyRange::key("a"), CompareTarget::Value(b"3".into()), Less, true);
    check(KeyRange::key("a"), CompareTarget::Value(b"2".into()), NotEqual, false);
    check(KeyRange::key("a"), CompareTarget::Lease(0), Equal, true);
    check(KeyRange::key("absent"), CompareTarget::CreateRevision(0), Equal, true);
    check(KeyRange::key("absent"), CompareTarget::Value(Vec::new()), Equal, false);
    check(KeyRange::prefix(""), CompareTarget::CreateRevision(2), Equal, true);
    check(KeyRange::prefix(""), CompareTarget::Version(1), Equal, false);
}

#[test]
fn history_is_bounded() {
    let mut state = State::new(1);
    for n in 0..10_000 {
        state.transact(&[], &[put("a", &n.to_string())], &[]).expect("sound");
    }
    assert!(matches!(state.events_since(&all(), 5, 10), Err(StoreError::Compacted(_))));
    assert_eq!(state.events_since(&all(), 9_990, usize::MAX).expect("kept").len(), 12);
    let value = "v".repeat(1_000_000);
    for _ in 0..60 {
        state.transact(&[], &[put("big", &value)], &[]).expect("sound");
    }
    let kept = state.events_since(&all(), state.revision() - 5, usize::MAX).expect("kept").len();
    assert_eq!(kept, 6);
    assert!(state.events_since(&all(), state.revision() - 40, usize::MAX).is_err());
}

#[tokio::test(start_paused = true)]
async fn leases_expire_on_tokio_time() {
    let store = MemoryStore::starting_at(1);
    let mut watcher = store.watch(KeyRange::prefix("k"), 0);
    let (id, ttl) = store.grant(0, Duration::from_secs(2)).expect("granted");
    assert_eq!(ttl, Duration::from_secs(2));
    store.put(b"k", b"v", id).expect("put");
    assert_eq!(watcher.next().await.expect("followed").events.len(), 1);
    advance(Duration::from_millis(1900)).await;
    store.keep_alive(id).expect("alive");
    advance(Duration::from_millis(1900)).await;
    assert!(store.get(b"k").is_some());
    let start = Instant::now();
    let batch = watcher.next().await.expect("followed");
    assert_eq!(batch.events[0].kind, EventKind::Delete(b"k".to_vec()));
    assert!(start.elapsed() <= Duration::from_millis(110), "{:?}", start.elapsed());
    assert_eq!(store.keep_alive(id), Err(StoreError::LeaseNotFound));
    assert_eq!(store.lease(id), Err(StoreError::LeaseNotFound));
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told() {
    let store = MemoryStore::starting_at(1);
    let mut behind = store.watch(KeyRange::prefix("a"), 0);
    let mut elsewhere = store.watch(KeyRange::prefix("b"), 0);
    store.put(b"a", b"1", 0).expect("put");
    assert_eq!(elsewhere.poll(), Ok(None));
    store.put(b"a", b"2", 0).expect("put");
    store.compact(store.revision()).expect("compacted");
    assert_eq!(behind.poll(), Err(StoreError::Compacted(3)));
    assert_eq!(elsewhere.poll(), Ok(None), "it has missed nothing");
}

#[tokio::test]
async fn a_store_that_starts_anew_repeats_no_revision_and_no_lease() {
    let old = MemoryStore::new();
    let (lease, _) = old.grant(0, Duration::from_secs(9)).expect("granted");
    let revision = old.put(b"k", b"v", lease).expect("put");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let new = MemoryStore::new();
    assert!(new.revision() > revision);
    assert_eq!(new.keep_alive(lease), Err(StoreError::LeaseNotFound));
    assert!(new.grant(0, Duration::from_secs(9)).expect("granted").0 > lease);
}

#[test]
fn leases_have_limits() {
    let mut state = State::new(1);
    let now = Instant::from_std(std::time::Instant::now());
    assert_eq!(state.grant(5, Duration::ZERO, now), Err(StoreError::LeaseTtl));
    assert_eq!(state.grant(5, Duration::from_secs(1 << 40), now), Err(StoreError::LeaseTtl));
    assert_eq!(state.grant(5, Duration::from_secs(1), now), Ok((5, Duration::from_secs(1))));
    assert_eq!(state.grant(5, Duration::from_secs(1), now), Err(StoreError::LeaseExists));
    assert_eq!(state.grant(-5, Duration::from_secs(1), now), Err(StoreError::LeaseTtl));
    assert_eq!(state.revoke(6), Err(StoreError::LeaseNotFound));
}
