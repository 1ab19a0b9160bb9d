//! Counter-based randomness.

use super::Draw;

/// Multipliers and key increments of Philox4x32.
const M: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The one random number of a draw: uniform in [0, 1), a multiple of 2^-53.
///
/// Philox4x32-10 with the seed as key and (position, choice) as counter.
///
/// Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
pub fn uniform(seed: u64, draw: Draw) -> f64 {
    let [a, b, _, _] = philox4x32([draw.position, draw.choice, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = (u64::from(a) << 32 | u64::from(b)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

pub(super) fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let [p0, p1] = [u64::from(counter[0]) * u64::from(M[0]), u64::from(counter[2]) * u64::from(M[1])];
        counter =
            [(p1 >> 32) as u32 ^ counter[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ counter[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(W[0]), key[1].wrapping_add(W[1])];
    }
    counter
}
