//! Hugging Face's `tokenizer.json` and what lies beside it.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::Tokenizer as HfTokenizer;
use types::TokenId;

use super::settings::Settings;
use crate::byte_level::bytes_of;
use crate::encoder::Encoder;
use crate::spm::SPACE;
use crate::tokenizer::Inner;
use crate::vocab::{Entry, Literal, Literals, VOCAB_MAX, looks_like_control};
use crate::{ChatTemplate, TextError, TextModel, Tokenizer};

/// The file everything is about; also how messages name it.
const FILE: &str = "tokenizer.json";
/// Its largest size, in bytes.
const FILE_BYTES_MAX: u64 = 128 << 20;
/// Deepest nesting in it.
const DEPTH_MAX: usize = 64;

/// Reads a model directory.
pub(crate) fn open(directory: &Path) -> Result<TextModel, TextError> {
    let Some(json) = read_limited(&directory.join(FILE), FILE_BYTES_MAX)? else {
        let message = "a directory needs a tokenizer.json (a SentencePiece tokenizer.model alone is not enough)".into();
        return Err(TextError::NoTokenizer { path: directory.to_owned(), message });
    };
    let settings = Settings::read(directory)?;
    let tokenizer = build(&json, &settings)?;
    let template =
        settings.template.as_deref().map(|source| ChatTemplate::new(source, &settings.special)).transpose()?;
    Ok(TextModel { tokenizer, template })
}

/// A tokenizer from the contents of a `tokenizer.json` alone.
pub(crate) fn from_json(json: &[u8]) -> Result<Tokenizer, TextError> {
    build(json, &Settings::default())
}

