//! Matrix product with packed weights.
//!
//! How an output is summed is said where the weights' formats are ([`super::float`], [`super::integer`]): in a fixed
//! order, whatever the number of rows and threads. Here inputs are prepared, once for all outputs, and the work is cut
//! into tasks of some rows and some panels of outputs.

use std::ops::Range;

use super::columns::Columns;
use super::float::FloatProduct;
use super::gate::Activation;
use super::integer::{IntegerProduct, Norm, Quantized};
use super::lanes::{Kernel, LANES, Lanes, launch};
use super::matrix::{Linear, PANEL, STRIPS, Weights};
use super::{Cpu, Store};
use crate::Isa;
use crate::pool::{Pool, SharedMut};

/// Rows that one task takes: they stay in the second-level cache while panels go by.
const TASK_ROWS: usize = 64;
/// Multiply-adds worth a task: some microseconds, so that claiming it costs little and a late thread little too.
const TASK_WORK: usize = 400_000;
/// Tasks per thread at least, where there are as many panels.
const TASKS_PER_THREAD: usize = 4;

/// Inputs of a product, `[n_rows, k]`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    x: &'a [f32],
    norm: Option<Norm<'a>>,
}

impl<'a> Rows<'a> {
    /// As they are.
    pub fn new(x: &'a [f32]) -> Self {
        Self { x, norm: None }
    }

    /// Each row normalised first, as [`Cpu::rms_norm`] does; `gain`: `[k]`.
    pub fn normed(x: &'a [f32], gain: &'a [f32], eps: f32) -> Self {
        Self { x, norm: Some(Norm { gain, eps }) }
    }
}

impl Cpu {
    /// `out = x * weights^T + bias`, or added to what is there.
    ///
    /// `x`: `[n_rows, k]`. `out`: `[n_rows, n_out]`.
    ///
    /// # Panics
    /// If the lengths are not whole rows of the same number.
    pub fn matmul(&mut self, weights: &Linear, x: Rows<'_>, out: &mut [f32], store: Store) {
        let n_out = weights.n_out();
        let n_rows = n_rows(weights, x, out.len(), n_out);
        let n_panels = weights.n_panels();
        let work = Tasks::new(n_rows, n_panels, weights.k(), self.pool.n_threads());
        let (pool, product) = self.prepare(weights, x);
        let out = SharedMut::new(out);
        pool.run(work.count(), &|task| {
            let (rows, panels) = work.get(task);
            for panel in panels {
                let (_, _, first_out) = weights.locate(panel);
                let columns = Target { out: &out, stride: n_out, first_row: rows.start, first_out, store };
                product.panel(weights, panel, rows.clone(), columns);
            }
        });
    }

    /// `out = activation(x * gate^T) * (x * up^T)`, the gated half of a feed-forward layer.
    ///
    /// `weights`: two parts, gate and up, with as many outputs each. `x`: `[n_rows, k]`. `out`: `[n_rows, n_out / 2]`.
    ///
    /// # Panics
    /// If the parts are others, or the lengths are not whole rows of the same number.
    ///
    /// Source: Shazeer, arXiv:2002.05202.
    pub fn matmul_gated(&mut self, weights: &Linear, x: Rows<'_>, activation: Activation, out: &mut [f32]) {
        let dim = weights.n_out() / 2;
        let n_panels = weights.n_panels() / 2;
        assert!(weights.part_outputs().eq([dim; 2]), "gate and up of {dim} outputs each");
        let n_rows = n_rows(weights, x, out.len(), dim);
        let work = Tasks::new(n_rows, n_panels, 2 * weights.k(), self.pool.n_threads());
        let (pool, product) = self.prepare(weights, x);
        let isa = product.isa;
        let out = SharedMut::new(out);
        pool.run(work.count(), &|task| {
            let (rows, panels) = work.get(task);
            let mut tile: Tile = [[0.0; TASK_ROWS * PANEL]; 2];
            for panel in panels {
                for (half, tile) in tile.iter_mut().enumerate() {
                    let tile = SharedMut::new(tile);
                    let columns =
                        Target { out: &tile, stride: PANEL, first_row: 0, first_out: 0, store: Store::Replace };
                    product.panel(weights, half * n_panels + panel, rows.clone(), columns);
                }
                let n_cols = PANEL.min(dim - panel * PANEL);
                let target = Columns {
                    out: &out,
                    stride: dim,
                    first_row: rows.start,
                    first_out: panel * PANEL,
                    n_cols,
                    bias: None,
                    store: Store::Replace,
                };
                launch(isa, Gate { activation, tile: &tile, n_rows: rows.len(), target });
            }
        });
    }

