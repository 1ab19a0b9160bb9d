//! The operations below membership.

use std::time::Duration;

use super::servers::Server;
use crate::backend::{Backend, BackendError, Change, Connection, Created, Entry, Feed, Heart};

type ConnectionOf<S> = <<S as Server>::Backend as Backend>::Connection;

async fn connect<S: Server>(server: &S) -> ConnectionOf<S> {
    let mut last = None;
    for _ in 0..100 {
        let mut connection = server.backend().dial().await.expect("dialling does not wait");
        match connection.get(b"/x").await {
            Ok(_) => return connection,
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("no connection: {last:?}");
}

async fn lease<C: Connection>(connection: &mut C) -> i64 {
    connection.grant(Duration::from_secs(60)).await.expect("a lease")
}

fn created(outcome: &Created) -> i64 {
    match outcome {
        Created::At(revision) => *revision,
        Created::Exists(entry) => panic!("exists: {entry:?}"),
    }
}

async fn next_change<F: Feed>(feed: &mut F) -> Vec<Change> {
    let wait = async {
        loop {
            let changes = feed.next().await.expect("the watch goes on");
            if !changes.is_empty() {
                return changes;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("a change")
}

fn brief(changes: &[Change]) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let line = |change: &Change| match change {
        Change::Put(entry) => format!("{}={}", text(&entry.key), text(&entry.value)),
        Change::Delete { key, .. } => format!("{}-", text(key)),
    };
    changes.iter().map(line).collect()
}

pub(super) async fn keys_are_created_once_and_replaced_by_their_creator<S: Server>(server: &mut S) {
    let mut c = connect(server).await;
    let lease = lease(&mut c).await;
    let at = created(&c.create(b"/k", b"1".to_vec(), lease).await.expect("created"));
    let entry = |value: &[u8], modified| Entry {
        key: b"/k".to_vec(),
        value: value.to_vec(),
        create_revision: at,
        mod_revision: modified,
    };
    let again = c.create(b"/k", b"2".to_vec(), lease).await.expect("answered");
    assert_eq!(again, Created::Exists(entry(b"1", at)));
    assert!(c.replace(b"/k", b"3".to_vec(), lease, at).await.expect("answered"));
    assert!(!c.replace(b"/k", b"4".to_vec(), lease, at - 1).await.expect("answered"));
    let found = c.get(b"/k").await.expect("answered").expect("there");
    assert_eq!((found.value.as_slice(), found.create_revision), (b"3".as_slice(), at));
    assert!(found.mod_revision > at);
    c.delete(b"/k", at - 1).await.expect("answered");
    assert!(c.get(b"/k").await.expect("answered").is_some(), "another's key stays");
    c.delete(b"/k", at).await.expect("answered");
    assert_eq!(c.get(b"/k").await.expect("answered"), None);
    let later = created(&c.create(b"/k", b"5".to_vec(), lease).await.expect("created"));
    assert!(later > found.mod_revision, "revisions grow");
    assert_eq!(c.create(b"/l", Vec::new(), 12345).await, Err(BackendError::LeaseNotFound));
}

pub(super) async fn lists_and_watches_see_exactly_their_prefix<S: Server>(server: &mut S) {
    let mut c = connect(server).await;
    let lease = lease(&mut c).await;
    for key in ["/p/1", "/p/10", "/p", "/p0", "/q/1"] {
        created(&c.create(key.as_bytes(), key.into(), lease).await.expect("created"));
    }
    let (found, revision) = c.list(b"/p/").await.expect("listed");
    let keys: Vec<_> = found.iter().map(|e| String::from_utf8_lossy(&e.key).into_owned()).collect();
    assert_eq!(keys, ["/p/1", "/p/10"]);
    assert!(found.iter().all(|e| e.mod_revision <= revision));

    let mut feed = c.watch(b"/p/1", revision + 1).await.expect("watched");
    let mut all = c.watch(b"/p/", revision + 1).await.expect("watched");
    for (key, value) in [("/p/2", "a"), ("/q/2", "b"), ("/p/11", "c")] {
        created(&c.create(key.as_bytes(), value.into(), lease).await.expect("created"));
    }
    assert_eq!(brief(&next_change(&mut feed).await), ["/p/11=c"]);
    let mut seen = brief(&next_change(&mut all).await);
    while seen.len() < 2 {
        seen.extend(brief(&next_change(&mut all).await));
    }
    assert_eq!(seen, ["/p/2=a", "/p/11=c"]);
}

pub(super) async fn a_watch_resumes_without_gaps<S: Server>(server: &mut S) {
    let mut c = connect(server).await;
    let lease = lease(&mut c).await;
    let (_, start) = c.list(b"/w/").await.expect("listed");
    let first = created(&c.create(b"/w/a", b"0".to_vec(), lease).await.expect("created"));
    for n in 1..20 {
        assert!(c.replace(b"/w/a", n.to_string().into(), lease, first).await.expect("answered"));
    }
    c.delete(b"/w/a", first).await.expect("answered");
    let mut wanted: Vec<String> = (0..20).map(|n| format!("/w/a={n}")).collect();
    wanted.push("/w/a-".into());
    for skip in [0, 1, 7, 20] {
        let mut feed = c.watch(b"/w/", start + 1 + skip).await.expect("watched");
        let mut seen = Vec::new();
        while seen.len() < wanted.len() - skip as usize {
            seen.extend(brief(&next_change(&mut feed).await));
        }
        assert_eq!(seen, wanted[skip as usize..], "from {skip} later");
    }
}

pub(super) async fn a_watch_from_a_compacted_revision_says_so<S: Server>(server: &mut S) {
    let mut c = connect(server).await;
    let lease = lease(&mut c).await;
    let first = created(&c.create(b"/c/a", b"0".to_vec(), lease).await.expect("created"));
    for n in 0..5 {
        assert!(c.replace(b"/c/a", vec![n], lease, first).await.expect("answered"));
    }
    server.compact().await;
    let mut feed = c.watch(b"/c/", first).await.expect("the refusal comes on the stream");
    let refused = async {
        loop {
            if let Err(error) = feed.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(5), refused).await.expect("refused");
    assert_eq!(error, BackendError::Compacted);

    let (_, now) = c.list(b"/c/").await.expect("listed");
    let mut feed = c.watch(b"/c/", now + 1).await.expect("watched");
    assert!(c.replace(b"/c/a", b"x".to_vec(), lease, first).await.expect("answered"));
    assert_eq!(brief(&next_change(&mut feed).await), ["/c/a=x"]);
}

pub(super) async fn a_lease_takes_its_keys_along<S: Server>(server: &mut S) {
    let mut c = connect(server).await;
    let (_, start) = c.list(b"/l/").await.expect("listed");
    let kept = c.grant(Duration::from_secs(2)).await.expect("a lease");
    let revoked = c.grant(Duration::from_secs(60)).await.expect("a lease");
    let left = c.grant(Duration::from_secs(2)).await.expect("a lease");
    for (key, lease) in [("/l/kept", kept), ("/l/revoked", revoked), ("/l/left", left)] {
        created(&c.create(key.as_bytes(), Vec::new(), lease).await.expect("created"));
    }
    let mut heart = c.keep_alive(kept).await.expect("there");
    c.revoke(revoked).await.expect("there");
    assert!(matches!(c.keep_alive(revoked).await, Err(BackendError::LeaseNotFound)));
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        heart.beat().await.expect("alive");
    }
    let (found, _) = c.list(b"/l/").await.expect("listed");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].key, b"/l/kept");
    assert!(matches!(c.keep_alive(left).await, Err(BackendError::LeaseNotFound)));
    let mut feed = c.watch(b"/l/", start + 1).await.expect("watched");
    let mut seen = Vec::new();
    while seen.len() < 5 {
        seen.extend(brief(&next_change(&mut feed).await));
    }
    assert_eq!(seen, ["/l/kept=", "/l/revoked=", "/l/left=", "/l/revoked-", "/l/left-"]);
    c.revoke(kept).await.expect("there");
    assert_eq!(heart.beat().await, Err(BackendError::LeaseNotFound));
}
