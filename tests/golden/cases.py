"""A golden case: a seed whose continuations are clear, and the files that hold them."""
import json

import numpy as np

import dense
import formats

N_GREEDY = 24
PROMPT_LENGTHS = (5, 18, 33)


def search(case, make):
    """The first seed whose continuations are clear (no near ties, no end token) and varied; `make(rng)` gives config,
    weights and what to store."""
    for seed in range(3000):
        rng = np.random.default_rng([len(case), seed])
        c, weights, extra = make(rng)
        prompts = [rng.integers(3, c["vocab_size"], n).tolist() for n in PROMPT_LENGTHS]
        runs = []
        for p in prompts:
            runs.append(dense.greedy(c, weights, p, N_GREEDY))
            if runs[-1][1] < 0.01 or c["eos_token_id"] in runs[-1][0] or len(set(runs[-1][0])) < 8:
                break
        else:
            return c, weights, extra, seed, prompts, runs
    raise SystemExit(f"{case}: no seed is clear")


def write_golden(out, c, weights, seed, prompts, runs):
    logits = [dense.forward(c, weights, p).astype(np.float32) for p in prompts]
    formats.write_safetensors(out / "golden.safetensors", {f"logits.{i}": ("F32", z) for i, z in enumerate(logits)})
    (out / "golden.json").write_text(json.dumps({
        "case": out.name, "model_type": c["model_type"], "origin": "tests/golden/make_goldens.py, float64", "seed": seed,
        "prompts": prompts, "greedy": [ids for ids, _ in runs], "min_margin": [round(m, 5) for _, m in runs],
    }) + "\n")
    distinct = [len(set(ids)) for ids, _ in runs]
    print(f"{out.name}: seed {seed}, logit spread {logits[2].std():.2f}, distinct greedy tokens {distinct}")


def write_config(out, c):
    (out / "config.json").write_text(json.dumps(c, indent=1) + "\n")
