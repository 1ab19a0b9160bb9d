//! A chat template and a message: rendering ends, and the message never becomes a control token.

#![no_main]

use std::collections::BTreeMap;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use text::{ChatTemplate, Message, TemplateOptions, TextModel, Tokenizer};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let data = include_str!("../../services/libs/text/tests/data/tokenizers.json");
    let data: serde_json::Value = serde_json::from_str(data).expect("committed with the crate");
    let open = |case: &serde_json::Value| TextModel::from_tokenizer_json(case["tokenizer"].to_string().as_bytes());
    data["hugging_face"].as_array().expect("a list").iter().map(|c| open(c).expect("valid").tokenizer).collect()
});

/// Two control tokens of its own around the message.
static CHATML: LazyLock<ChatTemplate> = LazyLock::new(|| {
    let source = "<|im_start|>{{ messages[0].role }}\n{{ messages[0].content | trim }}<|im_end|>\n";
    ChatTemplate::new(source, &BTreeMap::new()).expect("valid")
});

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = std::str::from_utf8(bytes) else { return };
    // Template, then message.
    let (source, content) = input.split_once('\0').unwrap_or((input, input));
    let messages = [Message { role: "user".into(), content: content.into(), name: Some(content.into()) }];
    let options = TemplateOptions::default();
    if let Ok(template) = ChatTemplate::new(source, &BTreeMap::new()) {
        let _ = template.render(&messages, &options);
        let _ = template.encode(&TOKENIZERS[0], &messages, &options);
    }
    for tokenizer in TOKENIZERS.iter() {
        let ids = CHATML.encode(tokenizer, &messages, &options).expect("the message is short");
        let n_control = ids.iter().filter(|&&id| tokenizer.is_special(id) && tokenizer.token_bytes(id) != b"<unk>").count();
        assert_eq!(n_control, 2, "{content:?}");
    }
});
