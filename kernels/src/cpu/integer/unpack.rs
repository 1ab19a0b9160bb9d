//! From records back to the numbers they stand for.

use super::pack::IntegerWeights;
use super::records::{Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0, Record};
use super::{BLOCK, FOURS};
use crate::cpu::lanes::{Kernel, LANES, Lanes};
use crate::quant::QuantFormat;

/// Writes the weights of one output, with the rounding of [`dequantize`](crate::quant::dequantize).
pub(in crate::cpu) struct ReadRow<'a> {
    pub(in crate::cpu) weights: &'a IntegerWeights,
    pub(in crate::cpu) row: usize,
    /// As many as there are inputs.
    pub(in crate::cpu) out: &'a mut [f32],
}

impl Kernel for ReadRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        match self.weights.format {
            QuantFormat::Q4_0 => self.read::<L, Q4_0>(l),
            QuantFormat::Q4_1 => self.read::<L, Q4_1>(l),
            QuantFormat::Q8_0 => self.read::<L, Q8_0>(l),
            QuantFormat::Q4K => self.read::<L, Q4K>(l),
            QuantFormat::Q5K => self.read::<L, Q5K>(l),
            QuantFormat::Q6K => self.read::<L, Q6K>(l),
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => unreachable!("not packed here"),
        }
    }
}

impl ReadRow<'_> {
    #[inline(always)]
    fn read<L: Lanes, R: Record>(self, l: L) {
        let records = self.weights.strip::<R>(self.row / LANES);
        let mut lanes = [0.0; LANES];
        for (record, out) in records.iter().zip(self.out.chunks_exact_mut(BLOCK)) {
            for (pair, out) in out.chunks_exact_mut(8).enumerate() {
                let d = record.d(l, pair * R::SCALES / (FOURS / 2));
                let codes = record.codes(l, pair);
                for (i, out) in out.iter_mut().enumerate() {
                    let code = l.to_float(code::<L, R>(l, codes[i / 4], i % 4));
                    let mut w = l.mul(d, l.sub(code, l.splat(R::OFFSET as f32)));
                    if R::MIN {
                        w = l.add(w, record.m(l));
                    }
                    l.store(&mut lanes, w);
                    *out = lanes[self.row % LANES];
                }
            }
        }
    }
}

/// Code `i` of the four of each output.
#[inline(always)]
fn code<L: Lanes, R: Record>(l: L, codes: L::B, i: usize) -> L::I {
    let none = l.splat_i32(0);
    if R::SIGNED {
        let pairs = if i.is_multiple_of(2) { l.even_signed(codes) } else { l.odd_signed(codes) };
        l.dot_pairs(none, pairs, 1 << (16 * (i / 2)))
    } else {
        l.dot(none, codes, 1 << (8 * i))
    }
}
