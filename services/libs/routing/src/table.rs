//! What is known about every worker.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use types::{Load, Role, WorkerId, WorkerRef};

use crate::estimate::{Factors, Observation, Pace};
use crate::in_flight::{Counters, InFlight};
use crate::{Health, Policy, Predicted, Work, WorkerInfo, WorkerState};

/// Prefill and decode workers of one served model. Times are since an origin that the caller keeps.
///
/// Feed it with [`set_members`](Self::set_members), [`report`](Self::report) and [`suspect`](Self::suspect); it
/// counts what the router itself has given out ([`start`](Self::start)), learns how long things take
/// ([`observe`](Self::observe)), and chooses ([`choose`](Self::choose)). Every word is about an incarnation: what is
/// said about another one than the present is ignored.
#[derive(Debug)]
pub struct WorkerTable {
    model: String,
    pub(crate) rules: Rules,
    workers: BTreeMap<WorkerId, Entry>,
    pub(crate) cluster: Factors,
}

/// How workers are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// How they are compared.
    pub policy: Policy,
    /// A decode worker computes the prompt itself if it lacks so many of its tokens or fewer: handing over costs more
    /// than it spares. 0: never.
    pub local_tokens: u32,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) info: Arc<WorkerInfo>,
    load: Option<Load>,
    own: Arc<Counters>,
    suspect_until: Duration,
    factors: Factors,
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
    /// The prompt is short, or the decode worker holds most of it.
    Local,
}

impl NoPrefill {
    /// Name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Draining => "draining",
            Self::Suspect => "suspect",
            Self::Incompatible(_) => "incompatible",
            Self::Local => "local",
        }
    }
}

impl WorkerTable {
    /// An empty table for the workers that serve `model`.
    pub fn new(model: impl Into<String>, rules: Rules) -> Self {
        Self { model: model.into(), rules, workers: BTreeMap::new(), cluster: Factors::default() }
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
                    Entry {
                        info,
                        load: None,
                        own: Arc::default(),
                        suspect_until: Duration::ZERO,
                        factors: Factors::default(),
                    }
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

    /// Counts a sequence and its blocks at a worker until the guard is dropped; `None` if that incarnation is gone.
    pub fn start(&self, worker: &WorkerRef, work: Work) -> Option<InFlight> {
        let entry = self.entry(worker)?;
        Some(InFlight::sequence(entry.own.clone(), entry.info.blocks(work)))
    }

    /// Counts a prompt, of which the worker is thought to hold `cached` tokens, among what it has to compute, until
    /// the guard is dropped; `None` if that incarnation is gone.
    pub fn start_prompt(&self, worker: &WorkerRef, work: Work, cached: u32) -> Option<InFlight> {
        let entry = self.entry(worker)?;
        let alone = entry.info.role == Role::Prefill;
        Some(InFlight::prompt(entry.own.clone(), work.prompt_cost(cached), alone))
    }

    /// Learns how long something took at a worker.
    pub fn observe(&mut self, worker: &WorkerRef, seen: Observation, now: Duration) {
        let Some(entry) = self.workers.get_mut(&worker.id).filter(|e| e.info.worker == *worker) else { return };
        let load = entry.predicted();
        let context = load.blocks_used * u64::from(entry.info.block_tokens());
        entry.factors.observe(&mut self.cluster, seen, (load.sequences, context), now);
    }

    /// A worker's record, if that incarnation is there.
    pub fn get(&self, worker: &WorkerRef) -> Option<&Arc<WorkerInfo>> {
        self.entry(worker).map(|e| &e.info)
    }

    /// Whether an incarnation is there, takes work and is not suspect.
    pub fn is_usable(&self, worker: &WorkerRef, now: Duration) -> bool {
        self.entry(worker).is_some_and(|entry| !entry.is_draining() && !entry.is_suspect(now))
    }

    /// Longest context of the workers that can generate, tokens; `None` while there is none.
    pub fn max_context(&self) -> Option<u32> {
        self.usable(Role::Decode).map(|e| e.info.max_context).max()
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
    pub(crate) fn usable(&self, role: Role) -> impl Iterator<Item = &Entry> {
        self.of_role(role).filter(|e| !e.is_draining())
    }

    /// Workers of a role that serve our model.
    pub(crate) fn of_role(&self, role: Role) -> impl Iterator<Item = &Entry> {
        self.workers.values().filter(move |e| e.info.role == role && e.info.model == self.model)
    }

    fn entry(&self, worker: &WorkerRef) -> Option<&Entry> {
        self.workers.get(&worker.id).filter(|e| e.info.worker == *worker)
    }

    fn entry_mut(&mut self, worker: &WorkerRef) -> Option<&mut Entry> {
        self.workers.get_mut(&worker.id).filter(|e| e.info.worker == *worker)
    }
}

impl NoPrefill {
    /// The reason nearest to being usable wins: it is the one worth telling.
    pub(crate) fn or(self, other: Self) -> Self {
        let nearness = |reason: &Self| match reason {
            Self::Absent => 0,
            Self::Draining => 1,
            Self::Incompatible(_) => 2,
            Self::Suspect => 3,
            Self::Local => 4,
        };
        if nearness(&other) > nearness(&self) { other } else { self }
    }
}

impl Entry {
    pub(crate) fn is_draining(&self) -> bool {
        self.info.draining || self.load.is_some_and(|l| l.draining)
    }

    pub(crate) fn is_suspect(&self, now: Duration) -> bool {
        now < self.suspect_until
    }

    pub(crate) fn predicted(&self) -> Predicted {
        Predicted::new(self.load.as_ref(), &self.own)
    }

    pub(crate) fn pace(&self, cluster: &Factors, now: Duration) -> Pace {
        self.factors.pace(cluster, now)
    }
}
