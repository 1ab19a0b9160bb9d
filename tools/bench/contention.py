"""How much of its quiet decode rate a program keeps on a machine that is busy with something else.

Something else is a loop that never waits: one bound to one core, then one on each core. A round measures a program
quiet, then beside each load; what it kept is a ratio within the round. Rounds of the programs take turns.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys

import report
import workers

CORES = sorted(os.sched_getaffinity(0))
LOADS = {"a loop on one core": CORES[:1], "a loop on every core": CORES}
# Looks now and then whether its parent is still there, so that it never outlives a measurement that was killed.
LOOP = """
import os, sys
parent = os.getppid()
os.sched_setaffinity(0, {int(sys.argv[1])})
print(flush=True)
while os.getppid() == parent:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def busy(cores):
    """A loop on each of the cores while the block runs."""
    loops = []
    try:
        for core in cores:
            loops.append(subprocess.Popen([sys.executable, "-c", LOOP, str(core)], stdout=subprocess.PIPE))
        for loop in loops:
            # It runs, on its core, from here on.
            loop.stdout.readline()
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
            loop.stdout.close()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baton", default="target/release/baton")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--peers", required=True, help="folder that peers.sh filled")
    parser.add_argument("--threads", type=int, default=len(CORES))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--context", type=int, default=0, help="tokens before the decode steps, at most 512")
    parser.add_argument("--steps", type=int, default=48, help="decode steps of a figure")
    parser.add_argument("--out", help="JSON file to write; a plot goes beside it")
    parser.add_argument("--markdown", help="file whose generated part is written anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parsed = parser.parse_args()
    if parsed.pairs < 1 or parsed.steps < 1 or parsed.threads < 1:
        parser.error("--pairs, --steps and --threads are at least 1")
    return parsed


def main():
    args = arguments()
    llama = os.path.abspath(os.path.join(args.peers, "llama.cpp"))
    case = f"decode {args.context} 1 {args.steps}"
    quiet, kept = {}, {}
    with (
        workers.baton(args.baton, args.model, args.threads) as ours,
        workers.peer("llama.cpp", "llama.cpp", llama, args.model, args.threads, ["kv_unified=1"]) as theirs,
    ):
        for worker in (ours, theirs):
            worker.ask(case)
            quiet[worker.name], kept[worker.name] = [], {load: [] for load in LOADS}
        for pair in range(args.pairs):
            for worker in (ours, theirs) if pair % 2 == 0 else (theirs, ours):
                speed = worker.ask(case)
                quiet[worker.name].append(speed)
                for load, cores in LOADS.items():
                    with busy(cores):
                        kept[worker.name][load].append(worker.ask(case) / speed)
            print(f"round {pair + 1} of {args.pairs}", file=sys.stderr)
    result = report.contention(args, quiet, kept)
    if args.out:
        report.write(args.out, result)
    if args.markdown:
        report.update_markdown(args.markdown, "contention", report.contention_markdown(result))
    print(json.dumps(result) if args.json else report.contention_text(result))


if __name__ == "__main__":
    main()
