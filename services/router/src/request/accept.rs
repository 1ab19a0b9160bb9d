//! First stage: everything about a request that can be checked without its tokens.

use rpc::inference::{GenerationOptions, Input};
use tokio::time::Instant;
use types::{Code, Failure, InvalidParam, Phase};

use super::{Call, Layout, Origin, PhaseClock, Pipeline};
use crate::config::Limits;

/// Longest part of a client's words repeated in an error, characters.
const QUOTE_CHARS: usize = 64;

/// A well-formed request for the served model.
pub(crate) struct Accepted {
    pub(super) input: Input,
    pub(super) layout: Layout,
    pub(super) max_tokens_default: Option<u32>,
    /// Valid but for `max_tokens`, which depends on the prompt; `n` is at least 1 and the seed is chosen.
    pub(super) options: GenerationOptions,
    pub(super) origin: Origin,
    pub(super) deadline: Instant,
    pub(super) clock: PhaseClock,
}

impl Accepted {
    /// Checks a call.
    ///
    /// # Errors
    /// The first thing that is wrong, naming the parameter.
    pub(super) fn check(pipeline: &Pipeline, call: Call, origin: Origin) -> Result<Self, Failure> {
        let Call { model, input, mut options, layout, max_tokens_default } = call;
        pipeline.check_model(&model)?;
        let limits = &pipeline.limits;
        check_input(&input, pipeline.text.tokenizer.n_vocab(), limits)?;
        check_options(&options, pipeline.text.tokenizer.n_vocab(), limits)?;
        options.n = options.n.max(1);
        options.sampling.seed = match options.seed {
            Some(seed) => seed,
            None => random_seed()?,
        };
        let time = origin.deadline.unwrap_or(limits.request_time).min(limits.request_time);
        let deadline = origin.born + time;
        let mut clock = PhaseClock::new(origin.born);
        clock.lap(Phase::Accept);
        Ok(Self { input, layout, max_tokens_default, options, origin, deadline, clock })
    }
}

/// The failure for a name that no model has.
pub(super) fn unknown_model(model: &str) -> Failure {
    let quoted: String = model.chars().take(QUOTE_CHARS).collect();
    let message = format!("the model {quoted:?} does not exist");
    Failure { param: Some("model".into()), ..Failure::new(Code::NotFound, "MODEL_NOT_FOUND", message) }
}

/// Checks what can be checked before tokenizing.
pub(super) fn check_input(input: &Input, n_vocab: usize, limits: &Limits) -> Result<(), Failure> {
    match input {
        Input::Text(_) => Ok(()),
        Input::Ids(ids) if ids.is_empty() => Err(Failure::invalid("prompt", "prompt must not be empty")),
        Input::Ids(ids) => check_ids(ids, n_vocab, "prompt"),
        Input::Chat(messages) if messages.is_empty() => Err(Failure::invalid("messages", "messages must not be empty")),
        Input::Chat(messages) if messages.len() > limits.n_messages => {
            Err(Failure::invalid("messages", format!("at most {} messages are accepted", limits.n_messages)))
        }
        Input::Chat(_) => Ok(()),
    }
}

/// Every id is one of the vocabulary.
pub(super) fn check_ids(ids: &[types::TokenId], n_vocab: usize, param: &str) -> Result<(), Failure> {
    match ids.iter().find(|&&id| id as usize >= n_vocab) {
        Some(id) => Err(Failure::invalid(param, format!("token {id} is not in the vocabulary of {n_vocab}"))),
        None => Ok(()),
    }
}

fn check_options(options: &GenerationOptions, n_vocab: usize, limits: &Limits) -> Result<(), Failure> {
    if options.n > limits.n_choices {
        return Err(Failure::invalid("n", format!("n must be between 1 and {}", limits.n_choices)));
    }
    options.sampling.validate(n_vocab).map_err(invalid)?;
    // `max_tokens` 0 means "up to the context" here: the rest is checked as if it were unlimited.
    let mut stop = options.stop.clone();
    if stop.max_tokens == 0 {
        stop.max_tokens = u32::MAX;
    }
    stop.validate(n_vocab).map_err(invalid)?;
    if options.stop_strings.len() > limits.n_stop_strings {
        return Err(Failure::invalid("stop", format!("at most {} stop strings are accepted", limits.n_stop_strings)));
    }
    for stop in &options.stop_strings {
        if stop.is_empty() {
            return Err(Failure::invalid("stop", "a stop string must not be empty"));
        }
        if stop.len() > limits.stop_string_bytes {
            return Err(Failure::invalid(
                "stop",
                format!("a stop string has at most {} bytes", limits.stop_string_bytes),
            ));
        }
    }
    Ok(())
}

pub(super) fn invalid(error: InvalidParam) -> Failure {
    Failure::invalid(error.param, error.message)
}

fn random_seed() -> Result<u64, Failure> {
    getrandom::u64().map_err(|_| Failure::internal("the system's randomness is not available"))
}
