//! Attention over the paged cache, with online softmax.
//!
//! A query goes over the rows it sees in order, in tiles of sixteen. Per tile: scores (one chain of fused
//! multiply-adds over the head's elements each), their maximum, exponentials, their sum as a tree, then values added
//! row by row. What a query computes depends on the rows it sees alone; which other queries share the tile's loaded
//! keys and values (the heads of a group, later tokens of a chunk) does not enter.
//!
//! Source: Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135.

use super::lanes::{Kernel, LANES, Lanes, launch};
use super::math::exp;
use super::{Cpu, Heads, KvFormat};
use crate::kv::Pin;
use crate::pool::SharedMut;

/// Query rows of one task: they share each loaded tile of keys and values.
const TASK_ROWS: usize = 16;
/// Queries whose scores are computed together.
const SCORE_QUERIES: usize = 4;
/// Vectors of a head that are accumulated together.
const VALUE_VECTORS: usize = 4;

/// Attention of one layer.
pub struct Attention<'a> {
    /// Shape of heads and cache.
    pub heads: &'a Heads,
    /// Which layer of the cache.
    pub layer: usize,
    /// Multiplies the scores: `1 / sqrt(head_dim)`.
    pub scale: f32,
}

/// Consecutive query rows of one sequence.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    /// The sequence's blocks, in order.
    pub blocks: &'a [Pin<'a>],
    /// How many query rows.
    pub n_rows: usize,
    /// What they see.
    pub visible: Visible<'a>,
}

/// Which rows of the cache the queries of a span see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visible<'a> {
    /// Query `i` sees rows `0..=first_row + i`.
    Causal {
        /// Cache row of the first query.
        first_row: usize,
    },
    /// Query `i` is token `first + i` of a tree in rows from `n_before` on; it sees the rows before the tree, its
    /// ancestors and itself, in this order.
    Tree {
        /// Rows before the tree.
        n_before: usize,
        /// Each token's parent in the tree; a parent comes first.
        parents: &'a [Option<u32>],
        /// Token of the first query.
        first: usize,
    },
}

