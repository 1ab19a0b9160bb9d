//! Streaming detokenisation: whatever the tokens and however they cut characters and stop strings, the
//! pieces add up to the decoded text, cut at the first stop.

use std::sync::LazyLock;

use proptest::prelude::*;
use serde_json::Value;
use text::{Piece, TextModel, TextStream, Tokenizer};
use types::{FinishReason, Token, TokenId};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let golden: Value = serde_json::from_str(include_str!("data/tokenizers.json")).unwrap();
    let cases = golden["hugging_face"].as_array().unwrap();
    let open =
        |case: &Value| TextModel::from_tokenizer_json(case["tokenizer"].to_string().as_bytes()).unwrap().tokenizer;
    cases.iter().map(open).collect()
});

/// By name of the case.
fn tokenizer(name: &str) -> Tokenizer {
    let at = ["smollm", "llama3", "qwen", "llama2", "mistral", "gemma"].iter().position(|n| *n == name).unwrap();
    TOKENIZERS[at].clone()
}

fn token(position: usize, id: TokenId) -> Token {
    Token { id, position: position as u32, logprob: None, top: Vec::new(), finish: None }
}

/// All text, and whether it was stopped. Pieces after a stop must be empty.
fn run(mut stream: TextStream, ids: &[TokenId]) -> (String, bool) {
    let (mut text, mut stopped) = (String::new(), false);
    for (i, &id) in ids.iter().enumerate() {
        let piece = stream.push(&token(i, id));
        assert!(!stopped || piece == Piece { text: String::new(), stopped: true });
        stopped |= piece.stopped;
        text.push_str(&piece.text);
    }
    text.push_str(&stream.finish());
    (text, stopped)
}

/// The definition: of all occurrences, the one that ends first, the longest of those.
fn cut(text: &str, stops: &[String], include_stop: bool) -> String {
    let ends = |stop: &String| text.find(stop.as_str()).map(|at| (at + stop.len(), at));
    match stops.iter().filter(|s| !s.is_empty()).filter_map(ends).min() {
        Some((end, _)) if include_stop => text[..end].to_owned(),
        Some((_, start)) => text[..start].to_owned(),
        None => text.to_owned(),
    }
}

fn check(name: &str, text: &str, stops: &[&str], expected: &str) {
    let tokenizer = tokenizer(name);
    let ids = tokenizer.encode(text, false).unwrap();
    let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
    let stream = TextStream::new(tokenizer, stops.clone(), false, false, 0);
    assert_eq!(run(stream, &ids).0, expected, "{name} {text:?} {stops:?}");
}

#[test]
fn stops_where_it_should() {
    for name in ["smollm", "llama2", "gemma"] {
        check(name, "the quick brown fox", &[], "the quick brown fox");
        check(name, "the quick brown fox", &["brown"], "the quick ");
        check(name, "the quick brown fox", &["ick br"], "the qu");
        check(name, "the quick brown fox", &["fox", "the"], "");
        check(name, "the quick brown fox", &["foxes", "quit", "brow.", ""], "the quick brown fox");
        check(name, "abcabcabd", &["abcabd"], "abc");
        check(name, "xabc", &["abc", "b"], "xa");
        check(name, "xabc", &["bc", "abc"], "x");
        check(name, "日本語😀です", &["😀"], "日本語");
        check(name, "日本語😀です", &["語😀で"], "日本");
        check(name, "  two", &["two"], "  ");
        check(name, "日本", &["\u{FFFD}"], "日本");
    }
}

#[test]
fn holds_back_only_what_may_be_a_stop() {
    let tokenizer = tokenizer("smollm");
    let mut stream = TextStream::new(tokenizer.clone(), vec!["###END".into()], false, false, 0);
    let mut piece = |text: &str| {
        let ids = tokenizer.encode(text, false).unwrap();
        ids.iter().map(|&id| stream.push(&token(0, id)).text).collect::<String>()
    };
    assert_eq!(piece("a#"), "a");
    assert_eq!(piece("##"), "");
    assert_eq!(piece("#"), "#");
    assert_eq!(piece("EN"), "");
    assert_eq!(piece("x"), "###ENx");
    assert_eq!(piece("###"), "");
    assert_eq!(stream.finish(), "###");
    assert_eq!(stream.finish(), "");
}

