//! Attention over the paged cache, with online softmax.
//!
//! A query goes over the rows it sees in order, in tiles of sixteen. Per tile: scores (one chain of fused
//! multiply-adds over the head's elements each), their maximum, exponentials, their sum as a tree, then values added
//! row by row. What a query computes depends on the rows it sees alone; which other queries share the tile's loaded
//! keys and values (the heads of a group, later tokens of a chunk) does not enter. With a window a query begins with
//! the tile in which its window begins; tiles begin at multiples of sixteen rows, whatever the window.
//!
//! Source: Milakov and Gimelshein, arXiv:1805.02867; Dao et al., arXiv:2205.14135.

mod scratch;
mod single;

use self::scratch::{Scratch, VALUE_DIM};
use super::lanes::{Kernel, LANES, Lanes, launch};
use super::{Cpu, Heads, KvFormat};
use crate::kv::Pin;
use crate::pool::SharedMut;

/// Query rows of one task: they share each loaded tile of keys and values.
const TASK_ROWS: usize = 16;
/// Tiles that are asked for ahead of their use by a single row.
const SINGLE_AHEAD: usize = 8;

/// Attention of one layer.
pub struct Attention<'a> {
    /// Shape of heads and cache.
    pub heads: &'a Heads,
    /// Which layer of the cache.
    pub layer: usize,
    /// Multiplies the scores: mostly `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// Soft cap of the scores: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Most rows that a query sees, its own and those before it, at least 1; `None`: all.
    pub window: Option<usize>,
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
    /// `out = softmax(softcap(q * keys^T * scale)) * values` for every query head.
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
        let n_rows = self.task.n_rows;
        let n_queries = n_rows * self.task.n_heads;
        let window = self.attention.window.unwrap_or(usize::MAX);
        // The first key that the task's row sees.
        let begin = |row: usize| seen(row).saturating_sub(window);
        let single = self.is_single();
        let mut scratch = Scratch::new(head_dim, n_queries, self.attention.softcap, single);
        for query in 0..n_queries {
            let q = &self.q[self.row_start(query, self.q_stride)..][..head_dim];
            scratch.put_query(query, q, self.attention.scale);
        }
        for first_key in (begin(0) / LANES * LANES..n_seen).step_by(LANES) {
            let n_keys = LANES.min(n_seen - first_key);
            if single {
                // A tile is read in less time than it takes to come.
                let ahead = first_key + SINGLE_AHEAD * LANES;
                if ahead < n_seen {
                    self.prefetch(l, cache_row(ahead), n_seen - ahead);
                }
                let keys = begin(0).saturating_sub(first_key)..n_keys;
                self.single_tile(l, &mut scratch, keys, n_keys, |i| cache_row(first_key + i));
                continue;
            }
            self.load_tile(l, &mut scratch, n_keys, |i| cache_row(first_key + i));
            if first_key + LANES < n_seen {
                self.prefetch(l, cache_row(first_key + LANES), n_seen - first_key - LANES);
            }
            // Rows before the first of these see nothing of the tile yet, those from the second on nothing any more.
            let first_row = (0..n_rows).find(|&r| seen(r) > first_key).unwrap_or(0);
            let end_row = (first_row..n_rows).find(|&r| begin(r) >= first_key + n_keys).unwrap_or(n_rows);
            let queries = first_row * self.task.n_heads..end_row * self.task.n_heads;
            scratch.score(l, queries.clone());
            for query in queries {
                let row = query / self.task.n_heads;
                let keys = begin(row).saturating_sub(first_key)..n_keys.min(seen(row) - first_key);
                scratch.update(l, query, keys);
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

    /// Asks for the tile that begins at cache row `row`, as far as it lies in one block.
    #[inline(always)]
    fn prefetch<L: Lanes>(&self, l: L, row: usize, n_left: usize) {
        let heads = self.attention.heads;
        let row_bytes = heads.head_dim * heads.format.element_bytes();
        let (pin, first) = (&self.span.blocks[row / heads.block_tokens], row % heads.block_tokens);
        let end = heads.block_tokens.min(first + LANES.min(n_left));
        for plane in [self.task.kv_head, heads.n_kv + self.task.kv_head] {
            l.prefetch(&pin.plane(self.attention.layer, plane, end)[first * row_bytes..]);
        }
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
            let rows = |plane| pin.plane(layer, plane, first + n)[first * row_bytes..].chunks_exact(row_bytes);
            for (bytes, to) in rows(key_plane).zip(scratch.keys.chunks_exact_mut(scratch.padded).skip(key)) {
                load_row(l, bytes, heads.format, to);
            }
            for (i, bytes) in rows(value_plane).enumerate() {
                for (part, bytes) in bytes.chunks(VALUE_DIM * heads.format.element_bytes()).enumerate() {
                    let to = scratch.values[part * LANES + key + i].as_flattened_mut();
                    load_row(l, bytes, heads.format, to);
                }
            }
            key += n;
        }
        let keys = scratch.keys.as_chunks::<LANES>().0;
        let n_chunks = scratch.padded / LANES;
        for chunk in 0..n_chunks {
            let mut rows = [l.splat(0.0); LANES];
            for i in 0..LANES {
                rows[i] = l.load(&keys[i * n_chunks + chunk]);
            }
            let columns = scratch.keys_transposed.as_chunks_mut::<LANES>().0;
            for (column, to) in l.transpose(rows).into_iter().zip(&mut columns[chunk * LANES..]) {
                l.store(to, column);
            }
        }
    }
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
