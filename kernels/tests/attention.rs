//! Rotary embedding, cache and attention together against the plain versions.

mod common;

use common::{Random, all_cpus, assert_close, bits};
use half::f16;
use kernels::Isa;
use kernels::cpu::{Attention, Cpu, Heads, KvFormat, KvRows, RopeTable, Span, Visible};
use kernels::kv::{KvArena, Pin};
use kernels::reference;

/// A sequence of random queries, keys and values, and what attention must give.
struct Case {
    heads: Heads,
    n_tokens: usize,
    qkv: Vec<f32>,
    inv_freq: Vec<f32>,
    softcap: Option<f32>,
    window: Option<usize>,
}

impl Case {
    fn new(heads: Heads, n_tokens: usize) -> Self {
        let mut random = Random::new((n_tokens * 7 + heads.head_dim) as u64);
        let qkv = random.vec(n_tokens * heads.qkv_dim()).iter().map(|x| x * 2.0).collect();
        let half = heads.head_dim / 2;
        let inv_freq = (0..half).map(|i| 10_000_f32.powf(-(i as f32) / half as f32)).collect();
        Self { heads, n_tokens, qkv, inv_freq, softcap: None, window: None }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }

    /// One head of one token, rotated if `rotate`, rounded as the cache does if it is a key or value.
    fn head(&self, token: usize, head: usize) -> Vec<f32> {
        let Heads { n_q, n_kv, head_dim, format, .. } = self.heads;
        let start = token * self.heads.qkv_dim() + head * head_dim;
        let mut x = self.qkv[start..start + head_dim].to_vec();
        if head < n_q + n_kv {
            reference::rope(&mut x, token as u32, &self.inv_freq, false);
        }
        if head >= n_q && format == KvFormat::F16 {
            x.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        }
        x
    }

    fn expected(&self) -> Vec<f32> {
        let Heads { n_q, n_kv, .. } = self.heads;
        let mut out = Vec::new();
        for token in 0..self.n_tokens {
            let seen = self.window.map_or(0, |window| (token + 1).saturating_sub(window))..=token;
            for head in 0..n_q {
                let kv = head / (n_q / n_kv);
                let keys: Vec<f32> = seen.clone().flat_map(|t| self.head(t, n_q + kv)).collect();
                let values: Vec<f32> = seen.clone().flat_map(|t| self.head(t, n_q + n_kv + kv)).collect();
                let q = self.head(token, head);
                out.extend(reference::attention(&q, &keys, &values, self.scale(), self.softcap));
            }
        }
        out
    }

    /// Runs the tokens in chunks of `chunk`, blocks scattered over the arena.
    fn run(&self, cpu: &mut Cpu, arena: &KvArena, chunk: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for first in (0..self.n_tokens).step_by(chunk) {
            let n = chunk.min(self.n_tokens - first);
            let mut qkv = self.qkv[first * self.heads.qkv_dim()..][..n * self.heads.qkv_dim()].to_vec();
            self.append(cpu, arena, &mut qkv, first, n);
            let pins = self.pins(arena, first + n);
            let span = Span { blocks: &pins, n_rows: n, visible: Visible::Causal { first_row: first } };
            out.extend(self.attention(cpu, &qkv, &[span]));
        }
        out
    }

    fn append(&self, cpu: &mut Cpu, arena: &KvArena, qkv: &mut [f32], first: usize, n: usize) {
        let mut table = RopeTable::default();
        self.fill(&mut table, cpu, (first..first + n).map(|p| p as u32));
        let mut runs = Vec::new();
        let (mut row, bt) = (first, self.heads.block_tokens);
        while row < first + n {
            let n_rows = (bt - row % bt).min(first + n - row);
            runs.push(KvRows { block: block(arena, row / bt), first_row: row % bt, n_rows });
            row += n_rows;
        }
        cpu.rope_and_append(qkv, &self.heads, &table, arena, 0, &runs).unwrap();
    }

    fn fill(&self, table: &mut RopeTable, cpu: &mut Cpu, positions: impl Iterator<Item = u32>) {
        table.fill(cpu, self.inv_freq.len(), positions.map(|p| (p, &self.inv_freq[..])), 1.0);
    }

