"""The engine next to llama.cpp and ik_llama.cpp, on the same file with the same threads.

All programs are loaded first and wait; then baton and an opponent are asked for the same case one right after the other,
so that a pair of figures comes from the same moments of the machine. A ratio is taken pair by pair, and its median is
reported.

llama.cpp runs as its own tools run it (a unified cache, 512-token steps, weights repacked when loaded), also on a Q4_0
file of the same model, the format it repacks best. ik_llama.cpp is tried with and without repacking and flash
attention, and measured in the variants that win some case of a short trial.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys

import report
import workers

CASES = {
    "prefill 512": "prefill 512",
    "decode at 0": "decode 0 1 {steps}",
    "decode at 512": "decode 512 1 {steps}",
    "32 sequences": "decode 64 32 {batch_steps}",
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baton", default="target/release/baton")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--q4-0", help="GGUF file of the same model in Q4_0, for llama.cpp alone")
    parser.add_argument("--peers", required=True, help="folder that peers.sh filled")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=48, help="decode steps of a figure")
    parser.add_argument("--out", help="JSON file to write; a plot goes beside it")
    parser.add_argument("--markdown", help="file whose generated part is written anew")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parsed = parser.parse_args()
    if parsed.pairs < 1 or parsed.steps < 1 or parsed.threads < 1:
        parser.error("--pairs, --steps and --threads are at least 1")
    return parsed


def opponents(args):
    """Name, library, where it lies, file, settings."""
    llama, ik = (os.path.abspath(os.path.join(args.peers, name)) for name in ("llama.cpp", "ik_llama.cpp"))
    ik = os.path.join(ik, "ik_llama_cpp", "lib")
    plan = [("llama.cpp", "llama.cpp", llama, args.model, ["kv_unified=1"])]
    if args.q4_0:
        plan.append(("llama.cpp, Q4_0 file", "llama.cpp", llama, args.q4_0, ["kv_unified=1"]))
    for repack in (0, 1):
        for flash in (0, 1):
            words = [word for word, on in (("repacked", repack), ("flash attention", flash)) if on]
            name = ", ".join(["ik_llama.cpp", *words])
            plan.append((name, "ik_llama.cpp", ik, args.model, [f"model.repack_tensors={repack}", f"flash_attn={flash}"]))
    return plan


def start(plan, cases, args):
    """Loads the opponents and asks each case once; those that cannot run here are left out, loudly."""
    started = []
    for name, kind, folder, model, settings in plan:
        try:
            worker = workers.peer(name, kind, folder, model, args.threads, settings)
            for case in cases.values():
                worker.ask(case)
            started.append(worker)
        except workers.Failed as error:
            print(f"left out: {error}", file=sys.stderr)
    return started


def best_variants(started, cases, rounds=3):
    """Of a program in several variants, those that are fastest in some case of a short trial; the others are ended."""
    programs = {worker: worker.name.split(",")[0] for worker in started if worker.name.startswith("ik_llama.cpp")}
    winners = set(started) - set(programs)
    for case in cases.values():
        speeds = {worker: [] for worker in programs}
        for _ in range(rounds):
            for worker in programs:
                speeds[worker].append(worker.ask(case))
        if speeds:
            winners.add(max(speeds, key=lambda worker: statistics.median(speeds[worker])))
    for worker in started:
        if worker not in winners:
            print(f"left out after a trial, slower than its variants everywhere: {worker.name}", file=sys.stderr)
            worker.close()
    return [worker for worker in started if worker in winners]


def measure(ours, theirs, cases, n_pairs):
    """Pairs of figures by opponent and case: (baton's, theirs), one right after the other."""
    pairs = {worker.name: {name: [] for name in cases} for worker in theirs}
    for index in range(n_pairs):
        for name, case in cases.items():
            for worker in theirs:
                # Every other pair the other way round, so that nobody is always second.
                first, second = (ours, worker) if index % 2 == 0 else (worker, ours)
                speeds = {first: first.ask(case), second: second.ask(case)}
                pairs[worker.name][name].append((speeds[ours], speeds[worker]))
        print(f"round {index + 1} of {n_pairs}", file=sys.stderr)
    return pairs


def main():
    args = arguments()
    cases = {name: text.format(steps=args.steps, batch_steps=max(args.steps // 3, 1)) for name, text in CASES.items()}
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(workers.baton(args.baton, args.model, args.threads))
        for case in cases.values():
            ours.ask(case)
        theirs = start(opponents(args), cases, args)
        for worker in theirs:
            stack.callback(worker.close)
        theirs = best_variants(theirs, cases)
        if not theirs:
            sys.exit("no opponent could run")
        pairs = measure(ours, theirs, cases, args.pairs)
    result = report.comparison(args, pairs)
    if args.out:
        report.write(args.out, result)
    if args.markdown:
        report.update_markdown(args.markdown, "comparison", report.comparison_markdown(result))
    print(json.dumps(result) if args.json else report.comparison_text(result))


if __name__ == "__main__":
    main()
