//! Command-line arguments. Defaults are written here once; a flag's help prints them.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kvcache::hash::Secret;

use crate::bench::BenchArgs;
use crate::cores::PinArg;

/// Commands whose flags may also come from a file and the environment.
pub(crate) const ROLES: [&str; 3] = ["router", "prefill", "decode"];

/// Serves large language models with prefill and decode on different workers.
#[derive(Parser)]
#[command(name = "baton", version, propagate_version = true, args_override_self = true)]
pub(crate) struct Cli {
    /// Log lines for people or for machines, on standard error
    #[arg(long, global = true, env = "BATON_LOG_FORMAT", default_value = "text", value_enum)]
    pub(crate) log_format: bootstrap::logging::Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Local cluster: router, prefill and decode workers as child processes, restarted when they die
    Up(UpArgs),
    /// The same API in one process, without a split: the reference deployment
    Single(SingleArgs),
    /// Start a cluster, ask one question, show the answer and its timeline, keep serving
    Demo(DemoArgs),
    /// One router
    #[command(args_override_self = true)]
    Router(RouterArgs),
    /// One prefill worker
    #[command(args_override_self = true)]
    Prefill(WorkerArgs),
    /// One decode worker
    #[command(args_override_self = true)]
    Decode(WorkerArgs),
    /// The in-memory registry, served over etcd's wire
    Registry(RegistryArgs),
    /// Chat with a running cluster
    Chat(ChatArgs),
    /// Show a running cluster
    Status(StatusArgs),
    /// Show why a request went to its workers
    Explain(ExplainArgs),
    /// Check this machine: processor, memory, ports, model
    Doctor(DoctorArgs),
    /// Fetch a model by its short name
    Pull(PullArgs),
    /// Write the logits of token ids to a safetensors file
    Logits(LogitsArgs),
    /// Continue token ids greedily, without a server
    Generate(GenerateArgs),
    /// Perplexity of token ids
    Perplexity(PerplexityArgs),
    /// Measure this machine
    Bench(BenchArgs),
}

/// Which engine computes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum EngineKind {
    /// This machine's processor
    Cpu,
    /// No weights: the next token is a keyed hash of all previous ones
    Sim,
}

/// How products are computed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum ComputeKind {
    /// Float32 from the stored weights
    F32,
    /// The fastest path within the quality bars
    Auto,
}

#[derive(Args, Clone)]
pub(crate) struct ModelArgs {
    /// A directory in Hugging Face layout, a .gguf file, or a name known to `baton pull`
    #[arg(long)]
    pub(crate) model: String,
    /// Name that clients use [default: the file's or directory's name]
    #[arg(long)]
    pub(crate) served_model_name: Option<String>,
}

#[derive(Args, Clone)]
pub(crate) struct EngineArgs {
    /// Which engine computes
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) engine: EngineKind,
    /// How products are computed
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) compute: ComputeKind,
    /// Threads of each worker's engine [default: the machine's cores divided among the workers]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Bind threads to cores: `off`, `on` (those this process may use), or a list such as 0-3,8. Each worker of
    /// `baton up` gets cores of its own
    #[arg(long, default_value = "off")]
    pub(crate) pin: PinArg,
    /// Blocks in each worker's KV pool; memory is touched as blocks are first used
    #[arg(long, default_value_t = 2048)]
    pub(crate) kv_blocks: usize,
    /// Tokens of prompts and running sequences computed in one step
    #[arg(long, default_value_t = 256)]
    pub(crate) step_tokens: usize,
    /// Sequences that run at the same time
    #[arg(long, default_value_t = 64)]
    pub(crate) max_running: usize,
    /// Sim engine: how much faster than the modelled machine; `inf` takes no time at all
    #[arg(long, default_value = "1")]
    pub(crate) sim_speedup: SpeedupArg,
    /// KV transfer checksums
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) kv_checksum: Switch,
    /// What carries KV between workers; where it does not reach, the next slower does, with a warning
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) transport: TransportArg,
    /// Keep full KV blocks for prompts that begin alike
    #[arg(long, value_enum, default_value = "on")]
    pub(crate) prefix_cache: Switch,
    /// Percent of the KV blocks from which on a tenant's cached blocks give way before those of others
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) tenant_cache_percent: u8,
    #[command(flatten)]
    pub(crate) names: NameArgs,
}

