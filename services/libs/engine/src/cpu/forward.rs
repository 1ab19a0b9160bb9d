//! The forward pass.

use std::ops::{ControlFlow, Range};

use kernels::Isa;
use kernels::cpu::{Attention, Cpu, KvRows, Linear, Parts, RopeTable, Rows, Span, Store, Visible};
use kernels::kv::{KvArena, Pin};

use crate::cpu::scratch::{Scratch, keep_rows, sized};
use crate::cpu::{CpuEngine, Layer, Network};
use crate::{EngineError, LogitRows, Mask, Slice};

/// Computes a checked step.
pub(super) fn forward(
    engine: &mut CpuEngine,
    slices: &[Slice<'_>],
    logits: &mut Vec<f32>,
    on_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<(), EngineError> {
    let CpuEngine { arena, cpu, network, scratch, .. } = engine;
    let plan = Plan::new(slices, arena);
    embed(network, slices, cpu.isa(), scratch, plan.n_rows);
    rotations(network, slices, cpu, scratch);
    let last = network.layers.len() - 1;
    for (index, layer) in network.layers.iter().enumerate() {
        keys_and_values(network, layer, index, cpu, scratch, arena, &plan)?;
        if on_layer(index).is_break() {
            return Err(EngineError::Aborted);
        }
        if index < last {
            attend_and_feed(network, layer, index, cpu, scratch, plan.n_rows, &plan.spans(slices));
        } else {
            // Nothing reads the other rows of the last layer.
            let wanted = plan.wanted(slices);
            keep_rows(&mut scratch.x, network.dim, &wanted);
            keep_rows(&mut scratch.qkv, network.heads.qkv_dim(), &wanted);
            attend_and_feed(network, layer, index, cpu, scratch, wanted.len(), &plan.wanted_spans(slices));
            output(network, cpu, scratch, wanted.len(), logits);
        }
    }
    Ok(())
}

/// Begins the residual stream.
fn embed(network: &Network, slices: &[Slice<'_>], isa: Isa, scratch: &mut Scratch, n_rows: usize) {
    let x = sized(&mut scratch.x, n_rows * network.dim);
    network.embedding.gather(isa, &network.head, slices.iter().flat_map(|s| s.tokens.iter().copied()), x);
    if let Some(scale) = network.embedding_scale {
        x.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Cosines and sines of the step's positions.
fn rotations(network: &Network, slices: &[Slice<'_>], cpu: &mut Cpu, scratch: &mut Scratch) {
    scratch.ropes.resize_with(network.ropes.len(), RopeTable::default);
    for (table, rope) in scratch.ropes.iter_mut().zip(&network.ropes) {
        let positions = slices.iter().flat_map(|slice| {
            let frequencies = rope.frequencies(slice.max_tokens as usize);
            slice.positions.iter().map(move |&position| (position, frequencies))
        });
        table.fill(cpu, rope.inv_freq.len(), positions, rope.factor);
    }
}

/// Computes queries, keys and values of a layer and publishes the keys and values.
fn keys_and_values(
    network: &Network,
    layer: &Layer,
    index: usize,
    cpu: &mut Cpu,
    scratch: &mut Scratch,
    arena: &KvArena,
    plan: &Plan<'_>,
) -> Result<(), EngineError> {
    let Network { heads, dim, norm_eps, .. } = network;
    let n_rows = plan.n_rows;
    let x = &scratch.x[..n_rows * dim];
    let input = normed(x, layer.attention_norm.as_deref(), *norm_eps);
    let qkv = sized(&mut scratch.qkv, n_rows * heads.qkv_dim());
    cpu.matmul(&layer.qkv, input, qkv, Store::Replace);
    for (norm, first, n_heads) in [(&layer.query_norm, 0, heads.n_q), (&layer.key_norm, heads.n_q, heads.n_kv)] {
        if let Some(gains) = norm {
            let parts = Parts { first: first * heads.head_dim, n_parts: n_heads * heads.head_dim / gains.len() };
            cpu.rms_norm_parts(qkv, heads.qkv_dim(), parts, gains, *norm_eps);
        }
    }
    Ok(cpu.rope_and_append(qkv, heads, &scratch.ropes[layer.rope], arena, index, &plan.runs)?)
}

/// The rest of a layer for the first `n_rows` rows of the buffers.
fn attend_and_feed(
    network: &Network,
    layer: &Layer,
    index: usize,
    cpu: &mut Cpu,
    scratch: &mut Scratch,
    n_rows: usize,
    spans: &[Span<'_>],
) {
    let Network { heads, dim, ff_dim, norm_eps, .. } = network;
    let x = &mut scratch.x[..n_rows * dim];
    let qkv = &scratch.qkv[..n_rows * heads.qkv_dim()];
    let attended = sized(&mut scratch.attended, n_rows * heads.n_q * heads.head_dim);
    let (scale, softcap, window) = (network.score_scale, network.score_cap, layer.window);
    let attention = Attention { heads, layer: index, scale, softcap, window };
    cpu.attention(&attention, qkv, heads.qkv_dim(), spans, attended);
    let norm = layer.attention_post_norm.as_deref();
    add(cpu, &layer.attention_output, attended, norm, *norm_eps, &mut scratch.branch, x);
    let input = normed(x, layer.feed_forward_norm.as_deref(), *norm_eps);
    let gated = sized(&mut scratch.gated, n_rows * ff_dim);
    cpu.matmul_gated(&layer.gate_up, input, network.activation, gated);
    add(cpu, &layer.down, gated, layer.feed_forward_post_norm.as_deref(), *norm_eps, &mut scratch.branch, x);
}

/// Rows of `x`, normalised if there is a norm.
fn normed<'a>(x: &'a [f32], norm: Option<&'a [f32]>, eps: f32) -> Rows<'a> {
    norm.map_or(Rows::new(x), |gain| Rows::normed(x, gain, eps))
}

/// Adds a part's output, normalised if it has a norm, to the residual stream `x`.
fn add(
    cpu: &mut Cpu,
    weights: &Linear,
    input: &[f32],
    norm: Option<&[f32]>,
    eps: f32,
    branch: &mut Vec<f32>,
    x: &mut [f32],
) {
    let input = Rows::new(input);
    let Some(gains) = norm else { return cpu.matmul(weights, input, x, Store::Add) };
    let branch = sized(branch, x.len());
    cpu.matmul(weights, input, branch, Store::Replace);
    cpu.rms_norm_add(branch, gains, eps, x);
}

/// Logits of the first `n_rows` rows.
fn output(network: &Network, cpu: &mut Cpu, scratch: &mut Scratch, n_rows: usize, logits: &mut Vec<f32>) {
    let x = &scratch.x[..n_rows * network.dim];
    let input = Rows::normed(x, &network.final_norm, network.norm_eps);
    logits.resize(n_rows * network.n_vocab, 0.0);
    cpu.matmul(&network.head, input, logits, Store::Replace);
    if let Some(cap) = network.logit_cap {
        cpu.softcap(logits, cap);
    }
}

/// Where the rows of a step go and what they see.
struct Plan<'a> {
    n_rows: usize,
    /// Rows by the block they go to, in order.
    runs: Vec<KvRows>,
    /// The slices' blocks, pinned for the step, one slice's after the other's.
    pins: Vec<Pin<'a>>,
    /// Each slice's part of `pins`.
    blocks: Vec<Range<usize>>,
}

impl<'a> Plan<'a> {
    fn new(slices: &[Slice<'_>], arena: &'a KvArena) -> Self {
        let block_tokens = arena.block_tokens();
        let mut plan = Self { n_rows: 0, runs: Vec::new(), pins: Vec::new(), blocks: Vec::new() };
        for slice in slices {
            let (mut row, end) = (slice.first_row as usize, slice.first_row as usize + slice.tokens.len());
            let first_pin = plan.pins.len();
            plan.pins.extend(slice.blocks[..end.div_ceil(block_tokens)].iter().map(|b| arena.pin(b.0)));
            plan.blocks.push(first_pin..plan.pins.len());
            while row < end {
                let first_row = row % block_tokens;
                let n_rows = (block_tokens - first_row).min(end - row);
                plan.runs.push(KvRows { block: slice.blocks[row / block_tokens].0, first_row, n_rows });
                row += n_rows;
            }
            plan.n_rows += slice.tokens.len();
        }
        plan
    }

    /// All rows of all slices.
    fn spans<'s>(&'s self, slices: &[Slice<'s>]) -> Vec<Span<'s>> {
        slices.iter().zip(&self.blocks).map(|(slice, blocks)| self.span(slice, blocks, 0)).collect()
    }

    /// The rows whose logits are wanted.
    fn wanted_spans<'s>(&'s self, slices: &[Slice<'s>]) -> Vec<Span<'s>> {
        let span = |(slice, blocks): (&Slice<'s>, &Range<usize>)| {
            let first = slice.tokens.len() - slice.logits.count(slice.tokens.len());
            self.span(slice, blocks, first)
        };
        slices.iter().zip(&self.blocks).filter(|(s, _)| s.logits != LogitRows::None).map(span).collect()
    }

    /// Indices in the step of the rows whose logits are wanted.
    fn wanted(&self, slices: &[Slice<'_>]) -> Vec<usize> {
        let mut wanted = Vec::new();
        let mut end = 0;
        for slice in slices {
            end += slice.tokens.len();
            wanted.extend(end - slice.logits.count(slice.tokens.len())..end);
        }
        wanted
    }

    /// The slice's rows from token `first` on.
    fn span<'s>(&'s self, slice: &Slice<'s>, blocks: &Range<usize>, first: usize) -> Span<'s> {
        let first_row = slice.first_row as usize;
        let visible = match slice.mask {
            Mask::Causal => Visible::Causal { first_row: first_row + first },
            Mask::Ancestors(parents) => Visible::Tree { n_before: first_row, parents, first },
        };
        Span { blocks: &self.pins[blocks.clone()], n_rows: slice.tokens.len() - first, visible }
    }
}
