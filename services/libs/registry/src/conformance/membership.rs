//! Members while the registry is there.

use std::time::Duration;

use types::Epoch;

use super::servers::Server;
use super::{Process, eventually, member, within};
use crate::backend::{Backend, Connection};
use crate::{DEFAULT_PREFIX, Member};

fn key(id: &str) -> Vec<u8> {
    format!("/{DEFAULT_PREFIX}/v1/workers/{id}").into_bytes()
}

async fn connection<S: Server>(server: &S) -> <S::Backend as Backend>::Connection {
    server.backend().dial().await.expect("dialling does not wait")
}

pub(super) async fn members_come_and_go<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let epoch = joined.joined().await;
    b.sees(&["a"]).await;
    let found = b.find("a").expect("there");
    assert_eq!((&found.member, found.epoch), (&member("a"), epoch));
    assert!(epoch > Epoch(0));
    assert!(b.view.borrow().updated.elapsed() < Duration::from_secs(2));
    let other = b.join(member("b")).await;
    assert!(other.joined().await > epoch);
    a.sees(&["a", "b"]).await;
    joined.leave().await;
    let time = within(Duration::from_secs(1), "leaving is seen at once", || b.ids() == ["b"]).await;
    println!("leave seen after {time:?}");
    drop(other);
    within(Duration::from_secs(1), "dropping leaves too", || a.ids().is_empty()).await;
}

pub(super) async fn updates_keep_the_epoch_and_their_order<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let epoch = joined.joined().await;
    b.sees(&["a"]).await;
    let mut view = b.view.clone();
    let watched = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.last() != Some(&1050) {
            let found = view.borrow_and_update().members.values().next().cloned();
            seen.push(found.expect("never away").max_context);
            view.changed().await.expect("the view goes on");
        }
        seen
    });
    for n in 1..=50 {
        joined.update(Member { max_context: 1000 + n, ..member("a") }).await.expect("sound");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually(5, "the last update is seen", || b.find("a").is_some_and(|m| m.max_context == 1050)).await;
    joined.update(Member { draining: true, ..member("a") }).await.expect("sound");
    eventually(5, "draining is seen", || b.find("a").is_some_and(|m| m.draining)).await;
    assert_eq!(b.find("a").expect("there").epoch, epoch);
    assert_eq!(*joined.epoch().borrow(), epoch);
    watched.abort();
    if let Ok(seen) = watched.await {
        assert!(seen[1..].is_sorted(), "{seen:?}");
    }
    let other = Member { id: types::WorkerId::new("b"), ..member("a") };
    assert!(joined.update(other).await.is_err(), "another member's record");
    assert!(joined.update(Member { rpc_address: String::new(), ..member("a") }).await.is_err());
}

pub(super) async fn a_killed_member_is_gone_within_three_seconds<S: Server>(server: &mut S) {
    let (mut a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let kept = b.join(member("b")).await;
    joined.joined().await;
    b.sees(&["a", "b"]).await;
    // Long enough for several renewals.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(b.ids(), ["a", "b"]);
    a.kill();
    let time = within(Duration::from_secs(3), "a killed member is gone", || b.ids() == ["b"]).await;
    println!("kill seen after {time:?}");
    assert_eq!(*kept.epoch().borrow(), b.find("b").expect("there").epoch);
}

pub(super) async fn a_paused_member_does_not_displace_its_successor<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let old = a.join(member("w")).await;
    let first = old.joined().await;
    b.sees(&["w"]).await;
    let young = b.join(Member { rpc_address: "127.0.0.1:2".into(), ..member("w") }).await;
    let second = young.joined().await;
    assert!(second > first);
    // The old one notices, and stands back.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let found = a.find("w").expect("there");
    assert_eq!((found.epoch, found.rpc_address.as_str()), (second, "127.0.0.1:2"));
    assert_eq!(*old.epoch().borrow(), first);
    young.leave().await;
    eventually(5, "the old one comes back", || a.find("w").is_some_and(|m| m.epoch > second)).await;
    assert_eq!(a.find("w").expect("there").epoch, *old.epoch().borrow());
}

pub(super) async fn a_name_has_one_owner_and_epochs_grow<S: Server>(server: &mut S) {
    let observer = Process::start(server);
    let mut last = Epoch(0);
    for n in 0..4 {
        let mut process = Process::start(server);
        let joined = process.join(member("w")).await;
        let epoch = joined.joined().await;
        assert!(epoch > last, "{epoch:?} after {last:?}");
        last = epoch;
        eventually(5, "the new incarnation is seen", || observer.find("w").is_some_and(|m| m.epoch == epoch)).await;
        // Killed ones are replaced at once, before their lease has run out.
        if n % 2 == 0 { process.kill() } else { joined.leave().await }
    }
}

