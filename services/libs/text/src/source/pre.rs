//! Pre-tokenizers of GGUF's byte-level vocabularies: where text is cut before pairs are merged.
//!
//! Source: llama.cpp, src/llama-vocab.cpp, the patterns of each `tokenizer.ggml.pre`; the patterns of
//! the models' own `tokenizer.json`.

use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::TextError;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DIGIT: &str = r"\p{N}";
const DEFAULT: [&str; 4] = [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"];

/// How a `tokenizer.ggml.pre` treats text.
pub(super) struct Pre {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// A word that is a token is not cut, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether a beginning-of-sequence token is added where the file does not say.
    pub(super) add_bos: bool,
}

impl Pre {
    /// # Errors
    /// A name this crate does not know: guessing would give wrong tokens without a sign.
    pub(super) fn named(name: &str) -> Result<Self, TextError> {
        let (patterns, llama3_like): (&[&str], bool) = match name {
            "default" => (&DEFAULT, false),
            "gpt-2" | "gpt2" | "phi-2" | "olmo" | "mpt" | "jais" => (&[GPT2], false),
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => (&[DIGIT, GPT2], false),
            "llama3" | "llama-v3" | "llama-bpe" | "falcon3" => (&[LLAMA3], true),
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" => (&[QWEN2], false),
            "tekken" => (&[TEKKEN], true),
            _ => {
                return Err(TextError::unsupported("tokenizer.ggml.pre", format!("\"{}\"", crate::error::short(name))));
            }
        };
        let qwen = name == "qwen2" || name == "deepseek-r1-qwen";
        Ok(Self {
            normalizer: qwen.then_some(NormalizerWrapper::NFC(NFC)),
            pre_tokenizer: cut(patterns)?,
            ignore_merges: llama3_like,
            add_bos: llama3_like,
        })
    }
}

/// Cuts at each pattern in turn, then spells bytes as characters.
fn cut(patterns: &[&str]) -> Result<PreTokenizerWrapper, TextError> {
    let split = |pattern: &&str| {
        let split = Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false);
        split.map(PreTokenizerWrapper::Split).map_err(|e| TextError::malformed("tokenizer.ggml.pre", e))
    };
    let mut steps = patterns.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    steps.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, false, false)));
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(steps)))
}
