//! Vocabularies and templates inside GGUF files.

use std::collections::HashMap;

use modelfile::{Gguf, Metadata, Strings};
use tokenizers::Tokenizer as HfTokenizer;
use tokenizers::models::bpe::BpeBuilder;
use types::TokenId;

use super::hf::byte_token;
use super::pre::Pre;
use crate::byte_level::bytes_of;
use crate::encoder::Encoder;
use crate::spm::{SPACE, Spm};
use crate::template::SpecialTokens;
use crate::tokenizer::Inner;
use crate::vocab::{Entry, Literal, Literals, VOCAB_MAX};
use crate::{ChatTemplate, TextError, TextModel, Tokenizer};

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// Reads what the metadata says about text.
pub(crate) fn read(file: &Gguf) -> Result<TextModel, TextError> {
    let metadata = file.metadata();
    let tokens = Tokens::read(metadata)?;
    let special = tokens.special_names();
    let template: Option<&str> = metadata.find("tokenizer.chat_template")?;
    let template = template.map(|source| ChatTemplate::new(source, &special)).transpose()?;
    let tokenizer = match metadata.str(MODEL)? {
        "gpt2" => ranked(metadata, &tokens)?,
        "llama" => scored(metadata, &tokens)?,
        other => return Err(TextError::unsupported(MODEL, format!("\"{}\"", crate::error::short(other)))),
    };
    Ok(TextModel { tokenizer, template })
}

/// What both kinds of vocabulary have.
struct Tokens<'a> {
    texts: &'a Strings,
    kinds: Vec<Kind>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    /// All ids at which generation ends.
    ends: Vec<TokenId>,
    unknown: Option<TokenId>,
    padding: Option<TokenId>,
}

impl<'a> Tokens<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self, TextError> {
        let texts = metadata.strings(TOKENS)?;
        if texts.is_empty() || texts.len() > VOCAB_MAX {
            return Err(metadata.invalid(TOKENS, format!("{} tokens, not 1 to {VOCAB_MAX}", texts.len())).into());
        }
        let id = |name: &str| -> Result<Option<TokenId>, TextError> {
            let key = format!("tokenizer.ggml.{name}_token_id");
            let id: Option<u32> = metadata.find(&key)?;
            match id {
                Some(id) if id as usize >= texts.len() => {
                    Err(metadata.invalid(&key, format!("{id} is not in the vocabulary of {}", texts.len())).into())
                }
                id => Ok(id),
            }
        };
        let eos = id("eos")?;
        let mut ends: Vec<TokenId> = Vec::new();
        for end in [eos, id("eot")?, id("eom")?].into_iter().flatten() {
            if !ends.contains(&end) {
                ends.push(end);
            }
        }
        let (bos, unknown, padding) = (id("bos")?, id("unknown")?, id("padding")?);
        let mut kinds = kinds(metadata, texts.len())?;
        for &named in bos.iter().chain(&ends) {
            kinds[named as usize] = Kind::Control;
        }
        Ok(Self { texts, kinds, bos, eos, ends, unknown, padding })
    }

    fn iter(&self) -> impl Iterator<Item = (TokenId, &'a str, Kind)> {
        self.texts.iter().zip(&self.kinds).enumerate().map(|(id, (text, &kind))| (id as TokenId, text, kind))
    }

    fn special_names(&self) -> SpecialTokens {
        let named = [
            ("bos_token", self.bos),
            ("eos_token", self.eos),
            ("unk_token", self.unknown),
            ("pad_token", self.padding),
        ];
        let text = |id: TokenId| self.texts.get(id as usize).unwrap_or_default().to_owned();
        named.into_iter().filter_map(|(name, id)| Some((name.to_owned(), text(id?)))).collect()
    }

    fn literals(&self) -> Result<Literals, TextError> {
        let whole =
            self.iter().filter(|(_, _, kind)| matches!(kind, Kind::Control | Kind::Unknown | Kind::UserDefined));
        let literal = |(id, text, kind): (TokenId, &str, Kind)| Literal {
            text: text.to_owned(),
            id,
            control: kind != Kind::UserDefined,
            lstrip: false,
            rstrip: false,
            single_word: false,
        };
        Literals::new(whole.map(literal).collect())
    }

    /// `spell`: bytes of an ordinary token.
    fn entries(&self, spell: impl Fn(&str) -> Box<[u8]>) -> Vec<Entry> {
        let entry = |(_, text, kind): (TokenId, &str, Kind)| {
            let control = matches!(kind, Kind::Control | Kind::Unknown);
            let bytes = match kind {
                Kind::Normal | Kind::Unused => spell(text),
                Kind::Byte => byte_token(text).map_or_else(|| spell(text), |byte| [byte].into()),
                Kind::Control | Kind::Unknown | Kind::UserDefined => text.as_bytes().into(),
            };
            Entry { bytes, control, hidden: control }
        };
        self.iter().map(entry).collect()
    }

    /// What goes around a text.
    fn affixes(&self, metadata: &Metadata, add_bos: bool) -> Result<(Vec<TokenId>, Vec<TokenId>), TextError> {
        let add_bos = metadata.find("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let add_eos = metadata.find("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        Ok((self.bos.filter(|_| add_bos).into_iter().collect(), self.eos.filter(|_| add_eos).into_iter().collect()))
    }

    fn finish(
        &self,
        encoder: Encoder,
        vocab: Vec<Entry>,
        affixes: (Vec<TokenId>, Vec<TokenId>),
        strip_space: bool,
    ) -> Result<Tokenizer, TextError> {
        let (prefix, suffix) = affixes;
        let (bos, eos, unknown) = (self.bos, self.ends.clone(), self.unknown);
        Tokenizer::new(Inner {
            encoder,
            vocab,
            literals: self.literals()?,
            prefix,
            suffix,
            bos,
            eos,
            unknown,
            strip_space,
        })
    }
}

