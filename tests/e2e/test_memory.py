"""What a process holds: the weights once, the KV pool, and little else."""

import os
import re
import time

from procs import Cluster

MB = 1_000_000
KV_BLOCKS = 128
# 16 tokens of 30 layers, keys and values of 3 heads of 64 in two bytes.
KV_BYTES = KV_BLOCKS * 16 * 30 * 2 * 3 * 64 * 2


def memory(pid):
    """Resident memory and its peak, bytes."""
    status = open(f"/proc/{pid}/status").read()
    return tuple(int(re.search(rf"^{key}:\s+(\d+) kB", status, re.M)[1]) * 1024 for key in ("VmRSS", "VmHWM"))


def test_weights_are_held_once(model):
    limit = 1.4 * os.path.getsize(model) + KV_BYTES + 100 * MB
    started = time.monotonic()
    with Cluster("single", "--model", model, "--kv-blocks", str(KV_BLOCKS)) as single:
        ready = time.monotonic() - started
        loaded, _ = memory(single.pid)
        for i in range(6):
            ask = dict(model=single.model, prompt=[100 + i] * 300 + [7] * i, max_tokens=16, temperature=0)
            single.post("/v1/completions", ask)
        served, peak = memory(single.pid)
        maps = open(f"/proc/{single.pid}/maps").read()
        print(f"ready in {ready:.2f} s, {loaded / MB:.0f} MB loaded, {served / MB:.0f} MB served, peak {peak / MB:.0f} MB")
        assert peak <= limit, f"{peak / MB:.0f} MB, the limit is {limit / MB:.0f} MB"
        assert "[heap]" in maps and os.path.basename(model) not in maps, "the file is still mapped"
