//! Token ids and stop strings: the pieces add up to the decoded text, cut at the first stop.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use text::{TextModel, TextStream, Tokenizer};
use types::Token;

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let data = include_str!("../../services/libs/text/tests/data/tokenizers.json");
    let data: serde_json::Value = serde_json::from_str(data).expect("committed with the crate");
    let open = |case: &serde_json::Value| TextModel::from_tokenizer_json(case["tokenizer"].to_string().as_bytes());
    data["hugging_face"].as_array().expect("a list").iter().map(|c| open(c).expect("valid").tokenizer).collect()
});

fuzz_target!(|bytes: &[u8]| {
    // One byte of choices, stop strings up to a NUL byte separated by newlines, then ids of two bytes.
    let Some((&choices, rest)) = bytes.split_first() else { return };
    let Some(at) = rest.iter().position(|&b| b == 0) else { return };
    let (stops, ids) = (String::from_utf8_lossy(&rest[..at]), &rest[at + 1..]);
    let stops: Vec<String> = stops.split('\n').take(16).map(str::to_owned).collect();
    let tokenizer = &TOKENIZERS[choices as usize % TOKENIZERS.len()];
    let (include_stop, keep_special) = (choices & 64 != 0, choices & 128 != 0);
    let ids: Vec<u32> = ids.chunks_exact(2).map(|b| u32::from(b[0]) << 8 | u32::from(b[1])).map(|id| id % 1024).collect();

    let mut stream = TextStream::new(tokenizer.clone(), stops.clone(), include_stop, keep_special, 0);
    let token = |&id| Token { id, position: 0, logprob: None, top: Vec::new(), finish: None };
    let mut streamed: String = ids.iter().map(|id| stream.push(&token(id)).text).collect();
    streamed.push_str(&stream.finish());

    let whole = tokenizer.decode(&ids, keep_special);
    let ends = |stop: &String| whole.find(stop.as_str()).map(|at| (at + stop.len(), at));
    let first = stops.iter().filter(|s| !s.is_empty()).filter_map(ends).min();
    let cut = first.map_or(whole.len(), |(end, start)| if include_stop { end } else { start });
    assert_eq!(streamed, whole[..cut]);
});
