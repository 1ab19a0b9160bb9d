//! The fast CPU path: [`Cpu`] holds the threads and has one method per operation.
//!
//! Kernels are written once over sixteen lanes (`lanes`) and compiled for each instruction level, so all levels
//! give the same bits. Weights are packed at load ([`Matrix`], [`Linear`]) so that lanes are outputs and no sum
//! crosses lanes. Begin with `matmul.rs`, then `attention.rs`.

mod attention;
mod columns;
mod float;
mod gate;
mod integer;
mod lanes;
mod math;
mod matmul;
mod matrix;
mod norm;
pub mod roofs;
mod rope;
mod softcap;

use crate::Isa;
use crate::affinity::PinError;
use crate::kv::CellShape;
use crate::pool::Pool;

use self::integer::Quantized;

pub use attention::{Attention, Span, Visible};
pub use gate::Activation;
pub use matmul::Rows;
pub use matrix::{Linear, Matrix};
pub use norm::Parts;
pub use rope::{KvRows, RopeTable};

/// Threads and the instruction level they use.
pub struct Cpu {
    pool: Pool,
    isa: Isa,
    /// Inputs of the product in hand.
    quantized: Quantized,
    /// The same after a norm, in float32.
    normed: Vec<f32>,
}

impl Cpu {
    /// `n_threads` threads, the caller's own included.
    pub fn new(n_threads: usize, isa: Isa) -> Self {
        Self { pool: Pool::new(n_threads), isa, quantized: Quantized::default(), normed: Vec::new() }
    }

    /// As many threads as there are `cores`, each bound to one of them; see [`Pool::pinned`].
    ///
    /// # Errors
    /// [`PinError`] if a thread cannot be bound.
    pub fn pinned(cores: &[usize], isa: Isa) -> Result<Self, PinError> {
        Ok(Self { pool: Pool::pinned(cores)?, ..Self::new(1, isa) })
    }

    /// The threads, for work that is no operation of this module.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Instruction level.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

/// Heads of an attention layer and how the cache keeps them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heads {
    /// Query heads, a multiple of `n_kv`.
    pub n_q: usize,
    /// Key and value heads.
    pub n_kv: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How the cache stores an element.
    pub format: KvFormat,
    /// Tokens of a block of the cache.
    pub block_tokens: usize,
}

impl Heads {
    /// Elements of a row of queries, keys and values.
    pub fn qkv_dim(&self) -> usize {
        (self.n_q + 2 * self.n_kv) * self.head_dim
    }

    /// Shape of the cache's cells: a plane for each head's keys, then for each head's values.
    pub fn cell_shape(&self) -> CellShape {
        CellShape { planes: 2 * self.n_kv, row_bytes: self.head_dim * self.format.element_bytes() }
    }
}

/// How the cache stores an element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KvFormat {
    /// IEEE binary32.
    F32,
    /// IEEE binary16, rounded to nearest.
    F16,
}

impl KvFormat {
    /// Bytes of an element.
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }
}

/// What an operation does with its result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// Overwrites the output.
    Replace,
    /// Adds to it: `out = out + result`.
    Add,
}
