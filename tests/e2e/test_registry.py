"""Real etcd: workers appear and disappear, and its absence is a non-event."""

import threading
import time

import pytest
from procs import Cluster, Etcd, Http, role_process, wait_ready


@pytest.fixture
def etcd():
    server = Etcd()
    yield server
    server.stop()


def ask(http, model):
    body = dict(model=model, prompt="The capital of France is", max_tokens=6, temperature=0)
    return http.try_post("/v1/completions", body, timeout=60)


def wait_for(what, check, within):
    start = time.monotonic()
    while not check():
        assert time.monotonic() - start < within, f"{what}: not within {within} s"
        time.sleep(0.02)
    return time.monotonic() - start


def up_members(grpc_address):
    import grpc
    from baton.v1 import admin_pb2, admin_pb2_grpc

    with grpc.insecure_channel(grpc_address) as channel:
        state = admin_pb2_grpc.AdminServiceStub(channel).GetClusterState(
            admin_pb2.GetClusterStateRequest(), timeout=5)
    return {m.worker.worker_id for m in state.members if m.health == "UP" and m.role != "router"}, state


def test_workers_come_and_go(model, etcd):
    """kill -9: gone within 3 s, and new requests go to the living; a new worker serves within 3 s of its start."""
    processes = []
    try:
        engine = ["--threads", "1"]
        for role, worker_id in [("prefill", "p0"), ("prefill", "p1"), ("decode", "d0"), ("decode", "d1")]:
            processes.append(role_process(role, etcd.url, model, worker_id, *engine))
        router = role_process("router", etcd.url, model, "r0")
        processes.append(router)
        wait_ready([Http(f"http://127.0.0.1:{router.ports['admin']}")])
        grpc_address = f"127.0.0.1:{router.ports['grpc']}"
        http = Http(f"http://127.0.0.1:{router.ports['http']}")
        name = http.get("/v1/models")["data"][0]["id"]
        wait_for("all four up", lambda: up_members(grpc_address)[0] == {"p0", "p1", "d0", "d1"}, 3)
        assert ask(http, name)[0] == 200

        by_id = {p.name: p for p in processes}
        by_id["d0"].kill9()
        by_id["p0"].kill9()
        for _ in range(3):
            status, body = ask(http, name)
            assert status == 200, body
        took = wait_for("the killed workers gone", lambda: up_members(grpc_address)[0] == {"p1", "d1"}, 3)
        print(f"killed workers left the view after {took:.2f} s")
        for _ in range(5):
            assert ask(http, name)[0] == 200

        processes.append(role_process("decode", etcd.url, model, "d2", *engine))
        took = wait_for("a new worker used", lambda: up_members(grpc_address)[0] == {"p1", "d1", "d2"}, 3)
        print(f"a new worker was in the view {took:.2f} s after it listened")
    finally:
        for process in reversed(processes):
            process.stop()


def test_etcd_outage_is_a_non_event(model, etcd, storm):
    """etcd stopped for a while: requests succeed, nobody restarts, all are registered 5 s after its return."""
    outage = 60 if storm else 12
    with Cluster("up", "--model", model, "--registry", etcd.url) as cluster:
        pids = {c["id"]: c["pid"] for c in cluster.children()}
        failures, stop = [], threading.Event()

        def load():
            while not stop.is_set():
                status, body = ask(cluster, cluster.model)
                if status != 200:
                    failures.append((status, body))
                time.sleep(0.1)

        thread = threading.Thread(target=load)
        thread.start()
        again = None
        try:
            time.sleep(1)
            etcd.kill9()
            time.sleep(outage)
            up, state = up_members(cluster.grpc)
            assert up == {"prefill-0", "decode-0"} and not state.registry_connected
            again = etcd.again()
            took = wait_for("registry connected, all members up",
                            lambda: (lambda s: s[1].registry_connected and s[0] == {"prefill-0", "decode-0"})(
                                up_members(cluster.grpc)), 5)
            # Registered for good: still there when any lease from before the outage has run out.
            time.sleep(4)
            assert up_members(cluster.grpc)[0] == {"prefill-0", "decode-0"}
            print(f"outage of {outage} s: reconnected after {took:.2f} s, {len(failures)} requests failed")
            assert pids == {c["id"]: c["pid"] for c in cluster.children()}, "a process restarted"
        finally:
            stop.set()
            thread.join()
            if again:
                assert cluster.stop() == 0
                again.stop()
        assert not failures, failures[:3]
