"""Split deployments against one process: tokens per second of the same mixed requests on the same cores.

Deployments run side by side and take turns, so that what else the machine does hits all alike; their answers must be
equal. Prints JSON: tokens per second of each deployment, and its ratio to `baton single`. Needs BATON_BIN and
BATON_DEMO_MODEL: `make bench-split`.
"""

import argparse
import concurrent.futures as cf
import json
import pathlib
import random
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "e2e"))
from procs import Cluster, required_env  # noqa: E402

DEPLOYMENTS = {
    "single": ("single",),
    "1P1D": ("up", "--prefill", "1", "--decode", "1"),
    "2P2D": ("up", "--prefill", "2", "--decode", "2"),
}
PARALLEL = [8, 12, 16]


def mixed(n, seed):
    """Prompts of 16 to 700 tokens, half of them short, with 8 to 64 new tokens each."""
    rnd = random.Random(seed)
    asks = []
    for i in range(n):
        length = rnd.randint(16, 128) if i % 2 else rnd.randint(128, 700)
        prompt = [rnd.randrange(20, 49_000) for _ in range(length)]
        asks.append(dict(prompt=prompt, max_tokens=rnd.randint(8, 64), temperature=0, ignore_eos=True,
                         return_token_ids=True))
    return asks


def turn(cluster, asks, parallel):
    """Seconds for the requests, and the ids of each answer."""
    def one(ask):
        answer = cluster.post("/v1/completions", {**ask, "model": cluster.model}, timeout=600)
        return answer["choices"][0]["token_ids"]

    with cf.ThreadPoolExecutor(parallel) as pool:
        start = time.monotonic()
        ids = list(pool.map(one, asks))
        return time.monotonic() - start, ids


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--turns", type=int, default=8, help="turns of each deployment")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--only", nargs="*", choices=DEPLOYMENTS, default=list(DEPLOYMENTS))
    arguments.add_argument("flags", nargs="*", help="more flags of each deployment")
    args = arguments.parse_args()
    asks = mixed(args.requests, args.seed)
    size = -(-len(asks) // args.turns)
    parts = [asks[i : i + size] for i in range(0, len(asks), size)]
    names = ["single"] + [name for name in args.only if name != "single"]
    clusters, seconds = {}, {name: [] for name in names}
    try:
        for name in names:
            command, *flags = DEPLOYMENTS[name]
            clusters[name] = Cluster(command, "--model", required_env("BATON_DEMO_MODEL"), *flags, *args.flags)
        for name in names:
            turn(clusters[name], mixed(4, args.seed + 1), 4)
        for i, part in enumerate(parts):
            expected = None
            for name in names[i % len(names) :] + names[: i % len(names)]:
                time_taken, ids = turn(clusters[name], part, PARALLEL[i % len(PARALLEL)])
                seconds[name].append(time_taken)
                expected = expected or ids
                assert ids == expected, f"{name} answers otherwise"
    finally:
        for cluster in clusters.values():
            cluster.stop()
    new = sum(ask["max_tokens"] for ask in asks)
    prompt = sum(len(ask["prompt"]) for ask in asks)
    per_turn = {name: [a / b for a, b in zip(seconds["single"], seconds[name])] for name in names}
    print(json.dumps({
        "requests": len(asks), "prompt_tokens": prompt, "new_tokens": new,
        "new_tokens_per_s": {name: round(new / sum(seconds[name]), 1) for name in names},
        "ratio_to_single": {name: round(sum(seconds["single"]) / sum(seconds[name]), 3) for name in names},
        "ratio_per_turn_median": {name: round(statistics.median(per_turn[name]), 3) for name in names},
    }, indent=2))


if __name__ == "__main__":
    main()
