//! From records back to rows: the numbers that were packed, with the rounding of [`crate::quant::dequantize`].

use bytemuck::Pod;
use half::f16;

use super::BLOCK;
use super::pack::IntegerWeights;
use super::records::{Group, Q4_0, Q4_1, Q4K, Q5K, Q6K, Q8_0, Record};
use crate::cpu::lanes::LANES;
use crate::quant::QuantFormat;

impl IntegerWeights {
    /// Writes the weights of output `row`, `k` numbers.
    pub(in crate::cpu) fn read_row(&self, row: usize, out: &mut [f32]) {
        match self.format {
            QuantFormat::Q4_0 => self
                .read(row, out, |r: &Q4_0, lane, i| f32::from(nibble(&r.codes, lane, i) as i8 - 8) * half(r.d[lane])),
            QuantFormat::Q4_1 => self.read(row, out, |r: &Q4_1, lane, i| {
                f32::from(nibble(&r.codes, lane, i)) * half(r.d[lane]) + half(r.m[lane])
            }),
            QuantFormat::Q8_0 => self.read(row, out, |r: &Q8_0, lane, i| {
                f32::from(r.codes[i / 4][lane * 4 + i % 4] as i8) * half(r.d[lane])
            }),
            QuantFormat::Q4K => self.read(row, out, |r: &Q4K, lane, i| {
                let scale = half(r.d[lane]) * f32::from(r.scale[lane]);
                scale * f32::from(nibble(&r.codes, lane, i)) - half(r.dmin[lane]) * f32::from(r.min[lane])
            }),
            QuantFormat::Q5K => self.read(row, out, |r: &Q5K, lane, i| {
                let fifth = r.high[lane * 4 + i % 4] >> ((i / 4 + 4) % 8) & 1;
                let scale = half(r.d[lane]) * f32::from(r.scale[lane]);
                let code = nibble(&r.codes, lane, i) | fifth << 4;
                scale * f32::from(code) - half(r.dmin[lane]) * f32::from(r.min[lane])
            }),
            QuantFormat::Q6K => self.read(row, out, |r: &Q6K, lane, i| {
                let upper = r.high[i / 16][lane * 4 + i % 4] >> [4, 6, 0, 2][i / 4 % 4] & 3;
                let code = (nibble(&r.codes, lane, i) | upper << 4) as i8 - 32;
                half(r.d[lane]) * f32::from(r.scale[i / 16][lane]) * f32::from(code)
            }),
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => unreachable!("not packed here"),
        }
    }

    /// `number` gives number `i` of a record's block for an output's lane.
    fn read<R: Record + Pod>(&self, row: usize, out: &mut [f32], number: impl Fn(&R, usize, usize) -> f32) {
        let lane = row % LANES;
        for (record, out) in self.strip::<R>(row / LANES).iter().zip(out.chunks_exact_mut(BLOCK)) {
            out.iter_mut().enumerate().for_each(|(i, out)| *out = number(record, lane, i));
        }
    }
}

fn half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

/// The low four bits of code `i`.
fn nibble(codes: &[Group], lane: usize, i: usize) -> u8 {
    let (group, byte) = (i / 4, lane * 4 + i % 4);
    codes[group / 2][byte] >> (group % 2 * 4) & 15
}
