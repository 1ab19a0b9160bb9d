//! The real demo model, where `BATON_DEMO_MODEL` names it (SmolLM2 135M Instruct, Q4_1, GGUF).

#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use modelfile::{DType, Gguf};

fn demo_model() -> Option<PathBuf> {
    let path = std::env::var_os("BATON_DEMO_MODEL").map(PathBuf::from);
    if path.is_none() {
        eprintln!("SKIPPED: BATON_DEMO_MODEL does not name the demo model's .gguf file");
    }
    path
}

#[test]
fn the_demo_model_is_read() {
    let Some(path) = demo_model() else { return };
    let started = Instant::now();
    let file = Gguf::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let opened = started.elapsed();
    assert!(opened < Duration::from_secs(1), "opening took {opened:?}");

    let metadata = file.metadata();
    assert_eq!((file.version(), file.alignment(), metadata.len()), (3, 32, 33));
    assert_eq!(metadata.str("general.architecture").expect("there"), "llama");
    assert_eq!(metadata.u32("llama.block_count").expect("there"), 30);
    assert_eq!(metadata.u32("llama.attention.head_count_kv").expect("there"), 3);
    assert_eq!(metadata.f32("llama.rope.freq_base").expect("there"), 100_000.0);
    let tokens = metadata.strings("tokenizer.ggml.tokens").expect("there");
    assert_eq!((tokens.len(), tokens.get(1)), (49_152, Some("<|im_start|>")));
    assert_eq!(metadata.strings("tokenizer.ggml.merges").expect("there").len(), 48_900);
    assert_eq!(metadata.need::<&[i32]>("tokenizer.ggml.token_type").expect("there").len(), 49_152);

    let count = |dtype| file.tensors().filter(|tensor| tensor.dtype == dtype).count();
    assert_eq!(file.tensors().len(), 272);
    assert_eq!((count(DType::Q4_1), count(DType::F32), count(DType::Q8_0)), (210, 61, 1));
    let embedding = file.tensor("token_embd.weight").expect("there");
    assert_eq!((embedding.dtype, embedding.shape), (DType::Q8_0, &[49_152, 576][..]));
    let down = file.tensor("blk.29.ffn_down.weight").expect("there");
    assert_eq!((down.dtype, down.shape, down.data.len()), (DType::Q4_1, &[576, 1536][..], 552_960));

    let started = Instant::now();
    assert_eq!(file.digest(), "14625f2e140dd6e55f123465cb3c36f1");
    eprintln!("opened in {opened:?}, digest of {} bytes in {:?}", file.file_bytes(), started.elapsed());
}
