//! `baton bench`: measures this machine. One subject a file set: `engine` is the forward pass without a server, `index`
//! the router's knowledge of caches and its choice of workers, `transfer` the way of KV between workers.

mod args;
mod engine;
mod index;
mod measure;
mod report;
mod roofs;
mod serve_lines;
mod transfer;

pub(crate) use args::{BenchArgs, BenchCommand};

pub(crate) fn run(args: BenchArgs) -> anyhow::Result<()> {
    match args.command {
        BenchCommand::Engine(args) => engine::run(&args),
        BenchCommand::Index(args) => index::run(&args),
        BenchCommand::Transfer(args) => crate::block_on(transfer::run(args)),
        BenchCommand::TransferSource(args) => crate::block_on(transfer::run_source(args)),
    }
}
