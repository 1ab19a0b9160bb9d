//! Working memory of an attention task, and the arithmetic of a tile.

use std::ops::Range;

use crate::cpu::lanes::{LANES, Lanes};
use crate::cpu::math::{exp, softcap};

/// Queries whose scores are computed together: as many chains of additions as hide their latency.
pub(super) const SCORE_QUERIES: usize = 8;
/// Vectors of a head that are accumulated together.
const VALUE_VECTORS: usize = 4;
/// Elements of these.
pub(super) const VALUE_DIM: usize = VALUE_VECTORS * LANES;

type ValuePart = [[f32; LANES]; VALUE_VECTORS];

/// A task's working memory.
pub(super) struct Scratch {
    head_dim: usize,
    softcap: Option<f32>,
    /// `head_dim` rounded up to whole vectors.
    pub(super) padded: usize,
    /// Queries times the scale, in groups: `[n_queries / 8][head_dim][8]`.
    pub(super) queries: Vec<[f32; SCORE_QUERIES]>,
    /// The tile's keys, `[16][padded]`; elements past `head_dim` stay zero, here and below.
    pub(super) keys: Vec<f32>,
    /// The tile's keys, `[padded][16]`.
    pub(super) keys_transposed: Vec<f32>,
    /// The tile's keys as stored, `[head_dim][16]`: for a single row, instead of `keys` and `values`.
    pub(super) halves: Vec<[u16; LANES]>,
    /// The tile's values in parts of 64 elements, `[head_dim / 64][16][64]`.
    pub(super) values: Vec<ValuePart>,
    /// Per query, scores of the tile: `[16]`.
    pub(super) scores: Vec<f32>,
    /// Per query, weighted sum of values so far: `[head_dim / 64][64]`.
    pub(super) sums: Vec<ValuePart>,
    /// Per query, largest score so far.
    largest: Vec<f32>,
    /// Per query, sum of exponentials so far.
    weight: Vec<f32>,
}

impl Scratch {
    /// `single`: whether tiles are taken as they lie in the cache.
    pub(super) fn new(head_dim: usize, n_queries: usize, softcap: Option<f32>, single: bool) -> Self {
        let padded = head_dim.next_multiple_of(LANES);
        let n_groups = n_queries.div_ceil(SCORE_QUERIES);
        let n_parts = head_dim.div_ceil(VALUE_DIM);
        let (as_floats, as_stored) = if single { (0, padded) } else { (padded, 0) };
        Self {
            head_dim,
            softcap,
            padded,
            queries: vec![[0.0; SCORE_QUERIES]; n_groups * head_dim],
            keys: vec![0.0; LANES * as_floats],
            keys_transposed: vec![0.0; LANES * as_floats],
            halves: vec![[0; LANES]; as_stored],
            values: vec![[[0.0; LANES]; VALUE_VECTORS]; if single { 0 } else { n_parts * LANES }],
            scores: vec![0.0; LANES * SCORE_QUERIES * n_groups],
            sums: vec![[[0.0; LANES]; VALUE_VECTORS]; n_parts * n_queries],
            largest: vec![f32::NEG_INFINITY; n_queries],
            weight: vec![0.0; n_queries],
        }
    }

    pub(super) fn put_query(&mut self, query: usize, q: &[f32], scale: f32) {
        let group = self.queries[query / SCORE_QUERIES * self.head_dim..].iter_mut();
        for (to, q) in group.zip(q) {
            to[query % SCORE_QUERIES] = q * scale;
        }
    }

    /// Scores of `queries` (perhaps of some beside them) against the tile's keys.
    #[inline(always)]
    pub(super) fn score<L: Lanes>(&mut self, l: L, queries: Range<usize>) {
        for group in queries.start / SCORE_QUERIES..queries.end.div_ceil(SCORE_QUERIES) {
            let end = queries.end - group * SCORE_QUERIES;
            if L::WIDE && end > SCORE_QUERIES / 2 {
                self.score_some::<L, SCORE_QUERIES>(l, group, 0);
                continue;
            }
            self.score_some::<L, { SCORE_QUERIES / 2 }>(l, group, 0);
            if end > SCORE_QUERIES / 2 {
                self.score_some::<L, { SCORE_QUERIES / 2 }>(l, group, SCORE_QUERIES / 2);
            }
        }
    }

