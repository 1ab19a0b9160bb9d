//! What is known about every worker, and the choice among them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use types::{Load, Role, WorkerId, WorkerRef};

use crate::in_flight::{Counters, InFlight};
use crate::{Health, Policy, Predicted, Work, WorkerInfo, WorkerState};

/// Prefill and decode workers of one served model. Times are since an origin that the caller keeps.
///
/// Feed it with [`set_members`](Self::set_members), [`report`](Self::report) and [`suspect`](Self::suspect); it
/// counts what the router itself has given out ([`start`](Self::start)). Every word is about an incarnation: what is
/// said about another one than the present is ignored.
#[derive(Debug)]
pub struct WorkerTable {
    model: String,
    policy: Box<dyn Policy>,
    workers: BTreeMap<WorkerId, Entry>,
}

#[derive(Debug)]
struct Entry {
    info: Arc<WorkerInfo>,
    load: Option<Load>,
    own: Arc<Counters>,
    suspect_until: Duration,
}

/// What a new list of members changed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Incarnations that are new.
    pub joined: Vec<Arc<WorkerInfo>>,
    /// Incarnations that are gone.
    pub left: Vec<WorkerRef>,
}

/// Why a decode worker has to prefill by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoPrefill {
    /// No prefill worker is there.
    Absent,
    /// Those that are there take no new work.
    Draining,
    /// Those that are left failed a moment ago.
    Suspect,
    /// None that is left fits the decode worker: why the first does not.
    Incompatible(String),
}

impl NoPrefill {
    /// Name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Incompatible(_) => "incompatible",
        }
    }
}

impl WorkerTable {
    /// An empty table for the workers that serve `model`.
    pub fn new(model: impl Into<String>, policy: Box<dyn Policy>) -> Self {
        Self { model: model.into(), policy, workers: BTreeMap::new() }
    }

    /// Replaces the members. A member that stays keeps its load, counts and suspicion; a new incarnation of a known
    /// name starts afresh.
    pub fn set_members(&mut self, members: impl IntoIterator<Item = WorkerInfo>) -> Changes {
        let mut changes = Changes::default();
        let mut old = std::mem::take(&mut self.workers);
        for info in members {
            let id = info.worker.id.clone();
            let entry = match old.remove(&id) {
                Some(mut entry) if entry.info.worker == info.worker => {
                    if *entry.info != info {
                        entry.info = Arc::new(info);
                    }
                    entry
                }
                replaced => {
                    changes.left.extend(replaced.map(|entry| entry.info.worker.clone()));
                    let info = Arc::new(info);
                    changes.joined.push(info.clone());
                    Entry { info, load: None, own: Arc::default(), suspect_until: Duration::ZERO }
                }
            };
            self.workers.insert(id, entry);
        }
        changes.left.extend(old.into_values().map(|entry| entry.info.worker.clone()));
        changes
    }

