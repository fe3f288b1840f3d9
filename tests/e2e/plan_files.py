#!/usr/bin/env python3
"""Plans as files, and their simulation.

    tests/e2e/plan_files.py build/dsmc

A plan that `dsmc plan -o` wrote gives the same plan when it is read; one edited line gives the plan
that the same pins give. Plans that contradict themselves are refused with a caret (1), those that
cannot be met with 3. An executable obeys a plan of one device, pins win over it. Plans of seeded
random choices are simulated: longest path and simulation agree to 1 %, the trace parses, slices of
one stream do not overlap, its counters reach the plan's stash and memory.
"""
import json
import os
import random
import re
import subprocess

import exe

GPT2 = os.path.join(exe.ROOT, "examples", "gpt2.dsm")
LLAMA = os.path.join(exe.ROOT, "examples", "llama.dsm")
TINY = os.path.join(exe.ROOT, "examples", "tiny.dsm")
PINS = ("data=2,tensor=2,pipeline=2,ulysses=1,ring=1,expert=1,micro_batch=4,recompute=none,zero=1,"
        "offload=none,order=one_f_one_b")
RANDOM = 200


def call(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def best(dsmc, *more):
    return json.loads(exe.run([dsmc, "plan", GPT2, "--json", "-q"] + list(more)))["best"]


def round_trip(dsmc, folder, checks):
    path = os.path.join(folder, "gpt2.plan")
    first = best(dsmc, "--cluster", "dgx-a100-80g:8", "--pin", PINS, "-o", path)
    checks.check("a plan read back is the plan", best(dsmc, "--plan", path) == first)
    group = os.path.join(folder, "group.plan")
    some = best(dsmc, "--cluster", "dgx-a100-80g:8", "--pin", "data=8,zero=2:4", "-o", group)
    checks.check("ranks that share a state are read back",
                 some["zero"] == {"stage": 2, "group": 4} and best(dsmc, "--plan", group) == some)
    away = os.path.join(folder, "away.plan")
    some = best(dsmc, "--cluster", "dgx-a100-80g:8", "--pin",
                "data=8,zero=3,offload=parameters:disk+gradients:host+optimizer:disk+activations:host",
                "-o", away)
    checks.check("homes are read back",
                 some["offload"] == {"parameters": "disk", "gradients": "host", "optimizer": "disk",
                                     "activations": "host"} and best(dsmc, "--plan", away) == some)
    mixed = os.path.join(folder, "mixed.plan")
    some = best(dsmc, "--cluster", "dgx-a100-80g:8", "--pin", "recompute=none+full", "-o", mixed)
    checks.check("two kinds of layers are read back",
                 some["recompute"]["summary"] == "none+full" and best(dsmc, "--plan", mixed) == some)
    rc, _, err = call(dsmc, "plan", GPT2, "--cluster", "dgx-a100-80g:8", "--pin", "recompute=full+none")
    checks.check("the other way round is refused", rc == 1 and "LESS + MORE" in err, err)
    text = open(path).read()
    edited = os.path.join(folder, "edited.plan")
    with open(edited, "w") as f:
        f.write(text.replace("micro_batch = 4", "micro_batch = 8"))
    second = best(dsmc, "--plan", edited)
    pinned = best(dsmc, "--cluster", "dgx-a100-80g:8", "--pin",
                  PINS.replace("micro_batch=4", "micro_batch=8"))
    checks.check("an edited line is obeyed", second == pinned and second["micro_batch"] == 8 and
                 second["step_s"] != first["step_s"])
    won = best(dsmc, "--plan", edited, "--pin", "micro_batch=2")
    checks.check("a pin wins over the plan", won["micro_batch"] == 2)
    layers = lambda b: [s["layers"] for s in b["stages"]]
    with open(edited, "w") as f:
        f.write(text.replace("stages = [8, 4]", "stages = [10, 2]"))
    second = best(dsmc, "--plan", edited)
    checks.check("edited stages are obeyed", layers(first) == [8, 4] and layers(second) == [10, 2] and
                 second["step_s"] > first["step_s"])
    checks.check("and pinned ones are the same", second == best(dsmc, "--plan", path, "--pin", "stages=[10,2]"))
    won = best(dsmc, "--plan", edited, "--pin", "micro_batch=2")
    checks.check("a pin frees a plan's stages", won == best(dsmc, "--plan", path, "--pin", "micro_batch=2") and
                 layers(won) != [10, 2], str(layers(won)))
    won = best(dsmc, "--plan", path, "--pin", "stages=[12,0],micro_batch=2")
    checks.check("not pinned ones", layers(won) == [12, 0] and won["micro_batch"] == 2, str(layers(won)))
    rc, _, err = call(dsmc, "plan", GPT2, "--plan", path, "--pin", "stages=[6,6],pipeline=4")
    checks.check("stages against a size", rc == 1 and "pipeline is 4" in err, err)
    rc, out, err = call(dsmc, "plan", GPT2, "--cluster", "dgx-a100-80g:8", "--pin", "stages=[11,1],interleave=2")
    checks.check("a chunk without a layer", rc == 3 and "no 2 chunks" in out, "%d: %s%s" % (rc, out, err))
    with open(edited, "w") as f:
        f.write(text.replace("micro_batch = 4", "micro_batch = 8"))
    out = exe.run([dsmc, "plan", GPT2, "--plan", path, "--against", edited])
    checks.check("--against shows both", "micro-batch 4" in out.split("AGAINST")[1] and
                 "micro-batch 8" in out.split("AGAINST")[1], out[-600:])

    def refused(name, old, new, code, words, *more):
        bad = os.path.join(folder, "bad.plan")
        assert old in text
        with open(bad, "w") as f:
            f.write(text.replace(old, new))
        rc, _, err = call(dsmc, "plan", GPT2, "--plan", bad, *more)
        caret = re.search(r"bad\.plan:\d+:\d+: error: .*", err) and "^" in err
        checks.check(name, rc == code and words in err and bool(caret), "%d: %s" % (rc, err))

    refused("a mesh of too many", "data(2)", "data(4)", 1, "multiply to 16")
    refused("a mesh and a size", "  micro_batch", "  data = 2\n  micro_batch", 1, "`data` is given")
    refused("too many layers", "stages = [8, 4]", "stages = [8, 5]", 1, "13 layers")
    refused("too many stages", "stages = [8, 4]", "stages = [8, 2, 2]", 1, "3 stages")
    refused("less than no layers", "stages = [8, 4]", "stages = [13, -1]", 1, "not below 0")
    refused("a cut of one's own", '"ffn/tensor"', '"hidden/tensor"', 1, "cut otherwise")
    refused("a cut over nothing", '"ffn/tensor"', '"ffn/ring"', 1, "one rank")
    refused("zero twice", "  recompute", "  zero = 2\n  recompute", 1, "`zero` is said here")
    refused("a factor that is not", 'cut = "data"', 'cut = "data.1"', 1, "no factor")
    refused("another cluster", "data(2)", "data(2)", 3, "--cluster asks for another", "--cluster",
            "dgx-a100-80g:16")
    rc, out, err = call(dsmc, "build", GPT2, "--cluster", "this-host:2", "--pin",
                        "pipeline=2,order=zero_bubble,interleave=2", "-o", os.path.join(folder, "x"))
    checks.check("no chunks for zero bubble", rc == 3 and "zero_bubble has one chunk" in out + err,
                 "%d: %s%s" % (rc, out, err))
    rc, _, err = call(dsmc, "build", GPT2, "--plan", path, "-o", os.path.join(folder, "x"))
    checks.check("no executable for a cluster of GPUs", rc == 1 and "ranks run on this-host:N" in err, err)
    rc, out, _ = call(dsmc, "plan", GPT2, "--plan", path, "--pin", "micro_batch=3")
    checks.check("a plan that cannot be met", rc == 3, out)


def one_device(dsmc, folder, checks):
    text = os.path.join(folder, "job.dsm")
    with open(text, "w") as f:
        f.write(open(TINY).read() + "\nplan small { micro_batch = 2; recompute = full }\n")

    def info(*more):
        x = os.path.join(folder, "x")
        exe.run([dsmc, "build", text, "-o", x, "-q", "--set", "batch=8"] + list(more))
        return exe.run([x, "info"])

    plain, planned = info(), info("--plan", "small")
    pinned = info("--pin", "micro_batch=2,recompute=full")
    checks.check("an executable obeys its plan", planned == pinned and planned != plain)
    again = info("--plan", "small", "--pin", "micro_batch=4,recompute=auto")
    checks.check("a pin wins there too", again == info("--pin", "micro_batch=4"))
    rc, _, err = call(dsmc, "build", text, "-o", os.path.join(folder, "y"), "--plan", "smal")
    checks.check("an unknown plan", rc == 1 and "small" in err, err)


def trace_of(checks, name, path, result):
    """The least that must be true of a trace; returns whether it is."""
    with open(path) as f:
        events = json.load(f)
    streams, most = {}, {}
    for e in events:
        if e["ph"] == "X":
            streams.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["dur"]))
        elif e["ph"] == "C":
            key = (e["pid"], e["name"])
            most[key] = max(most.get(key, 0), *e["args"].values())
    for slices in streams.values():
        slices.sort()
        for (a, d), (b, _) in zip(slices, slices[1:]):
            if a + d > b + 0.0015:  # times are nanoseconds, in microseconds
                return checks.check(name, False, "slices at %r and %r overlap" % (a, b))
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    if names != {s["name"] for s in result["stages"]}:
        return checks.check(name, False, "processes %r" % names)
    for i, s in enumerate(result["stages"]):
        if ("interleave" in result["plan"]) != (" of " in s["name"]):  # chunks: some of a range
            return checks.check(name, False, "the stage is called %r" % s["name"])
        if most[(i, "stash")] != s["stash"]:
            return checks.check(name, False, "stage %d holds %r" % (i, most[(i, "stash")]))
        # Unlike chunks share activations evenly in the trace.
        if "interleave" not in result["plan"] and abs(most[(i, "memory")] - s["peak"]) > 64:
            return checks.check(name, False, "stage %d has %r bytes for %r" % (
                i, most[(i, "memory")], s["peak"]))
    return bool(streams)


