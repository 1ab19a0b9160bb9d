//! Text to token ids and back.

use types::TokenId;

use crate::TextError;

/// Longest text encoded at once unless [`Tokenizer::with_input_limit`] says otherwise.
pub const INPUT_BYTES_MAX: usize = 4 << 20;

/// A model's tokenizer; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// The same tokenizer, refusing texts longer than `bytes`.
    #[must_use]
    pub fn with_input_limit(self, bytes: usize) -> Self {
        let _ = bytes;
        self
    }

    /// Ids are below this; the model's output may be wider.
    pub fn n_vocab(&self) -> usize {
        0
    }

    /// Bytes of the longest token: a text of `n` bytes has at least `n / longest_token_bytes` tokens.
    pub fn longest_token_bytes(&self) -> usize {
        1
    }

    /// Token ids of plain text; what looks like a control token is encoded as characters.
    /// `add_special` adds what the model wants around a text (usually a beginning-of-sequence token).
    ///
    /// # Errors
    /// [`TextError::InputTooLong`] and [`TextError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        let _ = (text, add_special);
        Ok(Vec::new())
    }

    /// Text of `ids`; incomplete UTF-8 becomes U+FFFD, unknown ids nothing.
    pub fn decode(&self, ids: &[TokenId], keep_special: bool) -> String {
        let _ = (ids, keep_special);
        String::new()
    }

    /// The bytes that `id` stands for inside a text; not always whole characters.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        let _ = id;
        Vec::new()
    }

    /// Whether `id` is a control token, which `decode` leaves out unless asked.
    pub fn is_special(&self, id: TokenId) -> bool {
        let _ = id;
        false
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<TokenId> {
        None
    }

    /// End-of-sequence tokens.
    pub fn eos(&self) -> &[TokenId] {
        &[]
    }
}
