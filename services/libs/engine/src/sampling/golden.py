"""Writes golden.json: what Hugging Face's logits processors make of random logits.

numpy float32, after the formulas of transformers' generation/logits_process.py: RepetitionPenaltyLogitsProcessor,
MinLengthLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper, MinPLogitsWarper;
the frequency and presence penalties after OpenAI's API reference. Run: python golden.py > golden.json
"""

import json

import numpy as np

F = np.float32


def softmax(z):
    e = np.exp((z - z.max()).astype(np.float64))
    return e / e.sum()


def log_softmax(z):
    z = z.astype(np.float64)
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def process(z, case):
    z = z.copy()
    for token, bias in case["logit_bias"]:
        z[token] += F(bias)
    for token in set(case["prompt"] + case["generated"]):
        p = F(case["repetition_penalty"])
        z[token] = z[token] * p if z[token] < 0 else z[token] / p
    for token in set(case["generated"]):
        count = case["generated"].count(token)
        z[token] -= F(case["frequency_penalty"]) * F(count) + F(case["presence_penalty"])
    if len(case["generated"]) < case["min_tokens"]:
        z[case["eos"]] = -np.inf
    return z


def warp(z, case):
    z = (z / F(case["temperature"])).astype(F)
    if case["top_k"]:
        k = min(case["top_k"], len(z))
        z = np.where(z < np.sort(z)[-k], F(-np.inf), z)
    if case["top_p"] < 1:
        order = np.argsort(z, kind="stable")
        remove = np.cumsum(softmax(z[order])) <= 1 - case["top_p"]
        remove[-1] = False
        z = z.copy()
        z[order[remove]] = -np.inf
    if case["min_p"] > 0:
        p = softmax(z)
        z = np.where(p < case["min_p"] * p.max(), F(-np.inf), z)
    return z


def main():
    rng = np.random.default_rng(23)
    cases = []
    for i in range(40):
        n = int(rng.integers(20, 60))
        logits = rng.normal(0, 3, n).astype(F)
        pick = lambda options: options[int(rng.integers(len(options)))]
        ids = lambda low, high: [int(t) for t in rng.integers(0, n, int(rng.integers(low, high)))]
        case = {
            "logits": [float(x) for x in logits],
            "logit_bias": [[int(t), float(F(rng.normal(0, 4)))] for t in set(ids(0, 4))],
            "prompt": ids(0, 8),
            "generated": ids(0, 8),
            "eos": sorted(set(ids(1, 3))),
            "min_tokens": pick([0, 4, 100]),
            "temperature": pick([0.5, 1.0, 1.7]),
            "top_k": pick([0, 1, 5, 12, 1000]),
            "top_p": pick([0.05, 0.3, 0.9, 1.0]),
            "min_p": pick([0.0, 0.02, 0.3]),
            "repetition_penalty": pick([1.0, 1.25, 0.75]),
            "frequency_penalty": pick([0.0, 0.5, -0.25]),
            "presence_penalty": pick([0.0, 1.5]),
        }
        processed = process(logits, case)
        probabilities = softmax(warp(processed, case))
        case["greedy"] = int(np.argmax(processed))
        case["probabilities"] = [[int(t), float(probabilities[t])] for t in np.nonzero(probabilities)[0]]
        case["logprobs"] = [float(x) for x in log_softmax(logits)]
        cases.append(case)
    print("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]")


main()
