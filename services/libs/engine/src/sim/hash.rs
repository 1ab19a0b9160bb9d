//! The simulated model: states and the tokens that follow from them.

use types::TokenId;
use xxhash_rust::xxh3::{Xxh3, xxh3_128_with_seed};

use crate::sim::SimConfig;

/// Candidates that get a noticeable probability.
const CANDIDATES: usize = 8;
/// Logit of the first candidate; each further one has half a unit less.
const TOP: f32 = 8.0;
/// Logit of everything else: about e^-38 of the first.
const REST: f32 = -30.0;

/// KV of one token.
pub(super) type State = [u8; 16];

/// State of the token at `position`, from the state before it.
pub(super) fn state(key: u64, before: State, token: TokenId, position: u32) -> State {
    let mut input = [0; 24];
    input[..16].copy_from_slice(&before);
    input[16..20].copy_from_slice(&token.to_le_bytes());
    input[20..].copy_from_slice(&position.to_le_bytes());
    xxh3_128_with_seed(&input, key).to_le_bytes()
}

/// Hash over the states of a path, in order.
#[derive(Clone)]
pub(super) struct Path(Xxh3);

impl Path {
    pub(super) fn new(key: u64) -> Self {
        Self(Xxh3::with_seed(!key))
    }

    pub(super) fn push(&mut self, state: State) {
        self.0.update(&state);
    }

    /// Appends the row of logits that follows the path.
    pub(super) fn logits(&self, config: &SimConfig, logits: &mut Vec<f32>) {
        let digest = self.0.digest128();
        let start = logits.len();
        logits.resize(start + config.n_vocab, REST);
        let row = &mut logits[start..];
        for &eos in &config.eos {
            row[eos as usize] = -100.0;
        }
        // Steps by an odd number near the golden section: candidates lie apart; taken ones are passed over.
        let mut token = (digest as u64 % config.n_vocab as u64) as usize;
        let stride = config.n_vocab * 5 / 8 + 1;
        for rank in 0..CANDIDATES {
            while row[token] != REST {
                token = (token + 1) % config.n_vocab;
            }
            row[token] = TOP - 0.5 * rank as f32;
            token = (token + stride) % config.n_vocab;
        }
        let draw = (digest >> 64) as u64;
        if draw % 1000 < u64::from(config.eos_per_mille) && !config.eos.is_empty() {
            let eos = config.eos[(draw / 1000 % config.eos.len() as u64) as usize];
            row[eos as usize] = 2.0 * TOP;
        }
    }
}
