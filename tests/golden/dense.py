"""A dense decoder's forward pass in plain numpy, float64: slow, short, the origin of the goldens' logits.

Llama, Mistral, Qwen2, Qwen3, Gemma 2, Gemma 3 (text), Phi-3 and OLMo 2, told apart by `model_type`: RMSNorm, rotary
embedding by halves (default, linear, llama3, yarn, longrope), grouped-query attention with windows and soft caps, gated
feed-forward. Weights by Hugging Face names. One prompt at a time, no cache: position i sees positions up to i.

Checked against logits of Hugging Face transformers 5.23 (float32) on 13 random checkpoints of these families: the
largest difference of any logit is below 2e-5 (`make_goldens.py --check DIR...` repeats that for directories in the
goldens' layout).
"""
import math

import numpy as np


def rope_params(config, sliding):
    """Settings of a layer's rotary embedding as one dict, from any of the layouts."""
    new = config.get("rope_parameters")
    if new and "full_attention" in new:
        return new["sliding_attention" if sliding else "full_attention"]
    if new:
        return new
    if config["model_type"] == "gemma3_text" and sliding:
        return {"rope_theta": config["rope_local_base_freq"]}
    return {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}


def rope_frequencies(config, head_dim, sliding, max_tokens):
    """Angle per position of each pair of dimensions, and the factor on cosine and sine. `max_tokens`: most tokens that
    the sequence may have."""
    r = rope_params(config, sliding)
    theta, kind = r["rope_theta"], r.get("rope_type", r.get("type", "default"))
    freq = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "default":
        return freq, 1.0
    original = config.get("original_max_position_embeddings",
                          r.get("original_max_position_embeddings", config["max_position_embeddings"]))
    if kind == "longrope":
        grown = config["max_position_embeddings"] / original
        scale = math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 else 1.0
        return freq / np.array(r["long_factor" if max_tokens > original else "short_factor"]), scale
    factor = r["factor"]
    if kind == "linear":
        return freq / factor, 1.0
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


def windows(config):
    """Each layer's window, None without one."""
    n, window, kind = config["num_hidden_layers"], config.get("sliding_window"), config["model_type"]
    if kind.startswith("qwen") and not config.get("use_sliding_window"):
        return [None] * n
    if "layer_types" in config:
        return [window if t == "sliding_attention" else None for t in config["layer_types"]]
    rule = {"mistral": lambda i: True, "phi3": lambda i: True, "gemma2": lambda i: i % 2 == 0,
            "gemma3_text": lambda i: (i + 1) % config.get("sliding_window_pattern", 6) != 0}
    rule["qwen2"] = rule["qwen3"] = lambda i: i >= config.get("max_window_layers", 28)
    return [window if kind in rule and rule[kind](i) else None for i in range(n)]


def cap(x, limit):
    return x if limit is None else limit * np.tanh(x / limit)


def forward(config, weights, ids, max_tokens=None):
    """Logits [tokens, vocabulary] of one prompt, float64. `max_tokens`: most tokens that it may grow to."""
    kind = config["model_type"]
    gemma, olmo = kind.startswith("gemma"), kind == "olmo2"
    w = {k: v.astype(np.float64) for k, v in weights.items()}
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    d = config.get("head_dim") or config["hidden_size"] // heads
    n, layer_windows = len(ids), windows(config)

    def norm(name, x):
        return rms_norm(x, w[name + ".weight"] + gemma, config["rms_norm_eps"])

    def project(name, x):
        y = x @ w[name + ".weight"].T
        return y + w[name + ".bias"] if name + ".bias" in w else y

    x = w["model.embed_tokens.weight"][ids] * (math.sqrt(config["hidden_size"]) if gemma else 1)
    for layer in range(config["num_hidden_layers"]):
        p, window = f"model.layers.{layer}.", layer_windows[layer]
        freq, scale = rope_frequencies(config, d, window is not None, max_tokens or n)
        angle = np.arange(n)[:, None, None] * freq
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        h = x if olmo else norm(p + "input_layernorm", x)
        if kind == "phi3":
            q, k, v = np.split(project(p + "self_attn.qkv_proj", h), [heads * d, (heads + kv_heads) * d], 1)
        else:
            q, k, v = (project(p + f"self_attn.{m}_proj", h) for m in "qkv")
        if olmo:
            q, k = norm(p + "self_attn.q_norm", q), norm(p + "self_attn.k_norm", k)
        q, k, v = (t.reshape(n, -1, d) for t in (q, k, v))
        if kind in ("qwen3", "gemma3_text"):
            q, k = norm(p + "self_attn.q_norm", q), norm(p + "self_attn.k_norm", k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (np.repeat(t, heads // kv_heads, 1) for t in (k, v))
        size = config["query_pre_attn_scalar"] if gemma else d
        s = cap(np.einsum("ihd,jhd->hij", q, k) / math.sqrt(size), config.get("attn_logit_softcapping"))
        distance = np.arange(n)[:, None] - np.arange(n)
        s = np.where((distance >= 0) & (distance < (window or n)), s, -np.inf)
        s = np.exp(s - s.max(-1, keepdims=True))
        a = np.einsum("hij,jhd->ihd", s / s.sum(-1, keepdims=True), v).reshape(n, heads * d)
        a = project(p + "self_attn.o_proj", a)
        x = x + (norm(p + "post_attention_layernorm", a) if gemma or olmo else a)
        h = x if olmo else norm(p + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"), x)
        if kind == "phi3":
            gate, up = np.split(project(p + "mlp.gate_up_proj", h), 2, 1)
        else:
            gate, up = (project(p + f"mlp.{m}_proj", h) for m in ("gate", "up"))
        if gemma:
            gate = gate / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate ** 3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        f = project(p + "mlp.down_proj", gate * up)
        x = x + (norm(p + "post_feedforward_layernorm", f) if gemma or olmo else f)
    tied = config.get("tie_word_embeddings", gemma)
    head = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return cap(norm("model.norm", x) @ w[head].T, config.get("final_logit_softcapping"))


def greedy(config, weights, prompt, n_new):
    """Greedy continuation (not stopping at any token) and the least gap between first and second choice."""
    ids, margin = list(prompt), math.inf
    for _ in range(n_new):
        z = forward(config, weights, ids, len(prompt) + n_new)[-1]
        second, first = np.sort(z)[-2:]
        margin = min(margin, first - second)
        ids.append(int(z.argmax()))
    return ids[len(prompt):], margin
