//! The view: list, then watch from the next revision; after a gap list again and compare.
//!
//! A restarted registry may have lost its data, and after an outage leases may run out before their owners are
//! back. So members that vanish across a gap, or are deleted right after one, stay in the view for a while; their
//! owners register again in that time or are gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use types::Epoch;

use crate::backend::{Backend, BackendError, Change, Connection, Entry, Feed};
use crate::backoff::{Backoff, STABLE};
use crate::cluster::{Timing, within};
use crate::record::Record;
use crate::{Registered, View};

/// Follows one prefix until `stop`.
pub(crate) async fn run<B: Backend>(
    backend: Arc<B>,
    prefix: Vec<u8>,
    timing: Timing,
    view: watch::Sender<Arc<View>>,
    stop: CancellationToken,
) {
    let known = Known::new(prefix.clone(), timing.clone());
    let mut mirror = Mirror { known, prefix, timing, view, heard: None, opened: None };
    let mut backoff = Backoff::new(mirror.timing.backoff_min, mirror.timing.mirror_backoff_max);
    loop {
        let error = tokio::select! {
            error = mirror.follow(&*backend) => error,
            () = stop.cancelled() => return,
        };
        if mirror.opened.take().is_some_and(|opened| opened.elapsed() >= STABLE) {
            backoff.reset();
        }
        mirror.disconnected(&error);
        tokio::select! {
            () = tokio::time::sleep(backoff.next()) => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Mirror {
    known: Known,
    prefix: Vec<u8>,
    timing: Timing,
    view: watch::Sender<Arc<View>>,
    /// Last word from the registry, ever.
    heard: Option<Instant>,
    /// When the present connection began to work.
    opened: Option<Instant>,
}

impl Mirror {
    /// One connection, until it fails.
    async fn follow<B: Backend>(&mut self, backend: &B) -> BackendError {
        let (mut connection, mut feed) = match self.open(backend).await {
            Ok(opened) => opened,
            Err(error) => return error,
        };
        self.opened = Some(Instant::now());
        let mut probe = tokio::time::interval(self.timing.probe_interval);
        probe.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let result = tokio::select! {
                changes = feed.next() => changes,
                _ = probe.tick() => {
                    let silence = self.heard.map_or(Duration::ZERO, |heard| heard.elapsed());
                    if silence > self.timing.silence_max {
                        return BackendError::Unavailable(format!("silent for {} ms", silence.as_millis()));
                    }
                    if let Err(error) = within(self.timing.request_timeout, feed.probe()).await {
                        return error;
                    }
                    continue;
                }
                () = expiry(self.known.next_expiry()) => {
                    self.known.expire(Instant::now());
                    self.publish();
                    continue;
                }
            };
            match result {
                Ok(changes) => {
                    let now = Instant::now();
                    self.heard = Some(now);
                    let changed = !changes.is_empty();
                    for change in changes {
                        self.known.apply(change, now);
                    }
                    if changed { self.publish() } else { self.touch() }
                }
                Err(BackendError::Compacted) => {
                    tracing::info!("the registry's history was compacted past this view, listing anew");
                    match self.list(&mut connection, Gap::Compaction).await {
                        Ok(new) => feed = new,
                        Err(error) => return error,
                    }
                }
                Err(error) => return error,
            }
        }
    }

    async fn open<B: Backend>(
        &mut self,
        backend: &B,
    ) -> Result<(B::Connection, <B::Connection as Connection>::Feed), BackendError> {
        let mut connection = within(self.timing.request_timeout, backend.dial()).await?;
        let gap = self.heard.map_or(Gap::Start, |heard| Gap::Outage(heard.elapsed()));
        let feed = self.list(&mut connection, gap).await?;
        if gap != Gap::Start {
            tracing::info!(n_members = self.known.n_members(), "the registry answers again");
        }
        Ok((connection, feed))
    }

    async fn list<C: Connection>(&mut self, connection: &mut C, gap: Gap) -> Result<C::Feed, BackendError> {
        let timeout = self.timing.request_timeout;
        let (entries, revision) = within(timeout, connection.list(&self.prefix)).await?;
        let feed = within(timeout, connection.watch(&self.prefix, revision + 1)).await?;
        let now = Instant::now();
        self.heard = Some(now);
        self.known.replace(entries, gap, now);
        self.publish();
        Ok(feed)
    }

    fn publish(&self) {
        let view = View { members: self.known.members(), connected: true, updated: Instant::now() };
        self.view.send_if_modified(|old| {
            let changed = !old.connected || old.members != view.members;
            *old = Arc::new(view);
            changed
        });
    }

    /// Only the age is new.
    fn touch(&self) {
        self.view.send_if_modified(|view| {
            Arc::make_mut(view).updated = Instant::now();
            false
        });
    }

    fn disconnected(&self, error: &BackendError) {
        let was_connected = self.view.send_if_modified(|view| {
            let was = view.connected;
            if was {
                Arc::make_mut(view).connected = false;
            }
            was
        });
        if was_connected {
            tracing::warn!(%error, n_members = self.known.n_members(), "the registry does not answer, keeping the view");
        } else {
            tracing::debug!(%error, "the registry still does not answer");
        }
    }
}

async fn expiry(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Why the list is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gap {
    /// For the first time.
    Start,
    /// The history was compacted; the registry was there all along.
    Compaction,
    /// The registry could not be heard for this long.
    Outage(Duration),
}

/// What is known of the keys. Decides; does not wait.
struct Known {
    prefix: Vec<u8>,
    timing: Timing,
    keys: BTreeMap<Vec<u8>, KnownKey>,
    /// Until when deletions may be the outage's doing.
    settling_until: Option<Instant>,
}

struct KnownKey {
    /// `None`: not a record of ours.
    registered: Option<Registered>,
    mod_revision: i64,
    /// Kept in the view although the registry no longer has it.
    forget_at: Option<Instant>,
}

impl Known {
    fn new(prefix: Vec<u8>, timing: Timing) -> Self {
        Self { prefix, timing, keys: BTreeMap::new(), settling_until: None }
    }

    fn members(&self) -> BTreeMap<types::WorkerId, Registered> {
        self.keys.values().filter_map(|k| k.registered.clone()).map(|r| (r.member.id.clone(), r)).collect()
    }

    fn n_members(&self) -> usize {
        self.keys.values().filter(|k| k.registered.is_some()).count()
    }

    /// The list is the truth, except that members lost across an outage have some time to come back.
    fn replace(&mut self, entries: Vec<Entry>, gap: Gap, now: Instant) {
        let mut old = std::mem::take(&mut self.keys);
        for entry in entries {
            // Revisions of before the gap mean nothing: the data may have been lost in between.
            old.remove(&entry.key);
            self.put(entry);
        }
        if let Gap::Outage(silence) = gap {
            // In less time no lease runs out that is kept alive.
            if silence >= self.timing.ttl {
                self.settling_until = Some(now + self.timing.settle);
            }
            let forget_at = now + self.timing.grace;
            old.retain(|_, key| key.registered.as_ref().is_some_and(|r| !r.member.draining));
            if !old.is_empty() {
                tracing::warn!(n_members = old.len(), "members vanished with the outage, keeping them for a while");
            }
            self.keys.extend(old.into_iter().map(|(k, v)| (k, KnownKey { forget_at: Some(forget_at), ..v })));
        }
    }

    /// Late and repeated changes change nothing.
    fn apply(&mut self, change: Change, now: Instant) {
        match change {
            Change::Put(entry) => {
                if self.is_news(&entry.key, entry.mod_revision) {
                    self.put(entry);
                }
            }
            Change::Delete { key, mod_revision } => {
                if !self.is_news(&key, mod_revision) {
                    return;
                }
                let settling = self.settling_until.is_some_and(|until| now < until);
                match self.keys.get_mut(&key) {
                    Some(known) if settling && known.registered.as_ref().is_some_and(|r| !r.member.draining) => {
                        known.mod_revision = mod_revision;
                        known.forget_at = Some(now + self.timing.grace);
                    }
                    _ => drop(self.keys.remove(&key)),
                }
            }
        }
    }

    fn is_news(&self, key: &[u8], mod_revision: i64) -> bool {
        // A kept member's revision may be from before the data was lost.
        self.keys.get(key).is_none_or(|k| k.forget_at.is_some() || k.mod_revision < mod_revision)
    }

    fn put(&mut self, entry: Entry) {
        let registered = match self.read(&entry) {
            Ok(registered) => Some(registered),
            Err(reason) => {
                let key = String::from_utf8_lossy(&entry.key);
                tracing::warn!(%key, reason, "skipping a record in the registry");
                None
            }
        };
        self.keys.insert(entry.key, KnownKey { registered, mod_revision: entry.mod_revision, forget_at: None });
    }

    fn read(&self, entry: &Entry) -> Result<Registered, String> {
        let record = Record::decode(&entry.value).map_err(|e| e.to_string())?;
        if entry.key.strip_prefix(self.prefix.as_slice()) != Some(record.member.id.as_str().as_bytes()) {
            return Err("its key is not its id".into());
        }
        Ok(Registered { epoch: epoch(entry.create_revision, &record), member: record.member })
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.keys.values().filter_map(|k| k.forget_at).min()
    }

    fn expire(&mut self, now: Instant) {
        self.keys.retain(|_, k| k.forget_at.is_none_or(|at| at > now));
    }
}

/// The epoch of a registration: the revision at which its key appeared, or more.
pub(crate) fn epoch(create_revision: i64, record: &Record) -> Epoch {
    Epoch(u64::try_from(create_revision).unwrap_or(0).max(record.epoch_min))
}

#[cfg(test)]
mod tests {
    use types::WorkerId;

    use super::*;
    use crate::record::tests::member;

    const GRACE: Duration = Duration::from_secs(10);

    fn known() -> Known {
        Known::new(b"p/".to_vec(), Timing::default())
    }

    fn entry(id: &str, revision: i64) -> Entry {
        draining_entry(id, revision, false)
    }

    fn draining_entry(id: &str, revision: i64, draining: bool) -> Entry {
        let member = crate::Member { draining, ..member(id) };
        let value = Record { member, epoch_min: 0 }.encode().expect("a sound member");
        Entry { key: format!("p/{id}").into_bytes(), value, create_revision: revision, mod_revision: revision }
    }

    fn delete(id: &str, mod_revision: i64) -> Change {
        Change::Delete { key: format!("p/{id}").into_bytes(), mod_revision }
    }

    fn epochs(known: &Known) -> Vec<(String, u64)> {
        known.members().into_iter().map(|(id, r)| (WorkerId::to_string(&id), r.epoch.0)).collect()
    }

    fn check(known: &Known, wanted: &[(&str, u64)]) {
        let wanted: Vec<_> = wanted.iter().map(|&(id, e)| (id.to_owned(), e)).collect();
        assert_eq!(epochs(known), wanted);
    }

    #[tokio::test]
    async fn late_and_repeated_changes_change_nothing() {
        let (mut known, now) = (known(), Instant::now());
        known.apply(Change::Put(entry("a", 5)), now);
        known.apply(Change::Put(entry("a", 4)), now);
        known.apply(delete("a", 3), now);
        check(&known, &[("a", 5)]);
        known.apply(delete("a", 6), now);
        check(&known, &[]);
    }

    #[tokio::test]
    async fn a_new_list_replaces_what_was_known() {
        let (mut known, now) = (known(), Instant::now());
        known.replace(vec![entry("a", 1), entry("b", 2)], Gap::Start, now);
        known.replace(vec![entry("b", 2), entry("c", 9)], Gap::Compaction, now);
        check(&known, &[("b", 2), ("c", 9)]);
    }

    #[tokio::test]
    async fn members_lost_with_the_data_have_time_to_come_back() {
        let (mut known, now) = (known(), Instant::now());
        known.replace(vec![entry("a", 100), entry("b", 101), draining_entry("d", 102, true)], Gap::Start, now);
        known.replace(Vec::new(), Gap::Outage(Duration::ZERO), now);
        check(&known, &[("a", 100), ("b", 101)]);
        // An empty registry counts its revisions from the start.
        known.apply(Change::Put(entry("a", 2)), now + Duration::from_secs(1));
        check(&known, &[("a", 2), ("b", 101)]);
        assert_eq!(known.next_expiry(), Some(now + GRACE));
        known.expire(now + GRACE);
        check(&known, &[("a", 2)]);
    }

    #[tokio::test]
    async fn deletions_right_after_an_outage_are_not_believed_at_once() {
        let (mut known, now) = (known(), Instant::now());
        let all = || vec![entry("a", 1), entry("b", 2), draining_entry("d", 3, true)];
        known.replace(all(), Gap::Start, now);
        known.replace(all(), Gap::Outage(Duration::from_secs(60)), now);
        for (n, id) in ["a", "b", "d"].into_iter().enumerate() {
            known.apply(delete(id, 10 + n as i64), now + Duration::from_secs(1));
        }
        check(&known, &[("a", 1), ("b", 2)]);
        known.apply(Change::Put(entry("a", 20)), now + Duration::from_secs(2));
        known.expire(now + Duration::from_secs(1) + GRACE);
        check(&known, &[("a", 20)]);
        known.apply(delete("a", 30), now + Duration::from_secs(60));
        check(&known, &[]);
    }

    #[tokio::test]
    async fn garbage_is_skipped_and_replaces_what_it_overwrote() {
        let (mut known, now) = (known(), Instant::now());
        let garbage = |revision| Entry { value: b"{".to_vec(), ..entry("a", revision) };
        known.replace(vec![entry("a", 1), entry("b", 1)], Gap::Start, now);
        known.apply(Change::Put(garbage(2)), now);
        check(&known, &[("b", 1)]);
        let misplaced = Entry { key: b"p/c".to_vec(), ..entry("a", 3) };
        known.apply(Change::Put(misplaced), now);
        check(&known, &[("b", 1)]);
        known.apply(Change::Put(entry("a", 4)), now);
        check(&known, &[("a", 4), ("b", 1)]);
    }
}
