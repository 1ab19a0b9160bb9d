//! The child process: a source that offers its whole arena as often as its parent says.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rpc::{Limits, ServeOptions};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use transfer::{KvHold, Metrics, Offer, Source, SourceConfig};
use types::{BlockIdx, Epoch, Handoff, RequestId, Token};

use super::arena::{self, Layout};
use super::{SizeArg, raw};
use crate::roles::say_ready;

#[derive(Args, Clone)]
pub(crate) struct SourceArgs {
    #[arg(long)]
    bytes: SizeArg,
    #[arg(long)]
    block: SizeArg,
}

/// Serves until its input closes.
pub(crate) async fn run(args: SourceArgs) -> anyhow::Result<()> {
    let layout = Layout::new(args.bytes.0, args.block.0)?;
    let arena = layout.arena()?;
    arena::fill_all(&arena, layout, |layer, block, cell| {
        arena::fill(layer, block, cell);
        Ok(())
    })?;
    let (_worker, worker) = watch::channel(arena::source_worker());
    let source =
        Source::new(arena.clone(), layout.compatibility(), worker, SourceConfig::default(), Metrics::default());
    let stop = CancellationToken::new();
    let _stop_on_drop = stop.clone().drop_guard();
    let any = "127.0.0.1:0".parse()?;
    let grpc = TcpListener::bind(any).await?;
    let (tcp, plain) = (transfer::bind_tcp(any)?, transfer::bind_tcp(any)?);
    let mut places = serde_json::json!({
        "grpc": grpc.local_addr()?.to_string(), "tcp": tcp.local_addr()?.to_string(),
        "raw": plain.local_addr()?.to_string(),
    });
    tokio::spawn(transfer::serve(grpc, source.clone(), ServeOptions::new(Limits::kv()), stop.clone()));
    tokio::spawn(transfer::serve_tcp(tcp, source.clone(), Duration::ZERO, stop.clone()));
    #[cfg(target_os = "linux")]
    let _folder = {
        let folder = Folder::new()?;
        let path = folder.0.join("kv.sock");
        places["shm"] = path.display().to_string().into();
        places["host"] = transfer::host_id().into();
        tokio::spawn(transfer::serve_shm(transfer::bind_shm(&path)?, source.clone(), Duration::ZERO, stop.clone()));
        folder
    };
    say_ready(&places.to_string());
    let mut commands = commands();
    while let Some(command) = commands.recv().await {
        match command.split_once(' ') {
            Some(("offer", round)) => offer(&source, layout, round.parse()?)?,
            _ => {
                let (plain, arena) = (accept(&plain), arena.clone());
                // Connected after the answer; the parent knows the address.
                say_ready("ready");
                let stream = raw::blocking(plain.await?)?;
                tokio::task::spawn_blocking(move || raw::send(stream, &arena, layout)).await??;
                continue;
            }
        }
        say_ready("ready");
    }
    Ok(())
}

/// Lines of the standard input, read by a thread that ends with it.
fn commands() -> mpsc::Receiver<String> {
    let (sender, commands) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    commands
}

async fn accept(listener: &TcpListener) -> std::io::Result<tokio::net::TcpStream> {
    listener.accept().await.map(|(stream, _)| stream)
}

/// Offers the whole arena, computed already; it is held until it was fetched.
fn offer(source: &Arc<Source>, layout: Layout, round: u128) -> anyhow::Result<()> {
    let (_progress, progress) = watch::channel(0);
    let blocks = (0..layout.n_blocks as u32).map(BlockIdx).collect();
    let offer = Offer {
        request: RequestId(round),
        choice: 0,
        worker: arena::source_worker(),
        owner_epoch: Epoch(1),
        reader: arena::reader_worker(),
        n_tokens: layout.n_tokens(),
        hashes: layout.hashes(),
        hold: Box::new(Held { blocks, progress }),
        hold_for: Duration::from_secs(60),
    };
    let handle = source.offer(offer).map_err(|failure| anyhow::anyhow!("{failure}"))?;
    handle.finish(Handoff {
        first: Token { id: 0, position: 0, logprob: None, top: vec![], finish: None },
        position: layout.n_tokens() as u32,
        choice: 0,
        seed: 0,
        hidden_state: vec![],
        generated: vec![0],
    });
    tokio::spawn(handle.ended());
    Ok(())
}

/// Blocks that nobody else wants.
struct Held {
    blocks: Vec<BlockIdx>,
    progress: watch::Receiver<u64>,
}

impl KvHold for Held {
    fn blocks(&self) -> &[BlockIdx] {
        &self.blocks
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }
}

/// A folder of this process's own, removed at its end.
#[cfg(target_os = "linux")]
struct Folder(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Folder {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("baton-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

#[cfg(target_os = "linux")]
impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
