//! Generated tokens to text, piece by piece.

use types::Token;

use crate::Tokenizer;

/// What one token adds to a choice's text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    /// Text that is certain now; may be empty, may hold characters of earlier tokens.
    pub text: String,
    /// A stop string is complete: the choice ends here.
    pub stopped: bool,
}

/// Streaming detokeniser of one choice.
#[derive(Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    stopped: bool,
}

impl TextStream {
    /// A stream at the start of a choice.
    pub fn new(
        tokenizer: Tokenizer,
        stop_strings: Vec<String>,
        include_stop: bool,
        keep_special: bool,
        min_tokens: u32,
    ) -> Self {
        let _ = (stop_strings, include_stop, keep_special, min_tokens);
        Self { tokenizer, stopped: false }
    }

    /// Adds the next generated token.
    pub fn push(&mut self, token: &Token) -> Piece {
        Piece { text: self.tokenizer.decode(&[token.id], false), stopped: self.stopped }
    }

    /// The text still held back, once no token follows.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
