//! The machine's own speed: what the engine's is held against.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use engine::Isa;
use kernels::cpu::Cpu;
use kernels::cpu::roofs::{Tile, multiply, read};

use super::report::Spread;

/// Third-level cache to assume where the system does not tell.
const CACHE_BYTES: usize = 64 << 20;
/// Least and most bytes of the buffer that no cache holds.
const MEMORY_BYTES: (usize, usize) = (256 << 20, 1 << 30);
/// Bytes read in one timing at least: some milliseconds.
const READ_BYTES: usize = 128 << 20;
/// Rounds of products in a task, and tasks per thread: some milliseconds in all.
const ROUNDS: usize = 2_000;
const TASKS_PER_THREAD: usize = 16;

/// Buffers and threads of the measurement.
pub(super) struct Roofs {
    cpu: Cpu,
    weights: Vec<f32>,
    memory: Vec<f32>,
    /// Timings so far: of either buffer in bytes per second, of products in operations per second.
    pub(super) read_weights: Vec<f64>,
    pub(super) read_memory: Vec<f64>,
    pub(super) int8: Vec<f64>,
}

impl Roofs {
    /// Buffers as large as the weights, and much larger than the last cache; the machine's widest instructions, whatever
    /// the engine uses.
    pub(super) fn new(n_threads: usize, weight_bytes: u64) -> anyhow::Result<Self> {
        let memory_bytes = (4 * cache_bytes()).clamp(MEMORY_BYTES.0, MEMORY_BYTES.1);
        Ok(Self {
            cpu: Cpu::new(n_threads, Isa::detect()),
            weights: buffer(usize::try_from(weight_bytes)?)?,
            memory: buffer(memory_bytes)?,
            read_weights: Vec::new(),
            read_memory: Vec::new(),
            int8: Vec::new(),
        })
    }

    /// Measures each once more.
    pub(super) fn measure(&mut self) {
        self.read_weights.push(read_speed(&mut self.cpu, &self.weights));
        self.read_memory.push(read_speed(&mut self.cpu, &self.memory));
        let best = Tile::ALL.map(|tile| multiply_speed(&mut self.cpu, tile)).into_iter().fold(0.0, f64::max);
        self.int8.push(best);
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let read = |buffer: &[f32], speeds: &[f64]| serde_json::json!({ "buffer_bytes": size_of_val(buffer), "gb_per_s": Spread::of(speeds).scaled(1e-9) });
        serde_json::json!({
            "read_weights": read(&self.weights, &self.read_weights),
            "read_memory": read(&self.memory, &self.read_memory),
            "int8": { "gop_per_s": Spread::of(&self.int8).scaled(1e-9) },
        })
    }
}

fn read_speed(cpu: &mut Cpu, buffer: &[f32]) -> f64 {
    let n_times = (READ_BYTES / size_of_val(buffer).max(1)).max(1);
    let start = Instant::now();
    for _ in 0..n_times {
        black_box(read(cpu, black_box(buffer)));
    }
    (n_times * size_of_val(buffer)) as f64 / start.elapsed().as_secs_f64()
}

fn multiply_speed(cpu: &mut Cpu, tile: Tile) -> f64 {
    let n_tasks = cpu.pool().n_threads() * TASKS_PER_THREAD;
    // Small tiles take less time: more rounds of them.
    let n_rounds = if tile == Tile::Sixteen { ROUNDS / 8 } else { ROUNDS };
    let start = Instant::now();
    let n_operations = multiply(cpu, tile, n_tasks, n_rounds);
    n_operations as f64 / start.elapsed().as_secs_f64()
}

/// Memory that has been written once, so that reading does not meet the system's zero page.
fn buffer(n_bytes: usize) -> anyhow::Result<Vec<f32>> {
    let n = n_bytes / size_of::<f32>();
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(n).with_context(|| format!("no memory for a buffer of {n_bytes} bytes"))?;
    buffer.resize(n, 1.0);
    Ok(buffer)
}

/// Size of the last cache of the first core, as Linux tells it.
fn cache_bytes() -> usize {
    let caches = std::fs::read_dir(Path::new("/sys/devices/system/cpu/cpu0/cache")).into_iter().flatten();
    let size = |entry: std::fs::DirEntry| std::fs::read_to_string(entry.path().join("size")).ok();
    let sizes = caches.filter_map(Result::ok).filter_map(size);
    let kib = sizes.filter_map(|text| text.trim().strip_suffix('K')?.parse::<usize>().ok());
    kib.max().map_or(CACHE_BYTES, |kib| kib.saturating_mul(1024))
}