impl Cpu {
    /// `out = softmax(q * keys^T * scale) * values` for every query head.
    ///
    /// `q`: rows of `q_stride` floats that begin with `n_q * head_dim` floats of queries. `out`: `[n_rows, n_q *
    /// head_dim]`. `spans` cover the rows in order.
    ///
    /// # Panics
    /// If lengths do not fit, or the cache does not hold a row that a query sees: a broken invariant.
    pub fn attention(
        &mut self,
        attention: &Attention<'_>,
        q: &[f32],
        q_stride: usize,
        spans: &[Span<'_>],
        out: &mut [f32],
    ) {
        let heads = attention.heads;
        let (q_dim, n_rows) = (heads.n_q * heads.head_dim, spans.iter().map(|s| s.n_rows).sum::<usize>());
        assert!(
            q_stride >= q_dim && q.len() == n_rows * q_stride && out.len() == n_rows * q_dim,
            "spans cover the rows"
        );
        let tasks = tasks(spans, heads, self.pool.n_threads());
        let isa = self.isa;
        let out = SharedMut::new(out);
        self.pool.run(tasks.len(), &|i| {
            launch(isa, Tile { attention, q, q_stride, span: &spans[tasks[i].span], task: &tasks[i], out: &out });
        });
    }
}

/// Some rows of a span times some query heads of one KV head.
struct Task {
    span: usize,
    /// First row in the span, in the buffers, and how many.
    first: usize,
    buffer_row: usize,
    n_rows: usize,
    kv_head: usize,
    first_head: usize,
    n_heads: usize,
}

fn tasks(spans: &[Span<'_>], heads: &Heads, n_threads: usize) -> Vec<Task> {
    let group = heads.n_q / heads.n_kv;
    // Queries in a tree see different rows: each is a task of its own.
    let rows_of = |span: &Span<'_>| if matches!(span.visible, Visible::Causal { .. }) { TASK_ROWS } else { 1 };
    let n_tiles: usize = spans.iter().map(|s| s.n_rows.div_ceil(rows_of(s))).sum();
    // A group shares loaded keys and values, unless threads would have nothing to do.
    let n_heads = if n_tiles * heads.n_kv < n_threads { 1 } else { group };
    let mut tasks = Vec::with_capacity(n_tiles * heads.n_q / n_heads);
    let mut buffer_row = 0;
    for (index, span) in spans.iter().enumerate() {
        for first in (0..span.n_rows).step_by(rows_of(span)) {
            let n_rows = rows_of(span).min(span.n_rows - first);
            for first_head in (0..heads.n_q).step_by(n_heads) {
                let kv_head = first_head / group;
                let buffer_row = buffer_row + first;
                tasks.push(Task { span: index, first, buffer_row, n_rows, kv_head, first_head, n_heads });
            }
        }
        buffer_row += span.n_rows;
    }
    // The longest first: a late long one would be waited for.
    tasks.reverse();
    tasks
}

struct Tile<'a> {
    attention: &'a Attention<'a>,
    q: &'a [f32],
    q_stride: usize,
    span: &'a Span<'a>,
    task: &'a Task,
    out: &'a SharedMut<'a, f32>,
}

impl Kernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let first = self.task.first;
        match self.span.visible {
            Visible::Causal { first_row } => {
                let n_seen = first_row + first + self.task.n_rows;
                self.queries(l, n_seen, |query_row| first_row + first + query_row + 1, |key| key);
            }
            Visible::Tree { n_before, parents, first: first_token } => {
                let mut path = vec![first_token + first];
                while let Some(parent) = parents[path[path.len() - 1]] {
                    path.push(parent as usize);
                }
                path.reverse();
                let n_seen = n_before + path.len();
                let row = |key: usize| if key < n_before { key } else { n_before + path[key - n_before] };
                self.queries(l, n_seen, |_| n_seen, row);
            }
        }
    }
}

