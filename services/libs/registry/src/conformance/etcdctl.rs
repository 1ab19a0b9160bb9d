//! The same `etcdctl` commands against our wire and a real etcd give the same answers.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::servers::{Etcd, Server as _, Wire};

/// Arguments and standard input. `LEASE` stands for the lease granted last.
const SCRIPT: &[(&str, &str)] = &[
    ("endpoint health", ""),
    ("get absent -w fields", ""),
    ("put a 1", ""),
    ("put a 2 --prev-kv", ""),
    ("put a/b 3", ""),
    ("put a/c 4", ""),
    ("put b 5", ""),
    ("get a -w fields", ""),
    ("get a --rev 2 -w fields", ""),
    ("get a/ --prefix", ""),
    ("get a --from-key --keys-only", ""),
    ("get a --prefix --limit 2 -w fields", ""),
    ("get a --prefix --count-only -w fields", ""),
    ("get a --prefix --order DESCEND --sort-by MODIFY --print-value-only", ""),
    ("get a b --order DESCEND --sort-by KEY", ""),
    ("get a --rev 999", ""),
    ("put x y --ignore-value", ""),
    ("put --ignore-lease absent 1", ""),
    ("put a --ignore-value", ""),
    ("txn -w fields", "create(\"n\") = \"0\"\nval(\"a\") = \"2\"\n\nput n 1\nget a\ndel b\n\nget n\n\n"),
    ("txn -w fields", "create(\"n\") = \"0\"\n\nput n 1\n\nget n\n\n"),
    ("txn", "ver(\"a\") > \"1\"\nmod(\"a\") < \"100\"\n\nput n 2\n\n\n"),
    ("txn", "mod(\"a\") > \"100\"\n\n\nput m 1\nput m 2\n\n"),
    ("lease grant 100", ""),
    ("put leased 1 --lease LEASE", ""),
    ("lease keep-alive --once LEASE", ""),
    ("lease timetolive LEASE --keys", ""),
    ("lease list", ""),
    ("get leased -w fields", ""),
    ("lease revoke LEASE", ""),
    ("lease revoke LEASE", ""),
    ("lease timetolive LEASE", ""),
    ("get leased", ""),
    ("put leased 1 --lease 1234", ""),
    ("del a --prefix --prev-kv", ""),
    ("del absent", ""),
    ("get a --prefix --rev 5", ""),
    ("compaction 6", ""),
    ("compaction 6", ""),
    ("compaction 999", ""),
    ("get a --rev 3", ""),
    ("get a --rev 6 -w fields", ""),
    ("watch a --rev 3", ""),
];

#[tokio::test]
async fn etcdctl_cannot_tell_us_from_etcd() {
    let Some(etcd) = Etcd::start().await else { return };
    let etcdctl = etcd.etcdctl();
    let mut wire = Wire::start().await.expect("loopback is always there");
    wire.stop().await;
    wire.resume_empty().await;
    let (mut ours, mut theirs) = (String::from("NONE"), String::from("NONE"));
    let mut differences = Vec::new();
    for (args, input) in SCRIPT {
        let we = run(&etcdctl, wire.address(), args, input, &mut ours).await;
        let they = run(&etcdctl, etcd.address(), args, input, &mut theirs).await;
        if we != they {
            differences.push(format!("etcdctl {args}\nours:\n{we}\ntheirs:\n{they}\n"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let (we, they) = (watch(&etcdctl, wire.address()).await, watch(&etcdctl, etcd.address()).await);
    assert_eq!(we, they);
    assert!(we.contains("DELETE"), "{we}");
}

/// A watch over history and what comes, `--prev-kv` and all.
async fn watch(etcdctl: &Path, address: SocketAddr) -> String {
    let child = command(etcdctl, address, "watch w --prefix --prev-kv --rev 7").kill_on_drop(true).spawn();
    let child = child.expect("etcdctl starts");
    for args in ["put w/1 a", "put w/2 b", "put w/1 c", "put v d", "del w/1"] {
        run(etcdctl, address, args, "", &mut String::new()).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid = child.id().expect("it runs until told").to_string();
    std::process::Command::new("kill").args(["-INT", &pid]).status().expect("our own child");
    let output = child.wait_with_output().await.expect("it ends");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn run(etcdctl: &Path, address: SocketAddr, args: &str, input: &str, lease: &mut String) -> String {
    let mut child = command(etcdctl, address, &args.replace("LEASE", lease)).spawn().expect("etcdctl starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).await.expect("etcdctl reads");
    drop(stdin);
    let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output()).await;
    let output = output.expect("etcdctl ends").expect("etcdctl runs");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if let Some(rest) = args.starts_with("lease grant").then(|| text.split_whitespace().nth(1)).flatten() {
        rest.clone_into(lease);
    }
    let kept: Vec<String> = text.lines().filter_map(|line| comparable(line, lease, address)).collect();
    format!("{}\n{}", output.status.success(), kept.join("\n"))
}

fn command(etcdctl: &Path, address: SocketAddr, args: &str) -> Command {
    let mut command = Command::new(etcdctl);
    command.args(["--endpoints", &address.to_string(), "--command-timeout", "10s"]).args(args.split(' '));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A line without what must differ: names, ports, times.
fn comparable(line: &str, lease: &str, address: SocketAddr) -> Option<String> {
    let differs = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
    if differs.iter().any(|d| line.starts_with(d)) {
        return None;
    }
    let line = line.replace(lease, "LEASE").replace(&address.to_string(), "ADDRESS");
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = u64::from_str_radix(lease, 16).map(|n| n.to_string()).unwrap_or_default();
    Some(match fields.as_slice() {
        ["ADDRESS", "is", "healthy:", ..] => "ADDRESS is healthy".into(),
        ["\"Lease\"", ":", n] if *n == number => "\"Lease\" : LEASE".into(),
        // grpc-go's log lines carry the time.
        [first, ..] if first.starts_with('{') => line.split("\"error\"").nth(1).unwrap_or_default().to_owned(),
        _ => line,
    })
}
