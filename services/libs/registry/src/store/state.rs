//! The store's state: keys, leases, history. No clock and no waiting in here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::history::{Event, EventKind, History};
use super::{Compare, KeyRange, KeyValue, LeaseStatus, Op, OpResult, Put, StoreError, TxnResult};

/// Most keys.
const KEYS_MAX: usize = 65_536;
/// Most leases.
const LEASES_MAX: usize = 65_536;
/// Most bytes of a key and its value, as in etcd.
const ENTRY_MAX: usize = 1_500_000;
/// Most operations and comparisons of a transaction, as in etcd.
const TXN_OPS_MAX: usize = 128;
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct State {
    revision: i64,
    keys: BTreeMap<Vec<u8>, KeyValue>,
    leases: BTreeMap<i64, Lease>,
    history: History,
    next_lease: i64,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    expires: Instant,
    keys: BTreeSet<Vec<u8>>,
}

impl State {
    pub(super) fn new(revision: i64) -> Self {
        Self {
            revision,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            history: History::default(),
            // Unlike those of a store that began at another revision.
            next_lease: (revision << 20) + 1,
        }
    }

    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&KeyValue> {
        self.keys.get(key)
    }

    pub(super) fn range(&self, range: &KeyRange, revision: i64) -> Result<Vec<KeyValue>, StoreError> {
        if revision > self.revision {
            return Err(StoreError::FutureRevision);
        }
        let now = self.within(range);
        if revision <= 0 || revision == self.revision {
            return Ok(now.cloned().collect());
        }
        let mut keys = now.map(|kv| (kv.key.clone(), kv.clone())).collect();
        self.history.rewind(&mut keys, range, revision)?;
        Ok(keys.into_values().collect())
    }

    pub(super) fn events_since(&self, range: &KeyRange, from: i64, max: usize) -> Result<Vec<Event>, StoreError> {
        self.history.since(range, from, max)
    }

    pub(super) fn compact(&mut self, revision: i64) -> Result<(), StoreError> {
        self.history.compact(revision, self.revision)
    }

    pub(super) fn transact(
        &mut self,
        compares: &[Compare],
        success: &[Op],
        failure: &[Op],
    ) -> Result<TxnResult, StoreError> {
        if compares.len().max(success.len()).max(failure.len()) > TXN_OPS_MAX {
            return Err(StoreError::TooLarge);
        }
        let succeeded = compares.iter().all(|c| self.holds(c));
        let ops = if succeeded { success } else { failure };
        self.check(ops)?;
        let at = self.revision + 1;
        let results = ops.iter().map(|op| self.apply(op, at)).collect::<Result<_, _>>()?;
        self.history.trim();
        Ok(TxnResult { succeeded, revision: self.revision, results })
    }

    pub(super) fn grant(&mut self, id: i64, ttl: Duration, now: Instant) -> Result<(i64, Duration), StoreError> {
        if ttl.is_zero() || ttl > TTL_MAX || id < 0 {
            return Err(StoreError::LeaseTtl);
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(StoreError::Full);
        }
        let id = if id == 0 { self.free_lease_id() } else { id };
        if self.leases.contains_key(&id) {
            return Err(StoreError::LeaseExists);
        }
        let ttl = ttl.max(TTL_MIN);
        self.leases.insert(id, Lease { ttl, expires: now + ttl, keys: BTreeSet::new() });
        Ok((id, ttl))
    }

    pub(super) fn keep_alive(&mut self, id: i64, now: Instant) -> Result<Duration, StoreError> {
        let lease = self.leases.get_mut(&id).filter(|l| l.expires > now).ok_or(StoreError::LeaseNotFound)?;
        lease.expires = now + lease.ttl;
        Ok(lease.ttl)
    }

    pub(super) fn revoke(&mut self, id: i64) -> Result<(), StoreError> {
        let lease = self.leases.remove(&id).ok_or(StoreError::LeaseNotFound)?;
        let at = self.revision + 1;
        for key in lease.keys {
            self.remove(&key, at);
        }
        self.history.trim();
        Ok(())
    }

    pub(super) fn lease(&self, id: i64, now: Instant) -> Result<LeaseStatus, StoreError> {
        let lease = self.leases.get(&id).ok_or(StoreError::LeaseNotFound)?;
        Ok(LeaseStatus {
            granted: lease.ttl,
            remaining: lease.expires.saturating_duration_since(now),
            keys: lease.keys.iter().cloned().collect(),
        })
    }

    pub(super) fn lease_ids(&self) -> Vec<i64> {
        self.leases.keys().copied().collect()
    }

