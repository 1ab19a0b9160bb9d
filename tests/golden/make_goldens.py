#!/usr/bin/env python3
"""Writes the small goldens under tests/golden/data: block formats, and tiny checkpoints with logits.

    make_goldens.py [OUT]              write everything (default: data/ beside this file); the same bytes every time
    make_goldens.py --check DIR...     compare dense.py with directories in the goldens' layout, made by anybody
    make_goldens.py --check-gguf [OUT] compare block formats and GGUF files with the `gguf` Python package

Needs numpy (and `gguf` for --check-gguf). Written:

    quant/<FORMAT>.bin, .f32     blocks of random bytes, and their numbers as little-endian float32
    llama-tiny/                  bf16, grouped queries, untied; the same model as model.gguf; with a tokenizer
    llama-tied/                  f16, two shards with an index, one KV head, tied, llama3 rope in the newer layout
    llama-quant/                 model.gguf with a matrix of every block format; logits of the dequantised weights
    mistral-tiny/ and others     one of each other family (families.py), and the same model as model.gguf

A model's directory holds golden.json {"prompts", "greedy", "min_margin", "seed", ...} and golden.safetensors
with `logits.<i>`: float32 [tokens, vocabulary] of prompt i.
"""
import json
import pathlib
import sys

import numpy as np

import dense
import families
import formats
from cases import search, write_config, write_golden
from gguf_layout import CHAT_TEMPLATE, from_gguf_rows, gguf_metadata, gguf_name, to_gguf_rows

HERE = pathlib.Path(__file__).resolve().parent


def main():
    args = sys.argv[1:]
    if args[:1] == ["--check"]:
        sys.exit(any([check_forward(pathlib.Path(d)) for d in args[1:]]))
    if args[:1] == ["--check-gguf"]:
        sys.exit(check_gguf(pathlib.Path(args[1]) if args[1:] else HERE / "data"))
    out = pathlib.Path(args[0]) if args else HERE / "data"
    make_quant(out / "quant")
    make_tiny(out / "llama-tiny")
    make_tied(out / "llama-tied")
    make_quantised(out / "llama-quant")
    for case in families.CASES:
        families.make(out / case, case)


# ---- block formats
def make_quant(out):
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for fmt in list(formats.FORMATS)[3:]:
        raw = formats.random_blocks(fmt, 3, rng)
        (out / f"{fmt}.bin").write_bytes(raw)
        (out / f"{fmt}.f32").write_bytes(formats.dequantize(fmt, raw).tobytes())


# ---- checkpoints
def config(**changes):
    return {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "head_dim": 16, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.2,
        "intermediate_size": 64, "max_position_embeddings": 256, "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 0,
        "pretraining_tp": 1, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "use_cache": True, **changes,
    }


def shapes(c):
    d, hidden, inner = c["head_dim"], c["hidden_size"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        for m, shape in dict(q=(q, hidden), k=(kv, hidden), v=(kv, hidden), o=(hidden, q)).items():
            yield p + f"self_attn.{m}_proj.weight", shape
        yield p + "post_attention_layernorm.weight", (hidden,)
        for m, shape in dict(gate=(inner, hidden), up=(inner, hidden), down=(hidden, inner)).items():
            yield p + f"mlp.{m}_proj.weight", shape
    yield "model.norm.weight", (hidden,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], hidden)


def random_weights(c, rng):
    """Norm gains are random too: an engine that forgets one fails. A tied head likes to repeat its input, so tied
    embeddings are smaller."""
    def one(name, shape):
        if len(shape) == 1:
            return rng.normal(1, 0.1, shape)
        tied = c["tie_word_embeddings"] and "embed" in name
        return rng.normal(0, c["initializer_range"] * (0.4 if tied else 1), shape)
    return {name: one(name, shape).astype(np.float32) for name, shape in shapes(c)}


def make_tiny(out):
    out.mkdir(parents=True, exist_ok=True)
    tokens, merges = vocabulary()

    def make(rng):
        c = config(vocab_size=len(tokens), rope_theta=10000.0, torch_dtype="bfloat16")
        bits = {k: formats.to_bf16(v) for k, v in random_weights(c, rng).items()}
        return c, {k: formats.from_bf16(v) for k, v in bits.items()}, bits
    c, weights, bits, *golden = search(out.name, make)
    write_config(out, c)
    formats.write_safetensors(out / "model.safetensors", {k: ("BF16", v) for k, v in bits.items()}, {"format": "pt"})
    write_golden(out, c, weights, *golden)
    write_tokenizer(out, tokens, merges)

    tensors = {}
    for name, v in weights.items():
        v = to_gguf_rows(c, name, v)
        fmt, raw = ("F32", v.tobytes()) if v.ndim == 1 else ("BF16", formats.to_bf16(v).tobytes())
        tensors[gguf_name(name)] = (fmt, v.shape, raw)
    formats.write_gguf(out / "model.gguf", gguf_metadata(out.name, c, tokens, merges), tensors)