#[test]
fn min_tokens_come_before_stops() {
    let tokenizer = tokenizer("smollm");
    let ids: Vec<TokenId> = "abab".chars().map(|c| tokenizer.encode(&c.to_string(), false).unwrap()[0]).collect();
    let check = |min_tokens, include_stop, expected: &str| {
        let stream = TextStream::new(tokenizer.clone(), vec!["ab".into()], include_stop, false, min_tokens);
        assert_eq!(run(stream, &ids).0, expected, "{min_tokens}");
    };
    check(0, false, "");
    check(0, true, "ab");
    check(1, false, "ab");
    check(2, false, "ab");
    check(2, true, "abab");
    check(3, false, "abab");
    check(9, false, "abab");
}

#[test]
fn the_ending_token_is_not_shown() {
    let tokenizer = tokenizer("smollm");
    let a = tokenizer.encode("a", false).unwrap()[0];
    let check = |include_stop, finish, expected: &str| {
        let mut stream = TextStream::new(tokenizer.clone(), Vec::new(), include_stop, true, 0);
        let text = stream.push(&Token { finish: Some(finish), ..token(0, a) }).text + &stream.finish();
        assert_eq!(text, expected);
    };
    check(false, FinishReason::Stop, "");
    check(true, FinishReason::Stop, "a");
    check(false, FinishReason::Length, "a");
}

#[test]
fn special_tokens_are_shown_on_demand() {
    let tokenizer = tokenizer("smollm");
    let a = tokenizer.encode("a", false).unwrap()[0];
    let end = (0..900).find(|&id| tokenizer.token_bytes(id) == b"<|im_end|>").unwrap();
    assert!(tokenizer.is_special(end));
    let check = |keep, expected: &str| {
        let stream = TextStream::new(tokenizer.clone(), Vec::new(), false, keep, 0);
        assert_eq!(run(stream, &[a, end, a]).0, expected);
    };
    check(false, "aa");
    check(true, "a<|im_end|>a");
}

#[test]
fn a_continued_text_keeps_its_space() {
    let tokenizer = tokenizer("llama2");
    let ids = tokenizer.encode("the fox", false).unwrap();
    let stream = TextStream::new(tokenizer.clone(), Vec::new(), false, false, 0);
    assert_eq!(run(stream.clone(), &ids).0, "the fox");
    assert_eq!(run(stream.continuing(), &ids).0, " the fox");
}

/// Stop strings likely to occur, to overlap and to begin without ending.
fn stop_strings() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(
        prop_oneof!["[ab]{1,4}", "[a-e ]{1,3}", "\\PC{1,2}", Just("\u{FFFD}".to_owned()), Just(String::new())],
        0..6,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_tokens_add_up_to_the_decoded_text(
        which in 0usize..6,
        ids in prop::collection::vec(0u32..920, 0..60),
        stops in stop_strings(),
        include_stop: bool,
        keep_special: bool,
    ) {
        let tokenizer = TOKENIZERS[which].clone();
        let whole = tokenizer.decode(&ids, keep_special);
        let stream = TextStream::new(tokenizer, stops.clone(), include_stop, keep_special, 0);
        let (text, stopped) = run(stream, &ids);
        let expected = cut(&whole, &stops, include_stop);
        // A stop that only the very end completes is found by `finish`, which reports no stop.
        prop_assert!(!stopped || expected.len() < whole.len() || whole.ends_with(&*expected));
        prop_assert_eq!(text, expected);
    }

    #[test]
    fn any_text_cut_anywhere_stops_at_the_same_place(
        which in 0usize..6,
        text in "[abc €😀]{0,40}",
        stops in prop::collection::vec("[abc €😀]{1,4}", 0..16),
        min_tokens in 0usize..6,
        include_stop: bool,
    ) {
        let tokenizer = TOKENIZERS[which].clone();
        let ids = tokenizer.encode(&text, false).unwrap();
        let whole = tokenizer.decode(&ids, false);
        let stream = TextStream::new(tokenizer.clone(), stops.clone(), include_stop, false, min_tokens as u32);
        // What the first tokens complete is outside the stops' reach.
        let before = tokenizer.decode(&ids[..min_tokens.min(ids.len())], false);
        let before = before.trim_end_matches('\u{FFFD}');
        let expected = before.to_owned() + &cut(&whole[before.len()..], &stops, include_stop);
        prop_assert_eq!(run(stream, &ids).0, expected);
    }

    #[test]
    fn long_stop_strings(repeat in 1usize..256, tail in "[ab]{0,3}") {
        let tokenizer = TOKENIZERS[0].clone();
        let stop = "a".repeat(repeat) + "b";
        let text = "a".repeat(300) + &tail;
        let ids = tokenizer.encode(&text, false).unwrap();
        let stops = vec![stop; 16];
        let stream = TextStream::new(tokenizer, stops.clone(), false, false, 0);
        prop_assert_eq!(run(stream, &ids).0, cut(&text, &stops, false));
    }
}
