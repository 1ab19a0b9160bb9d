"""The commands as processes: the demo, the ready line, cluster.json, restarts, clean ends."""

import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest
from procs import Cluster, Http, Process, required_env

ASK = dict(prompt="The capital of France is", max_tokens=6, temperature=0)


def test_demo(model):
    """Three processes, an answer that names Paris, KV that crossed between two of them."""
    run = subprocess.run([required_env("BATON_BIN"), "demo", "--exit", "--model", model], capture_output=True,
                         text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-800:]
    pids = dict(re.findall(r"(router-0|prefill-0|decode-0) +pid (\d+)", run.stdout))
    assert len(set(pids.values())) == 3, run.stdout
    assert "Paris" in run.stdout
    crossed = re.search(r"prefill-0 -> decode-0: (\d+) bytes of KV over (\w+)", run.stdout)
    assert crossed and int(crossed[1]) > 100_000, run.stdout
    for phase in ("tokenize", "route", "prefill", "handoff", "first_step"):
        assert re.search(rf"^ *{phase} +[\d.]+ ms", run.stdout, re.M), run.stdout
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_cluster_file_and_restart(model):
    with Cluster("up", "--model", model, "--prefill", "1", "--decode", "2") as cluster:
        children = {c["id"]: c for c in cluster.children()}
        assert set(children) == {"router-0", "prefill-0", "decode-0", "decode-1"}
        assert set(children["router-0"]["ports"]) == {"http", "grpc", "admin"}
        assert set(children["prefill-0"]["ports"]) == {"grpc", "kv", "admin"}
        victim = children["decode-0"]["pid"]
        os.kill(victim, signal.SIGKILL)
        for _ in range(10):
            status, answer = cluster.try_post("/v1/completions", {**ASK, "model": cluster.model})
            assert status == 200, answer
        end = time.monotonic() + 10
        while True:
            now = {c["id"]: c for c in cluster.children()}
            if "decode-0" in now and now["decode-0"]["pid"] != victim and now["decode-0"]["ports"]:
                break
            assert time.monotonic() < end, now
            time.sleep(0.05)
        assert now["router-0"]["pid"] == children["router-0"]["pid"]
    assert cluster.process.returncode == 0


def test_taken_port_is_said(model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        run = subprocess.run([required_env("BATON_BIN"), "up", "--model", model, "--http", address, "--grpc",
                              "127.0.0.1:0"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "in use" in run.stderr and "router-0" in run.stderr, run.stderr[-800:]


@pytest.mark.parametrize("after", [0.05, 0.3, 0.8])
def test_stops_while_starting(model, after):
    process = Process([required_env("BATON_BIN"), "up", "--model", model, "--http", "127.0.0.1:0", "--grpc",
                       "127.0.0.1:0"], name="baton up")
    time.sleep(after)
    process.stop(timeout=10)
    document = process.dir / "cluster.json"
    assert not document.exists() or json.loads(document.read_text())["children"] == []


def test_children_end_with_a_killed_parent(model):
    cluster = Cluster("up", "--model", model)
    pids = [c["pid"] for c in cluster.children()]
    cluster.kill9()
    end = time.monotonic() + 15
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end, "children outlived their parent"
        time.sleep(0.05)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_no_prefill_worker_still_answers(model):
    with Cluster("up", "--model", model, "--prefill", "0") as cluster:
        assert "Paris" in cluster.post("/v1/completions", {**ASK, "model": cluster.model})["choices"][0]["text"]
        skipped = [l for l in cluster.admin.text("/metrics").splitlines() if "disaggregation_skipped" in l]
        assert any(not l.startswith("#") and float(l.split()[-1]) > 0 for l in skipped), skipped


def test_probes_and_metrics(cluster):
    for child in cluster.children():
        admin = Http(f"http://127.0.0.1:{child['ports']['admin']}")
        for path in ("/live", "/ready", "/startup"):
            admin.text(path)
        text = admin.text("/metrics")
        assert re.search(r"^baton_\w+", text, re.M) and "# EOF" not in text
        names = {re.split(r"[ {]", l)[0] for l in text.splitlines() if not l.startswith("#")}
        assert all(re.fullmatch(r"baton_[a-z]+(_[a-z]+)+", n) for n in names), names
        openmetrics = admin.text("/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.rstrip().endswith("# EOF")
        if child["role"] != "router":
            blocks = admin.get("/debug/accounting")["blocks"]
            assert set(blocks) == {"total", "free", "request", "transfer", "cached"}


def test_status_and_chat(cluster):
    baton = required_env("BATON_BIN")
    status = subprocess.run([baton, "status", "--grpc", cluster.grpc, "--json"], capture_output=True, text=True, timeout=30)
    members = {m["id"]: m for m in json.loads(status.stdout)["members"]}
    assert members["decode-0"]["health"] == "UP" and members["prefill-0"]["transport"] == "shm,tcp,grpc"
    table = subprocess.run([baton, "status", "--grpc", cluster.grpc], capture_output=True, text=True, timeout=30)
    assert "decode-0" in table.stdout
    chat = subprocess.run([baton, "chat", "What is the capital of France?", "--grpc", cluster.grpc, "--json"],
                          capture_output=True, text=True, timeout=60)
    answer = json.loads(chat.stdout)
    assert "Paris" in answer["text"] and answer["kv_bytes"] > 0
    talk = subprocess.run([baton, "chat", "--grpc", cluster.grpc], capture_output=True, text=True, timeout=60,
                          input="My name is Ada.\nWhat is the capital of France?\n")
    assert "Paris" in talk.stdout, talk


def test_sim_engine(model):
    """The whole path without weights: split equals whole, far beyond what real weights would allow here."""
    ask = lambda c, i: c.post("/v1/completions", dict(
        model=c.model, prompt=[1000 + i] * (i % 200 + 1), max_tokens=64, temperature=i % 2, seed=i,
        return_token_ids=True))["choices"][0]["token_ids"]
    flags = ["--model", model, "--engine", "sim", "--sim-speedup", "inf"]
    with Cluster("single", *flags) as single:
        want = [ask(single, i) for i in range(60)]
    with Cluster("up", *flags, "--prefill", "2", "--decode", "2") as split:
        assert [ask(split, i) for i in range(60)] == want
        split.wait_at_rest(1.0)


@pytest.mark.parametrize(
    "args, names",
    [
        (["up", "--model", "no-such-model"], "no-such-model"),
        (["up", "--model", "{model}", "--decode", "0"], "--decode"),
        (["up", "--model", "{model}", "--kv-blocks", "0"], "--kv-blocks"),
        (["up", "--model", "{model}", "--threads", "0"], "--threads"),
        (["single", "--model", "/dev/null"], "/dev/null"),
        (["decode", "--model", "{model}", "--registry", "nonsense://x"], "nonsense"),
        (["chat", "hello", "--grpc", "127.0.0.1:1"], "127.0.0.1:1"),
        (["generate", "--model", "{model}", "--ids", "/does/not/exist"], "/does/not/exist"),
    ],
)
def test_wrong_commands_say_why(model, args, names):
    run = subprocess.run([required_env("BATON_BIN"), *(a.format(model=model) for a in args)], capture_output=True,
                         text=True, timeout=60)
    assert run.returncode != 0 and names in run.stderr and "panicked" not in run.stderr, run.stderr
