//! Element and block formats of tensors.

/// How a tensor's numbers are stored.
///
/// The float formats hold one number per element; the others hold blocks of numbers that share
/// scales (ggml's formats, packed along the innermost dimension).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types, reason = "the formats' own names")]
pub enum DType {
    /// IEEE 754 binary32, little-endian.
    F32,
    /// IEEE 754 binary16, little-endian.
    F16,
    /// The upper half of a binary32, little-endian.
    BF16,
    /// 32 numbers: one f16 scale, 32 signed bytes.
    Q8_0,
    /// 32 numbers: one f16 scale, 32 nibbles around 8.
    Q4_0,
    /// 32 numbers: f16 scale and minimum, 32 nibbles.
    Q4_1,
    /// 256 numbers of 4 bits in 8 groups, 6-bit scales and minima.
    Q4K,
    /// 256 numbers of 5 bits in 8 groups, 6-bit scales and minima.
    Q5K,
    /// 256 numbers of 6 bits in 16 groups, 8-bit scales.
    Q6K,
}

impl DType {
    /// Every format, in declaration order.
    pub const ALL: [DType; 9] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
    ];

    /// Numbers per block; 1 for the float formats.
    pub const fn block_elements(self) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => 1,
            DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => 32,
            DType::Q4K | DType::Q5K | DType::Q6K => 256,
        }
    }

    /// Bytes per block of [`block_elements`](Self::block_elements) numbers.
    pub const fn block_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
            DType::Q8_0 => 2 + 32,
            DType::Q4_0 => 2 + 16,
            DType::Q4_1 => 2 + 2 + 16,
            DType::Q4K => 2 + 2 + 12 + 128,
            DType::Q5K => 2 + 2 + 12 + 32 + 128,
            DType::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// The format's usual name, e.g. `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
            DType::Q8_0 => "Q8_0",
            DType::Q4_0 => "Q4_0",
            DType::Q4_1 => "Q4_1",
            DType::Q4K => "Q4_K",
            DType::Q5K => "Q5_K",
            DType::Q6K => "Q6_K",
        }
    }

    /// Bytes of `n` numbers; `None` if `n` is not whole blocks or the product overflows.
    pub const fn bytes_of(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_elements()) {
            return None;
        }
        (n / self.block_elements()).checked_mul(self.block_bytes())
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
