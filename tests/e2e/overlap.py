#!/usr/bin/env python3
"""Overlap and buckets change no bit: plans on ranks with and without `--skip overlap` and `buckets`.

    tests/e2e/overlap.py build/dsmc [WORD...]       # plans that have all these words

For each plan: losses and gradient norms of four steps and the final weights are the same bytes with
all, without buckets, and with every exchange among the kernels and made of messages; and the program is what it claims:
with overlap it has exchanges on the stream of communication, in bodies of repeats where layers are
large enough and in the last micro-batch where there are several, fewer records with buckets, and
gradients are read for their norm as they come.
"""
import glob
import os
import shutil
import sys

import exe
import ranks

STEPS = "4"
# Model, ranks, pins, more settings, what the program must have.
PLANS = [
    ("gpt2-even", 2, "data=2,zero=0", "", "body bucket norm"),
    ("gpt2-even", 2, "data=2,zero=0,micro_batch=1", "", "body last bucket"),
    ("gpt2-even", 2, "data=2,zero=1", "", "body norm"),
    ("gpt2-even", 2, "data=2,zero=1,micro_batch=1", "", "body last"),
    ("gpt2-even", 2, "data=2,zero=2,micro_batch=1", "", "body"),
    ("gpt2-even", 2, "data=2,zero=3,micro_batch=1", "", "body gather"),
    ("gpt2", 2, "data=2,zero=0,micro_batch=1", "", "bucket"),
    ("llama-even", 4, "data=2,tensor=2,zero=1,micro_batch=1", "", "body"),
    ("llama-even", 4, "data=2,ulysses=2,zero=0", "", "body bucket"),
    ("t5-even", 2, "data=2,zero=1", "hidden=64", ""),
    ("bert", 2, "data=2,zero=0,micro_batch=1", "", "bucket"),
    ("gpt2-long", 4, "ring=4,zero=1", "", "body ring"),
    ("gpt2-even", 4, "pipeline=2,data=2,zero=0,micro_batch=1", "", "body last bucket"),
]


def compile_as(dsmc, plan, skip, verb, *options):
    model, n, pins, more, _ = plan
    _, job, settings = ranks.settings_of(model)
    return exe.run([dsmc, verb, os.path.join(exe.ROOT, "examples", job["model"]), *options, "--set",
                    settings + ("," + more if more else ""), "--cluster", "this-host:%d" % n,
                    "--pin", pins, *(["--skip", skip] if skip else [])])


def train(program, plan, folder, messages):
    model, n = plan[0], plan[1]
    save, log = os.path.join(folder, "save"), os.path.join(folder, "log.jsonl")
    shutil.rmtree(save, ignore_errors=True)
    if os.path.exists(log):
        os.remove(log)
    exe.run(exe.mpirun(n, program, "train", "-q", "--data", ranks.data_of(model, folder),
                       "--steps", STEPS, "--threads", "1", "--seed", "1", "--log", log, "--save", save),
            env=dict(os.environ, DSM_MESSAGES="1" if messages else "0"))
    parts = {}
    for path in sorted(glob.glob(os.path.join(save, "step-*", "*.safetensors"))):
        with open(path, "rb") as f:
            parts[os.path.relpath(path, save)] = f.read()
    return [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)], parts


def exchanges_beside(schedule):
    """[(whether its task is a body, the line)] of what the stream of communication does, without its waits."""
    body, found = False, []
    for line in map(str.strip, schedule.splitlines()):
        if line.startswith("task "):
            body = line.endswith("once per layer")
        elif "on communication" in line and line.split()[0] not in ("wait", "record"):
            found.append((body, line))
    return found


def waits_of_tasks(schedule):
    """For each task that is no body, the events that compute waits for, as it does."""
    tasks = []
    for line in map(str.strip, schedule.splitlines()):
        if line.startswith("task "):
            tasks.append([] if not line.endswith("once per layer") else None)
        elif line.startswith("wait ") and "on compute" in line and tasks[-1] is not None:
            tasks[-1].append(int(line.split()[2]))
    return [t for t in tasks if t]


def test(dsmc, folder, checks, plan):
    name = "%s on %d: %s" % plan[:3]
    runs, texts = {}, {}
    for skip in ("", "buckets", "overlap"):
        program = os.path.join(folder, "program" + skip)
        compile_as(dsmc, plan, skip, "build", "-o", program, "-q")
        runs[skip] = train(program, plan, folder, skip == "overlap")
        texts[skip] = compile_as(dsmc, plan, skip, "ir", "--form", "schedule")
    checks.check(name + ": weights were saved", runs[""][1] and len(runs[""][0]) == int(STEPS))
    for skip in ("buckets", "overlap"):
        checks.check("%s: no bit changes without %s" % (name, skip), runs[skip] == runs[""],
                     "%r for %r" % (runs[skip][0], runs[""][0]))
    beside = exchanges_beside(texts[""])
    checks.check(name + ": exchanges beside kernels", beside and "on communication" not in texts["overlap"])
    for word in plan[4].split():
        good = {"body": any(body for body, _ in beside),
                "gather": any(body and l.startswith("all_gather") for body, l in beside),
                "ring": any(body and l.startswith("permute") for body, l in beside),
                "norm": any(len(t) > 2 for t in waits_of_tasks(texts[""])) and
                        all(t == sorted(t) for t in waits_of_tasks(texts[""])),
                "last": any("last micro-batch" in l for _, l in beside),
                "bucket": texts[""].count("all_reduce") < texts["buckets"].count("all_reduce")}[word]
        checks.check("%s: %s" % (name, word), good)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [WORD...]" % sys.argv[0])
    exe.each(test, PLANS, sys.argv[2:])
