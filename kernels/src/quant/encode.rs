//! Simple quantisers: good enough for test files, without the searches that make good models.
//!
//! Q8_0, Q4_0 and Q4_1 are ggml's own reference quantisers. The K formats take each group's range as
//! it is.

use half::{bf16, f16};

use super::QuantFormat;
use super::k_blocks::{GROUP, SCALE_BYTES};
use super::small_blocks;

/// Packs numbers into whole blocks.
///
/// # Panics
/// If there are not whole blocks of numbers.
pub fn quantize(format: QuantFormat, numbers: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(format.bytes_of(numbers.len()));
    for block in numbers.chunks_exact(format.block_elements()) {
        match format {
            QuantFormat::F32 => out.extend(block[0].to_le_bytes()),
            QuantFormat::F16 => out.extend(f16::from_f32(block[0]).to_le_bytes()),
            QuantFormat::BF16 => out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            QuantFormat::Q8_0 => q8_0(block, &mut out),
            QuantFormat::Q4_0 => q4_0(block, &mut out),
            QuantFormat::Q4_1 => q4_1(block, &mut out),
            QuantFormat::Q4K => q45k(block, 15, &mut out),
            QuantFormat::Q5K => q45k(block, 31, &mut out),
            QuantFormat::Q6K => q6k(block, &mut out),
        }
    }
    out
}

fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block).abs() / 127.0;
    put_half(out, d);
    out.extend(block.iter().map(|x| (x * inverse(d)).round() as i8 as u8));
}

fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block) / -8.0;
    put_half(out, d);
    put_nibbles(out, block, |x| (x * inverse(d) + 8.5).clamp(0.0, 15.0) as u8);
}

fn q4_1(block: &[f32], out: &mut Vec<u8>) {
    let (min, max) = range(block);
    let d = (max - min) / 15.0;
    put_half(out, d);
    put_half(out, min);
    put_nibbles(out, block, |x| ((x - min) * inverse(d) + 0.5).clamp(0.0, 15.0) as u8);
}

/// Q4_K (`q_max` 15) and Q5_K (`q_max` 31).
fn q45k(block: &[f32], q_max: u8, out: &mut Vec<u8>) {
    let groups: Vec<&[f32]> = block.chunks_exact(GROUP).collect();
    // a stored minimum is subtracted and not negative
    let lows: Vec<f32> = groups.iter().map(|group| -range(group).0.min(0.0)).collect();
    let steps: Vec<f32> =
        groups.iter().zip(&lows).map(|(group, low)| (range(group).1 + low).max(0.0) / f32::from(q_max)).collect();
    let d = put_half(out, largest(&steps) / 63.0);
    let d_low = put_half(out, largest(&lows) / 63.0);
    let scales: Vec<u8> = steps.iter().map(|step| to_level(*step, d, 63)).collect();
    let minima: Vec<u8> = lows.iter().map(|low| to_level(*low, d_low, 63)).collect();
    out.extend(pack_scales(&scales, &minima));

    let levels: Vec<Vec<u8>> = (groups.iter().enumerate())
        .map(|(i, group)| {
            let (step, low) = (d * f32::from(scales[i]), d_low * f32::from(minima[i]));
            group.iter().map(|x| to_level(x + low, step, q_max)).collect()
        })
        .collect();
    if q_max > 15 {
        out.extend(
            (0..GROUP).map(|i| (0..levels.len()).fold(0, |bits, group| bits | (levels[group][i] >> 4) << group)),
        );
    }
    for pair in levels.chunks_exact(2) {
        out.extend(pair[0].iter().zip(&pair[1]).map(|(low, high)| low & 15 | high << 4));
    }
}

fn q6k(block: &[f32], out: &mut Vec<u8>) {
    let steps: Vec<f32> = block.chunks_exact(16).map(|group| largest(group) / -32.0).collect();
    let d = f16::from_f32(largest(&steps) / -128.0).to_f32();
    let scales: Vec<i8> = steps.iter().map(|step| (step * inverse(d)).round() as i8).collect();
    let level = |at: usize| {
        let step = d * f32::from(scales[at / 16]);
        ((block[at] * inverse(step)).round().clamp(-32.0, 31.0) + 32.0) as u8
    };
    for at in 0..128 {
        let at = at / 64 * 128 + at % 64;
        out.push(level(at) & 15 | level(at + 64) << 4);
    }
    for at in 0..64 {
        let at = at / 32 * 128 + at % 32;
        out.push((0..4).fold(0, |bits, run| bits | (level(at + 32 * run) >> 4) << (2 * run)));
    }
    out.extend(scales.iter().map(|scale| *scale as u8));
    put_half(out, d);
}

fn pack_scales(scales: &[u8], minima: &[u8]) -> [u8; SCALE_BYTES] {
    let mut packed = [0; SCALE_BYTES];
    for i in 0..4 {
        packed[i] = scales[i] | scales[i + 4] >> 4 << 6;
        packed[i + 4] = minima[i] | minima[i + 4] >> 4 << 6;
        packed[i + 8] = scales[i + 4] & 15 | minima[i + 4] << 4;
    }
    packed
}

fn put_nibbles(out: &mut Vec<u8>, block: &[f32], level: impl Fn(f32) -> u8) {
    let (low, high) = block.split_at(small_blocks::ELEMENTS / 2);
    out.extend(low.iter().zip(high).map(|(low, high)| level(*low) | level(*high) << 4));
}

/// Appends an f16 and returns what a reader gets back.
fn put_half(out: &mut Vec<u8>, value: f32) -> f32 {
    let half = f16::from_f32(value);
    out.extend(half.to_le_bytes());
    half.to_f32()
}

fn to_level(value: f32, step: f32, max: u8) -> u8 {
    (value * inverse(step)).round().clamp(0.0, f32::from(max)) as u8
}

/// 1 / x, and 0 for 0: a block of zeros stays one.
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The number furthest from 0, with its sign.
fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |best: f32, x| if x.abs() > best.abs() { *x } else { best })
}

fn range(numbers: &[f32]) -> (f32, f32) {
    numbers.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), x| (min.min(*x), max.max(*x)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantize;

    /// Numbers between -1 and 1 come back within `tolerance`.
    fn check(format: QuantFormat, tolerance: f32) {
        let numbers: Vec<f32> = (0..1024).map(|i| (i as f32 * 1.7).sin() * (i as f32 * 0.01).cos()).collect();
        let mut back = vec![0.0; numbers.len()];
        dequantize(format, &quantize(format, &numbers), &mut back);
        let worst = numbers.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= tolerance, "{format:?}: {worst}");
        assert!(worst > 0.0 || tolerance == 0.0, "{format:?} lost nothing");
    }

    #[test]
    fn what_is_packed_comes_back() {
        check(QuantFormat::F32, 0.0);
        check(QuantFormat::F16, 0.0005);
        check(QuantFormat::BF16, 0.004);
        check(QuantFormat::Q8_0, 0.0045);
        check(QuantFormat::Q4_0, 0.13);
        check(QuantFormat::Q4_1, 0.07);
        check(QuantFormat::Q4K, 0.09);
        check(QuantFormat::Q5K, 0.05);
        check(QuantFormat::Q6K, 0.035);
    }

    #[test]
    fn zeros_stay_zeros() {
        for format in QuantFormat::ALL {
            let mut back = vec![1.0; 256];
            dequantize(format, &quantize(format, &[0.0; 256]), &mut back);
            assert!(back.iter().all(|x| *x == 0.0), "{format:?}");
        }
    }
}
