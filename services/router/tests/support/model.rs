//! A tokenizer with one token per byte and a chat template.

use serde_json::{Map, json};
use tempfile::TempDir;

pub const IM_START: u32 = 256;
pub const IM_END: u32 = 257;
pub const N_VOCAB: u32 = 258;

/// GPT-2's printable character of each byte.
fn printable(byte: u8) -> char {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if plain(byte) {
        return char::from(byte);
    }
    let n = (0..byte).filter(|&b| !plain(b)).count();
    char::from_u32(256 + u32::try_from(n).expect("small")).expect("a character")
}

/// A model directory: `tokenizer.json` and `tokenizer_config.json`.
pub fn write() -> TempDir {
    let vocab: Map<_, _> = (0..=255u8).map(|byte| (printable(byte).to_string(), byte.into())).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(IM_START, "<|im_start|>"), special(IM_END, "<|im_end|>")],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                  "merges": []},
    });
    let template = "{% for m in messages %}{% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\
        <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let config = json!({"eos_token": "<|im_end|>", "chat_template": template});
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("writable");
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).expect("writable");
    dir
}
