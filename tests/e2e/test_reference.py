"""The engine through the command line, against float32 references computed elsewhere."""

import json
import math
import pathlib
import subprocess

import numpy as np
import pytest
from procs import required_env
from safetensors.numpy import load_file

OWN = pathlib.Path(__file__).resolve().parent.parent / "golden" / "data"


def baton(*args):
    run = subprocess.run([required_env("BATON_BIN"), *map(str, args)], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-800:]
    return run.stdout


def check_case(folder, model, tmp_path, chunk):
    golden, want = json.loads((folder / "golden.json").read_text()), load_file(folder / "golden.safetensors")
    ids, out = tmp_path / "ids.json", tmp_path / "out.safetensors"
    ids.write_text(json.dumps(golden["prompts"]))
    flags = ["--chunk", chunk] if chunk else []
    baton("logits", "--model", model, "--ids", ids, "--out", out, "--compute", "f32", *flags)
    got = load_file(out)
    for i in range(len(golden["prompts"])):
        assert got[f"logits.{i}"].shape == want[f"logits.{i}"].shape
        assert np.abs(got[f"logits.{i}"] - want[f"logits.{i}"]).max() <= 1e-4
    if not chunk:
        answer = json.loads(
            baton("generate", "--model", model, "--ids", ids, "--max-tokens", 24, "--compute", "f32", "--json"))
        for a, b, margin in zip(answer["ids"], golden["greedy"], golden["min_margin"]):
            end = b.index(2) + 1 if 2 in b else len(b)
            assert a == b[:end] or margin < 3e-4


CHUNKS = [None, 1, 5, 16, 64]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("case", [
    "llama", "llama-mqa-tied", "llama-rope-linear", "llama-rope-yarn", "llama-rope-llama3", "mistral-window", "qwen2",
    "qwen3", "gemma2", "gemma3", "phi3", "phi3-longrope", "olmo2"])
def test_golden(shared, tmp_path, case, chunk):
    folder = shared / "golden" / "cases" / case
    check_case(folder, folder, tmp_path, chunk)


@pytest.mark.parametrize("case", sorted(p.name for p in OWN.glob("*") if (p / "golden.json").exists()))
@pytest.mark.parametrize("chunk", [None, 5])
def test_own_golden(tmp_path, case, chunk):
    folder = OWN / case
    gguf = list(folder.glob("*.gguf"))
    for model in ([folder] if (folder / "config.json").exists() else []) + gguf:
        check_case(folder, model, tmp_path, chunk)


def perplexity(model, shared, compute):
    return json.loads(baton("perplexity", "--model", model, "--ids", shared / "golden" / "smollm2-perplexity.json",
                            "--window", 512, "--compute", compute, "--json"))


def test_perplexity_f32(model, shared):
    got = perplexity(model, shared, "f32")
    assert got["tokens"] == 4096 - 8 and abs(got["perplexity"] - 14.7045) <= 0.002, got
    assert math.isclose(math.exp(got["nll_per_token"]), got["perplexity"], rel_tol=1e-9)


def test_perplexity_auto(model, shared):
    assert perplexity(model, shared, "auto")["perplexity"] <= 14.75


def test_chats_f32(model, shared, tmp_path):
    cases = json.loads((shared / "golden" / "smollm2-chat.json").read_text())["cases"]
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([c["prompt_ids"] for c in cases]))
    got = json.loads(baton("generate", "--model", model, "--ids", ids, "--max-tokens", 48, "--compute", "f32", "--json"))
    for case, a in zip(cases, got["ids"], strict=True):
        b = case["greedy_ids"]
        first = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), None)
        assert (first is None and len(a) == len(b)) or case["margins"][first] < 0.002, case["prompt"]


def test_auto_agrees_with_the_reference(model, shared, tmp_path):
    """Teacher-forced over the perplexity text: the same greedy token at 96.3 % of the positions or more."""
    tokens = json.loads((shared / "golden" / "smollm2-perplexity.json").read_text())["tokens"]
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps([tokens[i : i + 512] for i in range(0, len(tokens), 512)]))
    best = {}
    for compute in ("f32", "auto"):
        out = tmp_path / f"{compute}.safetensors"
        baton("logits", "--model", model, "--ids", ids, "--out", out, "--compute", compute)
        logits = load_file(out)
        best[compute] = np.concatenate([logits[f"logits.{i}"].argmax(1) for i in range(len(logits))])
    agreement = (best["f32"] == best["auto"]).mean()
    print(f"agreement {agreement:.4f}")
    assert agreement >= 0.963
