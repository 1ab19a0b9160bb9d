//! Recorded arrivals.

use std::collections::HashSet;
use std::time::Duration;

use types::BlockHash;

/// Requests in the order of their arrival.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trace {
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Ascending in time.
    pub arrivals: Vec<Arrival>,
}

/// One request.
#[derive(Clone, PartialEq, Debug)]
pub struct Arrival {
    /// Since the trace's beginning.
    pub at: Duration,
    /// Tokens of the prompt.
    pub n_prompt: u32,
    /// Tokens of the answer.
    pub n_new: u32,
    /// Names of the prompt's blocks, the last partial one included; each stands for all before it, too.
    pub blocks: Vec<BlockHash>,
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct TraceError {
    /// From 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// A line of a Mooncake trace.
#[derive(serde::Deserialize)]
struct Line {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    hash_ids: Vec<u64>,
}

impl Trace {
    /// Reads lines of JSON as Mooncake publishes them: `timestamp` in milliseconds, `input_length`, `output_length`,
    /// `hash_ids` of blocks of 512 tokens.
    ///
    /// # Errors
    /// The first line that is not such a one, or goes back in time.
    pub fn from_mooncake(text: &str) -> Result<Self, TraceError> {
        let mut arrivals: Vec<Arrival> = Vec::new();
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let bad = |message: String| TraceError { line: n + 1, message };
            let line: Line = serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
            let at = Duration::from_millis(line.timestamp);
            if arrivals.last().is_some_and(|last| last.at > at) {
                return Err(bad("it is earlier than the line before".into()));
            }
            let blocks = line.hash_ids.into_iter().map(block).collect();
            arrivals.push(Arrival { at, n_prompt: line.input_length, n_new: line.output_length, blocks });
        }
        Ok(Self { block_tokens: 512, arrivals })
    }

    /// Blocks of all requests.
    pub fn n_blocks(&self) -> usize {
        self.arrivals.iter().map(|a| a.blocks.len()).sum()
    }

    /// Different blocks.
    pub fn n_distinct(&self) -> usize {
        self.arrivals.iter().flat_map(|a| &a.blocks).collect::<HashSet<_>>().len()
    }

    /// Part of all blocks that one cache without limits would have held.
    pub fn ideal_hit_rate(&self) -> f64 {
        1.0 - self.n_distinct() as f64 / self.n_blocks().max(1) as f64
    }
}

/// A name as random as a hash.
fn block(id: u64) -> BlockHash {
    let mix = |n: u64| {
        let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        n ^ (n >> 31)
    };
    let low = mix(id.wrapping_add(0x9e37_79b9_7f4a_7c15));
    BlockHash(((u128::from(mix(low ^ 0x5851_f42d_4c95_7f2d)) << 64) | u128::from(low)).to_be_bytes())
}
