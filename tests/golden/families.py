"""Tiny checkpoints of the families beside Llama: each in the hub's layout and as a GGUF file, with logits.

Windows are shorter than the prompts, soft caps near the numbers they cap, and every norm and bias is random, so that an
engine that forgets one of them fails. Settings are written in the older and the newer layout by turns; those that equal
the family's defaults are left out, as published checkpoints do.
"""
import formats
import numpy as np
from cases import search, write_config, write_golden
from gguf_layout import gguf_metadata, gguf_name, to_gguf_rows

N_VOCAB = 96
BASE = {
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_size": 32, "intermediate_size": 48,
    "max_position_embeddings": 256, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06, "vocab_size": N_VOCAB, "tie_word_embeddings": False, "initializer_range": 0.25,
}
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12,
         "tie_word_embeddings": False, "final_logit_softcapping": 6.0, "attn_logit_softcapping": 4.0}
CASES = {
    "mistral-tiny": {"model_type": "mistral", "sliding_window": 12, "head_dim": None, "rope_theta": 10000.0},
    "qwen2-tiny": {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 12, "max_window_layers": 1,
                   "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "qwen3-tiny": {"model_type": "qwen3", "head_dim": 16, "sliding_window": None, "rope_theta": 10000.0,
                   "tie_word_embeddings": True},
    "gemma2-tiny": {"model_type": "gemma2", **GEMMA, "rope_parameters": {"rope_theta": 10000.0}},
    "gemma3-tiny": {"model_type": "gemma3_text", **GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 2,
                    "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
                    "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    "phi3-tiny": {"model_type": "phi3", "original_max_position_embeddings": 32, "rope_theta": 10000.0,
                  "sliding_window": None, "rope_scaling": {
                      "type": "longrope", "short_factor": [1.0, 1.25, 1.75, 3.0], "long_factor": [1.0, 2.0, 6.0, 18.0]}},
    "olmo2-tiny": {"model_type": "olmo2", "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
}
# What the configuration class has anyway.
LEFT_OUT = {"gemma2-tiny": ["hidden_activation"], "mistral-tiny": ["tie_word_embeddings"],
            "qwen2-tiny": ["tie_word_embeddings"]}


def shapes(c):
    kind, hidden, inner = c["model_type"], c["hidden_size"], c["intermediate_size"]
    d = c.get("head_dim") or hidden // c["num_attention_heads"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    gemma, olmo = kind.startswith("gemma"), kind == "olmo2"
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        for name, there in [("input_layernorm", not olmo), ("post_attention_layernorm", True),
                            ("pre_feedforward_layernorm", gemma), ("post_feedforward_layernorm", gemma or olmo)]:
            if there:
                yield p + name + ".weight", (hidden,)
        if kind == "phi3":
            yield p + "self_attn.qkv_proj.weight", (q + 2 * kv, hidden)
            yield p + "mlp.gate_up_proj.weight", (2 * inner, hidden)
        else:
            for m, rows in dict(q=q, k=kv, v=kv).items():
                yield p + f"self_attn.{m}_proj.weight", (rows, hidden)
                if kind == "qwen2":
                    yield p + f"self_attn.{m}_proj.bias", (rows,)
            for m in ("gate", "up"):
                yield p + f"mlp.{m}_proj.weight", (inner, hidden)
        if kind in ("qwen3", "gemma3_text", "olmo2"):
            yield p + "self_attn.q_norm.weight", (q if olmo else d,)
            yield p + "self_attn.k_norm.weight", (kv if olmo else d,)
        yield p + "self_attn.o_proj.weight", (hidden, q)
        yield p + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)


def random(c, name, shape, rng):
    if name.endswith(".bias"):
        return rng.normal(0, 0.3, shape)
    if len(shape) == 1:
        return rng.normal(0 if c["model_type"].startswith("gemma") else 1, 0.1, shape)
    small = 0.4 if c["tie_word_embeddings"] and "embed" in name else 1
    return rng.normal(0, c["initializer_range"] * small, shape)


def make(out, case):
    """bfloat16 in both files; Phi-3, whose rows are of fused tensors, of numbers that Q8_0 holds exactly."""
    out.mkdir(parents=True, exist_ok=True)
    quantised = case == "phi3-tiny"

    def draw(rng):
        c, weights, raw = {**BASE, **CASES[case]}, {}, {}
        for name, shape in shapes(c):
            if quantised and len(shape) == 2 and shape[1] % 32 == 0:
                raw[name] = formats.scaled_blocks("Q8_0", shape, c["initializer_range"], rng)
                weights[name] = formats.dequantize("Q8_0", raw[name]).reshape(shape)
            else:
                weights[name] = formats.from_bf16(formats.to_bf16(random(c, name, shape, rng)))
        return c, weights, raw
    c, weights, raw, *golden = search(case, draw)
    write_config(out, {k: v for k, v in c.items() if k not in LEFT_OUT.get(case, [])})
    stored = {k: ("F32", v) if k in raw else ("BF16", formats.to_bf16(v)) for k, v in weights.items()}
    formats.write_safetensors(out / "model.safetensors", stored, {"format": "pt"})
    write_golden(out, c, weights, *golden)
    formats.write_gguf(out / "model.gguf", metadata(case, c), dict(tensors(c, weights, raw)))


def tensors(c, weights, raw):
    """Gains of Gemma's norms whole, Mistral's rows in Llama's order, Phi-3's factors as tensors."""
    kind = c["model_type"]
    for name, v in weights.items():
        gguf = gguf_name(name, post_norms=kind.startswith("gemma") or kind == "olmo2")
        if v.ndim == 1:
            v = v + 1 if kind.startswith("gemma") else v
            yield gguf, ("F32", v.shape, v.astype(np.float32).tobytes())
        elif name in raw:
            yield gguf, ("Q8_0", v.shape, raw[name])
        else:
            v = to_gguf_rows({"head_dim": c["hidden_size"] // c["num_attention_heads"]}, name, v) if kind == "mistral" else v
            yield gguf, ("BF16", v.shape, formats.to_bf16(v).tobytes())
    if kind == "phi3":
        for size in ("short", "long"):
            factors = np.array(c["rope_scaling"][f"{size}_factor"], np.float32)
            yield f"rope_factors_{size}.weight", ("F32", factors.shape, factors.tobytes())


def metadata(case, c):
    theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    found = gguf_metadata(case, {**c, "rope_theta": theta}, [f"<{i}>" for i in range(N_VOCAB)], [])
    arch = found["general.architecture"]
    if case.startswith(("mistral", "gemma")):
        found[f"{arch}.attention.sliding_window"] = c["sliding_window"]
    if case.startswith("gemma"):
        found[f"{arch}.attn_logit_softcapping"] = c["attn_logit_softcapping"]
        found[f"{arch}.final_logit_softcapping"] = c["final_logit_softcapping"]
    if case.startswith("gemma3"):
        found[f"{arch}.attention.sliding_window_pattern"] = c["sliding_window_pattern"]
        found[f"{arch}.rope.scaling.type"], found[f"{arch}.rope.scaling.factor"] = "linear", 8.0
    if case.startswith("phi3"):
        original = c["original_max_position_embeddings"]
        grown = c["max_position_embeddings"] / original
        found[f"{arch}.rope.scaling.original_context_length"] = original
        found[f"{arch}.rope.scaling.attn_factor"] = float(np.sqrt(1 + np.log(grown) / np.log(original)))
    return found
