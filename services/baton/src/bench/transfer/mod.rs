//! `baton bench transfer`: how fast KV goes from one process's arena to another's, by the product's own code.
//!
//! The process that was called reads; a child of it is the source. In turn with the product, in the same run: the same
//! bytes from arena to arena over a plain TCP connection with the same socket buffers, and by one thread's memcpy.

mod arena;
mod raw;
mod source;

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use transfer::{Metrics, Pull, Puller, TransportChoice, TransportKind};
use types::{BlockIdx, Epoch, KvEndpoints, RequestId};

use self::arena::Layout;
pub(crate) use self::source::{SourceArgs, run as run_source};
use crate::cli::{Switch, TransportArg};
use crate::roles::{checksum, transport};

#[derive(Args, Clone)]
pub(crate) struct BenchTransferArgs {
    /// What carries the KV; `auto`: the fastest
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) transport: TransportArg,
    /// Bytes of KV in all, e.g. 1GiB
    #[arg(long, default_value = "1GiB")]
    pub(crate) bytes: SizeArg,
    /// Bytes of one cell (one block of one layer)
    #[arg(long, default_value = "1MiB")]
    pub(crate) block: SizeArg,
    /// Whether cells are hashed on both sides
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) checksum: Switch,
    /// How often each is measured, in turn with the others
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Print JSON: {"transport", "checksum", "block_bytes", "gb_per_s", "raw_tcp_gb_per_s", "memcpy_gb_per_s"}
    #[arg(long)]
    pub(crate) json: bool,
}

/// A number of bytes: digits, then nothing, KiB, MiB or GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SizeArg(pub(crate) usize);

impl std::str::FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
        let (digits, shift) = units
            .iter()
            .find_map(|(unit, shift)| text.strip_suffix(unit).map(|digits| (digits, *shift)))
            .unwrap_or((text, 0));
        let bytes = digits.trim().parse::<usize>().ok().and_then(|n| n.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| "must be a number of bytes, e.g. 65536, 64KiB, 1MiB or 1GiB".into())
    }
}

impl std::fmt::Display for SizeArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Most repeats.
const REPEATS_MAX: usize = 1000;
/// One transfer takes no longer.
const PULL_TIME: Duration = Duration::from_secs(120);

pub(crate) async fn run(args: BenchTransferArgs) -> anyhow::Result<()> {
    anyhow::ensure!((1..=REPEATS_MAX).contains(&args.repeats), "--repeats must be between 1 and {REPEATS_MAX}");
    let layout = Layout::new(args.bytes.0, args.block.0)?;
    let mut source = SourceProcess::start(&args).await?;
    let reader = Reader::new(&args, layout, &source)?;
    let copied_from = raw::memory(layout)?;
    let (mut product, mut raw_tcp, mut memcpy) = (Vec::new(), Vec::new(), Vec::new());
    // The first round touches the memory and is not counted.
    for round in 0..=args.repeats {
        source.ask(&format!("offer {round}")).await?;
        let transfer = reader.pull(round).await?;
        if round == 0 {
            arena::check(&reader.pull.arena, layout)?;
        }
        arena::reset(&reader.pull.arena);
        source.ask("raw").await?;
        let raw = raw::receive(&source.raw, &reader.pull.arena, layout).await?;
        arena::reset(&reader.pull.arena);
        let copied = raw::copy(&copied_from, &reader.pull.arena, layout)?;
        arena::reset(&reader.pull.arena);
        if round > 0 {
            product.push(transfer);
            raw_tcp.push(raw);
            memcpy.push(copied);
        }
    }
    source.stop().await?;
    say(&args, layout, &mut [product, raw_tcp, memcpy]);
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the command's answer")]
fn say(args: &BenchTransferArgs, layout: Layout, times: &mut [Vec<Duration>; 3]) {
    let [product, raw_tcp, memcpy] = times.each_mut().map(|times| layout.bytes() as f64 / 1e9 / median(times));
    let name = match transport(args.transport) {
        TransportChoice::Auto => TransportKind::Shm,
        TransportChoice::Only(kind) => kind,
    };
    let checksum = args.checksum == Switch::On;
    if args.json {
        let round = |x: f64| (x * 1e3).round() / 1e3;
        println!(
            "{}",
            serde_json::json!({
                "transport": name.as_str(), "checksum": checksum, "block_bytes": args.block.0,
                "gb_per_s": round(product), "raw_tcp_gb_per_s": round(raw_tcp), "memcpy_gb_per_s": round(memcpy),
            })
        );
    } else {
        let checksum = if checksum { "on" } else { "off" };
        println!("{name}, checksums {checksum}, {} cells of {} bytes", layout.n_cells(), args.block.0);
        println!("  {product:>7.2} GB/s  from arena to arena");
        println!("  {raw_tcp:>7.2} GB/s  raw TCP, {:.2} of it", product / raw_tcp);
        println!("  {memcpy:>7.2} GB/s  memcpy, {:.2} of it", product / memcpy);
    }
}

/// Seconds; the list is sorted by it.
fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let middle = times.len() / 2;
    let upper = times[middle].as_secs_f64();
    if times.len() % 2 == 1 { upper } else { (upper + times[middle - 1].as_secs_f64()) / 2.0 }
}

