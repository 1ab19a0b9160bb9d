//! Tokens, the handoff record, phases.

use std::time::Duration;

use proto::v1 as wire;
use types::{Failure, FinishReason, Handoff, Phase, PhaseTimes, Token, TopLogprob};

use super::{TOKENS_MAX, bounded, required};

/// Most alternatives of one token.
const TOP_MAX: usize = 64;
/// Longest hidden state, bytes.
const HIDDEN_BYTES_MAX: usize = 1 << 20;
const PHASES_MAX: usize = 64;

/// A generated token. Minus infinity is a logprob; NaN is not.
///
/// # Errors
/// A malformed logprob, too many alternatives, or an unknown finish reason.
pub fn read_token(token: Option<wire::Token>, param: &str) -> Result<Token, Failure> {
    let token = required(token, param)?;
    let logprob = |value: f32| {
        if value.is_nan() { Err(Failure::invalid("logprob", "logprob must be a number")) } else { Ok(value) }
    };
    Ok(Token {
        id: token.token_id,
        position: token.position,
        finish: read_finish(token.finish_reason)?,
        logprob: token.logprob.map(logprob).transpose()?,
        top: bounded(token.top_logprobs, TOP_MAX, "top_logprobs")?
            .into_iter()
            .map(|top| Ok(TopLogprob { token: top.token_id, logprob: logprob(top.logprob)? }))
            .collect::<Result<_, Failure>>()?,
    })
}

/// To the wire.
pub fn write_token(token: &Token) -> wire::Token {
    let top = |top: &TopLogprob| wire::TopLogprob { token_id: top.token, logprob: top.logprob };
    wire::Token {
        token_id: token.id,
        position: token.position,
        logprob: token.logprob,
        top_logprobs: token.top.iter().map(top).collect(),
        finish_reason: write_finish(token.finish),
    }
}

/// Why a choice ended, if it did.
pub(crate) fn read_finish(reason: i32) -> Result<Option<FinishReason>, Failure> {
    match wire::FinishReason::try_from(reason) {
        Ok(wire::FinishReason::Unspecified) => Ok(None),
        Ok(wire::FinishReason::Stop) => Ok(Some(FinishReason::Stop)),
        Ok(wire::FinishReason::Length) => Ok(Some(FinishReason::Length)),
        Err(_) => Err(Failure::invalid("finish_reason", "finish reason is not known")),
    }
}

/// To the wire.
pub(crate) fn write_finish(reason: Option<FinishReason>) -> i32 {
    match reason {
        None => wire::FinishReason::Unspecified,
        Some(FinishReason::Stop) => wire::FinishReason::Stop,
        Some(FinishReason::Length) => wire::FinishReason::Length,
    }
    .into()
}

/// The handoff record.
///
/// # Errors
/// A malformed first token, or a list beyond its limit.
pub fn read_handoff(handoff: Option<wire::Handoff>) -> Result<Handoff, Failure> {
    let handoff = required(handoff, "handoff")?;
    if handoff.hidden_state.len() > HIDDEN_BYTES_MAX {
        return Err(Failure::invalid("handoff.hidden_state", "hidden state is too long"));
    }
    Ok(Handoff {
        first: read_token(handoff.first_token, "handoff.first_token")?,
        position: handoff.position,
        choice: handoff.choice,
        seed: handoff.seed,
        hidden_state: handoff.hidden_state.into(),
        generated: bounded(handoff.generated, TOKENS_MAX, "handoff.generated")?,
    })
}

/// To the wire.
pub fn write_handoff(handoff: &Handoff) -> wire::Handoff {
    wire::Handoff {
        first_token: Some(write_token(&handoff.first)),
        position: handoff.position,
        choice: handoff.choice,
        seed: handoff.seed,
        hidden_state: handoff.hidden_state.clone().into(),
        generated: handoff.generated.clone(),
    }
}