/// The contents of a file, `None` if there is none.
pub(super) fn read_limited(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, TextError> {
    let failed = |source| TextError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        return Err(TextError::malformed(name, format!("larger than {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}

fn build(json: &[u8], settings: &Settings) -> Result<Tokenizer, TextError> {
    let (mut prefix, mut suffix) = affixes(&check(json)?)?;
    let mut hf = HfTokenizer::from_bytes(json).map_err(|e| TextError::malformed(FILE, e))?;
    hf.with_padding(None);
    hf.with_truncation(None).map_err(|e| TextError::malformed(FILE, e))?;
    let spelling = Spelling::of(&hf)?;
    let id_of = |name: &str| settings.special.get(name).and_then(|text| hf.token_to_id(text));
    let (bos, mut eos) = (id_of("bos_token"), settings.eos_ids.clone());
    eos.extend(id_of("eos_token").filter(|id| !eos.contains(id)));
    adjust(&mut prefix, bos, settings.add_bos);
    adjust(&mut suffix, id_of("eos_token"), settings.add_eos);

    let added: HashMap<TokenId, _> = hf.get_added_tokens_decoder().into_iter().collect();
    let named: Vec<TokenId> = bos.into_iter().chain(eos.iter().copied()).collect();
    let mut vocab = Vec::new();
    for (text, id) in hf.get_vocab(true) {
        vocab.resize_with(vocab.len().max(id as usize + 1), Entry::default);
        let token = added.get(&id);
        let hidden = token.is_some_and(|t| t.special);
        let control = hidden || named.contains(&id) || token.is_some() && looks_like_control(&text);
        let bytes = if hidden { text.as_bytes().into() } else { spelling.bytes(&text) };
        vocab[id as usize] = Entry { bytes, control, hidden };
    }
    let literal = |(&id, t): (&TokenId, &tokenizers::AddedToken)| Literal {
        text: t.content.clone(),
        id,
        control: vocab[id as usize].control,
        lstrip: t.lstrip,
        rstrip: t.rstrip,
        single_word: t.single_word,
    };
    let literals = Literals::new(added.iter().map(literal).collect())?;
    let unknown = id_of("unk_token").or_else(|| unknown_of(&hf));
    let strip_space = spelling.strip_space;
    Tokenizer::new(Inner {
        encoder: Encoder::Ranked(Box::new(hf)),
        vocab,
        literals,
        prefix,
        suffix,
        bos,
        eos,
        unknown,
        strip_space,
    })
}

/// Refuses what the `tokenizers` crate would panic at, draw lots for, or what has no place here. Gives the
/// post-processor, which is ours to understand for the same reason.
fn check(json: &[u8]) -> Result<Value, TextError> {
    #[derive(Deserialize)]
    struct Outline {
        model: ModelOutline,
        normalizer: Option<Value>,
        // The crate takes it for granted that this much is JSON.
        #[serde(rename = "pre_tokenizer")]
        _pre_tokenizer: Option<Value>,
        #[serde(rename = "decoder")]
        _decoder: Option<Value>,
        #[serde(default)]
        post_processor: Value,
    }
    #[derive(Deserialize)]
    struct ModelOutline {
        r#type: Option<String>,
        merges: Option<IgnoredAny>,
    }
    check_depth(json)?;
    let malformed = |e| TextError::malformed(FILE, e);
    let outline: Outline = serde_json::from_slice(json).map_err(malformed)?;
    // Old files leave the type out.
    let kind = outline.model.r#type.as_deref().unwrap_or(if outline.model.merges.is_some() { "BPE" } else { "none" });
    if kind != "BPE" {
        return Err(TextError::unsupported(format!("{FILE}: model.type"), kind));
    }
    if outline.normalizer.is_some_and(|n| mentions_type(&n, "Precompiled")) {
        return Err(TextError::unsupported(format!("{FILE}: normalizer"), "Precompiled"));
    }
    check_pairs(json)?;
    Ok(outline.post_processor)
}

/// Ids must be in range, and every merge must make a token.
fn check_pairs(json: &[u8]) -> Result<(), TextError> {
    #[derive(Deserialize)]
    struct File {
        model: Bpe,
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(Deserialize)]
    struct Bpe {
        vocab: HashMap<String, u64>,
        #[serde(default)]
        merges: Vec<Merge>,
        dropout: Option<f64>,
        continuing_subword_prefix: Option<String>,
    }
    #[derive(Deserialize)]
    struct Added {
        id: u64,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Pair(String, String),
        Line(String),
    }
    let file: File = serde_json::from_slice(json).map_err(|e| TextError::malformed(FILE, e))?;
    let bpe = file.model;
    let ids = bpe.vocab.values().copied().chain(file.added_tokens.iter().map(|t| t.id));
    if let Some(id) = ids.max().filter(|&id| id >= VOCAB_MAX as u64) {
        return Err(TextError::malformed(format!("{FILE}: model.vocab"), format!("id {id} is not below {VOCAB_MAX}")));
    }
    if bpe.dropout.is_some_and(|p| p != 0.0) {
        return Err(TextError::unsupported(format!("{FILE}: model.dropout"), "random encoding"));
    }
    let prefix = bpe.continuing_subword_prefix.unwrap_or_default();
    for (i, merge) in bpe.merges.iter().enumerate() {
        let (left, right) = match merge {
            Merge::Pair(left, right) => (left.as_str(), right.as_str()),
            Merge::Line(line) => line.split_once(' ').unwrap_or((line, "")),
        };
        let known =
            right.strip_prefix(prefix.as_str()).is_some_and(|rest| bpe.vocab.contains_key(&format!("{left}{rest}")));
        if !known {
            let message = format!("entry {i} makes no token of the vocabulary");
            return Err(TextError::malformed(format!("{FILE}: model.merges"), message));
        }
    }
    Ok(())
}

/// Parsers below this one recurse.
fn check_depth(json: &[u8]) -> Result<(), TextError> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(TextError::malformed(FILE, format!("nested deeper than {DEPTH_MAX}")));
        }
    }
    Ok(())
}

fn mentions_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Object(fields) => {
            fields.get("type").is_some_and(|t| t == name)
                || fields.contains_key("precompiled_charsmap")
                || fields.values().any(|v| mentions_type(v, name))
        }
        Value::Array(items) => items.iter().any(|v| mentions_type(v, name)),
        _ => false,
    }
}

fn unknown_of(hf: &HfTokenizer) -> Option<TokenId> {
    match hf.get_model() {
        tokenizers::ModelWrapper::BPE(bpe) => bpe.unk_token.as_deref().and_then(|text| hf.token_to_id(text)),
        _ => None,
    }
}

