"""Figures as JSON, tables and plots."""

import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys

import plot


def spread(numbers):
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def context(args):
    """Where figures come from."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    doctor = subprocess.run([args.baton, "doctor", "--json"], capture_output=True, text=True).stdout
    processor = [f["text"] for f in json.loads(doctor or "{}").get("findings", []) if f["name"] == "processor"]
    shown = [word if not os.path.isabs(word) else os.path.basename(word) for word in sys.argv]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{names[0] if names else platform.machine()}, {', '.join(processor)}",
        "command": shlex.join(["python3", os.path.relpath(sys.argv[0]), *shown[1:]]),
        "threads": args.threads,
        "load_before": LOAD_BEFORE,
    }


# Processes that wanted a core when the program began: figures of a busy machine say so.
LOAD_BEFORE = os.getloadavg()[0]


def comparison(args, pairs):
    """Everything measured. `pairs`: by opponent and case, (ours, theirs)."""
    ours = {}
    for cases in pairs.values():
        for case, speeds in cases.items():
            ours.setdefault(case, []).extend(a for a, _ in speeds)
    by_opponent = lambda f: {
        name: {case: spread([f(*pair) for pair in speeds]) for case, speeds in cases.items()}
        for name, cases in pairs.items()
    }
    return {
        **context(args),
        "model": os.path.basename(args.model),
        "pairs": args.pairs,
        "tokens_per_s": {
            "baton": {case: spread(speeds) for case, speeds in ours.items()},
            **by_opponent(lambda ours, theirs: theirs),
        },
        "ratio": by_opponent(lambda ours, theirs: ours / theirs),
        "samples": pairs,
    }


def contention(args, quiet, kept):
    """Shares of the quiet rate."""
    return {
        **context(args),
        "model": os.path.basename(args.model),
        "pairs": args.pairs,
        "loads": list(next(iter(kept.values()))),
        "quiet_tokens_per_s": {name: spread(speeds) for name, speeds in quiet.items()},
        "kept": {name: {load: spread(shares) for load, shares in loads.items()} for name, loads in kept.items()},
        "samples": {"quiet": quiet, "kept": kept},
    }


def write(path, result):
    """The JSON file, and a plot beside it."""
    with open(path, "w") as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    base, _ = os.path.splitext(path)
    with open(base + ".svg", "w") as file:
        file.write(plot.comparison(result) if "tokens_per_s" in result else plot.contention(result))


def rows(result):
    """Cells of the comparison: a line per program, a column per case."""
    lines = []
    for name, cases in result["tokens_per_s"].items():
        cells = []
        for case, s in cases.items():
            text = f"{s['median']:,.0f} ({s['min']:,.0f} to {s['max']:,.0f})"
            if name in result["ratio"]:
                text += f" {result['ratio'][name][case]['median']:.2f}x"
            cells.append(text)
        lines.append([name, *cells])
    return [["tok/s", *next(iter(result["tokens_per_s"].values()))], *lines]


def comparison_text(result):
    note = "median (least to most), and how many times as fast baton is: the median of the pairs' ratios"
    return table(rows(result)) + f"\n\n{note}\n{origin(result)}"


def comparison_markdown(result):
    note = "Median (least to most), then how many times as fast `baton` is: the median of the pairs' ratios."
    return f"{markdown_table(rows(result))}\n\n{note}\n\n![the same as bars](engine.svg)\n\n{markdown_origin(result)}"


def contention_rows(result):
    head = ["share of the quiet decode rate kept", *result["loads"]]
    line = lambda s: f"{s['median']:.0%} ({s['min']:.0%} to {s['max']:.0%})"
    return [head, *([name, *(line(s) for s in loads.values())] for name, loads in result["kept"].items())]


def contention_text(result):
    return table(contention_rows(result)) + f"\n\nmedian (least to most) of the pairs\n{origin(result)}"


def contention_markdown(result):
    note = "Median (least to most) of the pairs."
    plot = "![the same as bars](contention.svg)"
    return f"{markdown_table(contention_rows(result))}\n\n{note}\n\n{plot}\n\n{markdown_origin(result)}"


def origin(result):
    load = f"load {result['load_before']:.1f} before the start"
    return f"{result['date']}, {result['machine']}, {result['threads']} threads, {load}\n{result['command']}"


def markdown_origin(result):
    where, command = origin(result).split("\n")
    return f"{where}; {result['pairs']} pairs, {result['model']}.\n\n    {command}"


def table(lines):
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)


def markdown_table(lines):
    head, *rest = (" | ".join(line) for line in lines)
    rule = " | ".join(["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {line} |" for line in [head, rule, *rest])


def update_markdown(path, name, text):
    """Replaces what stands between `<!-- NAME -->` and `<!-- end NAME -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    with open(path) as file:
        whole = file.read()
    before, found, rest = whole.partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        sys.exit(f"{path} has no part between {begin} and {end}")
    with open(path, "w") as file:
        file.write(f"{before}{begin}\n{text}\n{end}{after}")