/// What the names of KV blocks are made with.
#[derive(Args, Clone)]
pub(crate) struct NameArgs {
    /// Goes into the names of KV blocks: the same on all routers and workers of a cluster. Better set as
    /// BATON__PREFIX_SECRET, as command lines can be read by others
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) prefix_secret: String,
}

impl NameArgs {
    pub(crate) fn secret(&self) -> Secret {
        Secret(self.prefix_secret.clone().into_bytes())
    }
}

/// What carries KV between workers.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum TransportArg {
    /// The fastest that both workers have: shm, then tcp, then grpc
    Auto,
    /// Shared memory, between workers of one machine
    Shm,
    /// Raw TCP
    Tcp,
    /// gRPC, which is always there
    Grpc,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Switch {
    On,
    Off,
}

impl EngineArgs {
    /// Checks what no engine could work with, before a process is started for it.
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        let counts = [
            ("--threads", self.threads.unwrap_or(1), THREADS_MAX),
            ("--kv-blocks", self.kv_blocks, KV_BLOCKS_MAX),
            ("--step-tokens", self.step_tokens, usize::MAX),
            ("--max-running", self.max_running, usize::MAX),
        ];
        for (flag, value, max) in counts {
            anyhow::ensure!(value >= 1, "{flag} must be at least 1");
            anyhow::ensure!(value <= max, "{flag} must be at most {max}");
        }
        Ok(())
    }
}

/// Most threads of an engine.
const THREADS_MAX: usize = 1024;
/// Most blocks of a pool: 268 million tokens.
const KV_BLOCKS_MAX: usize = 1 << 24;

/// A positive factor or `inf`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct SpeedupArg(pub(crate) f64);

impl std::str::FromStr for SpeedupArg {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse::<f64>() {
            Ok(factor) if factor > 0.0 => Ok(Self(factor)),
            _ => Err("must be a number above 0, or `inf`".into()),
        }
    }
}

impl std::fmt::Display for SpeedupArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How routers choose workers.
#[derive(Args, Clone)]
pub(crate) struct RoutingArgs {
    /// How workers are compared: round-robin, least-loaded, power-of-two, prefix-aware or cost
    #[arg(long, default_value_t)]
    pub(crate) policy: routing::Policy,
    /// A decode worker computes a prompt itself if it lacks at most so many of its tokens; 0: never while there is a
    /// prefill worker
    #[arg(long, default_value_t = 0)]
    pub(crate) local_prefill_tokens: u32,
    /// Memory of each router for what the workers' caches hold, MiB
    #[arg(long, default_value_t = 128)]
    pub(crate) index_mib: usize,
}

impl RoutingArgs {
    /// Puts the flags into a router's settings.
    pub(crate) fn apply(&self, config: &mut router::Config) {
        config.rules = routing::Rules { policy: self.policy, local_tokens: self.local_prefill_tokens };
        config.index.bytes = self.index_mib.saturating_mul(1 << 20);
    }

    /// As flags of a child.
    pub(crate) fn flags(&self) -> Vec<(&'static str, String)> {
        vec![
            ("--policy", self.policy.to_string()),
            ("--local-prefill-tokens", self.local_prefill_tokens.to_string()),
            ("--index-mib", self.index_mib.to_string()),
        ]
    }
}

