//! Flags of `baton bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::transfer::{BenchTransferArgs, SourceArgs};
use crate::cli::{ComputeKind, ModelArgs};

#[derive(Args, Clone)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Subcommand, Clone)]
pub(crate) enum BenchCommand {
    /// Tokens per second of the engine without a server, next to what this machine could do
    #[command(args_override_self = true)]
    Engine(BenchEngineArgs),
    /// Bytes per second of KV between two processes, next to raw TCP and memcpy
    #[command(args_override_self = true)]
    Transfer(BenchTransferArgs),
    /// The other process of `transfer`
    #[command(hide = true)]
    TransferSource(SourceArgs),
    /// The router's prefix index on one core; with traces, its policies in simulated time
    Index(BenchIndexArgs),
}

#[derive(Args, Clone)]
pub(crate) struct BenchIndexArgs {
    /// Blocks that the index holds
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) blocks: usize,
    /// Traces to replay, in Mooncake's lines of JSON
    #[arg(long, value_delimiter = ',')]
    pub(crate) trace: Vec<PathBuf>,
    /// Prefill workers of a replay
    #[arg(long, default_value_t = 8)]
    pub(crate) workers: usize,
    /// Cache of a replay, as a part of the trace's distinct blocks: on each worker, and then divided among them
    #[arg(long, default_value_t = 0.25)]
    pub(crate) cache: f64,
    /// A replay's arrivals come so many times as fast as they were recorded
    #[arg(long, default_value_t = 1.0)]
    pub(crate) speed: f64,
    /// Print JSON: {"index": {...}, "replays": [{"trace", "policy", "hit_rate", "share_of_ideal", ...}, ...]}
    #[arg(long)]
    pub(crate) json: bool,
}

impl BenchIndexArgs {
    /// Checks every value.
    pub(crate) fn validate(&self) -> anyhow::Result<()> {
        check("--blocks", &[self.blocks], 1_000, BLOCKS_MAX)?;
        check("--workers", &[self.workers], 1, WORKERS_MAX)?;
        anyhow::ensure!(self.cache > 0.0 && self.cache <= 1.0, "--cache is {}, must be above 0, at most 1", self.cache);
        let speeds = 0.001..=1000.0;
        anyhow::ensure!(speeds.contains(&self.speed), "--speed is {}, must be between 0.001 and 1000", self.speed);
        Ok(())
    }
}

#[derive(Args, Clone)]
pub(crate) struct BenchEngineArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// How products are computed
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) compute: ComputeKind,
    /// Threads of the engine [default: the machine's cores]
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Tokens of a prompt, computed in one step; several: one measurement each
    #[arg(long, value_delimiter = ',', default_value = "512")]
    pub(crate) prefill: Vec<usize>,
    /// Decode steps of one measurement
    #[arg(long, default_value_t = 128)]
    pub(crate) decode: usize,
    /// Tokens that each sequence holds before it decodes
    #[arg(long, value_delimiter = ',', default_value = "0,512")]
    pub(crate) context: Vec<usize>,
    /// Sequences that decode together
    #[arg(long, value_delimiter = ',', default_value = "1,4,16,32")]
    pub(crate) batch: Vec<usize>,
    /// How often each is measured, in turn with the others
    #[arg(long, default_value_t = 5)]
    pub(crate) repeats: usize,
    /// Print JSON: {"threads", "results": [{"kind", "tokens", "context", "batch", "tokens_per_s"}, …], "roofs"}
    #[arg(long)]
    pub(crate) json: bool,
    /// Measure what lines on standard input ask for, within the flags' largest values: for comparisons in turn
    #[arg(long, hide = true)]
    pub(crate) lines: bool,
}

/// Most tokens of a prompt, a context or a run of decode steps.
const TOKENS_MAX: usize = 1 << 20;
/// Most sequences of a step.
const BATCH_MAX: usize = 1 << 10;
/// Most blocks of an index.
const BLOCKS_MAX: usize = 100_000_000;
/// Most workers of a replay.
const WORKERS_MAX: usize = 1 << 10;
/// Most repeats.
const REPEATS_MAX: usize = 1_000;

/// A flag whose value no measurement could have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FlagError {
    flag: &'static str,
    value: usize,
    min: usize,
    max: usize,
}

impl std::fmt::Display for FlagError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { flag, value, min, max } = self;
        write!(f, "{flag} is {value}, must be between {min} and {max}")
    }
}

impl std::error::Error for FlagError {}

impl BenchEngineArgs {
    /// Checks every value that does not depend on the model.
    pub(crate) fn validate(&self) -> Result<(), FlagError> {
        check("--decode", &[self.decode], 1, TOKENS_MAX)?;
        check("--repeats", &[self.repeats], 1, REPEATS_MAX)?;
        check("--prefill", &self.prefill, 1, TOKENS_MAX)?;
        check("--context", &self.context, 0, TOKENS_MAX)?;
        check("--batch", &self.batch, 1, BATCH_MAX)
    }
}

fn check(flag: &'static str, values: &[usize], min: usize, max: usize) -> Result<(), FlagError> {
    let wrong = values.iter().find(|v| !(min..=max).contains(v));
    wrong.map_or(Ok(()), |&value| Err(FlagError { flag, value, min, max }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Bare {
        #[command(flatten)]
        args: BenchEngineArgs,
    }

    fn parse(flags: &[&str]) -> Result<BenchEngineArgs, String> {
        let words = ["bench", "--model", "m"].iter().chain(flags);
        let args = Bare::try_parse_from(words).map_err(|e| e.to_string())?.args;
        args.validate().map_err(|e| e.to_string())?;
        Ok(args)
    }

    #[test]
    fn lists_are_read_and_defaults_are_those_documented() {
        let args = parse(&[]).unwrap();
        assert_eq!((args.prefill, args.decode), (vec![512], 128));
        assert_eq!((args.context, args.batch), (vec![0, 512], vec![1, 4, 16, 32]));
        assert_eq!(parse(&["--batch", "2,8"]).unwrap().batch, [2, 8]);
    }

    #[test]
    fn impossible_values_name_the_flag() {
        for (flag, value) in [
            ("--decode", "0"),
            ("--repeats", "0"),
            ("--repeats", "9999999"),
            ("--prefill", "0"),
            ("--prefill", "512,x"),
            ("--context", "99999999"),
            ("--context", "-1"),
            ("--batch", "4,0"),
            ("--batch", "5000"),
            ("--batch", ""),
        ] {
            let error = parse(&[&format!("{flag}={value}")]).err().expect("refused");
            assert!(error.contains(flag), "{flag} {value}: {error}");
        }
    }
}
