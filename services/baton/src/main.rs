//! `baton`: the one binary that holds every role and every tool.
//!
//! Not here: what a role does (crates `router`, `prefill`, `decode`). Begin with [`cli`], which lists the
//! commands; each command has a file of its name.

mod bench;
mod chat;
mod cli;
mod cluster;
mod cores;
mod demo;
mod doctor;
mod engines;
mod explain;
mod model;
mod offline;
mod pull;
mod roles;
mod settings;
mod single;
mod status;
mod supervise;
mod up;

use crate::cli::Command;

fn main() -> std::process::ExitCode {
    let cli = match settings::parse() {
        Ok(cli) => cli,
        Err(error) => {
            complain(&*error);
            return std::process::ExitCode::from(2);
        }
    };
    if let Err(error) = bootstrap::logging::init(cli.log_format) {
        complain(&error);
        return std::process::ExitCode::FAILURE;
    }
    match run(cli.command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            complain(&*error);
            std::process::ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Logits(args) => offline::logits(&args),
        Command::Generate(args) => offline::generate(&args),
        Command::Perplexity(args) => offline::perplexity(&args),
        Command::Bench(args) => bench::run(args),
        Command::Pull(args) => pull::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Up(args) => block_on(up::run(args)),
        Command::Demo(args) => block_on(demo::run(args)),
        Command::Single(args) => block_on(single::run(args)),
        Command::Router(args) => block_on(roles::router(args)),
        Command::Prefill(args) => block_on(roles::prefill(args)),
        Command::Decode(args) => block_on(roles::decode(args)),
        Command::Registry(args) => block_on(roles::registry(args)),
        Command::Chat(args) => block_on(chat::run(args)),
        Command::Status(args) => block_on(status::run(args)),
        Command::Explain(args) => block_on(explain::run(args)),
    }
}

fn block_on(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(future);
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// Prints an error and its causes on one line.
#[allow(clippy::print_stderr, reason = "the command's answer to the person who typed it")]
fn complain(error: &(dyn std::error::Error + 'static)) {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("error: {line}");
}
