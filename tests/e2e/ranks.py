#!/usr/bin/env python3
"""Runs plans on MPI ranks: losses are those of one rank, which are PyTorch's.

    tests/e2e/ranks.py build/dsmc                       # every line of ranks.txt
    tests/e2e/ranks.py build/dsmc --draw 12 20261127    # 12 lines, drawn by seed, of every model some
    tests/e2e/ranks.py build/dsmc --plan gpt2           # nothing is run, plans are compared
    tests/e2e/ranks.py build/dsmc gpt2 tensor           # lines that have all these words

For each line of ranks.txt: `dsmc build` for this-host:RANKS with the pins, `mpirun -n RANKS`, ten
steps (half of the lines with DSM_MESSAGES=1), evaluating after each five; every loss within 1e-4 of PyTorch's in float64, every gradient norm within 1e-3; the arena of
each stage's ranks is the plan's peak of that stage, to the byte; bytes sent are integers that agree
three times: `plan --json`, `info --json` (records times runs), `--log` (counted at run time). With
--plan nothing is run: the plan and `info` only.

State bytes per parameter in fp32 are checked beside, where only data ranks share them: weights 4, moments of AdamW 8, of
ZeRO 1 with d ranks 8/d (the parts of a tensor are rounded up); gradients of several micro-batches are 4 whole, and 4/d once
they are parts. In the figures of SYSTEMS.md (fp16) weights and gradients are 2 + 2, and 12/d has a third
fp32 number, the master weight, which in fp32 is the weight itself: 4 + 12/d becomes 8 + 8/d, 2 + 14/d becomes 4 + 12/d, and 16/d
stays.
"""
import functools
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import zlib

import exe

TABLE = os.path.join(exe.HERE, "ranks.txt")
STEPS = 10


def rows():
    with open(TABLE) as f:
        for line in f:
            words = line.split("#")[0].split()
            if words:
                yield words[0], words[1], words[2]


def drawn(all_rows, n, seed):
    """n rows: one of each model first, then any."""
    left = list(all_rows)
    random.Random(seed).shuffle(left)
    first = []
    for model in sorted({r[0] for r in left}):
        first.append(next(r for r in left if r[0] == model))
    rest = [r for r in left if r not in first]
    return (first + rest)[:n]


def number_of(ranks):
    """Ranks of the second column: 4, or 2x2, which is two nodes of two."""
    nodes, _, each = str(ranks).partition("x")
    return int(nodes) * int(each or 1)


def cluster_of(ranks):
    return os.path.join(exe.HERE, "inputs/nodes.dsm:c" + ranks) if "x" in str(ranks) else "this-host:%s" % ranks


# Sizes that can be cut by 2 and 4: vocabularies are larger, sequences shorter than the data's.
EVEN = {"gpt2": "vocab=64,context=24,seq=16,hidden=64,heads=8",
        "llama": "vocab=64,context=16,seq=8,hidden=64,heads=8,kv_heads=4,ffn=96",
        "t5": "vocab=48,heads=4,src=8,dst=4",
        "bert": "vocab=64"}

# With -long sequences in which ranks gather keys and values rather than what these are made of, and text as data.
LONG = {name: EVEN[name] + ",vocab=256,context=64,seq=64" for name in ("gpt2", "llama")}


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
    """Name of the oracle's model, its sizes ("", "even", "long"), and more settings."""
    name, _, more = model.partition(":")
    name, _, sizes = name.partition("-")
    return name, sizes, more


def by_pytorch(model):
    """Whether there are losses of PyTorch for it."""
    name, sizes, more = parts_of(model)
    return name not in OWN and not sizes and not more


def data_of(model, folder):
    name, sizes, _ = parts_of(model)
    if sizes == "long":
        lines = os.path.join(folder, "lines.txt")
        with open(lines, "w") as f:
            f.write("".join("%d times %d is %d\n" % (i, i % 7, i * (i % 7)) for i in range(400)))
        return lines
    even = sizes == "even" or name in OWN
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
    name, sizes, more = parts_of(model)
    if name in OWN:
        text, _, settings = OWN[name]
        return name, {"model": text}, settings + ("," + more if more else "")
    job = exe.expected(name)
    settings = exe.job_settings(job) + ("," + {"even": EVEN, "long": LONG}[sizes][name] if sizes else "")
    return name, job, settings + ("," + more if more else "")


def build(dsmc, model, ranks, pins, program):
    name, job, settings = settings_of(model)
    command = [dsmc, "build", os.path.join(exe.ROOT, "examples", job["model"]), "--set", settings,
               "-o", program, "-q"]
    if ranks != 1:
        command += ["--cluster", cluster_of(ranks), "--pin", pins]
    exe.run(command)