    /// Ends leases that are over.
    pub(super) fn expire(&mut self, now: Instant) {
        let over: Vec<i64> = self.leases.iter().filter(|(_, l)| l.expires <= now).map(|(&id, _)| id).collect();
        for id in over {
            self.revoke(id).expect("the lease was just seen");
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leases.values().map(|l| l.expires).min()
    }

    fn within(&self, range: &KeyRange) -> impl Iterator<Item = &KeyValue> {
        range.bounds().into_iter().flat_map(|bounds| self.keys.range::<[u8], _>(bounds)).map(|(_, kv)| kv)
    }

    fn holds(&self, compare: &Compare) -> bool {
        if compare.range.is_single() {
            return compare.holds(self.keys.get(compare.range.start()));
        }
        self.within(&compare.range).all(|kv| compare.holds(Some(kv)))
    }

    /// Everything that could make an operation fail, before the first is done.
    fn check(&self, ops: &[Op]) -> Result<(), StoreError> {
        let mut put_keys = BTreeSet::new();
        for op in ops {
            match op {
                Op::Put(put) => {
                    self.check_put(put)?;
                    if !put_keys.insert(put.key.as_slice()) {
                        return Err(StoreError::DuplicateKey);
                    }
                }
                Op::Delete(range) if range.is_single() && range.start().is_empty() => {
                    return Err(StoreError::EmptyKey);
                }
                Op::Range(range, revision) => drop(self.range(range, *revision)?),
                Op::Delete(_) => {}
            }
        }
        let new = put_keys.iter().filter(|key| !self.keys.contains_key(**key)).count();
        if self.keys.len() + new > KEYS_MAX {
            return Err(StoreError::Full);
        }
        let overlap = |op: &Op| matches!(op, Op::Delete(range) if put_keys.iter().any(|key| range.contains(key)));
        if ops.iter().any(overlap) {
            return Err(StoreError::DuplicateKey);
        }
        Ok(())
    }

    fn check_put(&self, put: &Put) -> Result<(), StoreError> {
        if put.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        if put.key.len() + put.value.as_ref().map_or(0, Vec::len) > ENTRY_MAX {
            return Err(StoreError::TooLarge);
        }
        if (put.value.is_none() || put.lease.is_none()) && !self.keys.contains_key(&put.key) {
            return Err(StoreError::KeyNotFound);
        }
        match put.lease {
            Some(id) if id != 0 && !self.leases.contains_key(&id) => Err(StoreError::LeaseNotFound),
            _ => Ok(()),
        }
    }

    fn apply(&mut self, op: &Op, at: i64) -> Result<OpResult, StoreError> {
        Ok(match op {
            Op::Range(range, revision) => OpResult::Range(self.range(range, *revision)?),
            Op::Put(put) => OpResult::Put(self.insert(put, at)),
            Op::Delete(range) => {
                let keys: Vec<Vec<u8>> = self.within(range).map(|kv| kv.key.clone()).collect();
                OpResult::Delete(keys.iter().filter_map(|key| self.remove(key, at)).collect())
            }
        })
    }

    fn insert(&mut self, put: &Put, at: i64) -> Option<KeyValue> {
        let prev = self.keys.get(&put.key).cloned();
        let old = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone().unwrap_or(old.value),
            create_revision: if prev.is_some() { old.create_revision } else { at },
            mod_revision: at,
            version: old.version + 1,
            lease: put.lease.unwrap_or(old.lease),
        };
        if old.lease != kv.lease {
            self.detach(old.lease, &put.key);
        }
        if let Some(lease) = self.leases.get_mut(&kv.lease) {
            lease.keys.insert(put.key.clone());
        }
        self.keys.insert(put.key.clone(), kv.clone());
        self.record(Event { revision: at, kind: EventKind::Put(kv), prev: prev.clone() });
        prev
    }

    fn remove(&mut self, key: &[u8], at: i64) -> Option<KeyValue> {
        let prev = self.keys.remove(key)?;
        self.detach(prev.lease, key);
        self.record(Event { revision: at, kind: EventKind::Delete(key.to_vec()), prev: Some(prev.clone()) });
        Some(prev)
    }

    fn detach(&mut self, lease: i64, key: &[u8]) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.remove(key);
        }
    }

    fn record(&mut self, event: Event) {
        self.revision = event.revision;
        self.history.push(event);
    }

    fn free_lease_id(&mut self) -> i64 {
        while self.leases.contains_key(&self.next_lease) {
            self.next_lease += 1;
        }
        self.next_lease += 1;
        self.next_lease - 1
    }
}