    fn pins<'a>(&self, arena: &'a KvArena, n_rows: usize) -> Vec<Pin<'a>> {
        (0..n_rows.div_ceil(self.heads.block_tokens)).map(|i| arena.pin(block(arena, i))).collect()
    }

    fn attention(&self, cpu: &mut Cpu, qkv: &[f32], spans: &[Span<'_>]) -> Vec<f32> {
        let stride = self.heads.qkv_dim();
        let mut out = vec![0.0; qkv.len() / stride * self.heads.n_q * self.heads.head_dim];
        let Self { ref heads, softcap, window, .. } = *self;
        let attention = Attention { heads, layer: 0, scale: self.scale(), softcap, window };
        cpu.attention(&attention, qkv, stride, spans, &mut out);
        out
    }

    fn arena(&self) -> KvArena {
        KvArena::with_cells(&[self.heads.cell_shape()], 64, self.heads.block_tokens).unwrap()
    }
}

/// Block of the `i`th piece of the sequence: not in order.
fn block(arena: &KvArena, i: usize) -> u32 {
    ((i * 29 + 5) % arena.n_blocks()) as u32
}

fn check(heads: Heads, n_tokens: usize) {
    check_case(Case::new(heads, n_tokens));
}

fn check_case(case: Case) {
    let Case { heads, n_tokens, .. } = case;
    let expected = case.expected();
    // A key that lies between two binary16 numbers may be rounded the other way after float32 arithmetic.
    let tolerance = if heads.format == KvFormat::F16 { 2e-4 } else { 3e-6 };
    let mut first: Option<(Vec<u32>, Vec<u8>)> = None;
    for mut cpu in all_cpus() {
        for chunk in [n_tokens, 1, 5, 16] {
            let arena = case.arena();
            let out = case.run(&mut cpu, &arena, chunk);
            assert_close(&out, &expected, tolerance);
            let mut cell = vec![0; arena.cell_bytes(0)];
            let block = block(&arena, 0);
            arena.export(0, block, arena.rows(0, block), &mut cell).unwrap();
            let found = (bits(&out), cell);
            assert!(first.get_or_insert_with(|| found.clone()) == &found, "{} chunk {chunk}", cpu.isa());
        }
    }
}

const F32: KvFormat = KvFormat::F32;
const F16: KvFormat = KvFormat::F16;

#[test]
fn equals_the_reference_on_all_levels_threads_and_chunks() {
    check(Heads { n_q: 4, n_kv: 2, head_dim: 16, format: F32, block_tokens: 16 }, 50);
    check(Heads { n_q: 4, n_kv: 1, head_dim: 16, format: F16, block_tokens: 16 }, 33);
    check(Heads { n_q: 9, n_kv: 3, head_dim: 64, format: F16, block_tokens: 16 }, 40);
    check(Heads { n_q: 2, n_kv: 2, head_dim: 40, format: F16, block_tokens: 16 }, 21);
    check(Heads { n_q: 3, n_kv: 1, head_dim: 80, format: F32, block_tokens: 16 }, 18);
    check(Heads { n_q: 2, n_kv: 1, head_dim: 10, format: F32, block_tokens: 8 }, 37);
    check(Heads { n_q: 2, n_kv: 1, head_dim: 16, format: F32, block_tokens: 5 }, 37);
    check(Heads { n_q: 2, n_kv: 1, head_dim: 16, format: F16, block_tokens: 32 }, 70);
}

/// Windows shorter and longer than a tile, a task's rows and the sequence; caps near the scores and far above.
#[test]
fn windows_and_caps_equal_the_reference() {
    for (heads, n_tokens) in [
        (Heads { n_q: 4, n_kv: 2, head_dim: 16, format: F32, block_tokens: 16 }, 70),
        (Heads { n_q: 2, n_kv: 1, head_dim: 40, format: F16, block_tokens: 5 }, 55),
    ] {
        for window in [Some(1), Some(7), Some(16), Some(24), Some(33), Some(200), None] {
            for softcap in [None, Some(0.5), Some(50.0)] {
                check_case(Case { window, softcap, ..Case::new(heads, n_tokens) });
            }
        }
    }
}

/// Rows before the window are not read: what they hold does not show, one inside does.
#[test]
fn rows_outside_a_window_do_not_enter() {
    let heads = Heads { n_q: 2, n_kv: 1, head_dim: 16, format: F32, block_tokens: 16 };
    let plain = Case { window: Some(24), ..Case::new(heads, 60) };
    for mut cpu in all_cpus() {
        let expected = plain.run(&mut cpu, &plain.arena(), 60);
        let last = |out: &[f32]| bits(&out[59 * 32..]);
        for (changed, shows) in [(0, false), (35, false), (36, true), (59, true)] {
            let mut other = Case { window: Some(24), ..Case::new(heads, 60) };
            // Its value, head 3 of the row.
            other.qkv[changed * heads.qkv_dim() + 3 * 16] += 1.0;
            let found = other.run(&mut cpu, &other.arena(), 60);
            assert_eq!(last(&found) != last(&expected), shows, "row {changed}");
        }
    }
}