pub(super) async fn many_members<S: Server>(server: &mut S) {
    const N: usize = 200;
    let (a, b) = (Process::start(server), Process::start(server));
    let mut all = Vec::new();
    for n in 0..N {
        all.push(a.join(member(&format!("w-{n:04}"))).await);
    }
    let time = eventually(20, "all are seen", || b.ids().len() == N).await;
    println!("{N} members seen after {time:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(b.ids().len(), N, "all stay");
    let late = Process::start(server);
    eventually(5, "a new client sees all", || late.ids().len() == N).await;
    for joined in &all {
        assert!(b.members().iter().any(|m| m.epoch == *joined.epoch().borrow()));
    }
    drop(all);
    eventually(10, "all are gone", || b.ids().is_empty() && late.ids().is_empty()).await;
}

pub(super) async fn garbage_disturbs_nobody<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let first = joined.joined().await;
    b.sees(&["a"]).await;
    let mut c = connection(server).await;
    let lease = c.grant(Duration::from_secs(600)).await.expect("a lease");
    let misplaced = crate::record::Record { member: member("x"), epoch_min: 0 }.encode().expect("sound");
    for (id, value) in [
        ("g1", b"".to_vec()),
        ("g2", b"\xff\xff\xff".to_vec()),
        ("g3", b"{\"format\":99}".to_vec()),
        ("g4", vec![b'['; 100_000]),
        ("", b"{}".to_vec()),
        ("y/z", misplaced),
    ] {
        c.create(&key(id), value, lease).await.expect("created");
    }
    let kept = b.join(member("b")).await;
    kept.joined().await;
    b.sees(&["a", "b"]).await;
    let fresh = Process::start(server);
    fresh.sees(&["a", "b"]).await;
    // Overwriting a member's record takes it away for a moment; its owner puts it right.
    let created = c.get(&key("a")).await.expect("answered").expect("there").create_revision;
    assert!(c.replace(&key("a"), b"garbage".to_vec(), lease, created).await.expect("answered"));
    eventually(8, "the owner is back", || b.find("a").is_some_and(|m| m.epoch > first)).await;
    assert_eq!(b.find("a").expect("there").epoch, *joined.epoch().borrow());
    // A process that starts under a name with a garbage record takes it.
    let taken = b.join(member("g3")).await;
    taken.joined().await;
    b.sees(&["a", "b", "g3"]).await;
}

pub(super) async fn a_record_or_lease_taken_away_comes_back<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let mut last = joined.joined().await;
    b.sees(&["a"]).await;
    let mut c = connection(server).await;
    let created = c.get(&key("a")).await.expect("answered").expect("there").create_revision;
    c.delete(&key("a"), created).await.expect("answered");
    eventually(8, "the record is back", || b.find("a").is_some_and(|m| m.epoch > last)).await;
    last = *joined.epoch().borrow();
    server.revoke_all().await;
    eventually(8, "the lease is back", || b.find("a").is_some_and(|m| m.epoch > last)).await;
    assert_eq!(b.find("a").expect("there").epoch, *joined.epoch().borrow());
}

pub(super) async fn names_and_prefixes_are_kept_apart<S: Server>(server: &mut S) {
    let (a, other) = (Process::start(server), Process::with_prefix(server, "baton2"));
    let similar = Process::with_prefix(server, "bato");
    let one = a.join(member("w-1")).await;
    let ten = a.join(member("w-10")).await;
    let elsewhere = other.join(member("w-1")).await;
    elsewhere.joined().await;
    a.sees(&["w-1", "w-10"]).await;
    other.sees(&["w-1"]).await;
    similar.sees(&[]).await;
    one.leave().await;
    a.sees(&["w-10"]).await;
    other.sees(&["w-1"]).await;
    drop(ten);
    a.sees(&[]).await;
}

pub(super) async fn a_view_survives_compaction<S: Server>(server: &mut S) {
    let (a, b) = (Process::start(server), Process::start(server));
    let joined = a.join(member("a")).await;
    let epoch = joined.joined().await;
    b.sees(&["a"]).await;
    for n in 0..20 {
        let short = b.join(member("b")).await;
        short.joined().await;
        short.leave().await;
        joined.update(Member { max_context: n, ..member("a") }).await.expect("sound");
        server.compact().await;
        // A client that begins between two compactions.
        if n == 10 {
            Process::start(server).sees(&["a"]).await;
        }
    }
    b.sees(&["a"]).await;
    eventually(5, "the last update is seen", || b.find("a").is_some_and(|m| m.max_context == 19)).await;
    assert_eq!(b.find("a").expect("there").epoch, epoch);
}
