//! Where the results of a product go.

use super::Store;
use super::lanes::{LANES, Lanes};
use crate::pool::SharedMut;

/// Columns `first_out..first_out + n_cols` of rows from `first_row` on.
pub(super) struct Columns<'a> {
    pub(super) out: &'a SharedMut<'a, f32>,
    pub(super) stride: usize,
    pub(super) first_row: usize,
    pub(super) first_out: usize,
    pub(super) n_cols: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) store: Store,
}

impl Columns<'_> {
    /// Takes outputs `first..first + 16` for a row.
    #[inline(always)]
    pub(super) fn put<L: Lanes>(&self, l: L, row: usize, first: usize, acc: L::F) {
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
        store_partial(l, out, result);
    }
}

/// Up to sixteen floats; missing ones are 0.
#[inline(always)]
pub(super) fn load_partial<L: Lanes>(l: L, from: &[f32]) -> L::F {
    if let Some(from) = from.first_chunk::<LANES>() {
        return l.load(from);
    }
    let mut lanes = [0.0; LANES];
    lanes[..from.len()].copy_from_slice(from);
    l.load(&lanes)
}

/// As many floats as there is room for, up to sixteen.
#[inline(always)]
pub(super) fn store_partial<L: Lanes>(l: L, out: &mut [f32], x: L::F) {
    if let Some(out) = out.first_chunk_mut::<LANES>() {
        return l.store(out, x);
    }
    let mut lanes = [0.0; LANES];
    l.store(&mut lanes, x);
    out.copy_from_slice(&lanes[..out.len()]);
}
