//! Blocks of 256 numbers: Q4_K, Q5_K, Q6_K.

use super::half_at;

/// Numbers in a block.
pub(crate) const ELEMENTS: usize = 256;
/// Numbers that share a scale and a minimum in Q4_K and Q5_K.
pub(super) const GROUP: usize = 32;
/// Bytes of packed 6-bit scales and minima.
pub(super) const SCALE_BYTES: usize = 12;

/// f16 scale of scales, f16 scale of minima, packed scales, 256 nibbles.
pub(crate) const Q4K_BYTES: usize = 4 + SCALE_BYTES + ELEMENTS / 2;
/// As Q4_K with 256 fifth bits before the nibbles.
pub(crate) const Q5K_BYTES: usize = 4 + SCALE_BYTES + ELEMENTS / 8 + ELEMENTS / 2;
/// 256 low nibbles, 256 pairs of high bits, 16 signed scales, f16 scale of scales.
pub(crate) const Q6K_BYTES: usize = ELEMENTS / 2 + ELEMENTS / 4 + ELEMENTS / 16 + 2;

pub(super) fn q4k(block: &[u8; Q4K_BYTES], out: &mut [f32; ELEMENTS]) {
    for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let (scale, minimum) = group_scale(block, group);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(q4k_code(block, group, i)) - minimum;
        }
    }
}

pub(super) fn q5k(block: &[u8; Q5K_BYTES], out: &mut [f32; ELEMENTS]) {
    for (group, out) in out.chunks_exact_mut(GROUP).enumerate() {
        let (scale, minimum) = group_scale(block, group);
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(q5k_code(block, group, i)) - minimum;
        }
    }
}

pub(super) fn q6k(block: &[u8; Q6K_BYTES], out: &mut [f32; ELEMENTS]) {
    let d = half_at(block, Q6K_BYTES - 2);
    for (at, out) in out.iter_mut().enumerate() {
        let q = q6k_code(block, at) as i8 - 32;
        *out = d * f32::from(q6k_scale(block, at / 16)) * f32::from(q);
    }
}

/// Number `i` of a group of 32, unsigned.
pub(crate) fn q4k_code(block: &[u8; Q4K_BYTES], group: usize, i: usize) -> u8 {
    group_nibble(&block[4 + SCALE_BYTES..], group, i)
}

/// Number `i` of a group of 32, unsigned.
pub(crate) fn q5k_code(block: &[u8; Q5K_BYTES], group: usize, i: usize) -> u8 {
    let (fifth_bits, nibbles) = block[4 + SCALE_BYTES..].split_at(ELEMENTS / 8);
    // byte i of the fifth bits holds number i of all eight groups, one bit each
    group_nibble(nibbles, group, i) | (fifth_bits[i] >> group & 1) << 4
}

/// Number `at` of the block, 0..=63, standing for that minus 32.
pub(crate) fn q6k_code(block: &[u8; Q6K_BYTES], at: usize) -> u8 {
    // two halves of 128; in each, four runs of 32 share bytes
    let (half, run, i) = (at / 128, at % 128 / 32, at % 32);
    let low_byte = block[half * 64 + run % 2 * 32 + i];
    let low_bits = if run < 2 { low_byte & 15 } else { low_byte >> 4 };
    let high_bits = block[ELEMENTS / 2 + half * 32 + i] >> (2 * run) & 3;
    low_bits | high_bits << 4
}

/// Scale of group `group` of 16.
pub(crate) fn q6k_scale(block: &[u8; Q6K_BYTES], group: usize) -> i8 {
    block[ELEMENTS / 2 + ELEMENTS / 4 + group] as i8
}

/// Scale and minimum of a group, multiplied out.
fn group_scale(block: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = packed_scale(block, group);
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(minimum))
}

/// The 6-bit scale and minimum of a group of a Q4_K or Q5_K block. The first four groups have theirs in the low six
/// bits of bytes 0 to 7 of the packed scales; the others have low halves in bytes 8 to 11 and their upper two bits
/// above the first groups'.
pub(crate) fn packed_scale(block: &[u8], group: usize) -> (u8, u8) {
    let scales = &block[4..4 + SCALE_BYTES];
    if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        let low = scales[group + 4];
        ((low & 15) | scales[group - 4] >> 6 << 4, (low >> 4) | scales[group] >> 6 << 4)
    }
}

