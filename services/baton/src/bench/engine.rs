//! `baton bench engine`: tokens per second of the forward pass, next to the machine's own limits.

use anyhow::Context as _;
use engine::{Engine as _, EngineConfig};

use super::args::BenchEngineArgs;
use super::measure::{Bench, Case};
use super::report::{Line, Report, Spread};
use super::roofs::Roofs;
use super::serve_lines;
use crate::cli::EngineArgs;
use crate::engines::{self, Model};

/// Steps of a decode case before the first measurement, so that memory is there and clocks are up.
const WARM_UP_STEPS: usize = 4;

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) fn run(args: &BenchEngineArgs) -> anyhow::Result<()> {
    args.validate()?;
    let model = Model::resolve(&args.model)?;
    let cases = cases(args);
    let threads = args.threads.unwrap_or_else(bootstrap::cpu_count);
    let (engine, isa) = engines::open_cpu(
        &model,
        &EngineArgs { compute: args.compute, threads: Some(threads), kv_blocks: blocks(&cases)?, ..Default::default() },
    )?;
    let max_context = engine.model().max_context;
    for case in &cases {
        let n = case.sequence_tokens();
        anyhow::ensure!(n <= max_context, "{case} takes {n} tokens, the model's context is {max_context}");
    }
    let cost = engine.cost();
    let mut bench = Bench::new(engine);
    if args.lines {
        return serve_lines::run(&mut bench);
    }
    let mut roofs = Roofs::new(threads, cost.weight_bytes)?;
    let speeds = measure(&mut bench, &mut roofs, &cases, args.repeats)?;
    let lines = cases.iter().zip(&speeds).map(|(&case, speeds)| Line { case, tokens_per_s: Spread::of(speeds) });
    let report = Report {
        model: &model.name,
        isa,
        compute: engines::compute(args.compute).as_str(),
        threads,
        repeats: args.repeats,
        cost,
        lines: lines.collect(),
        roofs: &roofs,
    };
    if args.json {
        println!("{}", report.to_json());
    } else {
        report.print();
    }
    Ok(())
}

fn cases(args: &BenchEngineArgs) -> Vec<Case> {
    let steps = args.decode;
    let decode = |&context: &usize| args.batch.iter().map(move |&batch| Case::Decode { context, batch, steps });
    let prefill = args.prefill.iter().map(|&tokens| Case::Prefill { tokens });
    prefill.chain(args.context.iter().flat_map(decode)).collect()
}

/// Blocks for the largest case.
fn blocks(cases: &[Case]) -> anyhow::Result<usize> {
    let block_tokens = EngineConfig::default().block_tokens;
    cases.iter().map(|c| c.n_blocks(block_tokens)).max().context("nothing to measure")
}

/// Tokens per second of each case, `repeats` times each. Cases and roofs take turns, so that what else the machine
/// does meets all of them.
fn measure(bench: &mut Bench, roofs: &mut Roofs, cases: &[Case], repeats: usize) -> anyhow::Result<Vec<Vec<f64>>> {
    let progress = bootstrap::progress::bar("measuring", (cases.len() * (repeats + 1)) as u64);
    let mut speeds = vec![Vec::new(); cases.len()];
    for round in 0..=repeats {
        for (&case, speeds) in cases.iter().zip(&mut speeds) {
            if round == 0 {
                bench.time(warm_up(case))?;
            } else {
                speeds.push(case.n_tokens() as f64 / bench.time(case)?.as_secs_f64());
            }
            progress.inc(1);
        }
        if round > 0 {
            roofs.measure();
        }
    }
    progress.finish();
    Ok(speeds)
}

fn warm_up(case: Case) -> Case {
    match case {
        Case::Decode { context, batch, steps } => Case::Decode { context, batch, steps: steps.min(WARM_UP_STEPS) },
        prefill @ Case::Prefill { .. } => prefill,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_fits_the_largest_case() {
        let cases = [
            Case::Prefill { tokens: 512 },
            Case::Decode { context: 0, batch: 1, steps: 48 },
            Case::Decode { context: 64, batch: 32, steps: 1 },
        ];
        assert_eq!(blocks(&cases[..2]).unwrap(), 32);
        assert_eq!(blocks(&cases).unwrap(), 160);
        assert!(blocks(&[]).is_err());
    }
}
