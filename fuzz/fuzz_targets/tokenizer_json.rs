//! A `tokenizer.json`: encodes and decodes, or is refused. Text before a NUL byte is what is encoded.

#![no_main]

use libfuzzer_sys::fuzz_target;
use text::{TextModel, TextStream};
use types::Token;

fuzz_target!(|bytes: &[u8]| {
    let at = bytes.iter().position(|&b| b == 0);
    let (text, json) = at.map_or((&b"Hello <s> world </s>"[..], bytes), |at| (&bytes[..at], &bytes[at + 1..]));
    let Ok(model) = TextModel::from_tokenizer_json(json) else { return };
    let text = String::from_utf8_lossy(text);
    let Ok(ids) = model.tokenizer.encode(&text, true) else { return };
    assert!(ids.iter().all(|&id| (id as usize) < model.tokenizer.n_vocab()));
    let mut stream = TextStream::new(model.tokenizer.clone(), Vec::new(), false, true, 0);
    let token = |&id| Token { id, position: 0, logprob: None, top: Vec::new(), finish: None };
    let mut streamed: String = ids.iter().map(|id| stream.push(&token(id)).text).collect();
    streamed.push_str(&stream.finish());
    assert_eq!(streamed, model.tokenizer.decode(&ids, true));
});
