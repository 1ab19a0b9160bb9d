//! Logits and greedy continuations of tiny checkpoints against float32 references.

#![allow(clippy::print_stdout, reason = "the measured figure")]

mod common;

use std::path::Path;

use engine::{Compute, EngineConfig, offline};
use modelfile::SafeTensors;
use serde_json::Value;

use common::{config, dense_cases, file_name, open};

/// Largest difference of a logit.
const TOLERANCE: f32 = 1e-4;

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// The case's model, as a directory and as a GGUF file, whichever there is.
fn check(case: &Path) {
    let gguf = case.join("model.gguf");
    for source in [case, &gguf] {
        if source.is_file() || source.join("config.json").is_file() {
            check_model(case, source);
        }
    }
}

fn check_model(case: &Path, source: &Path) {
    let golden: Value = serde_json::from_slice(&std::fs::read(case.join("golden.json")).unwrap()).unwrap();
    let reference = SafeTensors::open_file(&case.join("golden.safetensors")).unwrap();
    let mut engine = open(source, &EngineConfig { kv_blocks: 64, ..config(Compute::F32) });
    let mut worst = 0.0_f32;
    for (i, prompt) in golden["prompts"].as_array().unwrap().iter().enumerate() {
        let prompt = ids(prompt);
        let view = reference.tensor(&format!("logits.{i}")).unwrap();
        let expected: Vec<f32> = view.data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        for chunk in [0, 1, 5, 16, 64] {
            let found = offline::logits(&mut *engine, &prompt, chunk).unwrap();
            assert_eq!(found.len(), expected.len());
            for (a, b) in found.iter().zip(&expected) {
                worst = worst.max((a - b).abs());
            }
            assert!(worst <= TOLERANCE, "{}: prompt {i} in chunks of {chunk}: {worst}", file_name(case));
        }
        let expected = ids(&golden["greedy"][i]);
        let found = offline::greedy(&mut *engine, &prompt, expected.len()).unwrap();
        // Continuations here stop at the end of a sequence, references go on.
        assert!(found.len() == expected.len() || engine.model().eos.contains(found.last().unwrap()));
        let decided = golden["min_margin"][i].as_f64().unwrap() > 3e-4;
        assert!(found == expected[..found.len()] || !decided, "{}: prompt {i}", file_name(case));
    }
    println!("{}: largest difference {worst:.2e}", file_name(case));
}

#[test]
fn logits_and_greedy_tokens_equal_the_references() {
    for case in dense_cases() {
        check(&case);
    }
}
