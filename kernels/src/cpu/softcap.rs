//! Soft cap of logits: squeezes them into a range, order kept.

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes, launch};
use super::math::softcap;

/// Elements of one task.
const TASK: usize = 1 << 14;

impl Cpu {
    /// `x = cap * tanh(x / cap)`, element by element.
    ///
    /// Source: Gemma Team, arXiv:2408.00118.
    pub fn softcap(&mut self, x: &mut [f32], cap: f32) {
        let isa = self.isa;
        self.pool.chunks_mut(x, TASK, |_, x| launch(isa, SoftCap { x, cap }));
    }
}

struct SoftCap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Kernel for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        let cap = l.splat(self.cap);
        let (chunks, rest) = self.x.as_chunks_mut::<LANES>();
        for chunk in chunks {
            let capped = softcap(l, l.load(chunk), cap);
            l.store(chunk, capped);
        }
        let mut last = [0.0; LANES];
        last[..rest.len()].copy_from_slice(rest);
        let capped = softcap(l, l.load(&last), cap);
        l.store(&mut last, capped);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}
