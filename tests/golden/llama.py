"""A Llama-family forward pass in plain numpy, float64: slow, short, the origin of the goldens' logits.

RMSNorm, rotary embedding by halves (default, linear, llama3, yarn), grouped-query attention, SwiGLU, tied or
untied head. Weights by Hugging Face names. One prompt at a time, no cache: position i sees positions 0..i.

Checked against logits of Hugging Face transformers 5.23 (float32) on five random checkpoints of these variants:
the largest difference of any logit is below 1e-5 (`make_goldens.py --check DIR...` repeats that for directories
in the goldens' layout).
"""
import math

import numpy as np


def rope_params(config):
    """The newer `rope_parameters` or the older `rope_theta` with `rope_scaling`, as one dict."""
    if "rope_parameters" in config:
        return config["rope_parameters"]
    return {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}


def rope_frequencies(config, head_dim):
    """Angle per position of each pair of dimensions, and the factor on cosine and sine."""
    r = rope_params(config)
    theta, kind = r["rope_theta"], r.get("rope_type", r.get("type", "default"))
    freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "default":
        return freq, 1.0
    factor = r["factor"]
    if kind == "linear":
        return freq / factor, 1.0
    original = r.get("original_max_position_embeddings", config["max_position_embeddings"])
    if kind == "llama3":
        low, high = r["low_freq_factor"], r["high_freq_factor"]
        turns = original * freq / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0, 1)
        return freq / factor * (1 - smooth) + freq * smooth, 1.0
    if kind == "yarn":
        def dim_of(rotations):
            return head_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))
        low = max(math.floor(dim_of(r.get("beta_fast", 32))), 0)
        high = min(math.ceil(dim_of(r.get("beta_slow", 1))), head_dim - 1)
        ramp = np.clip((np.arange(head_dim // 2) - low) / max(high - low, 0.001), 0, 1)
        scale = r.get("attention_factor") or 0.1 * math.log(factor) + 1
        return freq / factor * ramp + freq * (1 - ramp), scale
    raise ValueError(f"rope type {kind}")


def rms_norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x, cos, sin):
    """x: [tokens, heads, head_dim]; dimension i turns with dimension i + head_dim / 2."""
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(config, weights, ids):
    """Logits [tokens, vocabulary] of one prompt, float64."""
    w = {k: v.astype(np.float64) for k, v in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // heads
    eps, n = config["rms_norm_eps"], len(ids)
    freq, scale = rope_frequencies(config, d)
    angle = np.arange(n)[:, None, None] * freq
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    future = np.triu(np.full((n, n), -np.inf), 1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        h = rms_norm(x, w[p + "input_layernorm.weight"], eps)
        q, k, v = ((h @ w[p + f"self_attn.{m}_proj.weight"].T).reshape(n, -1, d) for m in "qkv")
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (k, v))
        s = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(d) + future
        s = np.exp(s - s.max(-1, keepdims=True))
        a = np.einsum("hij,jhd->ihd", s / s.sum(-1, keepdims=True), v).reshape(n, heads * d)
        x = x + a @ w[p + "self_attn.o_proj.weight"].T
        h = rms_norm(x, w[p + "post_attention_layernorm.weight"], eps)
        gate, up = (h @ w[p + f"mlp.{m}_proj.weight"].T for m in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    x = rms_norm(x, w["model.norm.weight"], eps)
    head = "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    return x @ w[head].T


def greedy(config, weights, prompt, n_new):
    """Greedy continuation (not stopping at any token) and the least gap between first and second choice."""
    ids, margin = list(prompt), math.inf
    for _ in range(n_new):
        z = forward(config, weights, ids)[-1]
        second, first = np.sort(z)[-2:]
        margin = min(margin, first - second)
        ids.append(int(z.argmax()))
    return ids[len(prompt):], margin