def train(program, model, ranks, log, more=(), messages=False):
    data = data_of(model, os.path.dirname(log))
    if os.path.exists(log):
        os.remove(log)
    if by_pytorch(model):
        more = [*more, "--load", os.path.join(exe.ORACLE, parts_of(model)[0], "init.safetensors")]
    command = [program, "train", "--data", data, "--steps", str(STEPS), "--threads", "1", "--seed", "1",
               "--eval", data, "--eval-every", "5", "--log", log, *more]
    said = exe.run(exe.mpirun(ranks, *command) if ranks > 1 else command,
                   env=dict(os.environ, DSM_MESSAGES="1" if messages else "0"))
    evals = [float(x) for x in re.findall(r"eval loss (\S+)", said)]
    return exe.read_log(log), evals


def log_with_links(program, model, ranks, folder, links, steps, *more):
    """The log of a run over links as slow as DSM_LINK_DELAY says ("": as they are)."""
    log = os.path.join(folder, "log.jsonl")
    if os.path.exists(log):
        os.remove(log)
    env = {k: v for k, v in os.environ.items() if k != "DSM_LINK_DELAY"}
    if links:
        env["DSM_LINK_DELAY"] = links
    exe.run(exe.mpirun(ranks, program, "train", "-q", "--data", data_of(model, folder), "--steps", str(steps),
                       "--threads", "1", "--seed", "1", "--log", log, *more), env=env)
    return exe.read_log(log)


@functools.lru_cache(maxsize=None)
def wanted(dsmc, model):
    """Losses and norms of the model, PyTorch's or one rank's, and one rank's losses of evaluation."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "one")
        build(dsmc, model, 1, "", program)
        steps, evals = train(program, model, 1, os.path.join(folder, "one.jsonl"))
    if len(evals) < 2:
        raise RuntimeError("one rank says %d losses of evaluation" % len(evals))
    if by_pytorch(model):
        job = settings_of(model)[1]
        return job["losses_f64"][:STEPS], job["grad_norms"][:STEPS], evals
    return [s["loss"] for s in steps], [s["grad_norm"] for s in steps], evals


SHARING = ("data", "ulysses", "ring")


def row_of(kind, axes, sharing):
    """A row of the ledger. Plans have what ranks with the same weights exchange under `data`: over
    the one axis of these that there is, programs do not tell it from other exchanges."""
    axes = list(dict.fromkeys(a.split(".")[0] for a in axes))  # factors are of one axis
    if len(axes) > 1 and all(a in SHARING for a in axes):
        axes = ["data"]
    if axes == ["data"] and len(sharing) == 1:
        axes = sharing
    return "%s over %s" % (kind, ", ".join(axes))


def sharing_axes(mesh):
    """Axes of ranks with the same weights; and the one whose ranks share states, where it is one and not data."""
    axes = [a["axis"] for a in mesh]
    sharing = list(dict.fromkeys(a for a in (x.split(".")[0] for x in axes) if a in SHARING))
    alone = [a for a in sharing if a != "data"]
    return sharing, alone[0] if len(alone) == 1 and "data.0" in axes and "data.1" not in axes else None


def planned_bytes(stage, sharing, one):
    """By row, of all ranks of the stage."""
    rows = {}
    for axis, kinds in stage["bytes"].items():
        for kind, n in kinds.items():
            row = row_of(kind, [one if one and axis == "data" and kind != "all_reduce" else axis], sharing)
            rows[row] = rows.get(row, 0) + n["all_ranks"]
    return {r: n for r, n in rows.items() if n}


def ledger_bytes(sent, sharing):
    rows = {}
    for name, n in sent.items():
        if name == "scalars":  # losses, norms and counts are not planned: a few bytes
            continue
        kind, axes = name.split(" over ")
        row = row_of(kind, axes.split(", "), sharing)
        rows[row] = rows.get(row, 0) + n["bytes"]
    return {r: n for r, n in rows.items() if n}


def check_states(checks, name, model, best, stage):
    """States of a rank where only data ranks share them, by hand from the shapes of the text."""
    mesh = best["mesh"]
    if model.split("-")[0] == "t5" or mesh["data"] != best["mesh_ranks"]:
        return
    d = best["zero"]["group"] if best["zero"]["stage"] else 1
    sizes = best["whole_states"]
    moments = 2 * 4 * sum(layers * -(-n // d) for layers, n in sizes)
    weights = 4 * sum(layers * n for layers, n in sizes)
    total = sum(layers * n for layers, n in sizes)
    if best["zero"]["stage"] < 3:
        checks.check(name + ": weights are 4 bytes a parameter", stage["weights"] == weights,
                     "%d, not %d" % (stage["weights"], weights))
    # Sums over micro-batches wait through backward: whole, and parts of them that are on their way (ZeRO 1), or parts.
    parts = 4 * sum(layers * -(-n // d) for layers, n in sizes)
    if best["micro_batches"] > 1 and best["mesh"]["data"] > 1:
        gradients = best["memory_bytes"]["gradients"]
        least, most = {0: (weights, weights), 1: (weights, weights + parts)}.get(best["zero"]["stage"], (parts, parts))
        checks.check(name + ": gradients are %.3f bytes a parameter" % (gradients / total), least <= gradients <= most,
                     "%d, not from %d to %d" % (gradients, least, most))
    checks.check(name + ": moments are %.3f bytes a parameter" % (moments / total),
                 stage["optimizer"] == moments, "%d, not %d" % (stage["optimizer"], moments))


def object_of(command):
    """The JSON object that a command prints; its warnings go to stderr."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=300,
                          universal_newlines=True)
    if done.returncode:
        raise RuntimeError("%s\n%s" % (" ".join(command), done.stderr[-2000:]))
    return json.loads(done.stdout)


