"""Counts the instructions of each hot kernel and compares them with the committed counts.

    instructions.py BASELINE            fails if a kernel takes more than 3 % more than the baseline says
    instructions.py BASELINE --update   writes the baseline anew

Counting is valgrind's (callgrind), so it does not depend on how busy the machine is. Levels that valgrind cannot run
(AVX-512) are not counted.
"""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

TOLERANCE = 0.03
EXAMPLE = "target/release/examples/instructions"
FUNCTION = "instructions::measured"


def main():
    baseline_path, *flags = sys.argv[1:]
    if flags not in ([], ["--update"]):
        sys.exit(__doc__)
    if shutil.which("valgrind") is None:
        if flags:
            sys.exit("valgrind is not here: nothing was counted")
        print("SKIPPED: instruction counts of the kernels (they need valgrind, which is not here)")
        return
    build = ["cargo", "build", "--release", "--locked", "-p", "kernels", "--example", "instructions"]
    subprocess.run(build, check=True)
    found = count()
    if flags:
        with open(baseline_path, "w") as file:
            json.dump({"compiler": compiler(), "instructions": found}, file, indent=2)
            file.write("\n")
        print(f"wrote {baseline_path}: {sum(map(len, found.values()))} counts")
        return
    with open(baseline_path) as file:
        baseline = json.load(file)
    problems = compare(baseline["instructions"], found)
    if baseline["compiler"] != compiler():
        print(f"note: the baseline is of {baseline['compiler']}, this is {compiler()}")
    for problem in problems:
        print(f"FAILED: {problem}")
    if problems:
        sys.exit("if this is meant: make bench-instructions-update")


def compiler():
    return subprocess.run(["rustc", "--version"], check=True, capture_output=True, text=True).stdout.strip()


def count():
    """Instructions by level and kernel."""
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "callgrind")
        tool = ["valgrind", "--tool=callgrind", f"--toggle-collect={FUNCTION}", f"--dump-after={FUNCTION}"]
        run = subprocess.run(
            [*tool, f"--callgrind-out-file={out}", EXAMPLE], check=True, capture_output=True, text=True
        )
        names = [line.split(" ", 1) for line in run.stdout.splitlines()]
        counts = [total(f"{out}.{part}") for part in range(1, len(glob.glob(f"{out}.*")) + 1)]
    if len(names) != len(counts):
        sys.exit(f"{len(names)} kernels ran, {len(counts)} were counted")
    found = {}
    for (level, kernel), instructions in zip(names, counts):
        found.setdefault(level, {})[kernel] = instructions
    return found


def total(path):
    with open(path) as file:
        return int(re.search(r"^(?:totals|summary): (\d+)", file.read(), re.MULTILINE)[1])


def compare(baseline, found):
    """Prints every kernel; returns what is wrong."""
    problems = []
    for level, kernels in baseline.items():
        if level not in found:
            print(f"SKIPPED: {level} (this machine, or valgrind, does not have it)")
            continue
        for kernel, before in kernels.items():
            now = found[level].pop(kernel, None)
            if now is None:
                problems.append(f"{level} {kernel} was not run")
                continue
            change = now / before - 1
            print(f"{level:8} {kernel:28} {now:12,} {change:+8.2%}")
            if change > TOLERANCE:
                problems.append(f"{level} {kernel}: {now:,} instructions, {change:+.1%} against {before:,}")
        problems += [f"{level} {kernel} has no baseline" for kernel in found[level]]
    return problems


if __name__ == "__main__":
    main()
