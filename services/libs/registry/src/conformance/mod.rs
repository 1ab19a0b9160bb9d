//! The contract, as one suite that runs on every backend: the store in memory, the same store over etcd's wire,
//! and a real etcd (its binary named by `BATON_ETCD`; skipped, loudly, without one).

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "measured times and skipped suites are told")]

mod etcdctl;
mod membership;
mod outages;
mod servers;
mod store;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use types::WorkerId;

use self::servers::{Etcd, Memory, Server, Wire};
use crate::{Member, Membership, Registered, Registry, View};

/// One test for each case and backend.
macro_rules! conformance {
    ($($module:ident::$case:ident,)*) => {
        mod memory {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(&mut Memory::start().await.expect("memory is always there")).await;
            })*
        }
        mod wire {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(&mut Wire::start().await.expect("loopback is always there")).await;
            })*
        }
        mod etcd {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                if let Some(mut etcd) = Etcd::start().await {
                    super::$module::$case(&mut etcd).await;
                }
            })*
        }
    };
}

conformance! {
    store::keys_are_created_once_and_replaced_by_their_creator,
    store::lists_and_watches_see_exactly_their_prefix,
    store::a_watch_resumes_without_gaps,
    store::a_watch_from_a_compacted_revision_says_so,
    store::a_lease_takes_its_keys_along,
    membership::members_come_and_go,
    membership::updates_keep_the_epoch_and_their_order,
    membership::a_killed_member_is_gone_within_three_seconds,
    membership::a_paused_member_does_not_displace_its_successor,
    membership::a_name_has_one_owner_and_epochs_grow,
    membership::many_members,
    membership::garbage_disturbs_nobody,
    membership::a_record_or_lease_taken_away_comes_back,
    membership::names_and_prefixes_are_kept_apart,
    membership::a_view_survives_compaction,
    outages::an_outage_loses_nobody,
    outages::lost_data_comes_back_from_the_members,
    outages::who_dies_in_an_outage_is_forgotten_after_it,
    outages::joining_needs_no_registry,
    outages::a_frozen_registry_is_noticed_and_survived,
}

/// A process of the cluster: a client with a runtime of its own, which can be killed.
struct Process {
    runtime: Option<tokio::runtime::Runtime>,
    registry: Arc<dyn Registry>,
    view: watch::Receiver<Arc<View>>,
}

impl Process {
    fn start<S: Server>(server: &S) -> Self {
        Self::with_prefix(server, crate::DEFAULT_PREFIX)
    }

    fn with_prefix<S: Server>(server: &S, prefix: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let guard = runtime.enter();
        let registry = server.registry(prefix);
        drop(guard);
        Self { runtime: Some(runtime), view: registry.members(), registry }
    }

    async fn join(&self, member: Member) -> Membership {
        let registry = self.registry.clone();
        let runtime = self.runtime.as_ref().expect("alive");
        let joined = runtime.spawn(async move { registry.join(member).await }).await;
        joined.expect("joining does not panic").expect("the member is sound")
    }

    /// As `kill -9` does: nothing is said to anybody.
    fn kill(&mut self) {
        self.runtime.take().expect("alive").shutdown_background();
    }

    fn members(&self) -> Vec<Registered> {
        self.view.borrow().members.values().cloned().collect()
    }

    fn ids(&self) -> Vec<String> {
        self.view.borrow().members.keys().map(WorkerId::to_string).collect()
    }

    fn find(&self, id: &str) -> Option<Registered> {
        self.view.borrow().members.get(&WorkerId::new(id)).cloned()
    }

    fn connected(&self) -> bool {
        self.view.borrow().connected
    }

    async fn sees(&self, ids: &[&str]) {
        eventually(5, &format!("the view is {ids:?}"), || self.connected() && self.ids() == ids).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The smallest number of members that a view has had.
struct Smallest {
    task: tokio::task::JoinHandle<()>,
    least: Arc<std::sync::atomic::AtomicUsize>,
}

impl Smallest {
    fn watch(process: &Process) -> Self {
        let mut view = process.view.clone();
        let least = Arc::new(std::sync::atomic::AtomicUsize::new(usize::MAX));
        let seen = least.clone();
        let task = tokio::spawn(async move {
            loop {
                let n = view.borrow_and_update().members.len();
                seen.fetch_min(n, std::sync::atomic::Ordering::Relaxed);
                if view.changed().await.is_err() {
                    return;
                }
            }
        });
        Self { task, least }
    }

    fn end(self) -> usize {
        self.task.abort();
        self.least.load(std::sync::atomic::Ordering::Relaxed)
    }
}

fn member(id: &str) -> Member {
    crate::record::tests::member(id)
}

/// Waits until `holds`, and says how long that took.
async fn eventually(seconds: u64, what: &str, holds: impl FnMut() -> bool) -> Duration {
    within(Duration::from_secs(seconds), what, holds).await
}

async fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    start.elapsed()
}
