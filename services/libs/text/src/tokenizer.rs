//! Text to token ids and back.

use std::fmt;
use std::sync::Arc;

use types::TokenId;

use crate::TextError;
use crate::encoder::Encoder;
use crate::vocab::{Entry, Fragment, Literals, Recognise};

/// Longest text encoded at once unless [`Tokenizer::with_input_limit`] says otherwise.
pub const INPUT_BYTES_MAX: usize = 4 << 20;

/// Bytes per allowed token after which a long text is counted for the first time.
const PROBE_BYTES_PER_TOKEN: usize = 12;

/// A model's tokenizer; cheap to clone.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
    input_bytes_max: usize,
    tokens_max: Option<usize>,
}

/// What the files of a model say; made by `source`.
pub(crate) struct Inner {
    pub(crate) encoder: Encoder,
    /// By id.
    pub(crate) vocab: Vec<Entry>,
    pub(crate) literals: Literals,
    /// Put before a text when special tokens are asked for.
    pub(crate) prefix: Vec<TokenId>,
    /// Put after it.
    pub(crate) suffix: Vec<TokenId>,
    pub(crate) bos: Option<TokenId>,
    pub(crate) eos: Vec<TokenId>,
    pub(crate) unknown: Option<TokenId>,
    /// Encoding puts a space before the text, so decoding takes one off its beginning.
    pub(crate) strip_space: bool,
}

impl Tokenizer {
    /// Checks what must hold between the parts.
    pub(crate) fn new(inner: Inner) -> Result<Self, TextError> {
        let n_vocab = inner.vocab.len();
        let named = inner.prefix.iter().chain(&inner.suffix).chain(&inner.bos).chain(&inner.eos);
        if let Some(id) = named.copied().find(|&id| id as usize >= n_vocab) {
            return Err(TextError::malformed(
                "special tokens",
                format!("id {id} is not in the vocabulary of {n_vocab}"),
            ));
        }
        Ok(Self { inner: Arc::new(inner), input_bytes_max: INPUT_BYTES_MAX, tokens_max: None })
    }

    /// The same tokenizer, refusing texts longer than `bytes`.
    #[must_use]
    pub fn with_input_limit(self, bytes: usize) -> Self {
        Self { input_bytes_max: bytes, ..self }
    }

    /// The same tokenizer, refusing texts that have far more than `tokens` tokens before it has encoded
    /// all of them. What it lets pass may still be too long by up to half.
    #[must_use]
    pub fn with_token_limit(self, tokens: usize) -> Self {
        // Normalisation may shorten a text, hence twice the bytes.
        let bytes = tokens.saturating_mul(self.longest_token_bytes()).saturating_mul(2);
        Self { input_bytes_max: self.input_bytes_max.min(bytes), tokens_max: Some(tokens), ..self }
    }

    /// Ids are below this; the model's output may be wider.
    pub fn n_vocab(&self) -> usize {
        self.inner.vocab.len()
    }

    /// Bytes of the longest token: a text of `n` bytes has at least `n / longest_token_bytes` tokens
    /// (fewer only if the tokenizer's normalisation shortens it).
    pub fn longest_token_bytes(&self) -> usize {
        self.inner.vocab.iter().map(|e| e.bytes.len()).max().unwrap_or(1).max(1)
    }

