//! Parameters of one choice, checked once.

use crate::TokenId;

/// How the next token is drawn.
#[derive(Clone, PartialEq, Debug)]
pub struct SamplingParams {
    /// 0: greedy, lowest id on ties.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// 1: off.
    pub top_p: f32,
    /// 0: off.
    pub min_p: f32,
    /// 1: off. Prompt and generated tokens.
    pub repetition_penalty: f32,
    /// 0: off. Generated tokens only.
    pub frequency_penalty: f32,
    /// 0: off. Generated tokens only.
    pub presence_penalty: f32,
    /// Added to the logits.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// With choice and position the whole of the randomness.
    pub seed: u64,
    /// Report logprobs with this many alternatives.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// When a choice ends, as far as token ids decide.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StopParams {
    /// At least 1.
    pub max_tokens: u32,
    /// End-of-sequence and stop tokens cannot be drawn before this many.
    pub min_tokens: u32,
    /// End-of-sequence tokens do not end the choice.
    pub ignore_eos: bool,
    /// Also end the choice.
    pub stop_token_ids: Vec<TokenId>,
}

/// A parameter out of its range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvalidParam {
    /// Which.
    pub param: &'static str,
    /// What it must be.
    pub message: String,
}

/// Most `logit_bias` entries and stop token ids of one request.
const LIST_MAX: usize = 1024;

impl SamplingParams {
    /// Checks every range; NaN is out of each.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn validate(&self, n_vocab: usize) -> Result<(), InvalidParam> {
        let bad = |param, message: String| Err(InvalidParam { param, message });
        let ranges = [
            ("temperature", self.temperature, 0.0, 2.0),
            ("min_p", self.min_p, 0.0, 1.0),
            ("frequency_penalty", self.frequency_penalty, -2.0, 2.0),
            ("presence_penalty", self.presence_penalty, -2.0, 2.0),
        ];
        for (param, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return bad(param, format!("{param} must be between {min} and {max}"));
            }
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return bad("top_p", "top_p must be above 0 and at most 1".into());
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty <= 10.0) {
            return bad("repetition_penalty", "repetition_penalty must be above 0 and at most 10".into());
        }
        if self.logprobs.is_some_and(|n| n > 20) {
            return bad("top_logprobs", "at most 20 alternatives can be reported".into());
        }
        if self.logit_bias.len() > LIST_MAX {
            return bad("logit_bias", format!("logit_bias must have at most {LIST_MAX} entries"));
        }
        for &(token, bias) in &self.logit_bias {
            if token as usize >= n_vocab {
                return bad("logit_bias", format!("token {token} is not in the vocabulary of {n_vocab}"));
            }
            if !(-100.0..=100.0).contains(&bias) {
                return bad("logit_bias", "biases must be between -100 and 100".into());
            }
        }
        Ok(())
    }
}

impl StopParams {
    /// Checks every range.
    ///
    /// # Errors
    /// The first parameter that is out of range.
    pub fn validate(&self, n_vocab: usize) -> Result<(), InvalidParam> {
        let bad = |param, message: String| Err(InvalidParam { param, message });
        if self.max_tokens == 0 {
            return bad("max_tokens", "max_tokens must be at least 1".into());
        }
        if self.min_tokens > self.max_tokens {
            return bad("min_tokens", "min_tokens must not exceed max_tokens".into());
        }
        if self.stop_token_ids.len() > LIST_MAX {
            return bad("stop_token_ids", format!("stop_token_ids must have at most {LIST_MAX} entries"));
        }
        if let Some(token) = self.stop_token_ids.iter().find(|&&t| t as usize >= n_vocab) {
            return bad("stop_token_ids", format!("token {token} is not in the vocabulary of {n_vocab}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(param: &str, change: fn(&mut SamplingParams)) {
        let mut params = SamplingParams::default();
        assert_eq!(params.validate(10), Ok(()));
        change(&mut params);
        assert_eq!(params.validate(10).unwrap_err().param, param);
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        check("temperature", |p| p.temperature = -0.1);
        check("temperature", |p| p.temperature = f32::NAN);
        check("temperature", |p| p.temperature = f32::INFINITY);
        check("top_p", |p| p.top_p = 0.0);
        check("top_p", |p| p.top_p = f32::NAN);
        check("min_p", |p| p.min_p = 1.5);
        check("repetition_penalty", |p| p.repetition_penalty = 0.0);
        check("frequency_penalty", |p| p.frequency_penalty = -3.0);
        check("presence_penalty", |p| p.presence_penalty = f32::NAN);
        check("logit_bias", |p| p.logit_bias = vec![(10, 0.0)]);
        check("logit_bias", |p| p.logit_bias = vec![(1, f32::NAN)]);
        check("top_logprobs", |p| p.logprobs = Some(21));
    }

    #[test]
    fn refuses_impossible_stops() {
        let stop = |max_tokens, min_tokens, ids: &[u32]| StopParams {
            max_tokens,
            min_tokens,
            ignore_eos: false,
            stop_token_ids: ids.to_vec(),
        };
        assert_eq!(stop(1, 1, &[9]).validate(10), Ok(()));
        for (params, name) in
            [(stop(0, 0, &[]), "max_tokens"), (stop(1, 2, &[]), "min_tokens"), (stop(1, 0, &[10]), "stop_token_ids")]
        {
            assert_eq!(params.validate(10).unwrap_err().param, name);
        }
    }
}
