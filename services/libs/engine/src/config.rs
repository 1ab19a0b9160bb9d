//! How to run a model.

use kernels::Isa;

/// Number formats of the computation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compute {
    /// Float32 from the stored weights, KV in float32: compared with references.
    F32,
    /// The fastest that keeps the quality: 8-bit activations on quantised weights where it pays, KV in float16.
    Auto,
}

impl Compute {
    /// Its name in commands and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Auto => "auto",
        }
    }
}

/// How to run a model on the CPU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineConfig {
    /// Name under which it is served.
    pub name: String,
    /// Number formats.
    pub compute: Compute,
    /// Threads of the engine, the calling one included.
    pub threads: usize,
    /// Blocks of the KV cache.
    pub kv_blocks: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Instruction level; `None`: the fastest there is. All give the same bits.
    pub isa: Option<Isa>,
    /// Cores that the threads are bound to, one each: as many as there are threads, or none.
    pub cores: Vec<usize>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            compute: Compute::Auto,
            threads: 2,
            kv_blocks: 512,
            block_tokens: 16,
            isa: None,
            cores: Vec::new(),
        }
    }
}
