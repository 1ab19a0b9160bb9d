//! The same small model as a directory and as a GGUF file computes the same; damaged ones are refused by name.

mod common;

use std::path::{Path, PathBuf};

use engine::{Compute, EngineConfig, LoadError, ModelSource, offline};
use modelfile::{DType, GgufWriter, SafeTensorsWriter, Value};
use serde_json::json;
use tempfile::TempDir;

use common::{bits, config};

const DIM: usize = 32;
const N_Q: usize = 4;
const N_KV: usize = 2;
const HEAD: usize = 8;
const FF: usize = 48;
const VOCAB: usize = 40;
const LAYERS: usize = 2;

/// A tensor's names in both layouts, its shape, and whether a GGUF file keeps its rows in interleaved pairs.
struct Tensor {
    huggingface: String,
    gguf: String,
    shape: Vec<usize>,
    interleaved: bool,
    numbers: Vec<f32>,
}

/// All tensors, untied, with attention biases if `biased`.
fn tensors(biased: bool) -> Vec<Tensor> {
    let mut seed = 7_u32;
    let mut all = Vec::new();
    let mut add = |huggingface: &str, gguf: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let numbers = (0..n).map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (seed >> 8) as f32 / 16_777_216.0 - 0.5;
            if shape.len() == 1 { 1.0 + 0.2 * x } else { x * 0.6 }
        });
        all.push(Tensor {
            huggingface: huggingface.into(),
            gguf: gguf.into(),
            shape: shape.to_vec(),
            interleaved: huggingface.contains("q_proj") || huggingface.contains("k_proj"),
            numbers: numbers.collect(),
        });
    };
    add("model.embed_tokens.weight", "token_embd.weight", &[VOCAB, DIM]);
    add("model.norm.weight", "output_norm.weight", &[DIM]);
    add("lm_head.weight", "output.weight", &[VOCAB, DIM]);
    for l in 0..LAYERS {
        let (h, g) = (format!("model.layers.{l}"), format!("blk.{l}"));
        add(&format!("{h}.input_layernorm.weight"), &format!("{g}.attn_norm.weight"), &[DIM]);
        add(&format!("{h}.post_attention_layernorm.weight"), &format!("{g}.ffn_norm.weight"), &[DIM]);
        for (name, gguf, rows, columns) in [
            ("q_proj", "attn_q", N_Q * HEAD, DIM),
            ("k_proj", "attn_k", N_KV * HEAD, DIM),
            ("v_proj", "attn_v", N_KV * HEAD, DIM),
            ("o_proj", "attn_output", DIM, N_Q * HEAD),
        ] {
            add(&format!("{h}.self_attn.{name}.weight"), &format!("{g}.{gguf}.weight"), &[rows, columns]);
            if biased {
                add(&format!("{h}.self_attn.{name}.bias"), &format!("{g}.{gguf}.bias"), &[rows]);
            }
        }
        for (name, gguf, rows, columns) in
            [("gate_proj", "ffn_gate", FF, DIM), ("up_proj", "ffn_up", FF, DIM), ("down_proj", "ffn_down", DIM, FF)]
        {
            add(&format!("{h}.mlp.{name}.weight"), &format!("{g}.{gguf}.weight"), &[rows, columns]);
        }
    }
    all
}

/// The settings of `config.json`.
fn settings(biased: bool, rope: serde_json::Value) -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": DIM, "num_attention_heads": N_Q, "num_key_value_heads": N_KV,
        "head_dim": HEAD, "num_hidden_layers": LAYERS, "intermediate_size": FF, "vocab_size": VOCAB,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "eos_token_id": [3, 2], "bos_token_id": 1,
        "tie_word_embeddings": false, "attention_bias": biased, "rope_parameters": rope
    })
}

fn write_directory(dir: &Path, tensors: &[Tensor], settings: &serde_json::Value) -> PathBuf {
    let mut writer = SafeTensorsWriter::new();
    for t in tensors {
        writer = writer.tensor_f32(&t.huggingface, &t.shape, &t.numbers);
    }
    std::fs::write(dir.join("model.safetensors"), writer.finish()).unwrap();
    std::fs::write(dir.join("config.json"), settings.to_string()).unwrap();
    dir.to_owned()
}