/// What the post-processor puts before and after a single text.
fn affixes(processor: &Value) -> Result<(Vec<TokenId>, Vec<TokenId>), TextError> {
    let malformed = |what: &str| TextError::malformed(format!("{FILE}: post_processor"), what);
    let id =
        |v: &Value| v.as_u64().and_then(|id| TokenId::try_from(id).ok()).ok_or_else(|| malformed("not a token id"));
    let (mut prefix, mut suffix) = (Vec::new(), Vec::new());
    match processor["type"].as_str() {
        None if processor.is_null() => {}
        Some("ByteLevel") => {}
        Some("BertProcessing" | "RobertaProcessing") => {
            prefix.push(id(&processor["cls"][1])?);
            suffix.push(id(&processor["sep"][1])?);
        }
        Some("TemplateProcessing") => {
            let mut after_text = false;
            for piece in processor["single"].as_array().ok_or_else(|| malformed("single is not a list"))? {
                let Some(name) = piece["SpecialToken"]["id"].as_str() else {
                    after_text = true;
                    continue;
                };
                let ids =
                    processor["special_tokens"][name]["ids"].as_array().ok_or_else(|| malformed("unknown token"))?;
                let ids = ids.iter().map(id).collect::<Result<Vec<_>, _>>()?;
                if after_text { &mut suffix } else { &mut prefix }.extend(ids);
            }
        }
        Some("Sequence") => {
            for inner in processor["processors"].as_array().ok_or_else(|| malformed("processors is not a list"))? {
                let (before, after) = affixes(inner)?;
                prefix.splice(0..0, before);
                suffix.extend(after);
            }
        }
        other => return Err(TextError::unsupported(format!("{FILE}: post_processor"), other.unwrap_or("no type"))),
    }
    Ok((prefix, suffix))
}

/// `tokenizer_config.json` may ask for more or less than the post-processor does.
fn adjust(affix: &mut Vec<TokenId>, token: Option<TokenId>, wanted: Option<bool>) {
    let Some(token) = token else { return };
    match wanted {
        Some(true) if affix.is_empty() => affix.push(token),
        Some(false) if affix.as_slice() == [token] => affix.clear(),
        _ => {}
    }
}

/// How the vocabulary spells bytes, read from the decoder.
#[derive(Default)]
struct Spelling {
    byte_level: bool,
    /// Stands for a space.
    space: Option<char>,
    /// Tokens like `<0x0A>` stand for bytes.
    byte_fallback: bool,
    strip_space: bool,
}

impl Spelling {
    fn of(hf: &HfTokenizer) -> Result<Self, TextError> {
        let decoder = hf.get_decoder().map(serde_json::to_value).transpose();
        let decoder = decoder.map_err(|e| TextError::malformed(format!("{FILE}: decoder"), e))?.unwrap_or_default();
        let mut spelling = Self::default();
        let one = std::slice::from_ref(&decoder);
        let steps =
            if decoder["type"] == "Sequence" { decoder["decoders"].as_array().map_or(one, Vec::as_slice) } else { one };
        for step in steps {
            spelling.take(step)?;
        }
        Ok(spelling)
    }

    fn take(&mut self, step: &Value) -> Result<(), TextError> {
        let kind = step["type"].as_str().unwrap_or("none");
        match kind {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Metaspace" => {
                self.space = step["replacement"].as_str().and_then(|s| s.chars().next());
                self.strip_space = step["prepend_scheme"] != "never";
            }
            "Replace" if step["pattern"]["String"] == SPACE.to_string() && step["content"] == " " => {
                self.space = Some(SPACE)
            }
            "Strip" if step["content"] == " " && step["start"] == 1 && step["stop"] == 0 => self.strip_space = true,
            _ => return Err(TextError::unsupported(format!("{FILE}: decoder"), kind)),
        }
        Ok(())
    }

    fn bytes(&self, text: &str) -> Box<[u8]> {
        if self.byte_level {
            return bytes_of(text).unwrap_or_else(|| text.as_bytes().into());
        }
        if let Some(byte) = self.byte_fallback.then(|| byte_token(text)).flatten() {
            return [byte].into();
        }
        match self.space {
            Some(space) => text.replace(space, " ").into_bytes().into(),
            None => text.as_bytes().into(),
        }
    }
}

/// The byte of a token like `<0x0A>`.
pub(super) fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}
