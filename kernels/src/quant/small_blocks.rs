//! Blocks of 32 numbers: Q8_0, Q4_0, Q4_1.
//!
//! A byte of nibbles at index `i` holds number `i` in its low half and number `i + 16` in its high half.

use super::half_at;

/// Numbers in a block.
pub(super) const ELEMENTS: usize = 32;
const HALF: usize = ELEMENTS / 2;

/// f16 scale, 32 signed bytes.
pub(super) const Q8_0_BYTES: usize = 2 + ELEMENTS;
/// f16 scale, 32 nibbles.
pub(super) const Q4_0_BYTES: usize = 2 + HALF;
/// f16 scale, f16 minimum, 32 nibbles.
pub(super) const Q4_1_BYTES: usize = 2 + 2 + HALF;

pub(super) fn q8_0(block: &[u8; Q8_0_BYTES], out: &mut [f32; ELEMENTS]) {
    let d = half_at(block, 0);
    for (q, out) in block[2..].iter().zip(out) {
        *out = f32::from(*q as i8) * d;
    }
}

pub(super) fn q4_0(block: &[u8; Q4_0_BYTES], out: &mut [f32; ELEMENTS]) {
    let d = half_at(block, 0);
    for (i, q) in block[2..].iter().enumerate() {
        out[i] = f32::from((q & 15) as i8 - 8) * d;
        out[i + HALF] = f32::from((q >> 4) as i8 - 8) * d;
    }
}

pub(super) fn q4_1(block: &[u8; Q4_1_BYTES], out: &mut [f32; ELEMENTS]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (i, q) in block[4..].iter().enumerate() {
        out[i] = f32::from(q & 15) * d + m;
        out[i + HALF] = f32::from(q >> 4) * d + m;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f16 0.5 and -3.0, little-endian.
    const HALF_ONE: [u8; 2] = [0x00, 0x38];
    const MINUS_THREE: [u8; 2] = [0x00, 0xc2];

    #[test]
    fn q8_0_scales_signed_bytes() {
        let mut block = [0; Q8_0_BYTES];
        block[..2].copy_from_slice(&HALF_ONE);
        (block[2], block[3], block[33]) = (1, 0xff, 0x80);
        let mut out = [9.0; ELEMENTS];
        q8_0(&block, &mut out);
        assert_eq!((out[0], out[1], out[2], out[31]), (0.5, -0.5, 0.0, -64.0));
    }

    #[test]
    fn q4_0_centres_nibbles_on_8() {
        let mut block = [0x88; Q4_0_BYTES];
        block[..2].copy_from_slice(&HALF_ONE);
        (block[2], block[17]) = (0xf0, 0x19);
        let mut out = [9.0; ELEMENTS];
        q4_0(&block, &mut out);
        assert_eq!((out[0], out[16], out[15], out[31]), (-4.0, 3.5, 0.5, -3.5));
        assert_eq!((out[1], out[30]), (0.0, 0.0));
    }

    #[test]
    fn q4_1_adds_the_minimum() {
        let mut block = [0; Q4_1_BYTES];
        block[..2].copy_from_slice(&HALF_ONE);
        block[2..4].copy_from_slice(&MINUS_THREE);
        (block[4], block[19]) = (0xf1, 0x20);
        let mut out = [9.0; ELEMENTS];
        q4_1(&block, &mut out);
        assert_eq!((out[0], out[16], out[15], out[31]), (-2.5, 4.5, -3.0, -2.0));
    }
}