    /// Takes a worker's report.
    pub fn report(&mut self, worker: &WorkerRef, load: Load) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.load = Some(load);
        }
    }

    /// Forgets a worker's last report: nobody hears it any more.
    pub fn forget_report(&mut self, worker: &WorkerRef) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.load = None;
        }
    }

    /// Avoids a worker until then; an earlier suspicion that lasts longer stays. Returns whether the worker was
    /// trusted before.
    pub fn suspect(&mut self, worker: &WorkerRef, now: Duration, until: Duration) -> bool {
        let Some(entry) = self.entry_mut(worker) else { return false };
        let trusted = !entry.is_suspect(now);
        entry.suspect_until = entry.suspect_until.max(until);
        trusted
    }

    /// Trusts a worker again.
    pub fn trust(&mut self, worker: &WorkerRef) {
        if let Some(entry) = self.entry_mut(worker) {
            entry.suspect_until = Duration::ZERO;
        }
    }

    /// Counts `work` at a worker until the guard is dropped; `None` if that incarnation is gone.
    pub fn start(&self, worker: &WorkerRef, work: Work) -> Option<InFlight> {
        let entry = self.workers.get(&worker.id).filter(|e| e.info.worker == *worker)?;
        Some(InFlight::start(entry.own.clone(), u64::from(work.n_prompt), entry.info.blocks(work)))
    }

    /// A worker's record, if that incarnation is there.
    pub fn get(&self, worker: &WorkerRef) -> Option<&Arc<WorkerInfo>> {
        self.workers.get(&worker.id).map(|e| &e.info).filter(|info| info.worker == *worker)
    }

    /// Longest context of the workers that can generate, tokens; `None` while there is none.
    pub fn max_context(&self) -> Option<u32> {
        self.usable(Role::Decode).map(|e| e.info.max_context).max()
    }

    /// Decode workers that may take `work`, best first. Those of `avoid`, suspects, those without room, and those of
    /// other numerics than the `begun` part of the answer come after the others, not never: they may be all there is.
    /// At a beginning those with a partner of equal numerics come first, then those with any.
    pub fn decodes(&self, work: Work, avoid: &[WorkerRef], begun: Option<&str>, now: Duration) -> Vec<Arc<WorkerInfo>> {
        let mut ranked: Vec<_> = self
            .usable(Role::Decode)
            .filter(|e| u64::from(e.info.max_context) > u64::from(work.n_prompt))
            .map(|entry| {
                let predicted = entry.predicted();
                let partner = self.prefill_for(&entry.info.worker, avoid, now);
                let rank = (
                    avoid.contains(&entry.info.worker),
                    entry.is_suspect(now),
                    !predicted.fits(entry.info.blocks(work)),
                    begun.is_some_and(|numerics| numerics != entry.info.numerics()),
                    partner.map_or(2, |partner| u8::from(partner.numerics() != entry.info.numerics())),
                    self.policy.cost(Role::Decode, &predicted),
                );
                (rank, &entry.info)
            })
            .collect();
        // Stable, and the table is in order of ids: ties go to the lower id.
        ranked.sort_by_key(|(rank, _)| *rank);
        ranked.into_iter().map(|(_, info)| info.clone()).collect()
    }

    /// The best prefill worker whose blocks `decode` can take; one of equal numerics if there is one.
    ///
    /// # Errors
    /// Why there is none: suspects and those of `avoid` are not used, because `decode` can prefill by itself.
    pub fn prefill_for(
        &self,
        decode: &WorkerRef,
        avoid: &[WorkerRef],
        now: Duration,
    ) -> Result<Arc<WorkerInfo>, NoPrefill> {
        let mut none = NoPrefill::Absent;
        let mut best: Option<((bool, crate::Cost), &Entry)> = None;
        let decode = self.get(decode);
        for entry in self.workers.values().filter(|e| e.info.role == Role::Prefill && e.info.model == self.model) {
            if entry.is_draining() {
                none = none.or(NoPrefill::Draining);
            } else if entry.is_suspect(now) || avoid.contains(&entry.info.worker) {
                none = none.or(NoPrefill::Suspect);
            } else if let Some(why) = decode.and_then(|d| d.mismatch(&entry.info)) {
                none = none.or(NoPrefill::Incompatible(why));
            } else {
                let other_bits = decode.is_some_and(|d| d.numerics() != entry.info.numerics());
                let rank = (other_bits, self.policy.cost(Role::Prefill, &entry.predicted()));
                if best.is_none_or(|(least, _)| rank < least) {
                    best = Some((rank, entry));
                }
            }
        }
        best.map(|(_, entry)| entry.info.clone()).ok_or(none)
    }

    /// Every worker, in order of ids, and why it is not used.
    pub fn states(&self, now: Duration) -> Vec<WorkerState> {
        let state = |entry: &Entry| {
            let (health, reason) = self.health(entry, now);
            WorkerState {
                info: entry.info.clone(),
                health,
                reason,
                load: entry.load,
                own_sequences: entry.own.sequences(),
            }
        };
        self.workers.values().map(state).collect()
    }

    fn health(&self, entry: &Entry, now: Duration) -> (Health, String) {
        let info = &entry.info;
        if info.model != self.model {
            return (Health::Incompatible, format!("serves {:?}, not {:?}", info.model, self.model));
        }
        if entry.is_draining() {
            return (Health::Draining, "asked for no new work".into());
        }
        if info.role == Role::Prefill {
            let mismatches: Vec<_> = self.usable(Role::Decode).map(|decode| decode.info.mismatch(info)).collect();
            if let Some(Some(first)) = mismatches.iter().find(|_| mismatches.iter().all(Option::is_some)) {
                return (Health::Incompatible, first.clone());
            }
        }
        if entry.is_suspect(now) {
            let left = entry.suspect_until.saturating_sub(now);
            return (Health::Suspect, format!("failed a moment ago, avoided for {} ms", left.as_millis()));
        }
        (Health::Up, String::new())
    }

    /// Workers of a role that serve our model and take work.
    fn usable(&self, role: Role) -> impl Iterator<Item = &Entry> {
        self.workers.values().filter(move |e| e.info.role == role && e.info.model == self.model && !e.is_draining())
    }

    fn entry_mut(&mut self, worker: &WorkerRef) -> Option<&mut Entry> {
        self.workers.get_mut(&worker.id).filter(|e| e.info.worker == *worker)
    }
}

impl NoPrefill {
    /// The reason nearest to being usable wins: it is the one worth telling.
    fn or(self, other: Self) -> Self {
        let nearness = |reason: &Self| match reason {
            Self::Absent => 0,
            Self::Draining => 1,
            Self::Incompatible(_) => 2,
            Self::Suspect => 3,
        };
        if nearness(&other) > nearness(&self) { other } else { self }
    }
}

impl Entry {
    fn is_draining(&self) -> bool {
        self.info.draining || self.load.is_some_and(|l| l.draining)
    }

    fn is_suspect(&self, now: Duration) -> bool {
        now < self.suspect_until
    }

    fn predicted(&self) -> Predicted {
        Predicted::new(self.load.as_ref(), &self.own)
    }
}
