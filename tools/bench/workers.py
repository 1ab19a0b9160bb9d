"""Measured programs as processes that answer lines, so that they can take turns finely."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


# Threads of the program asked before look for work a while longer; nobody shall be measured beside them.
PAUSE_SECONDS = 0.05


class Failed(Exception):
    """A program that ended or answered with an error."""


class Worker:
    """One program. `ask` sends a case and returns tokens per second."""

    def __init__(self, name, command):
        self.name = name
        self.complaints = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
        )

    def ask(self, case):
        time.sleep(PAUSE_SECONDS)
        try:
            self.process.stdin.write(case + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.ended() from None
        return self.answer()["tokens_per_s"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise self.ended()
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def ended(self):
        status = self.process.wait()
        self.complaints.seek(0)
        lines = self.complaints.read().split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return Failed(f"{self.name} has ended with status {status}: {last}")

    def close(self):
        """Ends it; more than once does no harm."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def baton(binary, model, threads):
    """Ours, with room for the largest case that is asked for."""
    flags = ["--threads", str(threads), "--prefill", "512", "--decode", "128", "--context", "512", "--batch", "32"]
    return Worker("baton", [binary, "bench", "engine", "--model", model, *flags, "--lines"])


def peer(name, kind, folder, model, threads, settings=()):
    """An opponent, loaded and ready."""
    command = [sys.executable, os.path.join(HERE, "peer.py"), kind, folder, model, str(threads), *settings]
    worker = Worker(name, command)
    worker.answer()
    return worker
