"""Names, order of rows and metadata of GGUF files, as llama.cpp's architectures have them."""
import numpy as np

CHAT_TEMPLATE = ("{% for message in messages %}{{ '<s>' + message['role'] + '\\n' + message['content'] + '</s>\\n' }}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}")


def gguf_name(name, post_norms=False):
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in fixed:
        return fixed[name]
    _, _, layer, *rest = name.split(".")
    part = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
            "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
            "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
            "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.q_norm": "attn_q_norm",
            "self_attn.k_norm": "attn_k_norm", "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm"}
    if post_norms:
        part["post_attention_layernorm"] = "post_attention_norm"
    return f"blk.{layer}.{part['.'.join(rest[:-1])]}.{rest[-1]}"


def _rope_rows(c, name, v, to_gguf):
    """llama.cpp turns neighbouring dimensions (2i, 2i+1) where the hub's layout turns (i, i + head_dim / 2), so the
    rows of q and k are stored in another order."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return v
    d = c["head_dim"]
    split = (2, d // 2) if to_gguf else (d // 2, 2)
    return np.ascontiguousarray(v.reshape(-1, *split, v.shape[1]).swapaxes(1, 2).reshape(v.shape))


def to_gguf_rows(c, name, v):
    return _rope_rows(c, name, v, True)


def from_gguf_rows(c, name, v):
    return _rope_rows(c, name, v, False)


ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}


def gguf_metadata(name, c, tokens, merges):
    d = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    arch = ARCHITECTURES.get(c["model_type"], c["model_type"])
    return {
        "general.architecture": arch, "general.name": name, f"{arch}.block_count": c["num_hidden_layers"],
        f"{arch}.context_length": c["max_position_embeddings"], f"{arch}.embedding_length": c["hidden_size"],
        f"{arch}.feed_forward_length": c["intermediate_size"], f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"], f"{arch}.attention.key_length": d,
        f"{arch}.attention.value_length": d, f"{arch}.attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
        f"{arch}.rope.dimension_count": d, f"{arch}.rope.freq_base": c["rope_theta"], f"{arch}.vocab_size": c["vocab_size"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        **({"tokenizer.ggml.merges": merges, "tokenizer.chat_template": CHAT_TEMPLATE} if merges else {}),
        "tokenizer.ggml.bos_token_id": c["bos_token_id"], "tokenizer.ggml.eos_token_id": c["eos_token_id"],
        "tokenizer.ggml.padding_token_id": c["pad_token_id"], "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_space_prefix": False,
    }
