//! Quality of the demo model against its float32 reference. Skipped where the model is absent.

#![allow(clippy::print_stdout, reason = "the measured figure")]

mod common;

use std::path::Path;

use engine::{Compute, Engine, offline};
use serde_json::Value;

use common::{config, demo_model, open, shared};

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(list: &Value) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32).collect()
}

/// Perplexity over windows, and each position's likeliest next token.
fn perplexity(engine: &mut dyn Engine, golden: &Value) -> f64 {
    let (tokens, window) = (ids(&golden["tokens"]), golden["window"].as_u64().unwrap() as usize);
    let (mut sum, mut n) = (0.0, 0);
    for window in tokens.chunks(window) {
        sum += offline::nll(engine, window).unwrap();
        n += window.len() - 1;
    }
    (sum / n as f64).exp()
}

#[test]
fn float32_perplexity_equals_the_reference() {
    let (Some(model), Some(golden)) = (demo_model(), shared("golden/smollm2-perplexity.json")) else { return };
    let mut engine = open(&model, &config(Compute::F32));
    let found = perplexity(&mut *engine, &read(&golden));
    println!("perplexity {found:.4}");
    assert!((found - 14.7045).abs() <= 0.002, "{found}");
}

#[test]
fn float32_chats_equal_the_reference() {
    let (Some(model), Some(golden)) = (demo_model(), shared("golden/smollm2-chat.json")) else { return };
    let mut engine = open(&model, &config(Compute::F32));
    for (i, case) in read(&golden)["cases"].as_array().unwrap().iter().enumerate() {
        let (prompt, expected) = (ids(&case["prompt_ids"]), ids(&case["greedy_ids"]));
        let found = offline::greedy(&mut *engine, &prompt, expected.len()).unwrap();
        if let Some(at) = (0..expected.len()).find(|&at| found.get(at) != expected.get(at)) {
            let margin = case["margins"][at].as_f64().unwrap_or(f64::INFINITY);
            assert!(margin < 0.002, "chat {i} differs at {at}, where the margin is {margin}");
        }
    }
}

#[test]
fn auto_keeps_the_quality() {
    let (Some(model), Some(golden)) = (demo_model(), shared("golden/smollm2-perplexity.json")) else { return };
    let golden = read(&golden);
    let mut auto = open(&model, &config(Compute::Auto));
    let found = perplexity(&mut *auto, &golden);
    let mut exact = open(&model, &config(Compute::F32));
    let (tokens, n_vocab) = (ids(&golden["tokens"]), auto.model().n_vocab);
    let (mut same, mut n) = (0, 0);
    for window in tokens.chunks(golden["window"].as_u64().unwrap() as usize) {
        let ours = offline::logits(&mut *auto, window, 128).unwrap();
        let theirs = offline::logits(&mut *exact, window, 128).unwrap();
        let pairs = ours.chunks_exact(n_vocab).zip(theirs.chunks_exact(n_vocab));
        same += pairs.filter(|(a, b)| offline::argmax(a) == offline::argmax(b)).count();
        n += window.len();
    }
    let agreement = same as f64 / n as f64;
    println!("perplexity {found:.4}, agreement {agreement:.4}");
    assert!(found <= 14.75, "{found}");
    assert!(agreement >= 0.963, "{agreement}");
}
