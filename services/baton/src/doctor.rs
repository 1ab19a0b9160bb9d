//! `baton doctor`: what this machine offers, in plain words.

use std::net::TcpListener;

use serde::Serialize;

use crate::cli::{DoctorArgs, EngineArgs, ModelArgs};
use crate::cores::show;
use crate::engines::{self, Model};

/// One finding.
#[derive(Serialize)]
struct Finding {
    name: &'static str,
    /// `ok`, `note` or `problem`.
    state: &'static str,
    text: String,
}

impl Finding {
    fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, state: "ok", text: text.into() }
    }

    fn note(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, state: "note", text: text.into() }
    }

    fn problem(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, state: "problem", text: text.into() }
    }
}

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let mut findings = vec![processor(), pinning(), memory()];
    findings.extend([8000, 50051, 9090, 7100].map(port));
    findings.push(model(args.model.as_deref().unwrap_or(crate::model::DEMO), args.model.is_some()));
    if let Some(url) = &args.registry {
        findings.push(registry(url));
    }
    let n_problems = findings.iter().filter(|f| f.state == "problem").count();
    if args.json {
        println!("{}", serde_json::json!({ "findings": findings, "problems": n_problems }));
    } else {
        for finding in &findings {
            println!("{:<8} {:<12} {}", finding.state, finding.name, finding.text);
        }
    }
    anyhow::ensure!(n_problems == 0, "{n_problems} problem(s) found");
    Ok(())
}

fn processor() -> Finding {
    let isa = engine::Isa::detect();
    let quota = bootstrap::cpu_quota().map_or_else(|| "no quota".to_owned(), |n| format!("a quota of {n:.2} of them"));
    let text = format!("{} cores usable, {quota}, instruction level {isa}", bootstrap::cpu_count());
    Finding::ok("processor", text)
}

/// Whether threads could be bound to cores.
fn pinning() -> Finding {
    match engine::affinity::allowed_cores() {
        Ok(cores) => {
            let text =
                format!("threads float unless --pin binds them; {} cores to bind to: {}", cores.len(), show(&cores));
            Finding::ok("pinning", text)
        }
        Err(error) => Finding::note("pinning", format!("threads cannot be bound to cores here: {error}")),
    }
}

/// Memory that can be had now, from the kernel's own estimate.
fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    match kib {
        Some(kib) if kib < 1 << 20 => Finding::problem("memory", format!("only {} MiB available", kib >> 10)),
        Some(kib) => Finding::ok("memory", format!("{:.1} GiB available", kib as f64 / f64::from(1 << 20))),
        None => Finding::note("memory", "cannot be read on this system"),
    }
}

fn port(port: u16) -> Finding {
    match TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Finding::ok("port", format!("{port} is free")),
        Err(error) => Finding::note("port", format!("{port} cannot be bound: {error}; pass another address")),
    }
}

fn model(name: &str, asked: bool) -> Finding {
    let opened = Model::resolve(&ModelArgs { model: name.to_owned(), served_model_name: None }).and_then(|model| {
        let engine = engines::open(&model, &EngineArgs { kv_blocks: 1, ..EngineArgs::default() })?;
        let info = engine.model();
        let text = match text::TextModel::open(&model.path) {
            Ok(text) if text.template.is_some() => "with a chat template".to_owned(),
            Ok(_) => "without a chat template".to_owned(),
            Err(error) => format!("offline commands only: {error}"),
        };
        let (path, family) = (model.path.display(), &info.architecture);
        anyhow::Ok(format!("{path} loads: {family}, context {}, {text}", info.max_context))
    });
    match opened {
        Ok(text) => Finding::ok("model", text),
        Err(error) if asked => Finding::problem("model", format!("{error:#}")),
        Err(error) => Finding::note("model", format!("{error:#}")),
    }
}

fn registry(url: &str) -> Finding {
    let address = url.trim_start_matches("etcd://").split(',').next().unwrap_or_default().to_owned();
    let connected = std::net::ToSocketAddrs::to_socket_addrs(&address)
        .ok()
        .and_then(|mut found| found.next())
        .map(|address| std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(2)));
    match connected {
        Some(Ok(_)) => Finding::ok("registry", format!("{address} accepts connections")),
        Some(Err(error)) => Finding::problem("registry", format!("{address}: {error}")),
        None => Finding::problem("registry", format!("{url} is not etcd://host:port")),
    }
}