/// Nibble `i` of a group: even groups are the low halves of 32 bytes, odd groups the high halves.
fn group_nibble(nibbles: &[u8], group: usize, i: usize) -> u8 {
    let byte = nibbles[group / 2 * GROUP + i];
    if group.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f16 0.5 and 2.0, little-endian.
    const D: [u8; 2] = [0x00, 0x38];
    const DMIN: [u8; 2] = [0x00, 0x40];

    /// Scale 1 and minimum 0 everywhere but: group 1 has scale 63 and minimum 5, group 6 has scale
    /// 0b11_0010 and minimum 0b10_0001.
    fn scales() -> [u8; SCALE_BYTES] {
        let mut s = [1, 63, 1, 1, 0, 5, 0, 0, 0x01, 0x01, 0x12, 0x01];
        s[2] |= 0b11 << 6;
        s[6] |= 0b10 << 6;
        s
    }

    #[test]
    fn packed_scales_are_unpacked() {
        let block: Vec<u8> = [0; 4].into_iter().chain(scales()).collect();
        let got: Vec<_> = (0..8).map(|group| packed_scale(&block, group)).collect();
        assert_eq!(got, [(1, 0), (63, 5), (1, 0), (1, 0), (1, 0), (1, 0), (50, 33), (1, 0)]);
    }

    #[test]
    fn q4k_by_hand() {
        let mut block = [0; Q4K_BYTES];
        block[..2].copy_from_slice(&D);
        block[2..4].copy_from_slice(&DMIN);
        block[4..16].copy_from_slice(&scales());
        block[16] = 0x73; // number 0 of groups 0 (3) and 1 (7)
        block[16 + 96 + 31] = 0xf2; // number 31 of groups 6 (2) and 7 (15)
        let mut out = [9.0; ELEMENTS];
        q4k(&block, &mut out);
        assert_eq!((out[0], out[1]), (1.5, 0.0));
        assert_eq!((out[32], out[33]), (0.5 * 63.0 * 7.0 - 10.0, -10.0));
        assert_eq!((out[223], out[222]), (0.5 * 50.0 * 2.0 - 66.0, -66.0));
        assert_eq!(out[255], 7.5);
    }

    #[test]
    fn q5k_by_hand() {
        let mut block = [0; Q5K_BYTES];
        block[..2].copy_from_slice(&D);
        block[2..4].copy_from_slice(&DMIN);
        block[4..16].copy_from_slice(&scales());
        block[16] = 0b0000_0010; // the fifth bit of number 0 of group 1
        block[16 + 31] = 0b1100_0000; // the fifth bits of number 31 of groups 6 and 7
        block[48] = 0x73;
        block[48 + 96 + 31] = 0xf2;
        let mut out = [9.0; ELEMENTS];
        q5k(&block, &mut out);
        assert_eq!((out[0], out[1]), (1.5, 0.0));
        assert_eq!((out[32], out[33]), (0.5 * 63.0 * 23.0 - 10.0, -10.0));
        assert_eq!((out[223], out[222]), (0.5 * 50.0 * 18.0 - 66.0, -66.0));
        assert_eq!(out[255], 15.5);
    }

    #[test]
    fn q6k_by_hand() {
        let mut block = [0; Q6K_BYTES];
        block[208..].copy_from_slice(&D);
        block[192..208].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0x80]);
        block[0] = 0x51; // numbers 0 (low 1) and 64 (low 5)
        block[32] = 0xf2; // numbers 32 (low 2) and 96 (low 15)
        block[128] = 0b11_10_01_00; // their high bits: 0, 1, 2, 3
        block[64 + 63] = 0xa0; // numbers 191 (low 0) and 255 (low 10)
        let mut out = [9.0; ELEMENTS];
        q6k(&block, &mut out);
        assert_eq!(out[0], 0.5 * 1.0 * (1.0 - 32.0));
        assert_eq!(out[32], 0.5 * 3.0 * (18.0 - 32.0));
        assert_eq!(out[64], 0.5 * 5.0 * (37.0 - 32.0));
        assert_eq!(out[96], 0.5 * 7.0 * (63.0 - 32.0));
        assert_eq!(out[16], 0.5 * 2.0 * -32.0);
        assert_eq!(out[191], 0.5 * 12.0 * -32.0);
        assert_eq!(out[255], 0.5 * -128.0 * (10.0 - 32.0));
    }
}
