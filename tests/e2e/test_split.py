"""Split = whole: token ids and logprobs are bit-identical in one process, 1P1D and 2P2D."""

import concurrent.futures as cf
import itertools
import json
import random

import pytest
from procs import Cluster

LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 257, 400, 900]


def requests(n, seed):
    rnd, found = random.Random(seed), []
    for i in range(n):
        length = LENGTHS[i % len(LENGTHS)] if i % 3 else rnd.randint(1, 900)
        ask = dict(
            prompt=[rnd.randrange(20, 49000) for _ in range(length)], max_tokens=rnd.choice([1, 2, 17, 24]),
            return_token_ids=True, logprobs=2, ignore_eos=True,
        )
        sampled = dict(temperature=0.9, top_p=0.95, seed=i, frequency_penalty=0.3, repetition_penalty=1.1)
        found.append({**ask, **(sampled if i % 2 else dict(temperature=0))})
    return found


def answers(cluster, asks, parallel):
    def one(ask):
        choice = cluster.post("/v1/completions", {**ask, "model": cluster.model}, timeout=600)["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]

    with cf.ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(one, asks))


@pytest.fixture(scope="module")
def asks(storm):
    return requests(200 if storm else 26, seed=20261123)


@pytest.fixture(scope="module")
def reference(model, asks):
    with Cluster("single", "--model", model, "--threads", "1") as c:
        return answers(c, asks, 1)


DEPLOYMENTS = {
    "single, 16 at a time": (16, "single", "--threads", "2"),
    "single, small steps": (4, "single", "--threads", "1", "--step-tokens", "16"),
    "1P1D": (1, "up", "--step-tokens", "64"),
    "1P1D, 16 at a time": (16, "up", "--step-tokens", "512", "--threads", "2"),
    "2P2D, 16 at a time": (16, "up", "--prefill", "2", "--decode", "2"),
    "1P1D over shared memory": (4, "up", "--transport", "shm"),
    "1P1D over TCP": (4, "up", "--transport", "tcp"),
    "1P1D over gRPC": (4, "up", "--transport", "grpc"),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_split_equals_whole(model, asks, reference, name):
    parallel, command, *flags = DEPLOYMENTS[name]
    with Cluster(command, "--model", model, *flags) as c:
        got = answers(c, asks, parallel)
        if command == "up":
            c.wait_at_rest(2.0)
    different = [i for i, (a, b) in enumerate(zip(got, reference)) if a != b]
    assert not different, f"{len(different)} of {len(asks)} differ, first: {different[:5]}"


def test_chats_f32(model, shared, storm):
    """The reference's chats through the whole path, in float32: equal to its greedy ids."""
    cases = json.loads((shared / "golden" / "smollm2-chat.json").read_text())["cases"]
    cases = cases if storm else cases[:6]
    with Cluster("up", "--model", model, "--compute", "f32") as c:
        for case in cases:
            body = dict(model=c.model, messages=[{"role": "user", "content": case["prompt"]}], temperature=0,
                        max_tokens=48, return_token_ids=True)
            answer = c.post("/v1/chat/completions", body)
            got, want = answer["choices"][0]["token_ids"], case["greedy_ids"]
            first = next((k for k, (a, b) in enumerate(itertools.zip_longest(got, want)) if a != b), None)
            assert first is None or case["margins"][first] < 0.002, (case["prompt"], first)