fn metadata() -> Vec<(&'static str, Value)> {
    vec![
        ("general.architecture", Value::Str("llama".into())),
        ("llama.block_count", Value::U32(LAYERS as u32)),
        ("llama.context_length", Value::U32(256)),
        ("llama.embedding_length", Value::U32(DIM as u32)),
        ("llama.feed_forward_length", Value::U32(FF as u32)),
        ("llama.attention.head_count", Value::U32(N_Q as u32)),
        ("llama.attention.head_count_kv", Value::U32(N_KV as u32)),
        ("llama.attention.key_length", Value::U32(HEAD as u32)),
        ("llama.attention.value_length", Value::U32(HEAD as u32)),
        ("llama.rope.dimension_count", Value::U32(HEAD as u32)),
        ("llama.rope.freq_base", Value::F32(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.eot_token_id", Value::U32(3)),
    ]
}

fn write_gguf(dir: &Path, tensors: &[Tensor], metadata: Vec<(&str, Value)>, factors: Option<&[f32]>) -> PathBuf {
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer = writer.metadata(key, value);
    }
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    for t in tensors {
        let mut numbers = t.numbers.clone();
        if t.interleaved {
            // Pair (i, i + half) of a head becomes (2 i, 2 i + 1).
            let row = numbers.len() / t.shape[0];
            for (to, from) in (0..t.shape[0]).map(|r| (r, r / HEAD * HEAD + r % HEAD / 2 + r % 2 * HEAD / 2)) {
                numbers[to * row..(to + 1) * row].copy_from_slice(&t.numbers[from * row..(from + 1) * row]);
            }
        }
        writer = writer.tensor(&t.gguf, DType::F32, &t.shape, bytes(&numbers));
    }
    if let Some(factors) = factors {
        writer = writer.tensor("rope_freqs.weight", DType::F32, &[factors.len()], bytes(factors));
    }
    let path = dir.join("model.gguf");
    std::fs::write(&path, writer.finish()).unwrap();
    path
}

fn open(path: &Path) -> Result<Box<dyn engine::Engine>, LoadError> {
    let config = EngineConfig { kv_blocks: 16, ..config(Compute::F32) };
    engine::open(&ModelSource::detect(path).unwrap(), &config, &mut |_| ())
}

fn logits(path: &Path) -> Vec<f32> {
    let mut engine = open(path).unwrap();
    assert_eq!((&engine.model().eos[..], engine.model().bos), (&[2, 3][..], Some(1)));
    let ids: Vec<u32> = (0..90).map(|i| i * 7 % VOCAB as u32).collect();
    offline::logits(&mut *engine, &ids, 0).unwrap()
}

#[test]
fn both_layouts_compute_the_same_bits() {
    let plain = logits_of_both(false, json!({"rope_type": "default"}), vec![]);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let scaling = vec![
        ("llama.rope.scaling.type", Value::Str("yarn".into())),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("llama.rope.scaling.original_context_length", Value::U32(64)),
    ];
    assert_ne!(logits_of_both(false, yarn, scaling), plain);
    let scaling =
        vec![("llama.rope.scaling.type", Value::Str("linear".into())), ("llama.rope.scaling.factor", Value::F32(8.0))];
    let linear = logits_of_both(false, json!({"rope_type": "linear", "factor": 8}), scaling);
    assert_ne!(linear, plain);
    assert_ne!(logits_of_both(true, json!({"rope_type": "default"}), vec![]), plain);
}

fn logits_of_both(biased: bool, rope: serde_json::Value, scaling: Vec<(&str, Value)>) -> Vec<u32> {
    let (dir, tensors) = (TempDir::new().unwrap(), tensors(biased));
    let a = logits(&write_directory(dir.path(), &tensors, &settings(biased, rope)));
    let b = logits(&write_gguf(dir.path(), &tensors, metadata().into_iter().chain(scaling).collect(), None));
    assert_eq!(bits(&a), bits(&b));
    bits(&a)
}

/// A GGUF file carries Llama 3's scaling as ready factors.
#[test]
fn factors_in_the_file_scale_frequencies() {
    let rope = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64
    });
    let factors: Vec<f32> = (0..HEAD / 2)
        .map(|i| {
            let wavelength = std::f32::consts::TAU * 10_000_f32.powf(2.0 * i as f32 / HEAD as f32);
            let keep = ((64.0 / wavelength - 1.0) / 3.0).clamp(0.0, 1.0);
            1.0 / ((1.0 - keep) / 8.0 + keep)
        })
        .collect();
    let (dir, tensors) = (TempDir::new().unwrap(), tensors(false));
    let a = logits(&write_directory(dir.path(), &tensors, &settings(false, rope)));
    let b = logits(&write_gguf(dir.path(), &tensors, metadata(), Some(&factors)));
    let plain = logits(&write_gguf(dir.path(), &tensors, metadata(), None));
    let difference = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    assert!(difference(&a, &b) < 1e-4, "{}", difference(&a, &b));
    assert!(difference(&b, &plain) > 1e-2);
}

