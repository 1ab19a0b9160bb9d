//! Attention of a single row, as decoding has it: keys and values are used as they lie in the cache.
//!
//! The arithmetic is that of [`super::scratch`], the same operations in the same order for each query; only what is
//! loaded when differs, since a few heads do not repay turning a tile into floats first.

use super::Tile;
use super::scratch::{SCORE_QUERIES, Scratch};
use crate::cpu::lanes::{LANES, Lanes};

/// Heads whose sums are in registers together.
const HEADS: usize = 4;

/// Where the rows of a tile lie, in binary16.
type Rows<'a> = [&'a [[u16; LANES]]; LANES];

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
        let none: &[[u16; LANES]] = &[];
        let (mut key_rows, mut value_rows): (Rows<'_>, Rows<'_>) = ([none; LANES], [none; LANES]);
        for i in 0..LANES {
            // Past the last key its row once more: nothing of it is used.
            let row = cache_row(i.min(n_keys - 1));
            key_rows[i] = self.cache_row(self.task.kv_head, row);
            value_rows[i] = self.cache_row(heads.n_kv + self.task.kv_head, row);
        }
        for (chunk, columns) in scratch.halves.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut rows = [&key_rows[0][chunk]; LANES];
            for i in 0..LANES {
                rows[i] = &key_rows[i][chunk];
            }
            l.transpose_halves(rows, columns);
        }
        for first in (0..self.task.n_heads).step_by(HEADS) {
            match self.task.n_heads - first {
                1 => single::<L, 1>(l, scratch, first, keys.clone(), &value_rows),
                2 => single::<L, 2>(l, scratch, first, keys.clone(), &value_rows),
                3 => single::<L, 3>(l, scratch, first, keys.clone(), &value_rows),
                _ => single::<L, HEADS>(l, scratch, first, keys.clone(), &value_rows),
            }
        }
    }

    /// A row of a plane of the cache.
    #[inline(always)]
    fn cache_row(&self, plane: usize, row: usize) -> &[[u16; LANES]] {
        let heads = self.attention.heads;
        let (pin, row) = (&self.span.blocks[row / heads.block_tokens], row % heads.block_tokens);
        let row_bytes = heads.head_dim * heads.format.element_bytes();
        bytemuck::cast_slice(&pin.plane(self.attention.layer, plane, row + 1)[row * row_bytes..])
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
    values: &Rows<'_>,
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
    for vector in 0..scratch.padded / LANES {
        let at = |i: usize| (first + i) * n_vectors + vector;
        let mut acc = shrink;
        for i in 0..N {
            acc[i] = l.mul(l.load(&sums[at(i)]), shrink[i]);
        }
        for key in keys.clone() {
            let value = l.load_f16(&values[key][vector]);
            for i in 0..N {
                acc[i] = l.fma(l.splat(weights[i][key]), value, acc[i]);
            }
        }
        for i in 0..N {
            l.store(&mut sums[at(i)], acc[i]);
        }
    }
}
