//! Matrix product with packed weights.
//!
//! How an output is summed is said where the weights' formats are ([`super::float`], [`super::integer`]): a fixed order,
//! whatever the number of rows and threads. Here the work is cut into tasks of some rows and some panels of outputs.

use super::float::FloatProduct;
use super::integer::{IntegerProduct, Output};
use super::lanes::{LANES, Lanes, launch};
use super::matrix::{Linear, PANEL, STRIPS, Weights};
use super::{Cpu, Store};
use crate::pool::SharedMut;

/// Rows that one task takes: they stay in the second-level cache while panels go by.
const TASK_ROWS: usize = 64;
/// Fused multiply-adds worth a task: some microseconds, so that claiming it costs little and a late thread little too.
const TASK_WORK: usize = 400_000;
/// Tasks per thread at least, where there are as many panels.
const TASKS_PER_THREAD: usize = 4;

impl Cpu {
    /// `out = x * weights^T + bias`, or added to what is there.
    ///
    /// `x`: `[n_rows, k]`. `out`: `[n_rows, n_out]`.
    ///
    /// # Panics
    /// If the lengths are not whole rows of the same number.
    pub fn matmul(&mut self, weights: &Linear, x: &[f32], out: &mut [f32], store: Store) {
        let (k, n_out) = (weights.k(), weights.n_out());
        let n_rows = x.len() / k;
        assert!(x.len() == n_rows * k && out.len() == n_rows * n_out, "{} x {k} to {} x {n_out}", x.len(), out.len());
        let isa = self.isa;
        self.quantized.fill(&mut self.pool, isa, (x, k), None, weights.integer_inputs());
        let quantized = &self.quantized;
        let n_panels = weights.n_panels();
        let n_row_tasks = n_rows.div_ceil(TASK_ROWS);
        let worth = TASK_WORK / (k * PANEL * n_rows.clamp(1, TASK_ROWS));
        let fair = n_panels * n_row_tasks / (TASKS_PER_THREAD * self.pool.n_threads());
        let per_task = worth.min(fair).max(1);
        let n_panel_tasks = n_panels.div_ceil(per_task);
        let out = SharedMut::new(out);
        self.pool.run(n_row_tasks * n_panel_tasks, &|task| {
            let (rows, panels) = (task / n_panel_tasks, task % n_panel_tasks);
            let first_row = rows * TASK_ROWS;
            let rows = first_row..n_rows.min(first_row + TASK_ROWS);
            for panel in panels * per_task..n_panels.min((panels + 1) * per_task) {
                let (matrix, index, first_out) = weights.locate(panel);
                let n_cols = PANEL.min(matrix.n_out() - index * PANEL);
                let bias = weights.bias().map(|b| &b[first_out..first_out + n_cols]);
                let columns = Columns { out: &out, stride: n_out, first_row, first_out, n_cols, bias, store };
                let strips = index * STRIPS..(index + 1) * STRIPS;
                match matrix.weights() {
                    Weights::Float(weights) => {
                        let x = &x[rows.start * k..rows.end * k];
                        launch(isa, FloatProduct { weights, strips, x, k, output: columns });
                    }
                    Weights::Integer(integer) => {
                        let (rows, fine) = (rows.clone(), weights.takes_fine(integer));
                        launch(
                            isa,
                            IntegerProduct { weights: integer, strips, x: quantized, fine, rows, output: columns },
                        );
                    }
                }
            }
        });
    }
}

/// Where a panel's results go: columns `first_out..first_out + n_cols` of rows from `first_row` on.
struct Columns<'a> {
    out: &'a SharedMut<'a, f32>,
    stride: usize,
    first_row: usize,
    first_out: usize,
    n_cols: usize,
    bias: Option<&'a [f32]>,
    store: Store,
}

impl Output for Columns<'_> {
    #[inline(always)]
    fn put<L: Lanes>(&self, l: L, row: usize, first: usize, acc: L::F) {
        let Some(n) = self.n_cols.checked_sub(first).map(|n| n.min(LANES)).filter(|&n| n > 0) else { return };
        let start = (self.first_row + row) * self.stride + self.first_out + first;
        // SAFETY: a task writes only its own rows and its own panels' columns; tasks are handed out once each, so no
        // other thread has these elements, and this borrow ends before the next `put`.
        let out = unsafe { self.out.slice(start, n) };
        let mut result = acc;
        if let Some(bias) = self.bias {
            result = l.add(result, load_partial(l, &bias[first..first + n]));
        }
        if self.store == Store::Add {
            result = l.add(load_partial(l, out), result);
        }
        if let Some(out) = out.first_chunk_mut::<LANES>() {
            l.store(out, result);
        } else {
            let mut lanes = [0.0; LANES];
            l.store(&mut lanes, result);
            out.copy_from_slice(&lanes[..n]);
        }
    }
}

#[inline(always)]
fn load_partial<L: Lanes>(l: L, from: &[f32]) -> L::F {
    if let Some(from) = from.first_chunk::<LANES>() {
        return l.load(from);
    }
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    l.load(&lanes)
}