#[track_caller]
fn refused(path: &Path, message: &str) {
    let Err(error) = open(path) else { panic!("opened, expected: {message}") };
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn models_that_do_not_fit_are_refused_by_name() {
    let default = || settings(false, json!({"rope_type": "default"}));
    let directory = |change: &dyn Fn(&mut Vec<Tensor>, &mut serde_json::Value), message: &str| {
        let (dir, mut tensors, mut settings) = (TempDir::new().unwrap(), tensors(false), default());
        change(&mut tensors, &mut settings);
        refused(&write_directory(dir.path(), &tensors, &settings), message);
    };
    directory(&|t, _| drop(t.remove(5)), "tensor \"model.layers.0.self_attn.q_proj.weight\" is missing");
    directory(&|t, _| t[1].huggingface = "model.norm.gain".into(), "tensor \"model.norm.weight\" is missing");
    directory(&|_, s| s["num_hidden_layers"] = json!(1), "9 tensors have no place in this model, the first is");
    directory(&|_, s| s["attention_bias"] = json!(true), "self_attn.q_proj.bias\" is missing");
    directory(&|_, s| s["mlp_bias"] = json!(true), "mlp.gate_proj.bias\" is missing");
    directory(&|_, s| s["vocab_size"] = json!(41), "tensor \"model.embed_tokens.weight\" has shape [40, 32]");
    directory(
        &|_, s| s["intermediate_size"] = json!(47),
        "mlp.gate_proj.weight\" has shape [48, 32], expected [47, 32]",
    );
    directory(&|_, s| s["num_key_value_heads"] = json!(4), "k_proj.weight\" has shape [16, 32], expected [32, 32]");
    directory(&|_, s| s["num_hidden_layers"] = json!(4096), "model.layers.2.input_layernorm.weight\" is missing");
}

#[test]
fn gguf_settings_that_cannot_be_are_refused_by_name() {
    let file = |key: &str, value: Option<Value>, message: &str| {
        let dir = TempDir::new().unwrap();
        let mut metadata: Vec<_> = metadata().into_iter().filter(|(k, _)| *k != key).collect();
        metadata.extend(value.map(|v| (key, v)));
        refused(&write_gguf(dir.path(), &tensors(false), metadata, None), message);
    };
    let text = |s: &str| Some(Value::Str(s.into()));
    file("general.architecture", text("mamba"), "general.architecture = mamba is not supported");
    file("general.architecture", None, "general.architecture");
    for key in ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"] {
        let key = format!("llama.{key}");
        file(&key, None, &key);
        file(&key, Some(Value::U32(0)), &format!("{key}: is 0"));
        file(&key, Some(Value::I32(-5)), &key);
        file(&key, Some(Value::U64(u64::MAX)), &key);
        file(&key, text("many"), &key);
    }
    file("llama.attention.head_count_kv", Some(Value::U32(3)), "llama.attention.head_count_kv: is 3, does not divide");
    file("llama.attention.key_length", Some(Value::U32(7)), "llama.attention.value_length = 8");
    file("llama.rope.dimension_count", Some(Value::U32(4)), "llama.rope.dimension_count = 4");
    file("llama.rope.freq_base", Some(Value::F32(f32::NAN)), "llama.rope.freq_base: is NaN");
    file("llama.attention.layer_norm_rms_epsilon", Some(Value::F32(-1.0)), "layer_norm_rms_epsilon: is -1");
    file("llama.rope.scaling.type", text("longrope"), "llama.rope.scaling.type = longrope is not supported");
    file("llama.rope.scaling.type", text("yarn"), "llama.rope.scaling.factor");
    file("llama.expert_count", Some(Value::U32(8)), "llama.expert_count = 8 is not supported");
    file("tokenizer.ggml.eos_token_id", Some(Value::U32(40)), "eos_token_id: is 40, outside the vocabulary of 40");
}

