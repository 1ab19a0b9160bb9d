//! What each family takes from `config.json`, and what where a setting is missing, `null` or impossible.

use serde_json::{Value, json};

use crate::LoadError;
use crate::model::huggingface::parse_text;
use crate::model::{Biases, LayerConfig, ModelConfig, Norms};

/// A configuration with the sizes that every checkpoint has, changed.
fn read(model_type: &str, change: &Value) -> Result<ModelConfig, LoadError> {
    let mut config = json!({
        "model_type": model_type, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_hidden_layers": 4, "intermediate_size": 160, "vocab_size": 384, "eos_token_id": 2
    });
    for (field, value) in change.as_object().unwrap() {
        config[field] = value.clone();
    }
    parse_text(&config.to_string())
}

#[track_caller]
fn valid(model_type: &str, change: Value) -> ModelConfig {
    read(model_type, &change).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn windows(model_type: &str, change: Value, expected: [usize; 4]) {
    let found = valid(model_type, change).layers.iter().map(|l| l.window.unwrap_or(0)).collect::<Vec<_>>();
    assert_eq!(found, expected);
}

#[track_caller]
fn refused(model_type: &str, change: Value, message: &str) {
    let error = read(model_type, &change).expect_err(message).to_string();
    assert!(error.starts_with("config.json: ") && error.contains(message), "{error}");
}

#[test]
fn sizes_that_equal_a_familys_defaults_may_be_missing() {
    let sizes = |model_type: &str| {
        let text = json!({
            "model_type": model_type, "hidden_size": 512, "num_attention_heads": 32, "num_hidden_layers": 4,
            "intermediate_size": 160, "vocab_size": 384
        });
        let model = parse_text(&text.to_string()).unwrap();
        (model.n_kv, model.head_dim, model.max_context, model.storage.tied, model.norm_eps)
    };
    assert_eq!(sizes("llama"), (32, 16, 2048, false, 1e-6));
    assert_eq!(sizes("mistral"), (8, 16, 131_072, false, 1e-6));
    assert_eq!(sizes("qwen2"), (32, 16, 32_768, false, 1e-6));
    assert_eq!(sizes("qwen3"), (32, 128, 32_768, false, 1e-6));
    assert_eq!(sizes("gemma2"), (4, 256, 8192, true, 1e-6));
    assert_eq!(sizes("gemma3_text"), (4, 256, 131_072, true, 1e-6));
    assert_eq!(sizes("phi3"), (32, 16, 4096, false, 1e-5));
    assert_eq!(sizes("olmo2"), (32, 16, 2048, false, 1e-5));
    let null = json!({"num_key_value_heads": null, "head_dim": null});
    assert_eq!((valid("qwen3", null.clone()).n_kv, valid("qwen3", null).head_dim), (4, 16));
}

#[test]
fn windows_follow_each_familys_rule() {
    windows("llama", json!({"sliding_window": 8}), [0; 4]);
    windows("mistral", json!({}), [4096; 4]);
    windows("mistral", json!({"sliding_window": null}), [0; 4]);
    windows("mistral", json!({"sliding_window": 24}), [24; 4]);
    windows("phi3", json!({}), [0; 4]);
    windows("phi3", json!({"sliding_window": 2047}), [2047; 4]);
    for qwen in ["qwen2", "qwen3"] {
        windows(qwen, json!({"sliding_window": 24, "max_window_layers": 0}), [0; 4]);
        windows(qwen, json!({"sliding_window": 24, "use_sliding_window": false, "max_window_layers": 0}), [0; 4]);
        windows(qwen, json!({"sliding_window": 24, "use_sliding_window": true, "max_window_layers": 3}), [0, 0, 0, 24]);
        windows(qwen, json!({"sliding_window": 24, "use_sliding_window": true}), [0; 4]);
        let types = json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]);
        let named = json!({"sliding_window": 24, "use_sliding_window": true, "layer_types": types});
        windows(qwen, named, [0, 24, 0, 0]);
        refused(qwen, json!({"sliding_window": 24, "layer_types": types}), "sliding_window: is missing");
    }
    windows("gemma2", json!({}), [4096, 0, 4096, 0]);
    windows("gemma2", json!({"sliding_window": 24}), [24, 0, 24, 0]);
    refused("gemma2", json!({"sliding_window": null}), "sliding_window: is missing");
    windows("gemma3_text", json!({"sliding_window": 24}), [24; 4]);
    windows("gemma3_text", json!({"sliding_window": 24, "sliding_window_pattern": 2}), [24, 0, 24, 0]);
    windows("gemma3_text", json!({"sliding_window": 24, "_sliding_window_pattern": 4}), [24, 24, 24, 0]);
    let types = json!(["full_attention", "full_attention", "sliding_attention", "full_attention"]);
    windows("gemma3_text", json!({"sliding_window": 24, "layer_types": types}), [0, 0, 24, 0]);
    refused(
        "gemma2",
        json!({"layer_types": ["full_attention"]}),
        "layer_types: is [\"full_attention\"], must be a list of 4",
    );
    refused("gemma2", json!({"layer_types": ["a", "b", "c", "d"]}), "layer_types = \"a\" is not supported");
    refused("mistral", json!({"sliding_window": 0}), "sliding_window: is 0");
    refused("qwen2", json!({"max_window_layers": -1}), "max_window_layers");
}