/// A tree of tokens gives on each path what the path alone gives: the same bits, not only close.
#[test]
fn a_path_of_a_tree_equals_the_path_alone() {
    let heads = Heads { n_q: 4, n_kv: 2, head_dim: 16, format: F16, block_tokens: 16 };
    for (n_before, window) in [(0, None), (3, None), (14, None), (16, None), (30, None), (30, Some(9)), (35, Some(2))] {
        // Two branches from the last row before: tokens 0 2 4 and 1 3 5.
        let tree = Case { window, ..Case::new(heads, n_before + 6) };
        let parents = [None, None, Some(0), Some(1), Some(2), Some(3)];
        for mut cpu in all_cpus() {
            for branch in 0..2 {
                let arena = tree.arena();
                let mut before = tree.qkv[..n_before * heads.qkv_dim()].to_vec();
                tree.append(&mut cpu, &arena, &mut before, 0, n_before);
                // The same content with positions by depth, so that the branch alone has equal keys.
                let mut qkv = tree.qkv[n_before * heads.qkv_dim()..].to_vec();
                let mut table = RopeTable::default();
                let positions = (0..6).map(|i| (n_before + i / 2) as u32);
                tree.fill(&mut table, &mut cpu, positions);
                let mut runs = Vec::new();
                for row in n_before..n_before + 6 {
                    runs.push(KvRows { block: block(&arena, row / 16), first_row: row % 16, n_rows: 1 });
                }
                for (i, run) in runs.iter().enumerate() {
                    let mut one = RopeTable::default();
                    tree.fill(&mut one, &mut cpu, [(n_before + i / 2) as u32].into_iter());
                    let row = &mut qkv[i * heads.qkv_dim()..][..heads.qkv_dim()];
                    cpu.rope_and_append(row, &heads, &one, &arena, 0, &[*run]).unwrap();
                }
                let pins = tree.pins(&arena, n_before + 6);
                let visible = Visible::Tree { n_before, parents: &parents, first: 0 };
                let out = tree.attention(&mut cpu, &qkv, &[Span { blocks: &pins, n_rows: 6, visible }]);

                let mut alone = Case { n_tokens: n_before + 3, window, ..Case::new(heads, 0) };
                alone.inv_freq.clone_from(&tree.inv_freq);
                alone.qkv = tree.qkv[..n_before * heads.qkv_dim()].to_vec();
                for i in [branch, branch + 2, branch + 4] {
                    alone.qkv.extend(&tree.qkv[(n_before + i) * heads.qkv_dim()..][..heads.qkv_dim()]);
                }
                let expected = alone.run(&mut cpu, &alone.arena(), 7);
                let dim = heads.n_q * heads.head_dim;
                for depth in 0..3 {
                    let found = &out[(2 * depth + branch) * dim..][..dim];
                    assert_eq!(bits(found), bits(&expected[(n_before + depth) * dim..][..dim]), "depth {depth}");
                }
            }
        }
    }
}

#[test]
fn a_changed_element_of_the_cache_shows_in_the_bits() {
    let heads = Heads { n_q: 4, n_kv: 2, head_dim: 16, format: F16, block_tokens: 16 };
    let case = Case::new(heads, 20);
    let mut cpu = Cpu::new(1, Isa::detect());
    let arena = case.arena();
    let out = case.run(&mut cpu, &arena, 20);
    let last = |arena: &KvArena, cpu: &mut Cpu| {
        let mut q = case.qkv[19 * heads.qkv_dim()..].to_vec();
        let head_dim = heads.head_dim;
        q[..4 * head_dim].chunks_exact_mut(head_dim).for_each(|h| reference::rope(h, 19, &case.inv_freq, false));
        let pins = case.pins(arena, 20);
        let visible = Visible::Causal { first_row: 19 };
        case.attention(cpu, &q, &[Span { blocks: &pins, n_rows: 1, visible }])
    };
    let same = last(&arena, &mut cpu);
    assert_close(&same, &out[19 * 64..], 1e-6);
    let copy = case.arena();
    for i in 0..2 {
        let block = block(&arena, i);
        let mut cell = vec![0; arena.cell_bytes(0)];
        arena.export(0, block, arena.rows(0, block), &mut cell).unwrap();
        if i == 0 {
            cell[40 * 2] ^= 1;
        }
        copy.import(0, block, arena.rows(0, block), &cell).unwrap();
    }
    assert_ne!(bits(&last(&copy, &mut cpu)), bits(&same));
}