/// Absent: all are normal.
fn kinds(metadata: &Metadata, n_tokens: usize) -> Result<Vec<Kind>, TextError> {
    let Some(numbers) = metadata.find::<&[i32]>(TYPES)? else { return Ok(vec![Kind::Normal; n_tokens]) };
    if numbers.len() != n_tokens {
        return Err(metadata.invalid(TYPES, format!("{} types for {n_tokens} tokens", numbers.len())).into());
    }
    let kind = |&number: &i32| match number {
        1 => Ok(Kind::Normal),
        2 => Ok(Kind::Unknown),
        3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        6 => Ok(Kind::Byte),
        _ => Err(metadata.invalid(TYPES, format!("type {number} is not 1 to 6")).into()),
    };
    numbers.iter().map(kind).collect()
}

/// `gpt2`: byte-level, pairs merged by rank. Control tokens stay out of the merging vocabulary, so
/// that no text can be merged into one.
fn ranked(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Tokenizer, TextError> {
    let pre = Pre::named(metadata.find("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let plain = tokens
        .iter()
        .filter(|(_, _, kind)| matches!(kind, Kind::Normal | Kind::Unused | Kind::UserDefined | Kind::Byte));
    let ids: HashMap<&str, TokenId> = plain.map(|(id, text, _)| (text, id)).collect();
    let mut merges = Vec::new();
    for (i, line) in metadata.strings(MERGES)?.iter().enumerate() {
        let merge = line.split_once(' ').filter(|(l, r)| {
            ids.contains_key(l) && ids.contains_key(r) && ids.contains_key(format!("{l}{r}").as_str())
        });
        let (left, right) =
            merge.ok_or_else(|| metadata.invalid(MERGES, format!("entry {i} does not merge two tokens into one")))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let owned: Vec<(String, TokenId)> = ids.into_iter().map(|(text, id)| (text.to_owned(), id)).collect();
    let bpe = BpeBuilder::new()
        .vocab_and_merges(owned.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
        .ignore_merges(pre.ignore_merges)
        .build()
        .map_err(|e| metadata.invalid(MERGES, e.to_string()))?;
    let mut hf = HfTokenizer::new(bpe);
    hf.with_pre_tokenizer(Some(pre.pre_tokenizer));
    hf.with_normalizer(pre.normalizer).map_err(|e| TextError::malformed("tokenizer.ggml.pre", e))?;
    let vocab = tokens.entries(|text| bytes_of(text).unwrap_or_else(|| text.as_bytes().into()));
    tokens.finish(Encoder::Ranked(Box::new(hf)), vocab, tokens.affixes(metadata, pre.add_bos)?, false)
}

/// `llama`: characters and bytes, pairs merged by score.
fn scored(metadata: &Metadata, tokens: &Tokens<'_>) -> Result<Tokenizer, TextError> {
    let scores: &[f32] = metadata.need(SCORES)?;
    if scores.len() != tokens.texts.len() {
        return Err(metadata
            .invalid(SCORES, format!("{} scores for {} tokens", scores.len(), tokens.texts.len()))
            .into());
    }
    if let Some(i) = scores.iter().position(|s| s.is_nan()) {
        return Err(metadata.invalid(SCORES, format!("score {i} is not a number")).into());
    }
    let mut spm = Spm {
        tokens: HashMap::new(),
        bytes: Box::new([None; 256]),
        unknown: tokens.unknown,
        space_prefix: metadata.find("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
    };
    for (id, text, kind) in tokens.iter() {
        match (kind, byte_token(text)) {
            (Kind::Byte, Some(byte)) => spm.bytes[byte as usize] = Some(id),
            (Kind::Normal | Kind::Unused | Kind::UserDefined | Kind::Byte, _) => {
                spm.tokens.insert(text.into(), (id, scores[id as usize]));
            }
            (Kind::Control | Kind::Unknown, _) => {}
        }
    }
    let strip_space = spm.space_prefix;
    let vocab = tokens.entries(|text| text.replace(SPACE, " ").into_bytes().into());
    tokens.finish(Encoder::Scored(spm), vocab, tokens.affixes(metadata, true)?, strip_space)
}
