//! Members while the registry is away, and after.

use std::time::Duration;

use types::Epoch;

use super::servers::Server;
use super::{Process, Smallest, eventually, member, within};
use crate::Membership;

const BACK: Duration = Duration::from_secs(15);

async fn two_members<S: Server>(server: &S) -> (Process, Process, Membership, Membership) {
    let (a, b) = (Process::start(server), Process::start(server));
    let (first, second) = (a.join(member("a")).await, b.join(member("b")).await);
    first.joined().await;
    second.joined().await;
    a.sees(&["a", "b"]).await;
    b.sees(&["a", "b"]).await;
    (a, b, first, second)
}

/// Both processes see both members under the epochs that these have.
async fn all_back(a: &Process, b: &Process, first: &Membership, second: &Membership) -> Duration {
    within(BACK, "all are registered again", || {
        [a, b].into_iter().all(|p| {
            let epoch = |id| p.find(id).map(|m| m.epoch);
            p.connected() && epoch("a") == Some(*first.epoch().borrow()) && epoch("b") == Some(*second.epoch().borrow())
        })
    })
    .await
}

pub(super) async fn an_outage_loses_nobody<S: Server>(server: &mut S) {
    let (a, b, first, second) = two_members(server).await;
    let smallest = Smallest::watch(&b);
    let before = *first.epoch().borrow();
    server.stop().await;
    let time = within(Duration::from_secs(3), "the outage is seen", || !a.connected() && !b.connected()).await;
    println!("outage seen after {time:?}");
    let length = if bootstrap::env::flag("BATON_STORM") { 60 } else { 6 };
    tokio::time::sleep(Duration::from_secs(length)).await;
    assert_eq!(b.ids(), ["a", "b"], "the last good view stays");
    assert!(b.view.borrow().updated.elapsed() > Duration::from_secs(5), "and its age is told");
    server.resume().await;
    let time = all_back(&a, &b, &first, &second).await;
    println!("all back after {time:?}, epochs {before:?} {:?}", *first.epoch().borrow());
    // Nothing is lost late, when leases of before the outage run out.
    tokio::time::sleep(Duration::from_secs(5)).await;
    all_back(&a, &b, &first, &second).await;
    assert_eq!(smallest.end(), 2, "no moment without a member");
    // And all works as before.
    first.leave().await;
    b.sees(&["b"]).await;
}

pub(super) async fn lost_data_comes_back_from_the_members<S: Server>(server: &mut S) {
    let (a, b, first, second) = two_members(server).await;
    // A few more revisions, so that a store that begins anew is behind.
    for n in 0..20 {
        first.update(crate::Member { max_context: n, ..member("a") }).await.expect("sound");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let smallest = Smallest::watch(&b);
    let (before_a, before_b) = (*first.epoch().borrow(), *second.epoch().borrow());
    server.stop().await;
    eventually(3, "the outage is seen", || !b.connected()).await;
    server.resume_empty().await;
    eventually(8, "new epochs", || *first.epoch().borrow() > before_a && *second.epoch().borrow() > before_b).await;
    all_back(&a, &b, &first, &second).await;
    assert_eq!(smallest.end(), 2, "no moment without a member");
    assert_eq!(b.find("a").expect("there").max_context, 19, "with the latest record");
}

pub(super) async fn who_dies_in_an_outage_is_forgotten_after_it<S: Server>(server: &mut S) {
    let (mut a, b, _first, second) = two_members(server).await;
    server.stop().await;
    eventually(3, "the outage is seen", || !b.connected()).await;
    a.kill();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(b.ids(), ["a", "b"]);
    server.resume().await;
    let time = eventually(18, "the dead one is forgotten", || b.connected() && b.ids() == ["b"]).await;
    println!("forgotten after {time:?}");
    assert_eq!(b.find("b").expect("there").epoch, *second.epoch().borrow());
}

pub(super) async fn joining_needs_no_registry<S: Server>(server: &mut S) {
    server.stop().await;
    let a = Process::start(server);
    let joined = a.join(member("a")).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(*joined.epoch().borrow(), Epoch(0));
    assert!(!a.connected() && a.ids().is_empty());
    joined.update(crate::Member { max_context: 7, ..member("a") }).await.expect("sound");
    server.resume().await;
    within(BACK, "joined", || a.find("a").is_some_and(|m| m.max_context == 7)).await;
    assert_eq!(a.find("a").expect("there").epoch, *joined.epoch().borrow());
    // Leaving without a registry does not wait for ever.
    server.stop().await;
    tokio::time::timeout(Duration::from_secs(4), joined.leave()).await.expect("left");
}

pub(super) async fn a_frozen_registry_is_noticed_and_survived<S: Server>(server: &mut S) {
    let (a, b, first, second) = two_members(server).await;
    let smallest = Smallest::watch(&b);
    // Too short for any lease, long enough for all.
    for seconds in [1, 8] {
        if !server.freeze(true) {
            return;
        }
        if seconds > 5 {
            let time = eventually(4, "the silence is noticed", || !a.connected() && !b.connected()).await;
            println!("silence noticed after {time:?}");
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        server.freeze(false);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let time = all_back(&a, &b, &first, &second).await;
        println!("all back after {time:?}");
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    all_back(&a, &b, &first, &second).await;
    assert_eq!(smallest.end(), 2, "no moment without a member");
}
