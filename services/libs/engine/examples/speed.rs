//! Tokens per second of a model: `speed MODEL [f32|auto] [THREADS] [ONLY]`, where ONLY is part of a line's name.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Compute, Engine, EngineConfig, LogitRows, Mask, ModelSource, Slice};
use types::BlockIdx;

const PROMPT: usize = 512;
const REPEATS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: speed MODEL [f32|auto] [THREADS]")?;
    let compute = if arguments.next().is_some_and(|a| a == "f32") { Compute::F32 } else { Compute::Auto };
    let threads = arguments.next().map_or(Ok(2), |t| t.parse())?;
    let isa = std::env::var("BATON_CPU_ISA").ok().map(|name| kernels::Isa::named(&name)).transpose()?;
    let only = arguments.next().unwrap_or_default();
    let config = EngineConfig { compute, threads, kv_blocks: 2_048, isa, ..EngineConfig::default() };
    let start = Instant::now();
    let mut engine = engine::open(&ModelSource::detect(Path::new(&path))?, &config, &mut |_| ())?;
    println!("load {:.2} s, {} MB", start.elapsed().as_secs_f64(), engine.model().weight_bytes / 1_000_000);
    for chunk in [64, 256, 512] {
        let name = format!("prefill {PROMPT} in chunks of {chunk}");
        if name.contains(&only) {
            let time = median(|| prefill(&mut *engine, chunk));
            println!("{name}: {:.0} tok/s", PROMPT as f64 / time.as_secs_f64());
        }
    }
    for context in [0, 512] {
        for batch in [1, 4, 16, 32] {
            let name = format!("decode at {context}, batch {batch}");
            if name.contains(&only) {
                let time = median(|| decode(&mut *engine, context, batch));
                println!("{name}: {:.0} tok/s", batch as f64 / time.as_secs_f64());
            }
        }
    }
    Ok(())
}

/// Time that this thread ran: what counts with one thread on a busy machine.
fn now() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let wall = START.get_or_init(Instant::now).elapsed();
    if std::env::var_os("CPU_TIME").is_none() {
        return wall;
    }
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = schedule.split(' ').next().and_then(|n| n.parse().ok());
    nanos.map_or(wall, Duration::from_nanos)
}

fn median(mut f: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<_> = (0..REPEATS).map(|_| f()).collect();
    times.sort();
    times[REPEATS / 2]
}

fn blocks(n_tokens: usize, sequence: usize) -> Vec<BlockIdx> {
    (0..n_tokens.div_ceil(16) as u32).map(|i| BlockIdx(sequence as u32 * 40 + i)).collect()
}

fn prefill(engine: &mut dyn Engine, chunk: usize) -> Duration {
    let tokens: Vec<u32> = (0..PROMPT as u32).map(|i| i * 37 % 20_000 + 100).collect();
    let positions: Vec<u32> = (0..PROMPT as u32).collect();
    let blocks = blocks(PROMPT, 0);
    blocks.iter().for_each(|b| engine.arena().reset(b.0));
    let start = now();
    let mut logits = Vec::new();
    for first in (0..PROMPT).step_by(chunk) {
        let end = PROMPT.min(first + chunk);
        let rows = if end == PROMPT { LogitRows::Last } else { LogitRows::None };
        forward(engine, &[slice(&tokens[first..end], &positions[first..end], first, &blocks, rows)], &mut logits);
    }
    now() - start
}

fn decode(engine: &mut dyn Engine, context: usize, batch: usize) -> Duration {
    let steps = 32;
    let tables: Vec<_> = (0..batch).map(|s| blocks(context + steps, s)).collect();
    let tokens: Vec<u32> = (0..context as u32).map(|i| i * 37 % 20_000 + 100).collect();
    let positions: Vec<u32> = (0..(context + steps) as u32).collect();
    let mut logits = Vec::new();
    for table in &tables {
        table.iter().for_each(|b| engine.arena().reset(b.0));
        if context > 0 {
            let all = slice(&tokens, &positions[..context], 0, table, LogitRows::None);
            forward(engine, &[all], &mut logits);
        }
    }
    let start = now();
    for step in 0..steps {
        let row = context + step;
        let token = [1_000 + step as u32];
        let slices: Vec<_> =
            tables.iter().map(|t| slice(&token, &positions[row..row + 1], row, t, LogitRows::Last)).collect();
        forward(engine, &slices, &mut logits);
    }
    (now() - start) / steps as u32
}

fn slice<'a>(
    tokens: &'a [u32],
    positions: &'a [u32],
    row: usize,
    blocks: &'a [BlockIdx],
    logits: LogitRows,
) -> Slice<'a> {
    Slice { tokens, positions, first_row: row as u32, max_tokens: u32::MAX, blocks, mask: Mask::Causal, logits }
}

fn forward(engine: &mut dyn Engine, slices: &[Slice<'_>], logits: &mut Vec<f32>) {
    engine.forward(slices, logits, &mut |_| ControlFlow::Continue(())).expect("the step is valid");
}