/// Tensors and settings of one family in a file of another have no place.
#[test]
fn what_belongs_to_another_family_is_refused_by_name() {
    let of = |architecture: &str, extra: &[(&str, usize)], message: &str| {
        let (dir, mut tensors) = (TempDir::new().unwrap(), tensors(false));
        for &(name, len) in extra {
            let numbers = vec![1.0; len];
            tensors.push(Tensor {
                huggingface: String::new(),
                gguf: name.into(),
                shape: vec![len],
                interleaved: false,
                numbers,
            });
        }
        let names: Vec<_> =
            metadata().into_iter().map(|(k, v)| (k.replace("llama.", &format!("{architecture}.")), v)).collect();
        let metadata = names.iter().map(|(k, v)| match (k.as_str(), v) {
            ("general.architecture", _) => ("general.architecture", Value::Str(architecture.into())),
            (k, v) => (k, v.clone()),
        });
        refused(&write_gguf(dir.path(), &tensors, metadata.collect(), None), message);
    };
    of(
        "llama",
        &[("blk.0.attn_q_norm.weight", HEAD)],
        "1 tensors have no place in this model, the first is \"blk.0.attn_q_norm",
    );
    of("qwen2", &[], "tensor \"blk.0.attn_q.bias\" is missing");
    of("qwen3", &[], "tensor \"blk.0.attn_q_norm.weight\" is missing");
    of("gemma2", &[], "tensor \"blk.0.post_attention_norm.weight\" is missing");
    of("gemma3", &[], "gemma3.attention.sliding_window");
    of("olmo2", &[], "tensor \"blk.0.attn_q_norm.weight\" is missing");
    of("phi3", &[], "tensor \"blk.0.attn_qkv.weight\" is missing");
    of("phi3", &[("rope_factors_long.weight", HEAD / 2)], "tensor \"rope_factors_short.weight\" is missing");
    let both = [("rope_factors_long.weight", HEAD / 2), ("rope_factors_short.weight", HEAD)];
    of("phi3", &both, "tensor \"rope_factors_short.weight\" has shape [8], expected [4]");
    let both = [("rope_factors_long.weight", HEAD / 2), ("rope_factors_short.weight", HEAD / 2)];
    of("phi3", &both, "phi3.rope.scaling.original_context_length");
}

#[test]
fn settings_of_the_engine_are_checked() {
    let (dir, tensors) = (TempDir::new().unwrap(), tensors(false));
    let path = write_directory(dir.path(), &tensors, &settings(false, json!(null)));
    let source = ModelSource::detect(&path).unwrap();
    let valid = config(Compute::F32);
    for (field, bad) in [
        ("threads", EngineConfig { threads: 0, ..valid.clone() }),
        ("threads", EngineConfig { threads: 100_000, ..valid.clone() }),
        ("kv_blocks", EngineConfig { kv_blocks: 0, ..valid.clone() }),
        ("block_tokens", EngineConfig { block_tokens: 0, ..valid.clone() }),
        ("kv", EngineConfig { kv_blocks: 1 << 30, block_tokens: 1 << 12, ..valid.clone() }),
    ] {
        let error = engine::open(&source, &bad, &mut |_| ()).err().unwrap().to_string();
        assert!(error.contains(field), "{field}: {error}");
    }
    let mut seen = Vec::new();
    engine::open(&source, &EngineConfig { kv_blocks: 4, ..valid }, &mut |p| seen.push(p)).unwrap();
    assert!(seen.windows(2).all(|w| w[0].done_bytes <= w[1].done_bytes && w[1].done_bytes <= w[1].total_bytes));
    assert!(ModelSource::detect(&dir.path().join("nothing")).is_err());
}
