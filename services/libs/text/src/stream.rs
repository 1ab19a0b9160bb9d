//! Generated tokens to text, piece by piece.

use types::{FinishReason, Token};

use crate::Tokenizer;
use crate::stops::StopMatcher;
use crate::utf8::Utf8Stream;

/// What one token adds to a choice's text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    /// Text that is certain now; may be empty, may hold characters of earlier tokens.
    pub text: String,
    /// A stop string is complete: the choice's text ends here.
    pub stopped: bool,
}

/// Streaming detokeniser of one choice.
///
/// The pieces add up to [`Tokenizer::decode`] of the tokens, cut at the stop string that is complete
/// first. Text that may be the beginning of a stop string, or of a character, is held back until it is
/// certain; nothing that was given out is ever taken back.
///
/// The token that ends a choice (`FinishReason::Stop`) adds no text, unless stop strings are included.
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    stops: StopMatcher,
    include_stop: bool,
    keep_special: bool,
    min_tokens: u32,
    n_tokens: u32,
    utf8: Utf8Stream,
    /// The next byte is the text's first, and a space there is the tokenizer's own.
    strip_space: bool,
    /// Complete characters that may begin a stop string.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// A stream at the start of a choice's text.
    ///
    /// `include_stop`: the stop string that ended the text is part of it. `keep_special`: special tokens
    /// are shown. `min_tokens`: stop strings that begin in the text of the first so many tokens are none.
    pub fn new(
        tokenizer: Tokenizer,
        stop_strings: Vec<String>,
        include_stop: bool,
        keep_special: bool,
        min_tokens: u32,
    ) -> Self {
        Self {
            stops: StopMatcher::new(&stop_strings),
            include_stop,
            keep_special,
            min_tokens,
            n_tokens: 0,
            utf8: Utf8Stream::default(),
            strip_space: tokenizer.strips_space(),
            held: String::new(),
            stopped: false,
            tokenizer,
        }
    }

    /// The same stream for text that continues a prompt: a space at its beginning is kept also where
    /// the tokenizer takes one off the beginning of a whole text.
    #[must_use]
    pub fn continuing(self) -> Self {
        Self { strip_space: false, ..self }
    }

    /// Adds the next generated token. After a stop nothing is added any more.
    pub fn push(&mut self, token: &Token) -> Piece {
        if self.stopped {
            return Piece { text: String::new(), stopped: true };
        }
        self.n_tokens += 1;
        let text = if token.finish == Some(FinishReason::Stop) && !self.include_stop {
            String::new()
        } else {
            let mut bytes = self.tokenizer.visible(token.id, self.keep_special);
            if self.strip_space && !bytes.is_empty() {
                bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                self.strip_space = false;
            }
            self.utf8.push(bytes)
        };
        self.release(&text)
    }

    /// The text still held back, once no token follows.
    pub fn finish(&mut self) -> String {
        if self.stopped {
            return String::new();
        }
        let text = self.utf8.finish();
        let mut piece = self.release(&text);
        self.stopped = true;
        piece.text.push_str(&std::mem::take(&mut self.held));
        piece.text
    }

    /// Adds `text` and gives out what is certain.
    fn release(&mut self, text: &str) -> Piece {
        if self.n_tokens <= self.min_tokens {
            return Piece { text: text.to_owned(), stopped: false };
        }
        let n_before = self.held.len();
        self.held.push_str(text);
        if let Some(found) = self.stops.push(text) {
            let end = n_before + found.end;
            self.held.truncate(if self.include_stop { end } else { end - found.len });
            self.stopped = true;
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let n_held = if self.include_stop { 0 } else { self.stops.n_held() };
        let kept = self.held.split_off(self.held.len() - n_held);
        Piece { text: std::mem::replace(&mut self.held, kept), stopped: false }
    }
}
