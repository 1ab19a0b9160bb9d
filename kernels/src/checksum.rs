//! xxh3-64, alone and in one pass with a copy.
//!
//! KV moves at the speed of memory only if its checksum does. The portable code of the `xxhash-rust` crate is built for
//! the oldest processors; this runs on AVX2 where the machine has it and gives the same values.
//!
//! Source: xxHash, XXH3 with the default secret and seed 0 (`xxhash.h`, version 0.8).

use xxhash_rust::xxh3;

/// xxh3-64 of `bytes`.
pub fn xxh3_64(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if bytes.len() > avx2::SHORT_MAX && std::is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has AVX2, `bytes` is readable for its length, and nothing is written.
        return unsafe { avx2::long::<false>(bytes.as_ptr(), bytes.len(), std::ptr::null_mut()) };
    }
    xxh3::xxh3_64(bytes)
}

/// Copies `from` to `to` and returns the xxh3-64 of what was copied.
///
/// # Panics
/// If the lengths differ.
pub fn copy_xxh3_64(from: &[u8], to: &mut [u8]) -> u64 {
    assert_eq!(from.len(), to.len(), "a copy has the length of its source");
    // SAFETY: both are valid for their common length, and a shared and an exclusive borrow do not overlap.
    unsafe { copy_xxh3_64_raw(from.as_ptr(), to.as_mut_ptr(), from.len()) }
}

