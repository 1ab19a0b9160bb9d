"""Accounting: requests cancelled at random moments leave no block behind on either side."""

import http.client
import json
import random
import threading
import time

import pytest
from procs import Cluster


def cancelled_request(cluster, body, after):
    """Starts a streaming request and closes the connection after a time."""
    connection = http.client.HTTPConnection(cluster.url.removeprefix("http://"), timeout=60)
    try:
        connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}),
                           {"content-type": "application/json"})
        connection.sock.settimeout(after)
        try:
            response = connection.getresponse()
            end = time.monotonic() + after
            while time.monotonic() < end and response.read1(4096):
                pass
        except OSError:
            pass
    finally:
        connection.close()


@pytest.mark.parametrize("burst", [1, 6])
def test_blocks_come_back_within_a_second(model, storm, burst):
    rnd = random.Random(burst)
    rounds = (150 if storm else 25) if burst == 1 else (25 if storm else 6)
    with Cluster("up", "--model", model) as cluster:
        slowest = 0
        for _ in range(rounds):
            threads = []
            for _ in range(burst):
                body = dict(
                    model=cluster.model, prompt=[rnd.randrange(20, 49000) for _ in range(rnd.choice([5, 100, 600]))],
                    max_tokens=400, ignore_eos=True, temperature=0, n=rnd.choice([1, 1, 2]))
                after = rnd.choice([0.001, 0.01, 0.05, 0.2, 0.5, 1.0]) * rnd.random() + 0.001
                threads.append(threading.Thread(target=cancelled_request, args=(cluster, body, after)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            slowest = max(slowest, cluster.wait_at_rest(within=1.0))
        print(f"{rounds * burst} cancelled requests, slowest return of all blocks {slowest:.3f} s")
        answer = cluster.post("/v1/completions", dict(model=cluster.model, prompt="The capital of France is",
                                                      max_tokens=4, temperature=0))
        assert "Paris" in answer["choices"][0]["text"]


def test_cancelled_while_queued(model):
    """More requests than run at once: those that wait are cancelled too."""
    with Cluster("up", "--model", model, "--max-running", "2", "--kv-blocks", "160") as cluster:
        body = dict(model=cluster.model, prompt=list(range(100, 700)), max_tokens=400, ignore_eos=True, temperature=0)
        threads = [threading.Thread(target=cancelled_request, args=(cluster, body, 0.4)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cluster.wait_at_rest(within=1.0)
