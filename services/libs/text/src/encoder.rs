//! The algorithms that cut ordinary text into tokens.

use tokenizers::tokenizer::normalizer::Range as Span;
use tokenizers::{
    Model as _, Normalizer as _, OffsetType, PreTokenizedString, PreTokenizer as _, Token as HfToken,
    Tokenizer as HfTokenizer,
};
use types::TokenId;

use crate::TextError;
use crate::spm::Spm;
use crate::vocab::Fragment;

/// One of the two families.
pub(crate) enum Encoder {
    /// Byte pairs merged by rank: everything in Hugging Face's format, and GGUF's `gpt2`.
    Ranked(Box<HfTokenizer>),
    /// Byte pairs merged by score: GGUF's `llama`.
    Scored(Spm),
}

impl Encoder {
    /// Ids of `text`; `fragments` cover it and say which stretches are tokens already.
    pub(crate) fn encode(&self, text: &str, fragments: &[Fragment]) -> Result<Vec<TokenId>, TextError> {
        match self {
            Self::Ranked(tokenizer) => ranked(tokenizer, text, fragments).map_err(|e| TextError::Encode(e.to_string())),
            Self::Scored(spm) => Ok(spm.encode(text, fragments)),
        }
    }
}

/// What `TokenizerImpl::encode` does, with our fragments in place of its own search for added tokens.
fn ranked(tokenizer: &HfTokenizer, text: &str, fragments: &[Fragment]) -> tokenizers::Result<Vec<TokenId>> {
    let mut pieces = PreTokenizedString::from(text);
    pieces.split(|_, whole| {
        let piece = |fragment: &Fragment| {
            let slice = whole.slice(Span::Original(fragment.range.clone())).ok_or("fragment outside the text")?;
            let token = |id| vec![HfToken::new(id, String::new(), (0, 0))];
            Ok((slice, fragment.token.map(token)))
        };
        fragments.iter().map(piece).collect::<tokenizers::Result<Vec<_>>>()
    })?;
    if let Some(normalizer) = tokenizer.get_normalizer() {
        pieces.normalize(|piece| normalizer.normalize(piece))?;
    }
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        pre_tokenizer.pre_tokenize(&mut pieces)?;
    }
    pieces.tokenize(|piece| tokenizer.get_model().tokenize(piece.get()))?;
    Ok(pieces.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
}
