//! Logprobs in the two shapes that OpenAI's endpoints have.

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use text::Tokenizer;
use types::{Token, TokenId};

/// JSON has no infinity; this is what OpenAI writes for "never".
const NEVER: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NEVER }
}

fn token_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Of chat completions.
#[derive(Serialize, Debug)]
pub(super) struct ChatLogprobs {
    content: Vec<Position>,
    refusal: Option<()>,
}

#[derive(Serialize, Debug)]
struct Position {
    #[serde(flatten)]
    chosen: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Serialize, Debug)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn new(tokenizer: &Tokenizer, tokens: &[Token]) -> Self {
        let alternative = |id: TokenId, logprob: f32| {
            let bytes = tokenizer.token_bytes(id);
            Alternative { token: token_text(&bytes), logprob: finite(logprob), bytes }
        };
        let position = |token: &Token| Position {
            chosen: alternative(token.id, token.logprob.unwrap_or(NEVER)),
            top_logprobs: token.top.iter().map(|top| alternative(top.token, top.logprob)).collect(),
        };
        Self { content: tokens.iter().map(position).collect(), refusal: None }
    }
}

/// Of text completions.
#[derive(Serialize, Debug)]
pub(super) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Option<Vec<Map>>,
    text_offset: Vec<usize>,
}

/// Token texts and their logprobs, the first of equal texts only.
#[derive(Debug)]
struct Map(Vec<(String, f32)>);

impl Serialize for Map {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

impl TextLogprobs {
    /// `offset`: characters of the tokens before; moved on by these.
    pub(super) fn new(tokenizer: &Tokenizer, tokens: &[Token], n_top: u32, offset: &mut usize) -> Self {
        let text = |id| token_text(&tokenizer.token_bytes(id));
        let mut all = Self {
            tokens: Vec::with_capacity(tokens.len()),
            token_logprobs: Vec::with_capacity(tokens.len()),
            top_logprobs: (n_top > 0).then(Vec::new),
            text_offset: Vec::with_capacity(tokens.len()),
        };
        for token in tokens {
            let (chosen, logprob) = (text(token.id), finite(token.logprob.unwrap_or(NEVER)));
            if let Some(tops) = &mut all.top_logprobs {
                let mut map: Vec<(String, f32)> = Vec::with_capacity(token.top.len() + 1);
                let alternatives = token.top.iter().map(|top| (text(top.token), finite(top.logprob)));
                for (alternative, logprob) in alternatives.chain([(chosen.clone(), logprob)]) {
                    if !map.iter().any(|(known, _)| *known == alternative) {
                        map.push((alternative, logprob));
                    }
                }
                tops.push(Map(map));
            }
            all.text_offset.push(*offset);
            *offset += chosen.chars().count();
            all.token_logprobs.push(logprob);
            all.tokens.push(chosen);
        }
        all
    }
}
