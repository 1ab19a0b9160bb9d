//! Processors that change single logits: bias, penalties, masks.

use types::{SamplingParams, StopParams, TokenId};

use super::History;

/// Applies all of them in their order.
pub(super) fn apply(
    logits: &mut [f32],
    params: &SamplingParams,
    stop: &StopParams,
    eos: &[TokenId],
    history: History<'_>,
) {
    for &(token, bias) in &params.logit_bias {
        change(logits, token, |z| z + bias);
    }
    if params.repetition_penalty != 1.0 {
        repetition(logits, params.repetition_penalty, history);
    }
    if params.frequency_penalty != 0.0 || params.presence_penalty != 0.0 {
        frequency_and_presence(logits, params.frequency_penalty, params.presence_penalty, history.generated);
    }
    if history.generated.len() < stop.min_tokens as usize {
        let eos = if stop.ignore_eos { &[] } else { eos };
        for &token in eos.iter().chain(&stop.stop_token_ids) {
            change(logits, token, |_| f32::NEG_INFINITY);
        }
    }
}

/// Once for each token of prompt and answer, however often it occurs: divides a positive logit,
/// multiplies a negative one.
///
/// Source: Keskar et al., CTRL, arXiv:1909.05858, with Hugging Face's treatment of negative logits.
fn repetition(logits: &mut [f32], penalty: f32, history: History<'_>) {
    let mut seen = vec![0u64; logits.len().div_ceil(64)];
    for &token in history.prompt.iter().chain(history.generated) {
        let (word, bit) = (token as usize / 64, 1u64 << (token % 64));
        if seen.get(word).is_some_and(|bits| bits & bit == 0) {
            seen[word] |= bit;
            change(logits, token, |z| if z < 0.0 { z * penalty } else { z / penalty });
        }
    }
}

/// `z - (frequency * count + presence)` for each generated token.
///
/// Source: OpenAI API reference, frequency and presence penalties.
fn frequency_and_presence(logits: &mut [f32], frequency: f32, presence: f32, generated: &[TokenId]) {
    let mut sorted = generated.to_vec();
    sorted.sort_unstable();
    for same in sorted.chunk_by(|a, b| a == b) {
        change(logits, same[0], |z| z - (frequency * same.len() as f32 + presence));
    }
}

/// Replaces one logit; what would overflow upwards becomes the largest finite number.
fn change(logits: &mut [f32], token: TokenId, to: impl FnOnce(f32) -> f32) {
    if let Some(z) = logits.get_mut(token as usize) {
        *z = to(*z).min(f32::MAX);
    }
}