    /// Token ids of plain text; what looks like a control token is encoded as characters.
    /// `add_special` adds what the model wants around a text (usually a beginning-of-sequence token).
    ///
    /// # Errors
    /// [`TextError::InputTooLong`], [`TextError::TooManyTokens`] and [`TextError::Encode`].
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        self.check_length(text)?;
        let fragments = self.inner.literals.fragments(text, Recognise::UserDefined);
        let ids = self.encode_fragments(text, &fragments)?;
        if !add_special {
            return Ok(ids);
        }
        Ok([self.inner.prefix.as_slice(), &ids, &self.inner.suffix].concat())
    }

    /// Text of `ids`; incomplete UTF-8 becomes U+FFFD, unknown ids nothing.
    pub fn decode(&self, ids: &[TokenId], keep_special: bool) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            bytes.extend_from_slice(self.visible(id, keep_special));
        }
        let strip = self.inner.strip_space && bytes.first() == Some(&b' ');
        String::from_utf8_lossy(&bytes[usize::from(strip)..]).into_owned()
    }

    /// The bytes that `id` stands for inside a text; not always whole characters, none for unknown ids.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        self.visible(id, true).to_vec()
    }

    /// Whether `id` is a special token, which `decode` leaves out unless asked.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.inner.vocab.get(id as usize).is_some_and(|e| e.hidden)
    }

    /// Beginning-of-sequence token.
    pub fn bos(&self) -> Option<TokenId> {
        self.inner.bos
    }

    /// End-of-sequence tokens, as the tokenizer's files name them.
    pub fn eos(&self) -> &[TokenId] {
        &self.inner.eos
    }

    /// Bytes that `id` adds to a decoded text.
    pub(crate) fn visible(&self, id: TokenId, keep_special: bool) -> &[u8] {
        match self.inner.vocab.get(id as usize) {
            Some(entry) if keep_special || !entry.hidden => &entry.bytes,
            _ => &[],
        }
    }

    pub(crate) fn strips_space(&self) -> bool {
        self.inner.strip_space
    }

    pub(crate) fn literals(&self) -> &Literals {
        &self.inner.literals
    }

    pub(crate) fn check_length(&self, text: &str) -> Result<(), TextError> {
        let (bytes, max) = (text.len(), self.input_bytes_max);
        if bytes > max { Err(TextError::InputTooLong { bytes, max }) } else { Ok(()) }
    }

    /// Ids of `text`, cut as `fragments` say. Ordinary text gives no control token, whatever the
    /// vocabulary holds: if the encoder makes one, the literal is broken up for it.
    pub(crate) fn encode_fragments(&self, text: &str, fragments: &[Fragment]) -> Result<Vec<TokenId>, TextError> {
        self.check_tokens(text, fragments)?;
        let ids = self.inner.encoder.encode(text, fragments)?;
        if self.n_control(&ids) == self.n_control_wanted(fragments) {
            return Ok(ids);
        }
        let broken = self.break_literals(text, fragments);
        let ids = self.inner.encoder.encode(text, &broken)?;
        if self.n_control(&ids) == self.n_control_wanted(fragments) {
            return Ok(ids);
        }
        Err(TextError::Encode("text cannot be told from a control token".into()))
    }

    /// Encodes the beginning of a long text alone. What follows can change its last few tokens, so the
    /// text is refused only if the beginning is too long by half.
    fn check_tokens(&self, text: &str, fragments: &[Fragment]) -> Result<(), TextError> {
        let Some(max) = self.tokens_max else { return Ok(()) };
        let end = text.floor_char_boundary(max.saturating_mul(PROBE_BYTES_PER_TOKEN).saturating_add(1024));
        if end == text.len() {
            return Ok(());
        }
        let inside = fragments.iter().filter(|f| f.range.start < end && (f.token.is_none() || f.range.end <= end));
        let mut inside: Vec<Fragment> = inside.cloned().collect();
        if let Some(last) = inside.last_mut() {
            last.range.end = last.range.end.min(end);
        }
        let covered = inside.last().map_or(0, |f| f.range.end);
        let n_tokens = self.inner.encoder.encode(&text[..covered], &inside)?.len();
        if n_tokens > max + max / 2 + 64 { Err(TextError::TooManyTokens { max }) } else { Ok(()) }
    }

    fn n_control(&self, ids: &[TokenId]) -> usize {
        let control = |id: &&TokenId| {
            Some(**id) != self.inner.unknown && self.inner.vocab.get(**id as usize).is_some_and(|e| e.control)
        };
        ids.iter().filter(control).count()
    }

    fn n_control_wanted(&self, fragments: &[Fragment]) -> usize {
        let tokens: Vec<TokenId> = fragments.iter().filter_map(|f| f.token).collect();
        self.n_control(&tokens)
    }

    /// The fragments, with a cut after the first character of every control literal in ordinary text.
    fn break_literals(&self, text: &str, fragments: &[Fragment]) -> Vec<Fragment> {
        let mut broken = Vec::new();
        for fragment in fragments {
            let mut start = fragment.range.start;
            if fragment.token.is_none() {
                for found in self.inner.literals.fragments(&text[fragment.range.clone()], Recognise::All) {
                    let first = fragment.range.start + found.range.start;
                    let cut = first + text[first..].chars().next().map_or(0, char::len_utf8);
                    if found.token.is_some() && cut > start && cut < fragment.range.end {
                        broken.push(Fragment { range: start..cut, token: None });
                        start = cut;
                    }
                }
            }
            broken.push(Fragment { range: start..fragment.range.end, token: fragment.token });
        }
        broken
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("n_vocab", &self.n_vocab()).finish_non_exhaustive()
    }
}
