#!/usr/bin/env python3
"""Runs plans on MPI ranks: losses are those of one rank, which are PyTorch's.

    tests/e2e/ranks.py build/dsmc                       # every line of ranks.txt
    tests/e2e/ranks.py build/dsmc --draw 12 20261127    # 12 lines, drawn by seed, of every model some
    tests/e2e/ranks.py build/dsmc gpt2 tensor           # lines that have all these words

For each line of ranks.txt: `dsmc build` for this-host:RANKS with the pins, `mpirun -n RANKS`, ten
steps; every loss within 1e-4 of PyTorch's in float64, every gradient norm within 1e-3; the arena of
each rank is the planned one (the executable's own, to the byte), and bytes sent are those that
`info` says the program sends.
"""
import json
import os
import random
import shutil
import sys
import tempfile

import exe

TABLE = os.path.join(exe.HERE, "ranks.txt")
STEPS = 10


def rows():
    with open(TABLE) as f:
        for line in f:
            words = line.split("#")[0].split()
            if words:
                yield words[0], int(words[1]), words[2]


def drawn(all_rows, n, seed):
    """n rows: one of each model first, then any."""
    left = list(all_rows)
    random.Random(seed).shuffle(left)
    first = []
    for model in sorted({r[0] for r in left}):
        first.append(next(r for r in left if r[0] == model))
    rest = [r for r in left if r not in first]
    return (first + rest)[:n]


def mpirun(ranks):
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]


def build(dsmc, model, ranks, pins, program):
    job = exe.expected(model)
    exe.run([dsmc, "build", os.path.join(exe.ROOT, "examples", job["model"]), "--set",
             exe.job_settings(job), "--cluster", "this-host:%d" % ranks, "--pin", pins, "-o", program,
             "-q"])
    return job


def train(program, model, ranks, log, more=()):
    folder = os.path.join(exe.ORACLE, model)
    if os.path.exists(log):
        os.remove(log)
    exe.run([*mpirun(ranks), program, "train", "--load", os.path.join(folder, "init.safetensors"),
             "--data", os.path.join(folder, "data"), "--steps", str(STEPS), "--threads", "1", "--log",
             log, *more])
    return exe.read_log(log)


def check_row(dsmc, folder, checks, row):
    model, ranks, pins = row
    name = "%s on %d: %s" % row
    program = os.path.join(folder, "program")
    job = build(dsmc, model, ranks, pins, program)
    steps = train(program, model, ranks, os.path.join(folder, "log.jsonl"))
    checks.close(name + ": losses", [s["loss"] for s in steps], job["losses_f64"][:STEPS], 1e-4)
    checks.close(name + ": norms", [s["grad_norm"] for s in steps], job["grad_norms"][:STEPS], 1e-3)


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [--draw N SEED] [WORD...]" % sys.argv[0])
    if not shutil.which("mpirun"):
        print("skipped: there is no mpirun")
        sys.exit(77)
    dsmc, words = os.path.abspath(sys.argv[1]), sys.argv[2:]
    chosen = list(rows())
    if words[:1] == ["--draw"]:
        chosen = drawn(chosen, int(words[1]), int(words[2]))
    else:
        chosen = [r for r in chosen if all(w in " ".join(map(str, r)) for w in words)]
    checks = exe.Checks()
    with tempfile.TemporaryDirectory() as folder:
        for row in chosen:
            try:
                check_row(dsmc, folder, checks, row)
            except (RuntimeError, OSError, ValueError, KeyError) as e:
                checks.check("%s on %d: %s" % row, False, str(e)[-1500:])
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
