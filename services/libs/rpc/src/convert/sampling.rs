//! Sampling and stop parameters.

use proto::v1 as wire;
use types::{Failure, SamplingParams, StopParams};

use super::{LIST_MAX, bounded, finite};

/// Absent fields take their "off" values; a missing message means greedy.
///
/// # Errors
/// A number that is not finite, or too many biases.
pub fn read_sampling(sampling: Option<wire::SamplingParams>) -> Result<SamplingParams, Failure> {
    let sampling = sampling.unwrap_or_default();
    Ok(SamplingParams {
        temperature: finite(sampling.temperature, "temperature")?,
        top_k: sampling.top_k,
        top_p: finite(sampling.top_p.unwrap_or(1.0), "top_p")?,
        min_p: finite(sampling.min_p, "min_p")?,
        repetition_penalty: finite(sampling.repetition_penalty.unwrap_or(1.0), "repetition_penalty")?,
        frequency_penalty: finite(sampling.frequency_penalty, "frequency_penalty")?,
        presence_penalty: finite(sampling.presence_penalty, "presence_penalty")?,
        logit_bias: bounded(sampling.logit_bias, LIST_MAX, "logit_bias")?
            .into_iter()
            .map(|entry| Ok((entry.token_id, finite(entry.bias, "logit_bias")?)))
            .collect::<Result<_, Failure>>()?,
        seed: sampling.seed.unwrap_or(0),
        logprobs: sampling.logprobs,
    })
}

/// To the wire.
pub fn write_sampling(sampling: &SamplingParams) -> wire::SamplingParams {
    let bias = |&(token_id, bias): &(u32, f32)| wire::LogitBias { token_id, bias };
    wire::SamplingParams {
        temperature: sampling.temperature,
        top_k: sampling.top_k,
        top_p: Some(sampling.top_p),
        min_p: sampling.min_p,
        repetition_penalty: Some(sampling.repetition_penalty),
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: sampling.logit_bias.iter().map(bias).collect(),
        seed: Some(sampling.seed),
        logprobs: sampling.logprobs,
    }
}

/// When to stop.
///
/// # Errors
/// Too many stop tokens.
pub fn read_stop(stop: Option<wire::StopParams>) -> Result<StopParams, Failure> {
    let stop = stop.unwrap_or_default();
    Ok(StopParams {
        max_tokens: stop.max_tokens,
        min_tokens: stop.min_tokens,
        ignore_eos: stop.ignore_eos,
        stop_token_ids: bounded(stop.stop_token_ids, LIST_MAX, "stop_token_ids")?,
    })
}

/// To the wire.
pub fn write_stop(stop: &StopParams) -> wire::StopParams {
    wire::StopParams {
        max_tokens: stop.max_tokens,
        min_tokens: stop.min_tokens,
        ignore_eos: stop.ignore_eos,
        stop_token_ids: stop.stop_token_ids.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_the_wire() {
        let sampling = SamplingParams {
            temperature: 0.7,
            top_k: 5,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.1,
            frequency_penalty: -0.5,
            presence_penalty: 0.5,
            logit_bias: vec![(3, -1.0)],
            seed: u64::MAX,
            logprobs: Some(0),
        };
        assert_eq!(read_sampling(Some(write_sampling(&sampling))), Ok(sampling));
        assert_eq!(read_sampling(None), Ok(SamplingParams::default()));
        let stop = StopParams { max_tokens: 9, min_tokens: 2, ignore_eos: true, stop_token_ids: vec![1] };
        assert_eq!(read_stop(Some(write_stop(&stop))), Ok(stop));
    }

    #[test]
    fn refuses_what_is_not_a_number() {
        type Change = fn(&mut wire::SamplingParams);
        let cases: [(&str, Change); 7] = [
            ("temperature", |s| s.temperature = f32::NAN),
            ("top_p", |s| s.top_p = Some(f32::INFINITY)),
            ("min_p", |s| s.min_p = f32::NAN),
            ("repetition_penalty", |s| s.repetition_penalty = Some(f32::NAN)),
            ("frequency_penalty", |s| s.frequency_penalty = f32::NEG_INFINITY),
            ("logit_bias", |s| s.logit_bias = vec![wire::LogitBias { token_id: 0, bias: f32::NAN }]),
            ("logit_bias", |s| s.logit_bias = vec![wire::LogitBias::default(); LIST_MAX + 1]),
        ];
        for (param, change) in cases {
            let mut wire = wire::SamplingParams::default();
            change(&mut wire);
            assert_eq!(read_sampling(Some(wire)).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
