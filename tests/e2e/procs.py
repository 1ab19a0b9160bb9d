"""Starts baton's processes, waits for what they print, stops exactly what it started."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request


def required_env(name):
    value = os.environ.get(name)
    if not value:
        raise RuntimeError(f"{name} is not set: run the tests with `make test`")
    return value


def free_port():
    """One that the system does not give to those who ask for any: it stays free until it is used."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class Process:
    """One child with its output kept in files."""

    def __init__(self, args, env=None, name="process"):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="baton-e2e-"))
        self.stderr = open(self.dir / "stderr", "w+")
        self.name, self.lines = name, []
        self.process = subprocess.Popen(
            [str(a) for a in args],
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            stdin=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "BATON_RUN_DIR": str(self.dir), **(env or {})},
        )
        self.pid = self.process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_line(self, pattern, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for line in list(self.lines):
                match = re.search(pattern, line)
                if match:
                    return match
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} printed no {pattern!r}: {self.tail()}")

    def tail(self, n=1500):
        return (self.dir / "stderr").read_text()[-n:]

    def kill9(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout=20):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
                raise RuntimeError(f"{self.name} did not stop on SIGTERM: {self.tail()}")
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Http:
    """Calls to one HTTP address with nothing but the standard library."""

    def __init__(self, url):
        self.url = url

    def get(self, path, timeout=30):
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return json.load(answer)

    def text(self, path, timeout=30, headers=None):
        request = urllib.request.Request(self.url + path, headers=headers or {})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.read().decode()

    def post(self, path, body, timeout=120, headers=None):
        status, answer = self.try_post(path, body, timeout, headers)
        assert status == 200, (status, answer)
        return answer

    def try_post(self, path, body, timeout=120, headers=None):
        """Status and parsed body, whatever the status; `body` may be bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode()
            try:
                return error.code, json.loads(text)
            except ValueError:
                return error.code, text

    def stream(self, path, body, timeout=120):
        """Server-sent events as objects; ends after [DONE], raises when the stream ends without it."""
        data = json.dumps({**body, "stream": True}).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            for line in answer:
                line = line.decode().strip()
                if line == "data: [DONE]":
                    return
                if line.startswith("data:"):
                    yield json.loads(line[5:])
        raise RuntimeError("the stream ended without [DONE]")


class Cluster(Process, Http):
    """`baton up` or `baton single` on free ports."""

    def __init__(self, command, *args, timeout=90):
        http, grpc, admin = (f"127.0.0.1:{free_port()}" for _ in range(3))
        baton = required_env("BATON_BIN")
        Process.__init__(
            self, [baton, command, "--http", http, "--grpc", grpc, "--admin", admin, *args], name=f"baton {command}"
        )
        try:
            ready = self.wait_line(r"^ready http=(\S+) grpc=(\S+) admin=(\S+)", timeout)
        except RuntimeError:
            self.stop()
            raise
        self.url, self.grpc, self.admin = ready[1], ready[2], Http(ready[3])
        self.model = self.get("/v1/models")["data"][0]["id"]

    def children(self, role=None):
        document = json.loads((self.dir / "cluster.json").read_text())
        return [c for c in document["children"] if role is None or c["role"] == role]

    def accounting(self):
        """The accounting of every worker, by id."""
        found = {}
        for child in self.children():
            if child["role"] != "router":
                admin = Http(f"http://127.0.0.1:{child['ports']['admin']}")
                found[child["id"]] = admin.get("/debug/accounting")
        return found

    def wait_at_rest(self, within=1.0):
        """Every block of every worker free or cached within the time; returns how long it took."""
        start = time.monotonic()
        while True:
            state = self.accounting()
            if all(at_rest(a) for a in state.values()):
                return time.monotonic() - start
            assert time.monotonic() - start < within, f"blocks still owned after {within} s: {state}"
            time.sleep(0.02)


def at_rest(accounting):
    blocks = accounting["blocks"]
    return (
        blocks["request"] == 0
        and blocks["transfer"] == 0
        and blocks["free"] + blocks["cached"] == blocks["total"]
        and accounting["requests"] == 0
        and accounting["streams"] == 0
    )


def wait_ready(admins, within=60):
    """Waits until every admin address says ready."""
    end = time.monotonic() + within
    while True:
        try:
            for admin in admins:
                admin.text("/ready", timeout=2)
            return
        except OSError as error:
            assert time.monotonic() < end, f"not ready after {within} s: {error}"
            time.sleep(0.05)


class Etcd(Process):
    """A real etcd on free ports with its own data directory; can be killed and started again."""

    def __init__(self, port=None, peer=None, data=None):
        self.port, self.peer = port or free_port(), peer or free_port()
        self.data = data or tempfile.mkdtemp(prefix="baton-etcd-")
        client, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{self.peer}"
        super().__init__(
            [
                required_env("BATON_ETCD"), "--data-dir", self.data, "--listen-client-urls", client,
                "--advertise-client-urls", client, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            ],
            name="etcd",
        )
        self.url = f"etcd://127.0.0.1:{self.port}"
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if Http(client).get("/health", timeout=1).get("health") == "true":
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError(f"etcd did not start: {self.tail()}")

    def again(self):
        return Etcd(self.port, self.peer, self.data)


def role_process(role, registry, model, worker_id, *args):
    """One role, started by hand, and the ports it announced."""
    listen = ["--grpc", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    listen += ["--http", "127.0.0.1:0"] if role == "router" else ["--kv", "127.0.0.1:0"]
    process = Process(
        [required_env("BATON_BIN"), role, "--registry", registry, "--model", model, "--id", worker_id, *listen, *args],
        name=worker_id,
    )
    try:
        process.ports = json.loads(process.wait_line(r'^(\{.*"ports".*\})')[1])["ports"]
    except RuntimeError:
        process.stop()
        raise
    return process
