//! From flags to an engine.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use engine::cpu::CpuEngine;
use engine::sim::{SimConfig, SimEngine, Speedup};
use engine::{Compute, Engine, EngineConfig, Isa, LoadProgress, ModelSource};

use crate::cli::{ComputeKind, EngineArgs, EngineKind, ModelArgs};

/// Where a model lies and what clients call it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) path: PathBuf,
    pub(crate) name: String,
}

impl Model {
    /// Looks up what `--model` and `--served-model-name` mean.
    pub(crate) fn resolve(args: &ModelArgs) -> anyhow::Result<Self> {
        let path = crate::model::resolve(&args.model)?;
        let name = args.served_model_name.clone().unwrap_or_else(|| crate::model::served_name(&path));
        Ok(Self { path, name })
    }
}

/// Loads the model, showing progress. Takes seconds: not for an async task.
pub(crate) fn open(model: &Model, args: &EngineArgs) -> anyhow::Result<Box<dyn Engine>> {
    args.validate()?;
    match args.engine {
        EngineKind::Cpu => Ok(Box::new(open_cpu(model, args)?.0)),
        EngineKind::Sim => open_sim(&model.path, &model.name, args),
    }
}

/// Loads the model for this machine's processor, showing progress; also returns the instruction level it uses.
pub(crate) fn open_cpu(model: &Model, args: &EngineArgs) -> anyhow::Result<(CpuEngine, Isa)> {
    args.validate()?;
    let source = ModelSource::detect(&model.path)?;
    let isa = isa()?;
    let threads = args.threads.or(args.pin.n_cores()).unwrap_or_else(bootstrap::cpu_count);
    let config = EngineConfig {
        name: model.name.clone(),
        compute: compute(args.compute),
        threads,
        cores: args.pin.cores(threads)?,
        kv_blocks: args.kv_blocks,
        isa: Some(isa),
        ..EngineConfig::default()
    };
    let mut bar = None;
    let mut show = |progress: LoadProgress| {
        let bar = bar
            .get_or_insert_with(|| bootstrap::progress::bytes(format!("loading {}", model.name), progress.total_bytes));
        bar.set_position(progress.done_bytes);
    };
    let engine = CpuEngine::open(&source, &config, &mut show).with_context(|| format!("cannot load {}", model.name))?;
    if let Some(bar) = bar {
        bar.finish();
    }
    Ok((engine, isa))
}

/// What a flag's choice means to the engine.
pub(crate) fn compute(kind: ComputeKind) -> Compute {
    match kind {
        ComputeKind::F32 => Compute::F32,
        ComputeKind::Auto => Compute::Auto,
    }
}

/// The instruction level forced by `BATON_CPU_ISA`, or the machine's fastest.
fn isa() -> anyhow::Result<Isa> {
    let Some(name) = bootstrap::env::string("BATON_CPU_ISA") else { return Ok(Isa::detect()) };
    Isa::named(&name).context("BATON_CPU_ISA")
}

fn open_sim(path: &Path, name: &str, args: &EngineArgs) -> anyhow::Result<Box<dyn Engine>> {
    let text = text::TextModel::open(path).with_context(|| format!("cannot read the tokenizer of {name}"))?;
    let tokenizer = &text.tokenizer;
    let config = SimConfig {
        name: name.to_owned(),
        n_vocab: tokenizer.n_vocab(),
        speedup: if args.sim_speedup.0.is_finite() { Speedup::Times(args.sim_speedup.0) } else { Speedup::Infinite },
        kv_blocks: args.kv_blocks,
        ..SimConfig::default()
    };
    Ok(Box::new(SimEngine::new(config)?))
}