def simulated(dsmc, folder, checks):
    rng = random.Random(5)
    models = [(GPT2, "", 12, [1, 2, 4]), (GPT2 + ":gpt2_xl", "", 48, [1]),
              (LLAMA + ":llama3_8b", "seq=2048,batch=256", 32, [1, 2, 4, 8])]
    path = os.path.join(folder, "trace.json")
    done, worst = 0, 0.0
    for n in range(20 * RANDOM):
        if done == RANDOM:
            break
        model, settings, layers, tensors = rng.choice(models)
        tensor, stages = rng.choice(tensors), rng.choice([1, 2, 4, 8])
        data = rng.choice([1, 2, 4])
        order = rng.choice(["one_f_one_b", "interleaved", "gpipe", "zero_bubble"])
        if order == "interleaved":
            if stages == 1 or layers % (2 * stages):
                continue
            order = "interleaved(2)"
        devices = tensor * stages * data
        command = [dsmc, "simulate", model, "--json", "-q", "--trace", path, "--cluster",
                   "dgx-a100-80g:%d" % devices, "--pin",
                   "tensor=%d,pipeline=%d,data=%d,ulysses=1,ring=1,micro_batch=%d,order=%s,zero=%d,"
                   "recompute=%s,offload=none" % (
                       tensor, stages, data, rng.choice([1, 2, 4]), order,
                       rng.choice([0, 1]) if data > 1 else 0, rng.choice(["none", "full"]))]
        if settings:
            command += ["--set", settings]
        rc, out, err = call(*command)
        if rc == 3 or (rc == 1 and "bad-devices" in err):  # does not fit; no such part
            continue
        name = " ".join(command[2:])
        if rc:
            checks.check(name, False, err)
            continue
        result = json.loads(out)
        off = abs(result["simulated_step_s"] / result["predicted_step_s"] - 1)
        worst = max(worst, off)
        if off > 0.01:
            checks.check(name, False, "differ by %g" % off)
        elif not trace_of(checks, name, path, result):
            checks.check(name, False, "no slices")
        done += 1
    checks.check("%d random plans, worst difference %.1e" % (done, worst),
                 done == RANDOM and worst <= 0.01)


def test(dsmc, folder, checks, _):
    round_trip(dsmc, folder, checks)
    one_device(dsmc, folder, checks)
    simulated(dsmc, folder, checks)


exe.main(test)