impl Tile<'_> {
    /// All queries of the task. `n_seen`: keys that any of them sees; `seen`: keys that the task's row sees;
    /// `cache_row`: where a key stands in the cache.
    #[inline(always)]
    fn queries<L: Lanes>(
        &self,
        l: L,
        n_seen: usize,
        seen: impl Fn(usize) -> usize,
        cache_row: impl Fn(usize) -> usize,
    ) {
        let head_dim = self.attention.heads.head_dim;
        let n_queries = self.task.n_rows * self.task.n_heads;
        let mut scratch = Scratch::new(head_dim, n_queries);
        for first_key in (0..n_seen).step_by(LANES) {
            let n_keys = LANES.min(n_seen - first_key);
            self.load_tile(l, &mut scratch, n_keys, |i| cache_row(first_key + i));
            // Rows before this one see nothing of the tile.
            let first_query = (0..self.task.n_rows).find(|&r| seen(r) > first_key).unwrap_or(0) * self.task.n_heads;
            let mut query = first_query;
            while query < n_queries {
                query += if n_queries - query >= SCORE_QUERIES {
                    self.scores::<L, SCORE_QUERIES>(l, &mut scratch, query)
                } else {
                    self.scores::<L, 1>(l, &mut scratch, query)
                };
            }
            for query in first_query..n_queries {
                let n = n_keys.min(seen(query / self.task.n_heads) - first_key);
                scratch.update(l, query, n);
            }
        }
        for query in 0..n_queries {
            let start = self.row_start(query, self.attention.heads.n_q * head_dim);
            // SAFETY: a task writes only its own rows' own heads, and each task runs once.
            scratch.finish(query, unsafe { self.out.slice(start, head_dim) });
        }
    }

    /// Where a query's head begins in a buffer of rows of `stride`.
    #[inline(always)]
    fn row_start(&self, query: usize, stride: usize) -> usize {
        let (row, head) = (query / self.task.n_heads, query % self.task.n_heads);
        (self.task.buffer_row + row) * stride + (self.task.first_head + head) * self.attention.heads.head_dim
    }

    /// Loads `n_keys` keys (transposed) and values. Lanes of missing keys keep whatever they held.
    #[inline(always)]
    fn load_tile<L: Lanes>(&self, l: L, scratch: &mut Scratch, n_keys: usize, cache_row: impl Fn(usize) -> usize) {
        let Attention { heads, layer, .. } = *self.attention;
        let row_bytes = heads.head_dim * heads.format.element_bytes();
        let block_tokens = heads.block_tokens;
        let mut key = 0;
        while key < n_keys {
            // Keys that stand one after the other in one block.
            let (row, mut n) = (cache_row(key), 1);
            while key + n < n_keys && cache_row(key + n) == row + n && !(row + n).is_multiple_of(block_tokens) {
                n += 1;
            }
            let (pin, first) = (&self.span.blocks[row / block_tokens], row % block_tokens);
            let (key_plane, value_plane) = (self.task.kv_head, heads.n_kv + self.task.kv_head);
            for (plane, to) in [(key_plane, &mut scratch.keys), (value_plane, &mut scratch.values)] {
                let bytes = &pin.plane(layer, plane, first + n)[first * row_bytes..];
                for (bytes, to) in bytes.chunks_exact(row_bytes).zip(to.chunks_exact_mut(scratch.padded).skip(key)) {
                    load_row(l, bytes, heads.format, to);
                }
            }
            key += n;
        }
        let keys = scratch.keys.as_chunks::<LANES>().0;
        let n_chunks = scratch.padded / LANES;
        for chunk in 0..n_chunks {
            let rows = std::array::from_fn(|i| l.load(&keys[i * n_chunks + chunk]));
            let columns = scratch.keys_transposed.as_chunks_mut::<LANES>().0;
            for (column, to) in l.transpose(rows).into_iter().zip(&mut columns[chunk * LANES..]) {
                l.store(to, column);
            }
        }
    }

    /// Scores of `Q` queries against the tile's keys; returns `Q`.
    #[inline(always)]
    fn scores<L: Lanes, const Q: usize>(&self, l: L, scratch: &mut Scratch, query: usize) -> usize {
        let head_dim = self.attention.heads.head_dim;
        let q: [&[f32]; Q] = std::array::from_fn(|i| &self.q[self.row_start(query + i, self.q_stride)..][..head_dim]);
        let columns = &scratch.keys_transposed.as_chunks::<LANES>().0[..head_dim];
        let mut acc = [l.splat(0.0); Q];
        for (d, column) in columns.iter().enumerate() {
            let column = l.load(column);
            for i in 0..Q {
                acc[i] = l.fma(l.splat(q[i][d]), column, acc[i]);
            }
        }
        let scores = &mut scratch.scores.as_chunks_mut::<LANES>().0[query..query + Q];
        for (acc, to) in acc.into_iter().zip(scores) {
            l.store(to, l.mul(acc, l.splat(self.attention.scale)));
        }
        Q
    }
}

/// A task's working memory.
struct Scratch {
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors; elements past `head_dim` stay zero.
    padded: usize,
    /// The tile's keys and values `[16][padded]`, and the keys `[padded][16]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    keys_transposed: Vec<f32>,
    /// Per query: scores of the tile `[16]`, weighted sum of values so far `[padded]`, largest score so far, sum of
    /// exponentials so far.
    scores: Vec<f32>,
    sums: Vec<f32>,
    largest: Vec<f32>,
    weight: Vec<f32>,
}

impl Scratch {
    fn new(head_dim: usize, n_queries: usize) -> Self {
        let padded = head_dim.next_multiple_of(LANES);
        Self {
            head_dim,
            padded,
            keys: vec![0.0; LANES * padded],
            values: vec![0.0; LANES * padded],
            keys_transposed: vec![0.0; LANES * padded],
            scores: vec![0.0; LANES * n_queries],
            sums: vec![0.0; padded * n_queries],
            largest: vec![f32::NEG_INFINITY; n_queries],
            weight: vec![0.0; n_queries],
        }
    }