    /// Scores of `Q` queries of the group from `first` on.
    #[inline(always)]
    fn score_some<L: Lanes, const Q: usize>(&mut self, l: L, group: usize, first: usize) {
        let queries = &self.queries[group * self.head_dim..(group + 1) * self.head_dim];
        let mut acc = [l.splat(0.0); Q];
        for (q, key) in queries.iter().zip(self.keys_transposed.as_chunks::<LANES>().0) {
            let key = l.load(key);
            for i in 0..Q {
                acc[i] = l.fma(l.splat(q[first + i]), key, acc[i]);
            }
        }
        let scores = &mut self.scores.as_chunks_mut::<LANES>().0[group * SCORE_QUERIES + first..];
        for (to, acc) in scores.iter_mut().zip(acc) {
            l.store(to, acc);
        }
    }

    /// Takes the tile's `keys`, at least one, into a query's result.
    #[inline(always)]
    pub(super) fn update<L: Lanes>(&mut self, l: L, query: usize, keys: Range<usize>) {
        let shrink = self.weigh(l, query, keys.clone());
        let scores = &self.scores.as_chunks::<LANES>().0[query];
        let n_parts = self.head_dim.div_ceil(VALUE_DIM);
        let sums = &mut self.sums[query * n_parts..(query + 1) * n_parts];
        for (sums, values) in sums.iter_mut().zip(self.values.chunks_exact(LANES)) {
            add_values(l, &scores[keys.clone()], &values[keys.clone()], shrink, sums);
        }
    }

    /// Vectors of a query's sums.
    pub(super) fn sum_vectors(&self) -> usize {
        self.head_dim.div_ceil(VALUE_DIM) * VALUE_VECTORS
    }

    /// Turns a query's scores of the tile's `keys` into weights of the values; returns what the sums so far must be
    /// multiplied by.
    #[inline(always)]
    pub(super) fn weigh<L: Lanes>(&mut self, l: L, query: usize, keys: Range<usize>) -> L::F {
        let scores = &mut self.scores.as_chunks_mut::<LANES>().0[query];
        // Lanes of `keys` of `x`, the others `rest`.
        let only = |x, rest| l.first(keys.start, rest, l.first(keys.end, x, rest));
        let s = l.load(scores);
        let s = self.softcap.map_or(s, |cap| softcap(l, s, l.splat(cap)));
        let s = only(s, l.splat(f32::NEG_INFINITY));
        let before = self.largest[query];
        let tile = l.largest(s);
        let largest = if before > tile { before } else { tile };
        let p = only(exp(l, l.sub(s, l.splat(largest))), l.splat(0.0));
        l.store(scores, p);
        // Where the maximum stays the factor is exactly 1.
        let shrink = if before == largest { l.splat(1.0) } else { exp(l, l.splat(before - largest)) };
        let mut weight = [0.0; LANES];
        l.store(&mut weight, l.fma(l.splat(self.weight[query]), shrink, l.splat(l.sum(p))));
        self.weight[query] = weight[0];
        self.largest[query] = largest;
        shrink
    }

    /// Divides by the sum of exponentials.
    #[inline(always)]
    pub(super) fn finish(&self, query: usize, out: &mut [f32]) {
        let n_parts = self.head_dim.div_ceil(VALUE_DIM);
        let sums = &self.sums[query * n_parts..(query + 1) * n_parts];
        for (out, sum) in out.iter_mut().zip(sums.as_flattened().as_flattened()) {
            *out = sum / self.weight[query];
        }
    }
}

/// `sums = sums * shrink`, then `+ scores[i] * values[i]` for each key in order.
#[inline(always)]
fn add_values<L: Lanes>(l: L, scores: &[f32], values: &[ValuePart], shrink: L::F, sums: &mut ValuePart) {
    let mut acc: [L::F; VALUE_VECTORS] = std::array::from_fn(|v| l.mul(l.load(&sums[v]), shrink));
    for (&p, values) in scores.iter().zip(values) {
        let p = l.splat(p);
        for v in 0..VALUE_VECTORS {
            acc[v] = l.fma(p, l.load(&values[v]), acc[v]);
        }
    }
    for v in 0..VALUE_VECTORS {
        l.store(&mut sums[v], acc[v]);
    }
}
