//! Stored number formats: from bytes to f32, plainly.
//!
//! This is the definition of each format, one function per format, and the oracle for faster code:
//! the same f32 operations in the same order as ggml's own `dequantize_row_*`, so results are equal
//! to the last bit. [`encode`] goes the other way, simply; it makes test files, not good models.
//!
//! Source: ggml, ggml-common.h (block layouts) and ggml-quants.c (formulas).

pub mod encode;
pub(crate) mod k_blocks;
mod small_blocks;

use half::{bf16, f16};

/// How numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum QuantFormat {
    /// IEEE 754 binary32, little-endian.
    F32,
    /// IEEE 754 binary16, little-endian.
    F16,
    /// The upper half of a binary32, little-endian.
    BF16,
    /// `x = d * q`: f16 `d`, 32 signed bytes `q`.
    Q8_0,
    /// `x = d * (q - 8)`: f16 `d`, 32 nibbles `q`.
    Q4_0,
    /// `x = d * q + m`: f16 `d` and `m`, 32 nibbles `q`.
    Q4_1,
    /// `x = (d * s) * q - (dmin * m)`: 8 groups of 32 nibbles `q`, each with 6-bit `s` and `m`.
    Q4K,
    /// As `Q4K` with 5-bit `q`.
    Q5K,
    /// `x = (d * s) * (q - 32)`: 16 groups of 16 6-bit `q`, each with a signed byte `s`.
    Q6K,
}

impl QuantFormat {
    /// Every format, in declaration order.
    pub const ALL: [QuantFormat; 9] = [
        QuantFormat::F32,
        QuantFormat::F16,
        QuantFormat::BF16,
        QuantFormat::Q8_0,
        QuantFormat::Q4_0,
        QuantFormat::Q4_1,
        QuantFormat::Q4K,
        QuantFormat::Q5K,
        QuantFormat::Q6K,
    ];

    /// Numbers per block; 1 for the float formats.
    pub const fn block_elements(self) -> usize {
        match self {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::BF16 => 1,
            QuantFormat::Q8_0 | QuantFormat::Q4_0 | QuantFormat::Q4_1 => small_blocks::ELEMENTS,
            QuantFormat::Q4K | QuantFormat::Q5K | QuantFormat::Q6K => k_blocks::ELEMENTS,
        }
    }

    /// Bytes per block of [`block_elements`](Self::block_elements) numbers.
    pub const fn block_bytes(self) -> usize {
        match self {
            QuantFormat::F32 => 4,
            QuantFormat::F16 | QuantFormat::BF16 => 2,
            QuantFormat::Q8_0 => small_blocks::Q8_0_BYTES,
            QuantFormat::Q4_0 => small_blocks::Q4_0_BYTES,
            QuantFormat::Q4_1 => small_blocks::Q4_1_BYTES,
            QuantFormat::Q4K => k_blocks::Q4K_BYTES,
            QuantFormat::Q5K => k_blocks::Q5K_BYTES,
            QuantFormat::Q6K => k_blocks::Q6K_BYTES,
        }
    }

    /// Bytes that `n` numbers take.
    ///
    /// # Panics
    /// If `n` is not whole blocks.
    pub const fn bytes_of(self, n: usize) -> usize {
        assert!(n.is_multiple_of(self.block_elements()), "not whole blocks");
        n / self.block_elements() * self.block_bytes()
    }
}

/// Turns whole blocks into numbers.
///
/// `bytes`: any number of blocks of `format`, unaligned. `out`: one f32 per stored number.
///
/// # Panics
/// If `out` is not whole blocks, or `bytes` is not exactly as long as `out` needs.
pub fn dequantize(format: QuantFormat, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), format.bytes_of(out.len()), "{format:?} bytes for {} numbers", out.len());
    match format {
        QuantFormat::F32 => each_block(bytes, out, |block: &[u8; 4], out: &mut [f32; 1]| {
            out[0] = f32::from_le_bytes(*block);
        }),
        QuantFormat::F16 => each_block(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| {
            out[0] = f16::from_le_bytes(*block).to_f32();
        }),
        QuantFormat::BF16 => each_block(bytes, out, |block: &[u8; 2], out: &mut [f32; 1]| {
            out[0] = bf16::from_le_bytes(*block).to_f32();
        }),
        QuantFormat::Q8_0 => each_block(bytes, out, small_blocks::q8_0),
        QuantFormat::Q4_0 => each_block(bytes, out, small_blocks::q4_0),
        QuantFormat::Q4_1 => each_block(bytes, out, small_blocks::q4_1),
        QuantFormat::Q4K => each_block(bytes, out, k_blocks::q4k),
        QuantFormat::Q5K => each_block(bytes, out, k_blocks::q5k),
        QuantFormat::Q6K => each_block(bytes, out, k_blocks::q6k),
    }
}

fn each_block<const B: usize, const E: usize>(bytes: &[u8], out: &mut [f32], one: impl Fn(&[u8; B], &mut [f32; E])) {
    let (blocks, _) = bytes.as_chunks::<B>();
    let (outs, _) = out.as_chunks_mut::<E>();
    blocks.iter().zip(outs).for_each(|(block, out)| one(block, out));
}

/// The f16 at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_read_as_stored() {
        let mut out = [0.0; 2];
        dequantize(QuantFormat::F32, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
        dequantize(QuantFormat::F16, &[0x00, 0x3e, 0x01, 0x00], &mut out);
        assert_eq!(out, [1.5, 2f32.powi(-24)]);
        dequantize(QuantFormat::BF16, &[0xc0, 0x3f, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.5, -2.0]);
    }

    #[test]
    #[should_panic(expected = "Q8_0 bytes for 32 numbers")]
    fn a_wrong_length_is_a_broken_invariant() {
        dequantize(QuantFormat::Q8_0, &[0; 33], &mut [0.0; 32]);
    }

    #[test]
    fn several_blocks_follow_one_another() {
        let numbers: Vec<f32> = (0..512).map(|i| (i as f32 * 0.37).sin()).collect();
        for format in QuantFormat::ALL {
            let bytes = encode::quantize(format, &numbers);
            let mut whole = vec![0.0; 512];
            dequantize(format, &bytes, &mut whole);
            let mut halves = vec![0.0; 512];
            let (first, second) = bytes.split_at(bytes.len() / 2);
            dequantize(format, first, &mut halves[..256]);
            dequantize(format, second, &mut halves[256..]);
            assert_eq!(whole, halves, "{format:?}");
        }
    }
}