#[derive(Args, Clone)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) routing: RoutingArgs,
    /// Prefill workers; 0: decode workers prefill by themselves
    #[arg(long, default_value_t = 1)]
    pub(crate) prefill: usize,
    /// Decode workers
    #[arg(long, default_value_t = 1)]
    pub(crate) decode: usize,
    /// Routers; the first one listens on the given addresses
    #[arg(long, default_value_t = 1)]
    pub(crate) routers: usize,
    /// The first router's HTTP address
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub(crate) http: SocketAddr,
    /// The first router's gRPC address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: SocketAddr,
    /// The first router's admin address
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) admin: SocketAddr,
    /// `memory`, or etcd://host:port[,host:port]
    #[arg(long, default_value = "memory")]
    pub(crate) registry: String,
}

#[derive(Args, Clone)]
pub(crate) struct SingleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) routing: RoutingArgs,
    /// HTTP address
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub(crate) http: SocketAddr,
    /// gRPC address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: SocketAddr,
    /// Admin address
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) admin: SocketAddr,
}

#[derive(Args, Clone)]
pub(crate) struct DemoArgs {
    /// Stop after the answer
    #[arg(long)]
    pub(crate) exit: bool,
    /// What to ask
    #[arg(long, default_value = "What is the capital of France?")]
    pub(crate) question: String,
    /// A directory, a .gguf file, or a name known to `baton pull`
    #[arg(long, default_value = crate::model::DEMO)]
    pub(crate) model: String,
    /// HTTP address; 8000 unless taken
    #[arg(long)]
    pub(crate) http: Option<SocketAddr>,
    /// gRPC address; 50051 unless taken
    #[arg(long)]
    pub(crate) grpc: Option<SocketAddr>,
}

/// What every role process takes.
#[derive(Args, Clone)]
pub(crate) struct ProcessArgs {
    /// TOML file with this role's settings; flags win over it
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Name in the cluster [default: role and a random suffix]
    #[arg(long)]
    pub(crate) id: Option<String>,
    /// etcd://host:port[,host:port]
    #[arg(long, env = "BATON_REGISTRY")]
    pub(crate) registry: String,
    /// Stop when standard input closes: set by a supervising parent
    #[arg(long, hide = true)]
    pub(crate) exit_on_stdin_eof: bool,
}

#[derive(Args, Clone)]
pub(crate) struct RouterArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) routing: RoutingArgs,
    #[command(flatten)]
    pub(crate) names: NameArgs,
    /// HTTP address
    #[arg(long, default_value = "127.0.0.1:8000")]
    pub(crate) http: SocketAddr,
    /// gRPC address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: SocketAddr,
    /// Admin address
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub(crate) admin: SocketAddr,
}

#[derive(Args, Clone)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) process: ProcessArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Control-plane address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: SocketAddr,
    /// KV data address
    #[arg(long, default_value = "127.0.0.1:7100")]
    pub(crate) kv: SocketAddr,
    /// Admin address
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub(crate) admin: SocketAddr,
    /// host:port that others use for the control plane [default: --grpc]
    #[arg(long)]
    pub(crate) grpc_advertise: Option<String>,
    /// host:port that others use for KV data [default: --kv]
    #[arg(long)]
    pub(crate) kv_advertise: Option<String>,
    /// KV data address over raw TCP [default: any port of --kv's interface]
    #[arg(long)]
    pub(crate) kv_tcp: Option<SocketAddr>,
    /// host:port that others use for KV data over raw TCP [default: --kv-tcp]
    #[arg(long)]
    pub(crate) kv_tcp_advertise: Option<String>,
}

#[derive(Args, Clone)]
pub(crate) struct RegistryArgs {
    /// Address to serve etcd's v3 wire on
    #[arg(long, default_value = "127.0.0.1:2379")]
    pub(crate) listen: SocketAddr,
    /// Stop when standard input closes: set by a supervising parent
    #[arg(long, hide = true)]
    pub(crate) exit_on_stdin_eof: bool,
}

