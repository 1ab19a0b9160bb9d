"""The transports of KV between processes: which one carries it, and what a prefill worker's death in the middle does."""

import concurrent.futures as cf
import json
import os
import random
import signal
import subprocess
import time

import pytest
from procs import Cluster, Http, required_env

TRANSPORTS = ["shm", "tcp", "grpc"]


def status(cluster):
    answer = subprocess.run(
        [required_env("BATON_BIN"), "status", "--grpc", cluster.grpc, "--json"], capture_output=True, text=True, check=True)
    return {m["id"]: m for m in json.loads(answer.stdout)["members"]}


def metrics(cluster, child_id):
    child = next(c for c in cluster.children() if c["id"] == child_id)
    text = Http(f"http://127.0.0.1:{child['ports']['admin']}").text("/metrics")
    return [line for line in text.splitlines() if line.startswith("baton_transfer_")]


def wait_restarted(cluster, killed, within=60):
    """Until another process has the killed child's place, and the router uses it."""
    end = time.monotonic() + within
    while True:
        now = [c["pid"] for c in cluster.children(killed["role"]) if c["id"] == killed["id"]]
        member = status(cluster).get(killed["id"])
        if now and now != [killed["pid"]] and member and member["health"] == "UP":
            return
        assert time.monotonic() < end, (now, member)
        time.sleep(0.1)


def value(lines, *parts):
    return sum(float(line.split()[-1]) for line in lines if all(part in line for part in parts))


def prompt(seed, n):
    rnd = random.Random(seed)
    return [rnd.randrange(20, 49000) for _ in range(n)]


def ask(cluster, ids, n=8):
    body = dict(model=cluster.model, prompt=ids, max_tokens=n, temperature=0, ignore_eos=True, return_token_ids=True)
    return cluster.post("/v1/completions", body, timeout=120)["choices"][0]["token_ids"]


@pytest.mark.parametrize("asked,used", [("auto", "shm"), *[(t, t) for t in TRANSPORTS]])
def test_the_transport_is_seen(model, asked, used):
    """In status, in the metrics of both sides, and in the timeline of a chat; nothing was downgraded."""
    with Cluster("up", "--model", model, "--transport", asked) as c:
        ask(c, prompt(1, 100))
        members = status(c)
        assert members["decode-0"]["transport"] == used
        served = {"auto": "shm,tcp,grpc", "grpc": "grpc"}.get(asked, f"{asked},grpc")
        assert members["prefill-0"]["transport"] == served
        for worker, direction in [("prefill-0", "sent"), ("decode-0", "received")]:
            lines = metrics(c, worker)
            moved = value(lines, "payload_bytes_total", f'direction="{direction}"', f'transport="{used}"')
            assert moved > 1_000_000, lines
            assert value(lines, "payload_bytes_total") == moved, "another transport carried something"
        assert value(metrics(c, "decode-0"), "transport_downgrades_total") == 0
        chat = subprocess.run(
            [required_env("BATON_BIN"), "chat", "Hello!", "--grpc", c.grpc, "--timeline", "--max-tokens", "4"],
            capture_output=True, text=True, check=True)
        assert f"bytes of KV over {used}" in chat.stdout, chat.stdout


def test_a_downgrade_is_said(model):
    """The socket of shared memory is gone: TCP carries the KV, the log says why, and the metric counts it."""
    with Cluster("up", "--model", model) as c:
        want = ask(c, prompt(2, 60))
        sockets = list(c.dir.glob("kv-*.sock"))
        assert sockets, list(c.dir.iterdir())
        # Connections that are kept would still work: a new decode worker has none.
        for socket in sockets:
            socket.unlink()
        decode = c.children("decode")[0]
        os.kill(decode["pid"], signal.SIGKILL)
        wait_restarted(c, decode)
        assert ask(c, prompt(2, 60)) == want
        assert status(c)["decode-0"]["transport"] == "tcp"
        lines = metrics(c, "decode-0")
        assert value(lines, "transport_downgrades_total", 'from="shm"', 'to="tcp"') >= 1, lines


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_prefill_killed_in_the_middle(model, storm, transport):
    """Prefill dies while it computes and sends: the answer is that of an undisturbed run, and nothing stays owned."""
    with Cluster("up", "--model", model, "--transport", transport, "--step-tokens", "32") as c:
        trials = 12 if storm else 3
        asked = [prompt(100 + trial, 600) for trial in range(trials)]
        want = [ask(c, ids) for ids in asked]
        rnd = random.Random(transport)
        with cf.ThreadPoolExecutor(1) as pool:
            for ids, expected in zip(asked, want):
                prefill = c.children("prefill")[0]
                before = value(metrics(c, "prefill-0"), "payload_bytes_total", 'direction="sent"')
                answer = pool.submit(ask, c, ids)
                # Until some of the KV is on its way.
                end = time.monotonic() + 20
                while value(metrics(c, "prefill-0"), "payload_bytes_total", 'direction="sent"') == before:
                    assert time.monotonic() < end and not answer.done()
                time.sleep(rnd.uniform(0, 0.05))
                os.kill(prefill["pid"], signal.SIGKILL)
                assert answer.result(120) == expected
                wait_restarted(c, prefill)
        c.wait_at_rest(5.0)
