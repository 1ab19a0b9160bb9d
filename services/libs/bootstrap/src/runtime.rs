//! Life and end of a process: signals, tasks that shutdown waits for, the line that tells a parent our ports.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Metrics;

/// What a service's `run` is given. Cheap to clone; all clones share one shutdown, one task list and one set of
/// metrics.
#[derive(Clone, Debug)]
pub struct Runtime {
    role: Arc<str>,
    id: Arc<str>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
    metrics: Metrics,
    announced: watch::Sender<Vec<Announcement>>,
    on_stdout: bool,
}

/// Addresses that a service has bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    /// Client API over HTTP.
    pub http: Option<SocketAddr>,
    /// Client or worker API over gRPC.
    pub grpc: Option<SocketAddr>,
    /// Admin port.
    pub admin: Option<SocketAddr>,
    /// KV data.
    pub kv: Option<SocketAddr>,
}

/// Who listens where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announcement {
    /// Role's name.
    pub role: String,
    /// Instance's name.
    pub id: String,
    /// Bound addresses.
    pub ports: Ports,
}

impl Runtime {
    /// For the instance `id` of `role`; announcements are only kept for [`Runtime::announced`].
    pub fn new(role: &str, id: &str, shutdown: CancellationToken) -> Self {
        Self {
            role: role.into(),
            id: id.into(),
            shutdown,
            tracker: TaskTracker::new(),
            metrics: Metrics::new(),
            announced: watch::Sender::new(Vec::new()),
            on_stdout: false,
        }
    }

    /// Announcements are also written to standard output, one JSON line each, for a supervising parent.
    #[must_use]
    pub fn announcing_on_stdout(mut self) -> Self {
        self.on_stdout = true;
        self
    }

    /// The same runtime for another service of this process.
    #[must_use]
    pub fn for_instance(&self, role: &str, id: &str) -> Self {
        Self { role: role.into(), id: id.into(), ..self.clone() }
    }

    /// Role's name.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// Instance's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Cancelled when the process has to end.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Owner of the process's tasks; [`Runtime::finish`] waits for them.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Says that this instance listens now.
    pub fn announce(&self, ports: Ports) {
        let announcement = Announcement { role: self.role.to_string(), id: self.id.to_string(), ports };
        tracing::info!(role = %self.role, id = %self.id, http = ?ports.http, grpc = ?ports.grpc, admin = ?ports.admin,
            kv = ?ports.kv, "listening");
        if self.on_stdout {
            let mut out = std::io::stdout().lock();
            if let Err(error) = writeln!(out, "{}", announcement.to_json()).and_then(|()| out.flush()) {
                tracing::warn!(%error, "cannot announce the ports on standard output");
            }
        }
        self.announced.send_modify(|all| all.push(announcement));
    }

    /// All announcements of this process so far.
    pub fn announced(&self) -> watch::Receiver<Vec<Announcement>> {
        self.announced.subscribe()
    }

    /// Begins the shutdown when standard input ends, which is when a parent process dies.
    pub fn exit_on_stdin_eof(&self) {
        let shutdown = self.shutdown.clone();
        // A thread of its own: a blocked read must not hold up the end of the async runtime.
        let reader = move || {
            let mut sink = [0; 256];
            let mut input = std::io::stdin().lock();
            loop {
                match input.read(&mut sink) {
                    Ok(0) => break,
                    Err(error) if error.kind() != std::io::ErrorKind::Interrupted => break,
                    _ => {}
                }
            }
            tracing::info!("standard input has ended, shutting down");
            shutdown.cancel();
        };
        if let Err(error) = std::thread::Builder::new().name("stdin".into()).spawn(reader) {
            tracing::warn!(%error, "cannot watch standard input");
        }
    }

    /// Begins the shutdown if it has not begun, and waits for the tasks, `limit` at most. Whether all have ended.
    pub async fn finish(&self, limit: Duration) -> bool {
        self.shutdown.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(limit, self.tracker.wait()).await.is_ok();
        if !ended {
            tracing::warn!(n_tasks = self.tracker.len(), ?limit, "tasks still run, ending without them");
        }
        ended
    }
}

impl Announcement {
    /// `{"role", "id", "ports": {"http": 8000, …}}`, bound ports only.
    pub fn to_json(&self) -> serde_json::Value {
        let named =
            [("http", self.ports.http), ("grpc", self.ports.grpc), ("admin", self.ports.admin), ("kv", self.ports.kv)];
        let ports: serde_json::Map<_, _> =
            named.into_iter().filter_map(|(name, a)| Some((name.to_owned(), a?.port().into()))).collect();
        serde_json::json!({ "role": self.role, "id": self.id, "ports": ports })
    }
}

/// A token that SIGTERM or SIGINT cancels; the second signal ends the process at once with status 130.
///
/// # Errors
/// If the handlers cannot be installed.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    // Lives as long as the process: it is what ends it.
    tokio::spawn(async move {
        for n in 0.. {
            let name = tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
            };
            if n > 0 {
                std::process::exit(130);
            }
            tracing::info!(signal = name, "shutting down");
            cancelled.cancel();
        }
    });
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finish_waits_for_tasks_but_not_for_ever() {
        let runtime = Runtime::new("decode", "d0", CancellationToken::new());
        let stop = runtime.shutdown().clone();
        runtime.tracker().spawn(async move { stop.cancelled().await });
        assert!(runtime.finish(Duration::from_secs(5)).await);

        let stuck = Runtime::new("decode", "d0", CancellationToken::new());
        stuck.tracker().spawn(std::future::pending::<()>());
        assert!(!stuck.finish(Duration::from_millis(10)).await);
    }

    #[tokio::test]
    async fn a_signal_begins_the_shutdown() {
        let stop = shutdown_signal().expect("handlers can be installed");
        assert!(!stop.is_cancelled());
        let own = std::process::id().to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &own]).status().expect("kill runs");
        assert!(sent.success());
        tokio::time::timeout(Duration::from_secs(5), stop.cancelled()).await.expect("noticed");
    }

    #[test]
    fn announces_bound_ports_only() {
        let runtime = Runtime::new("router", "r0", CancellationToken::new());
        let grpc: SocketAddr = "127.0.0.1:50051".parse().expect("an address");
        runtime.for_instance("decode", "d0").announce(Ports { grpc: Some(grpc), ..Ports::default() });
        let all = runtime.announced().borrow().clone();
        assert_eq!(all[0].to_json().to_string(), r#"{"role":"decode","id":"d0","ports":{"grpc":50051}}"#);
    }
}