#[derive(Args, Clone)]
pub(crate) struct ChatArgs {
    /// What to say; without it, reads lines from standard input
    pub(crate) message: Option<String>,
    /// The router's gRPC address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: String,
    /// Print the phases of each answer
    #[arg(long)]
    pub(crate) timeline: bool,
    /// Most tokens of one answer; 0: up to the model's context
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: u32,
    /// 0: greedy
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Seed of the sampling
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// First message of the conversation
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Print one JSON object per answer
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct StatusArgs {
    /// The router's gRPC address
    #[arg(long, default_value = "127.0.0.1:50051")]
    pub(crate) grpc: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct ExplainArgs {
    /// The request's id: 32 hex digits, or the `id` of its answer
    pub(crate) request: String,
    /// The router's admin address
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub(crate) admin: String,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct DoctorArgs {
    /// Also check that this model loads
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Also check that this registry answers
    #[arg(long)]
    pub(crate) registry: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct PullArgs {
    /// Short name of a model; without it, the names that are known
    pub(crate) name: Option<String>,
    /// Print only the path
    #[arg(long)]
    pub(crate) print_path: bool,
}

/// What the offline commands share.
#[derive(Args, Clone)]
pub(crate) struct OfflineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// JSON file of token ids
    #[arg(long)]
    pub(crate) ids: PathBuf,
    /// How products are computed
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) compute: ComputeKind,
    /// Where to compute
    #[arg(long, value_enum, default_value = "cpu")]
    pub(crate) device: Device,
    /// Threads [default: the machine's cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
pub(crate) enum Device {
    Cpu,
}

#[derive(Args, Clone)]
pub(crate) struct LogitsArgs {
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
    /// safetensors file to write: `logits.<i>`, float32 [n_tokens, vocab]
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Tokens per step [default: the whole prompt at once]
    #[arg(long)]
    pub(crate) chunk: Option<usize>,
}

#[derive(Args, Clone)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
    /// Most tokens per prompt
    #[arg(long, default_value_t = 64)]
    pub(crate) max_tokens: usize,
    /// Print JSON: {"ids": [[…], …]}
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Clone)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) offline: OfflineArgs,
    /// Tokens of one window; its first token is not scored
    #[arg(long, default_value_t = 512)]
    pub(crate) window: usize,
    /// Print JSON: {"nll_per_token", "perplexity", "tokens"}
    #[arg(long)]
    pub(crate) json: bool,
}

impl Default for EngineArgs {
    /// The flags' own defaults.
    fn default() -> Self {
        #[derive(Parser)]
        struct Bare {
            #[command(flatten)]
            engine: EngineArgs,
        }
        Bare::parse_from(["baton"]).engine
    }
}

impl Default for RoutingArgs {
    /// The flags' own defaults.
    fn default() -> Self {
        #[derive(Parser)]
        struct Bare {
            #[command(flatten)]
            routing: RoutingArgs,
        }
        Bare::parse_from(["baton"]).routing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
        assert_eq!(EngineArgs::default().kv_blocks, 2048);
    }

    #[test]
    fn impossible_engines_are_refused() {
        let with = |change: fn(&mut EngineArgs)| {
            let mut args = EngineArgs::default();
            change(&mut args);
            args.validate().err().map(|e| e.to_string())
        };
        assert_eq!(with(|_| {}), None);
        for (change, flag) in [
            ((|a| a.threads = Some(0)) as fn(&mut EngineArgs), "--threads"),
            (|a| a.kv_blocks = 0, "--kv-blocks"),
            (|a| a.kv_blocks = usize::MAX, "--kv-blocks"),
            (|a| a.step_tokens = 0, "--step-tokens"),
            (|a| a.max_running = 0, "--max-running"),
        ] {
            assert!(with(change).is_some_and(|message| message.contains(flag)), "{flag}");
        }
    }

    #[test]
    fn speedup_is_positive_or_infinite() {
        for (text, want) in [("2", Some(2.0)), ("inf", Some(f64::INFINITY)), ("0", None), ("-1", None), ("NaN", None)] {
            assert_eq!(text.parse::<SpeedupArg>().ok().map(|s| s.0), want, "{text}");
        }
    }
}