/// The side that pulls.
struct Reader {
    puller: Puller,
    pull: Pull,
    kind: TransportChoice,
}

impl Reader {
    fn new(args: &BenchTransferArgs, layout: Layout, source: &SourceProcess) -> anyhow::Result<Self> {
        let kind = transport(args.transport);
        let pull = Pull {
            n_blocks_here: 0,
            address: source.grpc.clone(),
            endpoints: source.endpoints.clone(),
            peer: arena::source_worker(),
            reader: arena::reader_worker(),
            request: RequestId(0),
            choice: 0,
            owner_epoch: Epoch(1),
            trace: rpc::TraceContext::default(),
            compatibility: layout.compatibility(),
            checksum: checksum(args.checksum),
            blocks: (0..layout.n_blocks as u32).map(BlockIdx).collect(),
            n_tokens: layout.n_tokens(),
            hashes: layout.hashes(),
            arena: layout.arena()?,
            deadline: tokio::time::Instant::now(),
            progress_timeout: PULL_TIME,
            keep_alive: transfer::KEEP_ALIVE,
        };
        Ok(Self { puller: Puller::new(kind, Metrics::default()), pull, kind })
    }

    /// Pulls everything, on a worker thread of the runtime as the decode service does.
    async fn pull(&self, round: usize) -> anyhow::Result<Duration> {
        let mut pull = self.pull.clone();
        pull.request = RequestId(round as u128);
        pull.deadline = tokio::time::Instant::now() + PULL_TIME;
        let puller = self.puller.clone();
        let started = Instant::now();
        let pulled = tokio::spawn(async move { puller.pull(&pull).await }).await?.context("the transfer failed")?;
        let time = started.elapsed();
        let wanted = match self.kind {
            TransportChoice::Auto => TransportKind::Shm,
            TransportChoice::Only(kind) => kind,
        };
        anyhow::ensure!(pulled.transport == wanted, "{} carried it, not {wanted}", pulled.transport);
        Ok(time)
    }
}

/// The child that is the source.
struct SourceProcess {
    child: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    grpc: String,
    raw: String,
    endpoints: KvEndpoints,
}

impl SourceProcess {
    async fn start(args: &BenchTransferArgs) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["bench", "transfer-source", "--bytes", &args.bytes.to_string(), "--block", &args.block.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the source")?;
        let commands = child.stdin.take().context("the source has an input")?;
        let mut answers = BufReader::new(child.stdout.take().context("the source has an output")?).lines();
        let line = answers.next_line().await?.context("the source did not start")?;
        let places: serde_json::Value = serde_json::from_str(&line)?;
        let text = |name: &str| places[name].as_str().unwrap_or_default().to_owned();
        let endpoints = KvEndpoints { tcp: text("tcp"), shm: text("shm"), host: text("host") };
        Ok(Self { child, commands, answers, grpc: text("grpc"), raw: text("raw"), endpoints })
    }

    /// Tells the source what comes next, and waits until it is prepared.
    async fn ask(&mut self, command: &str) -> anyhow::Result<()> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        let answer = self.answers.next_line().await?;
        anyhow::ensure!(answer.as_deref() == Some("ready"), "the source answered {answer:?} to {command:?}");
        Ok(())
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        drop(self.commands);
        self.child.wait().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let check = |text: &str, want: Option<usize>| assert_eq!(text.parse().ok(), want.map(SizeArg), "{text}");
        check("4096", Some(4096));
        check("64KiB", Some(65536));
        check("1MiB", Some(1 << 20));
        check("2GiB", Some(2 << 30));
        check("1GB", None);
        check("", None);
        check("-1", None);
        check("99999999999GiB", None);
    }

    #[test]
    fn the_median_is_the_middle() {
        let mut times = [3, 1, 2].map(Duration::from_secs);
        assert_eq!(median(&mut times), 2.0);
        assert_eq!(median(&mut [4, 1, 2, 3].map(Duration::from_secs)), 2.5);
    }
}