def make_tied(out):
    out.mkdir(parents=True, exist_ok=True)

    def make(rng):
        rope = {"rope_theta": 10000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        c = config(vocab_size=96, num_hidden_layers=2, num_key_value_heads=1, tie_word_embeddings=True,
                   initializer_range=0.4, rope_parameters=rope, dtype="float16")
        stored = {k: v.astype(np.float16) for k, v in random_weights(c, rng).items()}
        return c, {k: v.astype(np.float32) for k, v in stored.items()}, stored
    c, weights, stored, *golden = search(out.name, make)
    write_config(out, c)
    write_golden(out, c, weights, *golden)
    names = list(stored)
    shards = {"model-00001-of-00002.safetensors": names[:8], "model-00002-of-00002.safetensors": names[8:]}
    for file, held in shards.items():
        formats.write_safetensors(out / file, {k: ("F16", stored[k]) for k in held}, {"format": "pt"})
    index = {"metadata": {"total_size": sum(v.nbytes for v in stored.values())},
             "weight_map": {k: file for file, held in shards.items() for k in held}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make_quantised(out):
    """Rows of 32 and 256 numbers, so that every format has a matrix."""
    out.mkdir(parents=True, exist_ok=True)
    tokens = [f"<{i}>" for i in range(96)]
    of = {"embed_tokens": "Q8_0", "lm_head": "Q4_1", "q": "Q4_0", "k": "Q8_0", "v": "Q4_1", "o": "Q4_0", "gate": "Q4_1",
          "up": "Q8_0"}

    def make(rng):
        c = config(vocab_size=len(tokens), intermediate_size=256, rope_theta=10000.0)
        weights, stored = {}, {}
        for name, shape in shapes(c):
            part = name.split(".")[-2].removesuffix("_proj")
            fmt = of.get(part, "F32")
            if part == "down":
                fmt = ("Q4_K", "Q5_K", "Q6_K")[int(name.split(".")[2])]
            if len(shape) == 1:
                raw = rng.normal(1, 0.1, shape).astype(np.float32).tobytes()
            else:
                raw = formats.scaled_blocks(fmt, shape, 0.07 if part == "down" else 0.2, rng)
            stored[gguf_name(name)] = (fmt, shape, raw)
            weights[name] = from_gguf_rows(c, name, formats.dequantize(fmt, raw).reshape(shape))
        return c, weights, stored
    c, weights, stored, *golden = search(out.name, make)
    write_golden(out, c, weights, *golden)
    formats.write_gguf(out / "model.gguf", gguf_metadata(out.name, c, tokens, []), stored)


# ---- a byte-level vocabulary that can spell anything
def vocabulary():
    """Three control tokens, the 256 bytes in GPT-2's letters, and a few merges: 288 tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in printable]
    letter = {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(other)}}
    space = letter[32]
    pairs = [(space, "t"), ("h", "e"), (space, "a"), ("i", "n"), (space + "t", "he"), ("r", "e"), ("o", "n"), ("e", "r"),
             (space, "s"), (space, "w"), ("a", "t"), ("e", "n"), (space, "c"), ("i", "s"), (space, "o"), ("o", "r"),
             ("i", "t"), (space, "b"), ("e", "s"), (space, "f"), ("in", "g"), (space, "p"), ("o", "u"), ("a", "n"),
             ("a", "l"), (space + "o", "f"), ("a", "r"), (space + "a", "n"), (space + "an", "d")]
    tokens = ["<unk>", "<s>", "</s>"] + [letter[b] for b in range(256)] + [a + b for a, b in pairs]
    assert len(tokens) == len(set(tokens)) == 288
    return tokens, [f"{a} {b}" for a, b in pairs]


def write_tokenizer(out, tokens, merges):
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i in range(3)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "vocab": {t: i for i, t in enumerate(tokens)}, "merges": [m.split(" ") for m in merges]}
    digits = {"type": "Digits", "individual_digits": True}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
                 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
                 "post_processor": None, "decoder": byte_level, "model": model}
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")
    settings = {"add_bos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                "chat_template": CHAT_TEMPLATE, "model_max_length": 256, "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


# ---- checks
def check_forward(case):
    c = json.loads((case / "config.json").read_text())
    golden = json.loads((case / "golden.json").read_text())
    want = formats.read_safetensors(case / "golden.safetensors")
    weights = {}
    for file in sorted(case.glob("model*.safetensors")):
        weights.update(formats.read_safetensors(file))
    worst = max(np.abs(dense.forward(c, weights, p) - want[f"logits.{i}"]).max() for i, p in enumerate(golden["prompts"]))
    same = all(dense.greedy(c, weights, p, len(g))[0] == g for p, g in zip(golden["prompts"], golden["greedy"]))
    print(f"{case.name}: largest logit difference {worst:.1e}, greedy tokens {'equal' if same else 'DIFFER'}")
    return worst > 1e-4 or not same


def check_gguf(data):
    import gguf
    bad = 0
    rng = np.random.default_rng()
    for fmt in list(formats.FORMATS)[1:]:
        kind = getattr(gguf.GGMLQuantizationType, fmt)
        raw = (data / "quant" / f"{fmt}.bin").read_bytes() if fmt.startswith("Q") else b""
        if fmt.startswith("Q"):
            raw += formats.random_blocks(fmt, 4000, rng)
        else:
            raw = formats.from_bf16(formats.to_bf16(rng.normal(0, 1, 4000))).astype(np.float16).tobytes() if fmt == "F16" \
                else formats.to_bf16(rng.normal(0, 1, 4000)).tobytes()
        view = np.frombuffer(raw, np.float16 if fmt == "F16" else np.uint8)
        theirs = gguf.quants.dequantize(view.reshape(1, -1), kind).reshape(-1).astype(np.float32)
        same = np.array_equal(theirs, formats.dequantize(fmt, raw))
        bad += not same
        print(f"{fmt}: {len(theirs)} numbers {'equal' if same else 'DIFFER'}")
    for file in sorted(data.glob("*/*.gguf")):
        reader = gguf.GGUFReader(file)
        print(f"{file.parent.name}/{file.name}: {len(reader.tensors)} tensors, {len(reader.fields)} fields")
    return bad


main()
