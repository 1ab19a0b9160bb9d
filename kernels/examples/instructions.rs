//! Runs each hot kernel once on fixed inputs and one thread, for a tool that counts instructions between entering and
//! leaving [`measured`]. Prints a line `LEVEL KERNEL` before each, in order. Shapes are those of a small model.
#![allow(clippy::print_stdout, reason = "the driver reads the names")]

use std::hint::black_box;

use kernels::Isa;
use kernels::cpu::{
    Activation, Attention, Cpu, Heads, KvFormat, KvRows, Linear, Matrix, RopeTable, Rows, Span, Store, Visible,
};
use kernels::kv::{KvArena, Pin};
use kernels::quant::{QuantFormat, encode};

/// Elements of a row, of a head's cache and of a gate.
const DIM: usize = 512;
const HEADS: Heads = Heads { n_q: 9, n_kv: 3, head_dim: 64, format: KvFormat::F16, block_tokens: 16 };
const FF_DIM: usize = 1_536;

fn main() {
    for isa in Isa::available() {
        let mut cpu = Cpu::new(1, isa);
        for format in [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0, QuantFormat::Q4K, QuantFormat::Q6K] {
            let linear = quantized(&mut cpu, format);
            for n_rows in [1, 16] {
                matmul(&mut cpu, &linear, &numbers(n_rows * DIM), &format!("matmul {format:?}, {n_rows} rows"));
            }
        }
        let linear = quantized(&mut cpu, QuantFormat::Q4_1);
        for n_rows in [1, 16] {
            // A block in eight stands out of its row.
            let mut x = numbers(n_rows * DIM);
            x.chunks_exact_mut(32).step_by(8).flatten().for_each(|x| *x *= 10.0);
            matmul(&mut cpu, &linear, &x, &format!("matmul Q4_1, {n_rows} rows, fine blocks"));
        }
        let linear = floats(&mut cpu);
        for n_rows in [1, 16] {
            matmul(&mut cpu, &linear, &numbers(n_rows * DIM), &format!("matmul F32, {n_rows} rows"));
        }
        for (context, n_rows) in [(511, 1), (48, 16)] {
            attention(&mut cpu, context, n_rows);
        }
        row_operations(&mut cpu);
    }
}

/// What is counted: everything from the call to the return.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    let held = 0_u8;
    work();
    // Something is left to do, so that the work is called and returns here: a jump would hide the end.
    black_box(&held);
}

fn count(isa: Isa, kernel: &str, mut work: impl FnMut()) {
    println!("{isa} {kernel}");
    measured(&mut work);
}

fn quantized(cpu: &mut Cpu, format: QuantFormat) -> Linear {
    let stored = encode::quantize(format, &numbers(DIM * DIM));
    let row_bytes = format.bytes_of(DIM);
    let row = |o: usize| &stored[o * row_bytes..(o + 1) * row_bytes];
    let matrix = Matrix::pack_integer(cpu.pool(), format, DIM, DIM, &row).expect("the format has a packed form");
    Linear::new(vec![matrix], None)
}

fn floats(cpu: &mut Cpu) -> Linear {
    let weights = numbers(DIM * DIM);
    let row = |o: usize, out: &mut [f32]| out.copy_from_slice(&weights[o * DIM..(o + 1) * DIM]);
    Linear::new(vec![Matrix::pack(cpu.pool(), DIM, DIM, &row)], None)
}

fn matmul(cpu: &mut Cpu, linear: &Linear, x: &[f32], name: &str) {
    let mut out = vec![0.0; x.len()];
    // Once before: buffers kept from call to call are made then.
    cpu.matmul(linear, Rows::new(x), &mut out, Store::Replace);
    count(cpu.isa(), name, || cpu.matmul(linear, Rows::new(black_box(x)), &mut out, Store::Replace));
}

/// Rows `context..context + n_rows` of a sequence: rotary embedding and cache, then attention.
fn attention(cpu: &mut Cpu, context: usize, n_rows: usize) {
    let n_tokens = context + n_rows;
    let arena = KvArena::with_cells(&[HEADS.cell_shape()], n_tokens.div_ceil(16), 16).expect("a small arena");
    let inv_freq: Vec<f32> = (0..32).map(|i| 10_000_f32.powf(-(i as f32) / 32.0)).collect();
    let mut qkv = numbers(n_tokens * HEADS.qkv_dim());
    let (before, rows) = qkv.split_at_mut(context * HEADS.qkv_dim());
    let mut table = RopeTable::default();
    let positions = |range: std::ops::Range<usize>| range.map(|p| (p as u32, &inv_freq[..]));
    table.fill(cpu, inv_freq.len(), positions(0..context), 1.0);
    cpu.rope_and_append(before, &HEADS, &table, &arena, 0, &runs(0, context)).expect("blocks are there");
    table.fill(cpu, inv_freq.len(), positions(context..n_tokens), 1.0);
    let runs = runs(context, n_tokens);
    count(cpu.isa(), &format!("rope and append, {n_rows} rows"), || {
        cpu.rope_and_append(rows, &HEADS, &table, &arena, 0, &runs).expect("blocks are there");
    });
    let pins: Vec<Pin<'_>> = (0..n_tokens.div_ceil(16)).map(|b| arena.pin(b as u32)).collect();
    let span = Span { blocks: &pins, n_rows, visible: Visible::Causal { first_row: context } };
    let attention = Attention { heads: &HEADS, layer: 0, scale: 0.125, softcap: None, window: None };
    let mut out = vec![0.0; n_rows * HEADS.n_q * HEADS.head_dim];
    let isa = cpu.isa();
    count(isa, &format!("attention at {context}, {n_rows} rows"), || {
        cpu.attention(&attention, black_box(rows), HEADS.qkv_dim(), &[span], &mut out);
    });
}

/// Rows `first..end` by the block they go to.
fn runs(first: usize, end: usize) -> Vec<KvRows> {
    let mut runs = Vec::new();
    let mut row = first;
    while row < end {
        let n_rows = (16 - row % 16).min(end - row);
        runs.push(KvRows { block: (row / 16) as u32, first_row: row % 16, n_rows });
        row += n_rows;
    }
    runs
}

fn row_operations(cpu: &mut Cpu) {
    let (x, weight, mut out) = (numbers(16 * DIM), numbers(DIM), vec![0.0; 16 * DIM]);
    let isa = cpu.isa();
    count(isa, "rms_norm, 16 rows", || cpu.rms_norm(black_box(&x), &weight, 1e-5, &mut out));
    let parts = [0; 2].map(|_| {
        let row = |_: usize, out: &mut [f32]| out.fill(0.1);
        Matrix::pack(cpu.pool(), FF_DIM, 32, &row)
    });
    let (gate_up, x, mut out) = (Linear::new(parts.into(), None), numbers(16 * 32), vec![0.0; 16 * FF_DIM]);
    count(isa, "gates of a small matmul, 16 rows", || {
        cpu.matmul_gated(&gate_up, Rows::new(black_box(&x)), Activation::Silu, &mut out);
    });
}

/// A fixed sequence in -1..1.
fn numbers(n: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}