    /// Turns inputs into what the weights' formats take.
    fn prepare<'a>(&'a mut self, weights: &Linear, Rows { x, norm }: Rows<'a>) -> (&'a mut Pool, Product<'a>) {
        let k = weights.k();
        for (rounding, rows) in self.quantized.each() {
            if weights.takes(rounding) {
                rows.fill(&mut self.pool, self.isa, (x, k), norm, rounding);
            }
        }
        let mut floats = x;
        if let Some(Norm { gain, eps }) = norm.filter(|_| weights.takes_floats()) {
            let mut normed = std::mem::take(&mut self.normed);
            normed.resize(x.len(), 0.0);
            self.rms_norm(x, gain, eps, &mut normed);
            self.normed = normed;
            floats = &self.normed;
        }
        (&mut self.pool, Product { isa: self.isa, k, floats, quantized: &self.quantized })
    }
}

/// A product's inputs, as its formats take them.
struct Product<'a> {
    isa: Isa,
    k: usize,
    floats: &'a [f32],
    quantized: &'a Quantized,
}

/// Where a panel's results go.
struct Target<'a> {
    out: &'a SharedMut<'a, f32>,
    stride: usize,
    first_row: usize,
    first_out: usize,
    store: Store,
}

impl Product<'_> {
    /// Panel `index` (counted over all parts) of some rows.
    fn panel(&self, weights: &Linear, index: usize, rows: Range<usize>, target: Target<'_>) {
        let (matrix, panel, first_bias) = weights.locate(index);
        let n_cols = PANEL.min(matrix.n_out() - panel * PANEL);
        let bias = weights.bias().map(|b| &b[first_bias..first_bias + n_cols]);
        let Target { out, stride, first_row, first_out, store } = target;
        let columns = Columns { out, stride, first_row, first_out, n_cols, bias, store };
        let strips = panel * STRIPS..(panel + 1) * STRIPS;
        match matrix.weights() {
            Weights::Float(floats) => {
                let x = &self.floats[rows.start * self.k..rows.end * self.k];
                launch(self.isa, FloatProduct { weights: floats, strips, x, k: self.k, columns });
            }
            Weights::Integer(integer) => {
                let x = self.quantized.rounded(integer.rounding());
                let product = IntegerProduct { weights: integer, strips, x, rows, columns };
                launch(self.isa, product);
            }
        }
    }
}

/// Gates and ups of a panel, as they come from the product.
type Tile = [[f32; TASK_ROWS * PANEL]; 2];

/// `activation(gate) * up` of a panel.
struct Gate<'a> {
    activation: Activation,
    tile: &'a Tile,
    n_rows: usize,
    target: Columns<'a>,
}

impl Kernel for Gate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let [gate, up] = self.tile.each_ref().map(|half| half.as_chunks::<LANES>().0);
        for (i, (gate, up)) in gate.iter().zip(up).take(self.n_rows * STRIPS).enumerate() {
            let gated = l.mul(self.activation.apply(l, l.load(gate)), l.load(up));
            self.target.put(l, i / STRIPS, i % STRIPS * LANES, gated);
        }
    }
}

/// How a product is cut into tasks.
struct Tasks {
    n_rows: usize,
    n_panels: usize,
    panels: usize,
    n_panel_tasks: usize,
}

impl Tasks {
    fn new(n_rows: usize, n_panels: usize, k: usize, n_threads: usize) -> Self {
        let n_row_tasks = n_rows.div_ceil(TASK_ROWS);
        let worth = TASK_WORK / (k * PANEL * n_rows.clamp(1, TASK_ROWS));
        let fair = n_panels * n_row_tasks / (TASKS_PER_THREAD * n_threads);
        let panels = worth.min(fair).max(1);
        Self { n_rows, n_panels, panels, n_panel_tasks: n_panels.div_ceil(panels) }
    }

    fn count(&self) -> usize {
        self.n_rows.div_ceil(TASK_ROWS) * self.n_panel_tasks
    }

    /// Rows and panels of a task.
    fn get(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let (row, panel) = (task / self.n_panel_tasks * TASK_ROWS, task % self.n_panel_tasks * self.panels);
        (row..self.n_rows.min(row + TASK_ROWS), panel..self.n_panels.min(panel + self.panels))
    }
}

/// Rows of a product whose result has `len` elements in rows of `n_out`.
fn n_rows(weights: &Linear, x: Rows<'_>, len: usize, n_out: usize) -> usize {
    let k = weights.k();
    let n_rows = x.x.len() / k;
    assert!(x.x.len() == n_rows * k && len == n_rows * n_out, "{} x {k} to {len} x {n_out}", x.x.len());
    assert!(x.norm.is_none_or(|n| n.gain.len() == k), "a gain for each of {k} inputs");
    n_rows
}