def check_plan(dsmc, checks, row, program):
    """The plan against what `info` says of the program. Returns the latter's ledger."""
    model, ranks, pins = row
    name = "%s on %s: %s" % row
    _, job, settings = settings_of(model)
    best = object_of([dsmc, "plan", "--json", os.path.join(exe.ROOT, "examples", job["model"]),
                      "--set", settings, "--cluster", cluster_of(ranks), "--pin", pins])["best"]
    info = object_of([program, "info", "--json"])
    own = info["ranks"]
    sharing, one = sharing_axes(own["mesh"])
    checks.check(name + ": as many stages", len(own["stages"]) == len(best["stages"]))
    checks.check(name + ": the plan's memory is that of a layout", best["memory_bytes"]["exact"])
    memory = best["memory_bytes"]
    if best["zero"]["stage"] < 2:  # (then two layers are on their way, which few layers are not)
        checks.check(name + ": the load is no more", memory["load"] <= memory["peak"],
                     "%d, laid out %d" % (memory["load"], memory["peak"]))
    for i, (is_, was) in enumerate(zip(own["stages"], best["stages"])):
        checks.check("%s: arena of stage %d" % (name, i), is_["arena"] == was["memory_bytes"]["peak"],
                     "%d, planned %d" % (is_["arena"], was["memory_bytes"]["peak"]))
        sent = ledger_bytes(is_["sent"], sharing)
        plan = planned_bytes(was, sharing, one)
        checks.check("%s: bytes of stage %d" % (name, i), sent == plan,
                     "sent %s, planned %s" % (sent, plan))
    best["mesh_ranks"] = number_of(ranks)
    best["whole_states"] = whole_states(dsmc, model)
    check_states(checks, name, model, best, own["stages"][0])
    return own["sent"]


@functools.lru_cache(maxsize=None)
def whole_states(dsmc, model):
    """(layers, elements of a layer) of each weight, as one rank has them."""
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "whole")
        build(dsmc, model, 1, "", program)
        states = object_of([program, "info", "--json"])["states"]
    return [(max(1, s["layers"]), math.prod(s["shape"])) for s in states if s["class"] == "weights"]


def check_row(dsmc, folder, checks, row, run):
    model, ranks, pins = row
    name = "%s on %s: %s" % row
    program = os.path.join(folder, "program")
    build(dsmc, model, ranks, pins, program)
    sent = check_plan(dsmc, checks, row, program)
    if not run:
        return
    losses, norms, evals = wanted(dsmc, model)
    # Half of them as if each rank had a machine of its own.
    messages = zlib.crc32(name.encode()) % 2 == 1
    steps, got = train(program, model, number_of(ranks), os.path.join(folder, "log.jsonl"), messages=messages)
    checks.close(name + ": losses", [s["loss"] for s in steps], losses, 1e-4)
    checks.close(name + ": norms", [s["grad_norm"] for s in steps], norms, 1e-3)
    checks.close(name + ": losses of evaluation", got, evals, 2e-4)
    for s in steps:
        checks.check("%s: bytes counted in step %d" % (name, s["step"]), s["sent"] == sent,
                     "%s, not %s" % (s["sent"], sent))


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [--plan] [--draw N SEED] [WORD...]" % sys.argv[0])
    words, chosen = sys.argv[2:], list(rows())
    run = words[:1] != ["--plan"]
    words = words if run else words[1:]
    if words[:1] == ["--draw"]:
        chosen, words = drawn(chosen, int(words[1]), int(words[2])), words[3:]
    exe.each(lambda *more: check_row(*more, run), chosen, words)


if __name__ == "__main__":
    main()