    /// Takes the first `n` keys of the tile into a query's result.
    #[inline(always)]
    fn update<L: Lanes>(&mut self, l: L, query: usize, n: usize) {
        let scores = &mut self.scores.as_chunks_mut::<LANES>().0[query];
        let none = l.splat(f32::NEG_INFINITY);
        let s = l.first(n, l.load(scores), none);
        let before = self.largest[query];
        let tile = l.largest(s);
        let largest = if before > tile { before } else { tile };
        let p = l.first(n, exp(l, l.sub(s, l.splat(largest))), l.splat(0.0));
        l.store(scores, p);
        // Exactly 1 when the maximum stays.
        let shrink = exp(l, l.splat(before - largest));
        let mut weight = [0.0; LANES];
        l.store(&mut weight, l.fma(l.splat(self.weight[query]), shrink, l.splat(l.sum(p))));
        self.weight[query] = weight[0];
        self.largest[query] = largest;
        let n_vectors = self.padded / LANES;
        let sums = self.sums[query * self.padded..(query + 1) * self.padded].as_chunks_mut::<LANES>().0;
        let values = self.values.as_chunks::<LANES>().0;
        let scores = &scores[..n];
        let mut vector = 0;
        while vector < n_vectors {
            let sums = &mut sums[vector..];
            let values = &values[vector..];
            vector += if sums.len() >= VALUE_VECTORS {
                add_values::<L, VALUE_VECTORS>(l, scores, values, n_vectors, shrink, sums)
            } else {
                add_values::<L, 1>(l, scores, values, n_vectors, shrink, sums)
            };
        }
    }

    /// Divides by the sum of exponentials.
    #[inline(always)]
    fn finish(&self, query: usize, out: &mut [f32]) {
        let sums = &self.sums[query * self.padded..][..self.head_dim];
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum / self.weight[query];
        }
    }
}

/// `sums = sums * shrink`, then `+ scores[i] * values[i]` for each key in order; returns `V`.
#[inline(always)]
fn add_values<L: Lanes, const V: usize>(
    l: L,
    scores: &[f32],
    values: &[[f32; LANES]],
    stride: usize,
    shrink: L::F,
    sums: &mut [[f32; LANES]],
) -> usize {
    let mut acc: [L::F; V] = std::array::from_fn(|v| l.mul(l.load(&sums[v]), shrink));
    for (i, &p) in scores.iter().enumerate() {
        let values = &values[i * stride..i * stride + V];
        let p = l.splat(p);
        for v in 0..V {
            acc[v] = l.fma(p, l.load(&values[v]), acc[v]);
        }
    }
    for v in 0..V {
        l.store(&mut sums[v], acc[v]);
    }
    V
}

/// Reads one head's row of the cache; elements past the row stay as they are.
#[inline(always)]
fn load_row<L: Lanes>(l: L, bytes: &[u8], format: KvFormat, to: &mut [f32]) {
    match format {
        KvFormat::F32 => {
            let row: &[f32] = bytemuck::cast_slice(bytes);
            to[..row.len()].copy_from_slice(row);
        }
        KvFormat::F16 => {
            let row: &[u16] = bytemuck::cast_slice(bytes);
            let ((from, from_rest), (to, to_rest)) = (row.as_chunks::<LANES>(), to.as_chunks_mut::<LANES>());
            for (from, to) in from.iter().zip(&mut *to) {
                l.store(to, l.load_f16(from));
            }
            let rest = to.get_mut(from.len()).map_or(to_rest, |chunk| &mut chunk[..]);
            for (from, to) in from_rest.iter().zip(rest) {
                *to = half::f16::from_bits(*from).to_f32();
            }
        }
    }
}
