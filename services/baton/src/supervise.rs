//! Runs child processes of this same binary and restarts the ones that die.

use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cluster::{Announcement, ChildRecord, ClusterFile};

/// First pause before a restart; doubles with each early death.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A child that lived this long starts with a clean record.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Deaths of a child before the cluster first served, after which the cluster gives up: its settings are wrong.
const EARLY_DEATHS_MAX: u32 = 3;
/// Time for a child to finish what it does after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct ChildSpec {
    pub(crate) role: &'static str,
    pub(crate) id: String,
    /// Arguments after the program's name.
    pub(crate) args: Vec<String>,
}

/// Keeps children running until told to stop.
pub(crate) struct Supervisor {
    file: Arc<ClusterFile>,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// The cluster has served: from now on children are restarted for ever.
    started: watch::Sender<bool>,
    /// Why the cluster cannot start, if it cannot.
    failed: watch::Sender<Option<String>>,
}

impl Supervisor {
    pub(crate) fn new(file: Arc<ClusterFile>, stop: CancellationToken) -> Self {
        let (started, failed) = (watch::channel(false).0, watch::channel(None).0);
        Self { file, tracker: TaskTracker::new(), stop, started, failed }
    }

    /// Starts one child and keeps it running.
    pub(crate) fn spawn(&self, spec: ChildSpec) {
        let (file, stop, failed) = (self.file.clone(), self.stop.clone(), self.failed.clone());
        let started = self.started.subscribe();
        self.tracker.spawn(async move {
            if let Err(error) = keep_running(&spec, &file, &stop, &started).await {
                failed.send_replace(Some(format!("{}: {error:#}", spec.id)));
            }
        });
    }

    /// Says that the cluster has served.
    pub(crate) fn started(&self) {
        self.started.send_replace(true);
    }

    /// Resolves when a child can never start.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        let mut failed = self.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => anyhow::anyhow!(reason.clone().unwrap_or_default()),
            Err(_) => anyhow::anyhow!("the supervisor is gone"),
        }
    }

    /// Waits until every child has ended; call after the stop token was cancelled.
    pub(crate) async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

async fn keep_running(
    spec: &ChildSpec,
    file: &ClusterFile,
    stop: &CancellationToken,
    started: &watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let mut backoff = BACKOFF_MIN;
    let mut early_deaths = 0;
    while !stop.is_cancelled() {
        let began = Instant::now();
        let run = run_once(spec, file, stop).await;
        file.remove(&spec.id)?;
        if stop.is_cancelled() {
            return Ok(());
        }
        let status = run?;
        early_deaths = if *started.borrow() { 0 } else { early_deaths + 1 };
        anyhow::ensure!(
            early_deaths < EARLY_DEATHS_MAX,
            "ended {early_deaths} times before the cluster served, last with {status}; its messages above say why"
        );
        if began.elapsed() > STABLE_AFTER {
            backoff = BACKOFF_MIN;
        }
        tracing::warn!(child = spec.id, %status, restart_in_ms = backoff.as_millis(), "child ended");
        tokio::select! {
            () = tokio::time::sleep(backoff) => {}
            () = stop.cancelled() => {}
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
    Ok(())
}

async fn run_once(spec: &ChildSpec, file: &ClusterFile, stop: &CancellationToken) -> anyhow::Result<ExitStatus> {
    let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(&spec.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", spec.id))?;
    let pid = child.id().context("a child that was just started has a pid")?;
    // Kept open as long as the child runs: its end tells the child that this process is gone. Waiting closes it.
    let _lifeline = child.stdin.take();
    let mut record =
        ChildRecord { role: spec.role.to_owned(), pid, id: spec.id.clone(), ports: std::collections::BTreeMap::new() };
    file.set(record.clone())?;
    let mut lines = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
    let mut announced = false;
    loop {
        tokio::select! {
            line = lines.next_line(), if !announced => match line {
                Ok(Some(line)) => if let Ok(announcement) = serde_json::from_str::<Announcement>(&line) {
                    record.ports = announcement.ports;
                    file.set(record.clone())?;
                    announced = true;
                },
                Ok(None) | Err(_) => return Ok(child.wait().await?),
            },
            status = child.wait() => return Ok(status?),
            () = stop.cancelled() => return terminate(&mut child).await,
        }
    }
}

/// SIGTERM, then SIGKILL when the grace time is over.
async fn terminate(child: &mut Child) -> anyhow::Result<ExitStatus> {
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    match tokio::time::timeout(GRACE, child.wait()).await {
        Ok(status) => Ok(status?),
        Err(_) => {
            child.kill().await?;
            Ok(child.wait().await?)
        }
    }
}