/// Time spent in phases.
///
/// # Errors
/// An unknown phase, or too many entries.
pub fn read_phases(phases: Vec<wire::PhaseTime>) -> Result<PhaseTimes, Failure> {
    let mut times = PhaseTimes::default();
    for entry in bounded(phases, PHASES_MAX, "phases")? {
        // Far beyond any request, far below what sums overflow at.
        let time = Duration::from_micros(entry.duration_us.min(1 << 48));
        times.add(read_phase(entry.phase())?, time);
    }
    Ok(times)
}

/// To the wire; phases without time are left out.
pub fn write_phases(times: &PhaseTimes) -> Vec<wire::PhaseTime> {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    times
        .iter()
        .map(|(phase, time)| wire::PhaseTime { phase: write_phase(phase).into(), duration_us: micros(time) })
        .collect()
}

fn read_phase(phase: wire::Phase) -> Result<Phase, Failure> {
    Ok(match phase {
        wire::Phase::Accept => Phase::Accept,
        wire::Phase::Tokenize => Phase::Tokenize,
        wire::Phase::Queue => Phase::Queue,
        wire::Phase::Route => Phase::Route,
        wire::Phase::PrefillQueue => Phase::PrefillQueue,
        wire::Phase::Prefill => Phase::Prefill,
        wire::Phase::Handoff => Phase::Handoff,
        wire::Phase::DecodeQueue => Phase::DecodeQueue,
        wire::Phase::FirstStep => Phase::FirstStep,
        wire::Phase::Flush => Phase::Flush,
        wire::Phase::Unspecified => return Err(Failure::invalid("phases", "phase is not known")),
    })
}

fn write_phase(phase: Phase) -> wire::Phase {
    match phase {
        Phase::Accept => wire::Phase::Accept,
        Phase::Tokenize => wire::Phase::Tokenize,
        Phase::Queue => wire::Phase::Queue,
        Phase::Route => wire::Phase::Route,
        Phase::PrefillQueue => wire::Phase::PrefillQueue,
        Phase::Prefill => wire::Phase::Prefill,
        Phase::Handoff => wire::Phase::Handoff,
        Phase::DecodeQueue => wire::Phase::DecodeQueue,
        Phase::FirstStep => wire::Phase::FirstStep,
        Phase::Flush => wire::Phase::Flush,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            id: 5,
            position: 1,
            logprob: Some(-0.25),
            top: vec![TopLogprob { token: 5, logprob: -0.25 }, TopLogprob { token: 6, logprob: f32::NEG_INFINITY }],
            finish: Some(FinishReason::Length),
        }
    }

    #[test]
    fn survives_the_wire() {
        assert_eq!(read_token(Some(write_token(&token())), "t"), Ok(token()));
        let handoff =
            Handoff { first: token(), position: 7, choice: 2, seed: 11, hidden_state: vec![1, 2], generated: vec![5] };
        assert_eq!(read_handoff(Some(write_handoff(&handoff))), Ok(handoff));
        let mut times = PhaseTimes::default();
        for (i, phase) in Phase::ALL.into_iter().enumerate() {
            times.add(phase, Duration::from_micros(i as u64 + 1));
        }
        assert_eq!(read_phases(write_phases(&times)), Ok(times));
    }

    #[test]
    fn refuses_what_is_malformed() {
        let nan = wire::Token { logprob: Some(f32::NAN), ..write_token(&token()) };
        assert!(read_token(Some(nan), "t").is_err());
        let finish = wire::Token { finish_reason: 9, ..write_token(&token()) };
        assert!(read_token(Some(finish), "t").is_err());
        assert!(read_phases(vec![wire::PhaseTime { phase: 77, duration_us: 1 }]).is_err());
        assert!(read_phases(vec![wire::PhaseTime { phase: 1, duration_us: u64::MAX }; PHASES_MAX]).is_ok());
        assert!(read_handoff(None).is_err());
    }
}
