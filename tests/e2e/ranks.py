#!/usr/bin/env python3
"""Runs plans on MPI ranks: losses are those of one rank, which are PyTorch's.

    tests/e2e/ranks.py build/dsmc                       # every line of ranks.txt
    tests/e2e/ranks.py build/dsmc --draw 12 20261127    # 12 lines, drawn by seed, of every model some
    tests/e2e/ranks.py build/dsmc gpt2 tensor           # lines that have all these words

For each line of ranks.txt: `dsmc build` for this-host:RANKS with the pins, `mpirun -n RANKS`, ten
steps, evaluating after each five; every loss within 1e-4 of PyTorch's in float64, every gradient norm
within 1e-3; the arena of
each rank is the planned one (the executable's own, to the byte), and bytes sent are those that
`info` says the program sends.
"""
import json
import os
import random
import re
import shutil
import struct
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


# Sizes that can be cut by 2 and 4: vocabularies are larger, sequences shorter than the data's.
EVEN = {"gpt2": "vocab=64,context=24,seq=16,hidden=64,heads=8",
        "llama": "vocab=64,context=16,seq=8,hidden=64,heads=8,kv_heads=4,ffn=96",
        "t5": "vocab=48,heads=4,src=8,dst=4",
        "bert": "vocab=64"}


# Models of our own, compared with one rank: the text, and whose data and job it has.
OWN = {"groups": ("../tests/e2e/inputs/groups.dsm", "llama", "context=16,seq=8")}


# Positions that are left of the oracle's: of 17, 13, 11 and 7 tokens.
LEFT = {17: 16, 13: 8, 11: 8, 7: 4}


def shorter_data(source, target):
    """Copies a file of tensors [samples, positions] with fewer positions."""
    with open(source, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        head, body = json.loads(f.read(size)), f.read()
    out, parts, at = {}, [], 0
    for key, t in head.items():
        if key == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        rows, shape = t["shape"][0], list(t["shape"])
        row = (end - begin) // rows
        if len(shape) == 2 and shape[1] in LEFT:
            shape[1] = LEFT[shape[1]]
        keep = row if shape == t["shape"] else row // t["shape"][1] * shape[1]
        data = b"".join(body[begin + i * row:begin + i * row + keep] for i in range(rows))
        if key == "length":  # of what is left
            n = len(data) // 4
            data = struct.pack("<%di" % n, *(LEFT.get(v, min(v, LEFT[11]))
                                             for v in struct.unpack("<%di" % n, data)))
        out[key] = {"dtype": t["dtype"], "shape": shape, "data_offsets": [at, at + len(data)]}
        parts.append(data)
        at += len(data)
    text = json.dumps(out).encode()
    text += b" " * (-len(text) % 8)
    with open(target, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


def parts_of(model):
    """Name of the oracle's model, whether its sizes can be cut, and more settings."""
    name, _, more = model.partition(":")
    return name.split("-")[0], name.endswith("-even"), more


def by_pytorch(model):
    """Whether there are losses of PyTorch for it."""
    name, even, more = parts_of(model)
    return name not in OWN and not even and not more


def data_of(model, folder):
    name, even, _ = parts_of(model)
    even |= name in OWN
    name = OWN[name][1] if name in OWN else name
    data = os.path.join(exe.ORACLE, name, "data")
    if not even:
        return data
    even = os.path.join(folder, "data-" + name)
    if not os.path.isdir(even):
        os.mkdir(even)
        for file in os.listdir(data):
            shorter_data(os.path.join(data, file), os.path.join(even, file))
    return even


def settings_of(model):
    name, even, more = parts_of(model)
    if name in OWN:
        text, _, settings = OWN[name]
        return name, {"model": text}, settings + ("," + more if more else "")
    job = exe.expected(name)
    settings = exe.job_settings(job) + ("," + EVEN[name] if even else "")
    return name, job, settings + ("," + more if more else "")


def build(dsmc, model, ranks, pins, program):
    name, job, settings = settings_of(model)
    command = [dsmc, "build", os.path.join(exe.ROOT, "examples", job["model"]), "--set", settings,
               "-o", program, "-q"]
    if ranks > 1:
        command += ["--cluster", "this-host:%d" % ranks, "--pin", pins]
    exe.run(command)


def train(program, model, ranks, log, more=()):
    data = data_of(model, os.path.dirname(log))
    if os.path.exists(log):
        os.remove(log)
    if by_pytorch(model):
        more = [*more, "--load", os.path.join(exe.ORACLE, parts_of(model)[0], "init.safetensors")]
    said = exe.run([*(mpirun(ranks) if ranks > 1 else []), program, "train", "--data",
             data, "--steps", str(STEPS), "--threads", "1", "--seed", "1", "--eval", data,
             "--eval-every", "5", "--log", log, *more])
    evals = [float(x) for x in re.findall(r"eval loss (\S+)", said)]
    return exe.read_log(log), evals


def wanted(dsmc, folder, model, known):
    """Losses and norms of the model, PyTorch's or one rank's, and one rank's losses of evaluation."""
    if model not in known:
        program = os.path.join(folder, "one")
        build(dsmc, model, 1, "", program)
        steps, evals = train(program, model, 1, os.path.join(folder, "one.jsonl"))
        if len(evals) < 2:
            raise RuntimeError("one rank says %d losses of evaluation" % len(evals))
        job = settings_of(model)[1]
        if by_pytorch(model):
            known[model] = job["losses_f64"][:STEPS], job["grad_norms"][:STEPS], evals
        else:
            known[model] = [s["loss"] for s in steps], [s["grad_norm"] for s in steps], evals
    return known[model]


def check_row(dsmc, folder, checks, row, known):
    model, ranks, pins = row
    name = "%s on %d: %s" % row
    program = os.path.join(folder, "program")
    losses, norms, evals = wanted(dsmc, folder, model, known)
    build(dsmc, model, ranks, pins, program)
    steps, got = train(program, model, ranks, os.path.join(folder, "log.jsonl"))
    checks.close(name + ": losses", [s["loss"] for s in steps], losses, 1e-4)
    checks.close(name + ": norms", [s["grad_norm"] for s in steps], norms, 1e-3)
    checks.close(name + ": losses of evaluation", got, evals, 2e-4)


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
    checks, known = exe.Checks(), {}
    with tempfile.TemporaryDirectory() as folder:
        for row in chosen:
            try:
                check_row(dsmc, folder, checks, row, known)
            except (RuntimeError, OSError, ValueError, KeyError) as e:
                checks.check("%s on %d: %s" % row, False, str(e)[-1500:])
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
