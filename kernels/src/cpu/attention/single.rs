//! Attention of a single row, as decoding has it: keys and values are used as they lie in the cache.
//!
//! The arithmetic is that of [`super::scratch`], the same operations in the same order for each query; only what is
//! loaded when differs, since a few heads do not repay turning a tile into floats first.

use super::Tile;
use super::scratch::{SCORE_QUERIES, Scratch};
use crate::cpu::lanes::{LANES, Lanes};

/// Heads whose sums are in registers together.
const HEADS: usize = 4;

/// Sixteen numbers in binary16.
type Halves = [u16; LANES];

impl Tile<'_> {
    /// Whether [`Tile::single_tile`] can take the task's tiles.
    pub(super) fn is_single(&self) -> bool {
        let heads = self.attention.heads;
        self.task.n_rows == 1
            && self.task.n_heads <= SCORE_QUERIES
            && heads.format == crate::cpu::KvFormat::F16
            && heads.head_dim.is_multiple_of(LANES)
    }

    /// Takes a tile of `n_keys` keys, of which the row sees those in `keys`, into the results.
    #[inline(always)]
    pub(super) fn single_tile<L: Lanes>(
        &self,
        l: L,
        scratch: &mut Scratch,
        keys: std::ops::Range<usize>,
        n_keys: usize,
        cache_row: impl Fn(usize) -> usize,
    ) {
        let heads = self.attention.heads;
        let (key_plane, value_plane) = (self.task.kv_head, heads.n_kv + self.task.kv_head);
        let mut gathered = [Vec::new(), Vec::new()];
        let (stored_keys, values) = match self.in_one_block(n_keys, &cache_row) {
            Some(row) => (self.cache_rows(key_plane, row, n_keys), self.cache_rows(value_plane, row, n_keys)),
            None => {
                for (plane, gathered) in [key_plane, value_plane].into_iter().zip(&mut gathered) {
                    gathered.extend((0..n_keys).flat_map(|key| self.cache_rows(plane, cache_row(key), 1)));
                }
                (&gathered[0][..], &gathered[1][..])
            }
        };
        let n_vectors = heads.head_dim / LANES;
        for (vector, columns) in scratch.halves.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            // Past the last key the first once more: nothing of it is used.
            let mut rows = [&stored_keys[vector]; LANES];
            for (row, key) in rows.iter_mut().zip(stored_keys.chunks_exact(n_vectors)) {
                *row = &key[vector];
            }
            l.transpose_halves(rows, columns);
        }
        for first in (0..self.task.n_heads).step_by(HEADS) {
            match self.task.n_heads - first {
                1 => single::<L, 1>(l, scratch, first, keys.clone(), values),
                2 => single::<L, 2>(l, scratch, first, keys.clone(), values),
                3 => single::<L, 3>(l, scratch, first, keys.clone(), values),
                _ => single::<L, HEADS>(l, scratch, first, keys.clone(), values),
            }
        }
    }

    /// Where the first of `n_keys` keys stands in the cache, if they follow each other in one block.
    #[inline(always)]
    fn in_one_block(&self, n_keys: usize, cache_row: impl Fn(usize) -> usize) -> Option<usize> {
        let (first, last) = (cache_row(0), cache_row(n_keys - 1));
        let block_tokens = self.attention.heads.block_tokens;
        // Rows ascend, so the ends tell.
        (last - first == n_keys - 1 && first / block_tokens == last / block_tokens).then_some(first)
    }

    /// `n_rows` rows of a plane of the cache, in one block, from `row` on.
    #[inline(always)]
    fn cache_rows(&self, plane: usize, row: usize, n_rows: usize) -> &[Halves] {
        let heads = self.attention.heads;
        let (pin, row) = (&self.span.blocks[row / heads.block_tokens], row % heads.block_tokens);
        let row_bytes = heads.head_dim * heads.format.element_bytes();
        bytemuck::cast_slice(&pin.plane(self.attention.layer, plane, row + n_rows)[row * row_bytes..])
    }
}

/// `N` heads from `first` on.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "indices stand in several arrays")]
fn single<L: Lanes, const N: usize>(
    l: L,
    scratch: &mut Scratch,
    first: usize,
    keys: std::ops::Range<usize>,
    values: &[Halves],
) {
    let mut acc = [l.splat(0.0); N];
    for (q, key) in scratch.queries.iter().zip(&scratch.halves) {
        let key = l.load_f16(key);
        for i in 0..N {
            acc[i] = l.fma(l.splat(q[first + i]), key, acc[i]);
        }
    }
    for (scores, acc) in scratch.scores.as_chunks_mut::<LANES>().0[first..].iter_mut().zip(acc) {
        l.store(scores, acc);
    }
    // No closures over lanes: what a closure does may be compiled without the level's instructions.
    let mut shrink = [l.splat(0.0); N];
    let mut weights = [[0.0; LANES]; N];
    for i in 0..N {
        shrink[i] = scratch.weigh(l, first + i, keys.clone());
        weights[i] = scratch.scores.as_chunks::<LANES>().0[first + i];
    }
    let n_vectors = scratch.sum_vectors();
    let sums = scratch.sums.as_flattened_mut();
    let n_stored = scratch.padded / LANES;
    for vector in 0..n_stored {
        let at = |i: usize| (first + i) * n_vectors + vector;
        let mut acc = shrink;
        for i in 0..N {
            acc[i] = l.mul(l.load(&sums[at(i)]), shrink[i]);
        }
        for (key, value) in keys.clone().zip(values[keys.start * n_stored..].chunks_exact(n_stored)) {
            let value = l.load_f16(&value[vector]);
            for i in 0..N {
                acc[i] = l.fma(l.splat(weights[i][key % LANES]), value, acc[i]);
            }
        }
        for i in 0..N {
            l.store(&mut sums[at(i)], acc[i]);
        }
    }
}