/// [`copy_xxh3_64`] of memory that other processes may write meanwhile: every byte is read once, so the value
/// belongs to the bytes in `to` whatever they do.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes; they do not overlap; nobody else in this process writes
/// either meanwhile.
pub(crate) unsafe fn copy_xxh3_64_raw(from: *const u8, to: *mut u8, len: usize) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if len > avx2::SHORT_MAX && std::is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has AVX2; the rest is this function's own contract.
        return unsafe { avx2::long::<true>(from, len, to) };
    }
    // SAFETY: this function's own contract; the copy is read, not its source.
    let copied = unsafe {
        std::ptr::copy_nonoverlapping(from, to, len);
        std::slice::from_raw_parts(to, len)
    };
    xxh3::xxh3_64(copied)
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    /// Shorter inputs have formulas of their own, which are not worth a second version.
    pub(super) const SHORT_MAX: usize = 240;
    const STRIPE: usize = 64;
    const SECRET: usize = 192;
    /// Stripes between two scrambles.
    const BLOCK_STRIPES: usize = (SECRET - STRIPE) / 8;
    const PRIME32_1: u64 = 0x9E37_79B1;
    const PRIME64_1: u64 = 0x9E37_79B1_85EB_CA87;
    const INITIAL: [u64; 8] = [
        0xC2B2_AE3D,
        PRIME64_1,
        0xC2B2_AE3D_27D4_EB4F,
        0x1656_67B1_9E37_79F9,
        0x85EB_CA77_C2B2_AE63,
        0x85EB_CA77,
        0x27D4_EB2F_1656_67C5,
        PRIME32_1,
    ];
    #[rustfmt::skip]
    const KEYS: [u8; SECRET] = [
        0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
        0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
        0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
        0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
        0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
        0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
        0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
        0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
        0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
        0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
        0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
        0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
    ];

    /// The sum of a long input; with `COPY`, each stripe is also stored at the same place of `to`.
    ///
    /// # Safety
    /// The machine has AVX2; `from` is readable for `len` bytes, which are more than [`SHORT_MAX`]; with `COPY`, `to`
    /// is writable for as many and does not overlap it.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn long<const COPY: bool>(from: *const u8, len: usize, to: *mut u8) -> u64 {
        assert!(len > SHORT_MAX, "short inputs have other formulas");
        let n_stripes = (len - 1) / STRIPE;
        // SAFETY: `INITIAL` has 64 bytes.
        let mut acc = unsafe { load_pair(INITIAL.as_ptr().cast()) };
        for stripe in 0..n_stripes {
            let (at, key) = (stripe * STRIPE, stripe % BLOCK_STRIPES * 8);
            // SAFETY: `at + 64 <= len - 1`, since `stripe < n_stripes`; `key + 64 <= 184`.
            let data = unsafe { load_pair(from.add(at)) };
            if COPY {
                // SAFETY: as above, of `to`.
                unsafe { store_pair(to.add(at), data) };
            }
            // SAFETY: as above.
            acc = accumulate(acc, data, unsafe { load_pair(KEYS.as_ptr().add(key)) });
            if stripe % BLOCK_STRIPES == BLOCK_STRIPES - 1 {
                // SAFETY: the secret's last 64 bytes.
                acc = scramble(acc, unsafe { load_pair(KEYS.as_ptr().add(SECRET - STRIPE)) });
            }
        }
        // The last 64 bytes again, whole or in part, under a key of their own.
        // SAFETY: `len > 240`; the key ends 7 bytes before the secret does.
        let (data, key) = unsafe {
            if COPY {
                // What the stripes left over is copied first, and the sum is of the copy: nothing is read twice.
                let rest = n_stripes * STRIPE;
                std::ptr::copy_nonoverlapping(from.add(rest), to.add(rest), len - rest);
            }
            let last = if COPY { to.cast_const() } else { from }.add(len - STRIPE);
            (load_pair(last), load_pair(KEYS.as_ptr().add(SECRET - STRIPE - 7)))
        };
        acc = accumulate(acc, data, key);
        let mut lanes = [0_u64; 8];
        // SAFETY: `lanes` has 64 bytes.
        unsafe { store_pair(lanes.as_mut_ptr().cast(), acc) };
        merge(&lanes, (len as u64).wrapping_mul(PRIME64_1))
    }

    type Pair = [__m256i; 2];

    #[target_feature(enable = "avx2")]
    fn accumulate(acc: Pair, data: Pair, key: Pair) -> Pair {
        let half = |acc, data, key| {
            let keyed = _mm256_xor_si256(data, key);
            let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
            let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
            _mm256_add_epi64(product, _mm256_add_epi64(acc, swapped))
        };
        [half(acc[0], data[0], key[0]), half(acc[1], data[1], key[1])]
    }

    #[target_feature(enable = "avx2")]
    fn scramble(acc: Pair, key: Pair) -> Pair {
        let prime = _mm256_set1_epi64x(PRIME32_1 as i64);
        let half = |acc, key| {
            let mixed = _mm256_xor_si256(_mm256_xor_si256(acc, _mm256_srli_epi64::<47>(acc)), key);
            let low = _mm256_mul_epu32(mixed, prime);
            let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
            _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high))
        };
        [half(acc[0], key[0]), half(acc[1], key[1])]
    }

    fn merge(lanes: &[u64; 8], start: u64) -> u64 {
        let key = |at: usize| u64::from_le_bytes(KEYS[at..at + 8].try_into().expect("eight bytes"));
        let mut sum = start;
        for i in 0..4 {
            let a = lanes[2 * i] ^ key(11 + 16 * i);
            let b = lanes[2 * i + 1] ^ key(11 + 16 * i + 8);
            let product = u128::from(a) * u128::from(b);
            sum = sum.wrapping_add(product as u64 ^ (product >> 64) as u64);
        }
        sum ^= sum >> 37;
        sum = sum.wrapping_mul(0x1656_6791_9E37_79F9);
        sum ^ (sum >> 32)
    }

    /// # Safety
    /// 64 bytes at `from` are readable.
    #[target_feature(enable = "avx2")]
    unsafe fn load_pair(from: *const u8) -> Pair {
        // SAFETY: the caller's word; unaligned loads.
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }

    /// # Safety
    /// 64 bytes at `to` are writable.
    #[target_feature(enable = "avx2")]
    unsafe fn store_pair(to: *mut u8, data: Pair) {
        // SAFETY: the caller's word; unaligned stores.
        unsafe {
            _mm256_storeu_si256(to.cast(), data[0]);
            _mm256_storeu_si256(to.add(32).cast(), data[1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length up to several blocks, and some long ones at odd addresses.
    #[test]
    fn gives_the_values_of_the_portable_code() {
        let bytes: Vec<u8> = (0..70_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let lengths = (0..2_200).chain([4_095, 4_096, 4_097, 65_535, 65_536, 69_990]);
        for len in lengths {
            let from = &bytes[len % 7..][..len];
            let want = xxh3::xxh3_64(from);
            assert_eq!(xxh3_64(from), want, "{len} bytes");
            let mut to = vec![0xA5; len + 2];
            assert_eq!(copy_xxh3_64(from, &mut to[1..=len]), want, "{len} bytes copied");
            assert_eq!((&to[1..=len], to[0], to[len + 1]), (from, 0xA5, 0xA5), "{len} bytes");
        }
    }
}
