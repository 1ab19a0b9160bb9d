//! Rotary embedding, and appending a step's keys and values to the cache.

use std::sync::Mutex;

use super::lanes::{Kernel, LANES, Lanes, launch};
use super::{Cpu, Heads, KvFormat};
use crate::kv::{Append, ArenaError, KvArena};
use crate::pool::SharedMut;

/// Cosines and sines of a step's rows.
#[derive(Default)]
pub struct RopeTable {
    /// `[n_rows, 2 * half]`: a row's cosines, then its sines.
    rows: Vec<f32>,
    half: usize,
}

impl RopeTable {
    /// Computes the table for tokens at `positions`, each with its `inv_freq`: `n_pairs` frequencies, radians per
    /// position. `factor` multiplies cosines and sines (1 except for some scaling types).
    ///
    /// The angle is a float32 product, as in the reference implementations; cosine and sine are of that angle.
    ///
    /// # Panics
    /// If a token has another number of frequencies.
    pub fn fill<'a>(
        &mut self,
        cpu: &mut Cpu,
        n_pairs: usize,
        positions: impl Iterator<Item = (u32, &'a [f32])>,
        factor: f32,
    ) {
        self.half = n_pairs;
        self.rows.clear();
        for (position, inv_freq) in positions {
            assert_eq!(inv_freq.len(), n_pairs, "frequencies of a token");
            self.rows.extend(inv_freq.iter().map(|f| position as f32 * f));
            self.rows.extend_from_slice(inv_freq);
        }
        let half = self.half;
        cpu.pool.chunks_mut(&mut self.rows, 16 * 2 * half, |_, rows| {
            for row in rows.chunks_exact_mut(2 * half) {
                let (cos, sin) = row.split_at_mut(half);
                for (c, s) in cos.iter_mut().zip(sin) {
                    let (sine, cosine) = crate::reference::sin_cos(f64::from(*c));
                    (*c, *s) = (cosine as f32 * factor, sine as f32 * factor);
                }
            }
        });
    }

    fn row(&self, row: usize) -> (&[f32], &[f32]) {
        self.rows[row * 2 * self.half..(row + 1) * 2 * self.half].split_at(self.half)
    }
}

/// Consecutive rows of a step that go to one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvRows {
    /// Which block.
    pub block: u32,
    /// First row in the block: its watermark.
    pub first_row: usize,
    /// How many rows; they fit the block.
    pub n_rows: usize,
}

impl Cpu {
    /// Rotates queries and keys in place and appends keys and values to layer `layer` of the arena.
    ///
    /// `qkv`: `[n_rows, (n_q + 2 * n_kv) * head_dim]`, a row's query heads, key heads, value heads. Element `i` of a
    /// head is paired with element `i + half` ("half-rotated"). `runs` cover the rows in order.
    ///
    /// # Errors
    /// [`ArenaError`] if a run does not continue its block; other runs may have been appended.
    ///
    /// # Panics
    /// If `runs` or the table do not cover exactly the rows of `qkv`, or the arena's cells are not of this shape.
    ///
    /// Source: Su et al., RoFormer, arXiv:2104.09864.
    pub fn rope_and_append(
        &mut self,
        qkv: &mut [f32],
        heads: &Heads,
        table: &RopeTable,
        arena: &KvArena,
        layer: usize,
        runs: &[KvRows],
    ) -> Result<(), ArenaError> {
        let stride = heads.qkv_dim();
        let shape = arena.cell_shape(layer);
        assert!(shape == heads.cell_shape() && 2 * table.half <= heads.head_dim, "arena of another shape");
        let mut starts = Vec::with_capacity(runs.len());
        let mut n_rows = 0;
        for run in runs {
            starts.push(n_rows);
            n_rows += run.n_rows;
        }
        assert!(qkv.len() == n_rows * stride && table.rows.len() == n_rows * 2 * table.half, "runs cover the rows");
        let isa = self.isa;
        let failure = Mutex::new(None);
        let qkv = SharedMut::new(qkv);
        self.pool.run(runs.len(), &|i| {
            let KvRows { block, first_row, n_rows } = runs[i];
            // SAFETY: runs lie one after the other (`starts`), so those of different tasks do not overlap.
            let qkv = unsafe { qkv.slice(starts[i] * stride, n_rows * stride) };
            match arena.append(layer, block, first_row, n_rows) {
                Ok(append) => launch(isa, RopeAppend { qkv, heads, table, table_row: starts[i], append }),
                Err(error) => {
                    failure.lock().expect("nothing panics while it is held").get_or_insert(error);
                }
            }
        });
        failure.into_inner().expect("nothing panics while it is held").map_or(Ok(()), Err)
    }
}

struct RopeAppend<'a> {
    qkv: &'a mut [f32],
    heads: &'a Heads,
    table: &'a RopeTable,
    table_row: usize,
    append: Append<'a>,
}

impl Kernel for RopeAppend<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self, l: L) {
        let Heads { n_q, n_kv, head_dim, .. } = *self.heads;
        for (i, row) in self.qkv.chunks_exact_mut(self.heads.qkv_dim()).enumerate() {
            let (cos, sin) = self.table.row(self.table_row + i);
            for head in row[..(n_q + n_kv) * head_dim].chunks_exact_mut(head_dim) {
                rotate(head, cos, sin);
            }
        }
        let row_bytes = head_dim * self.heads.format.element_bytes();
        for plane in 0..2 * n_kv {
            let first = (n_q + plane) * head_dim;
            let rows = self.qkv.chunks_exact(self.heads.qkv_dim());
            for (row, out) in rows.zip(self.append.plane_mut(plane).chunks_exact_mut(row_bytes)) {
                store_row(l, &row[first..first + head_dim], self.heads.format, out);
            }
        }
        self.append.publish();
    }
}

/// Rotates the pairs `(x[i], x[i + half])`; elements from `2 * half` on stay.
#[inline(always)]
fn rotate(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (a, b) = head.split_at_mut(cos.len());
    for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
    }
}

/// Writes one head's row in the cache's format.
#[inline(always)]
fn store_row<L: Lanes>(l: L, row: &[f32], format: KvFormat, out: &mut [u8]) {
    match format {
        KvFormat::F32 => bytemuck::cast_slice_mut(out).copy_from_slice(row),
        KvFormat::F16 => {
            let out: &mut [u16] = bytemuck::cast_slice_mut(out);
            let ((row, row_rest), (out, out_rest)) = (row.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
            for (row, out) in row.iter().zip(out) {
                l.store_f16(out, l.load(row));
            }
            for (x, out) in row_rest.iter().zip(out_rest) {
                *out = half::f16::from_f32(*x).to_bits();
            }
        }
    }
}