#[test]
fn gemmas_caps_and_scales_have_defaults_and_can_be_switched_off() {
    let gemma2 = valid("gemma2", json!({}));
    assert_eq!((gemma2.score_cap, gemma2.logit_cap, gemma2.score_scale), (Some(50.0), Some(30.0), 1.0 / 16.0));
    assert_eq!((gemma2.embedding_scale, gemma2.norms), (Some(8.0), Norms::Both));
    let off = valid("gemma2", json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}));
    assert_eq!((off.score_cap, off.logit_cap), (None, None));
    let gemma3 = valid("gemma3_text", json!({"query_pre_attn_scalar": 64, "final_logit_softcapping": 7.5}));
    assert_eq!((gemma3.score_cap, gemma3.logit_cap, gemma3.score_scale), (None, Some(7.5), 0.125));
    refused("gemma2", json!({"attn_logit_softcapping": 0}), "attn_logit_softcapping: is 0");
    refused("gemma2", json!({"query_pre_attn_scalar": -1}), "query_pre_attn_scalar: is -1");
    refused("gemma2", json!({"hidden_activation": "gelu"}), "hidden_activation = gelu is not supported");
    refused("gemma3_text", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention = true");
    refused("gemma3", json!({}), "model_type = gemma3 is not supported");
}

#[test]
fn gemma3_has_a_rotary_base_for_layers_with_a_window() {
    let older = valid(
        "gemma3_text",
        json!({
            "rope_theta": 500_000, "rope_local_base_freq": 5_000, "sliding_window_pattern": 2,
            "rope_scaling": {"rope_type": "linear", "factor": 8}
        }),
    );
    let newer = valid(
        "gemma3_text",
        json!({"_sliding_window_pattern": 2, "rope_parameters": {
            "full_attention": {"rope_theta": 500_000, "rope_type": "linear", "factor": 8},
            "sliding_attention": {"rope_theta": 5_000, "rope_type": "default"}
        }}),
    );
    assert_eq!(older, newer);
    assert_eq!(older.layers[..2], [LayerConfig { window: Some(4096), rope: 1 }, LayerConfig { window: None, rope: 0 }]);
    assert_eq!((older.ropes[0].inv_freq[0], older.ropes[1].inv_freq[0]), (0.125, 1.0));
    let default = valid("gemma3_text", json!({}));
    let given = json!({"rope_theta": 1_000_000, "rope_local_base_freq": 10_000});
    assert_eq!(default, valid("gemma3_text", given));
    assert_ne!(default.describe_rope(), older.describe_rope());
    refused("gemma3_text", json!({"rope_local_base_freq": 0}), "rope_local_base_freq");
    let half = json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}});
    refused("gemma3_text", half, "rope_parameters.sliding_attention: is missing");
    let dynamic = json!({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}});
    refused("gemma3_text", dynamic, "rope_parameters.full_attention.rope_type = dynamic is not supported");
}

#[test]
fn phi3_chooses_factors_by_the_declared_length() {
    let factors = json!({"type": "longrope", "short_factor": vec![1.0; 8], "long_factor": vec![2.0; 8]});
    let settings = |scaling: &Value| json!({"max_position_embeddings": 512, "original_max_position_embeddings": 32, "rope_scaling": scaling});
    let model = valid("phi3", settings(&factors));
    let rope = &model.ropes[0];
    assert_eq!((rope.frequencies(32)[0], rope.frequencies(33)[0]), (1.0, 0.5));
    assert_eq!(rope.factor, 1.8_f64.sqrt() as f32);
    for kind in ["su", "yarn"] {
        let mut older = factors.clone();
        older["type"] = json!(kind);
        assert_eq!(valid("phi3", settings(&older)), model, "{kind}");
    }
    let mut short = factors.clone();
    short["long_factor"] = json!([1.0]);
    refused("phi3", settings(&short), "rope_scaling.long_factor: is [1.0], must be a list of 8");
    let mut wrong = factors;
    wrong["short_factor"][3] = json!(0);
    refused("phi3", settings(&wrong), "rope_scaling.short_factor");
    let partial = valid("phi3", json!({"partial_rotary_factor": 0.75}));
    assert_eq!(partial.ropes[0].inv_freq.len(), 6);
    refused("phi3", json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor: is 1.5");
    refused("phi3", json!({"partial_rotary_factor": 0.0}), "partial_rotary_factor");
}

#[test]
fn biases_are_where_the_family_has_them() {
    let biases = |model_type, change| {
        let storage = valid(model_type, change).storage;
        [storage.qkv_bias, storage.output_bias, storage.mlp_bias].map(|b| b == Biases::All)
    };
    assert_eq!(biases("qwen2", json!({})), [true, false, false]);
    assert_eq!(biases("qwen3", json!({"attention_bias": true})), [true, true, false]);
    assert_eq!(biases("mistral", json!({"attention_bias": true})), [false; 3]);
    assert_eq!(biases("llama", json!({"mlp_bias": true})), [false, false, true]);
    assert_eq!(biases("olmo2", json!({})), [false; 3]);
    for family in ["qwen2", "qwen3", "mistral", "phi3", "olmo2"] {
        refused(family, json!({"hidden_act": "gelu"}), "hidden_act = gelu is not supported");
    }
}

#[test]
fn whatever_decides_the_numbers_shows_in_the_description() {
    let gemma = |change| valid("gemma2", change);
    let base = gemma(json!({}));
    for change in [
        json!({"attn_logit_softcapping": 20}),
        json!({"query_pre_attn_scalar": 100}),
        json!({"sliding_window": 100}),
        json!({"layer_types": ["full_attention", "full_attention", "full_attention", "full_attention"]}),
    ] {
        assert_ne!(gemma(change.clone()).describe_attention(), base.describe_attention(), "{change}");
    }
    for change in [json!({"final_logit_softcapping": 20}), json!({"rms_norm_eps": 1e-5}), json!({"rope_theta": 5})] {
        assert_ne!(gemma(change.clone()).describe(), base.describe(), "{change}");
    }
}
