#!/usr/bin/env python3
"""Pipelines run in the order that was emitted, which is the order that was planned.

    tests/e2e/ranks_order.py build/dsmc               # every plan below
    tests/e2e/ranks_order.py build/dsmc interleaved   # those whose text has all these words

For each plan: `dsmc simulate --trace` (what the planner says), `EXE schedule --rank N --json` of
every rank (what was emitted), `mpirun EXE train --trace` (what ran, one file a rank).

  - every instruction that a rank ran, with its task, layer and micro-batch, is the next one of its
    program, step by step: launches, products, sends, receives, collectives
  - the forwards and backwards of a stage, and where they are apart those of the weights, with chunk
    and micro-batch, come as the planner has them
  - what a stage sends its neighbour receives: in the same order, for the same micro-batch, and not
    before it was sent
  - the most micro-batches that have begun and not ended at a stage is min(m, p - i) for 1F1B, m for
    GPipe, for zero bubble no more than the first stage has in 1F1B, and what the planner says of any
    order
"""
import json
import os
import sys

import exe
import ranks

STEPS = 2
PLANS = [
    # model, ranks, pins
    ("gpt2-even:batch=4", 2, "pipeline=2,zero=0,micro_batch=1,order=one_f_one_b"),
    ("gpt2-even:batch=4", 2, "pipeline=2,zero=0,micro_batch=1,order=gpipe"),
    ("gpt2-even:batch=4,layers=4", 2,
     "pipeline=2,zero=0,micro_batch=1,order=interleaved(2)"),
    ("gpt2-even:batch=8,layers=4", 4, "pipeline=4,zero=0,micro_batch=1,order=one_f_one_b"),
    ("gpt2-even:batch=2,layers=4", 4, "pipeline=4,zero=0,micro_batch=1,order=one_f_one_b"),
    ("gpt2-even:batch=6,layers=4", 4, "pipeline=4,zero=0,micro_batch=1,order=gpipe"),
    ("gpt2-even:batch=8,layers=8", 4,
     "pipeline=4,zero=0,micro_batch=1,order=interleaved(2)"),
    ("gpt2-even:batch=8,layers=4", 4, "data=2,pipeline=2,zero=1,micro_batch=1,order=one_f_one_b"),
    ("gpt2-even:batch=4,layers=4", 4,
     "pipeline=2,tensor=2,zero=0,micro_batch=1,order=one_f_one_b,recompute=full"),
    ("gpt2-even:batch=4", 2, "pipeline=2,zero=0,micro_batch=1,order=zero_bubble"),
    ("gpt2-even:batch=8,layers=4", 4, "pipeline=4,zero=0,micro_batch=1,order=zero_bubble"),
    ("gpt2-even:batch=2,layers=4", 4, "pipeline=4,zero=0,micro_batch=1,order=zero_bubble"),
    ("gpt2-even:batch=8,layers=4", 4, "data=2,pipeline=2,zero=1,micro_batch=1,order=zero_bubble"),
    ("gpt2-even:batch=4,layers=4", 4,
     "pipeline=2,tensor=2,zero=0,micro_batch=1,order=zero_bubble,recompute=full"),
]


# ---- what was emitted ---------------------------------------------------------------------------

def instruction(program, task, k):
    """What a trace calls instruction k of a task: its name, its note."""
    i = program["tasks"][task]["instrs"][k]
    name = i["op"]
    if "kernel" in i:
        name = program["kernels"][i["kernel"]]["name"]
    if "exchange" in i:
        name = program["exchanges"][i["exchange"]]["kind"]
    return name, i["note"]


def emitted(program):
    """Every instruction of a step: (task, layer, micro-batch, name, note, exchange or None)."""
    entry = next(e for e in program["entries"] if e["name"] == "train_step")
    micros = entry["batch"] // entry["micro_batch"]
    runs, out, at = entry["runs"], [], 0

    def one(run, micro, looped):
        for layer in range(run["layer_count"]):
            slot = run["layer_first"] + layer * run["layer_dir"]
            number = run["number_first"] + slot * run["number_step"]
            task = program["tasks"][run["task"]]
            for k, i in enumerate(task["instrs"]):
                if i.get("last") and looped and micro != micros - 1:
                    continue
                out.append((task["name"], number, micro) + instruction(program, run["task"], k) +
                           (i.get("exchange"),))

    while at < len(runs):
        run = runs[at]
        if "loop" not in run:
            one(run, 0, False)
            at += 1
            continue
        inside = runs[at + 1:at + 1 + run["loop"]]
        for k in range(run["micro_first"], run["micro_first"] + run["micro_count"]):
            for each in inside:
                one(each, k + each["micro_add"], True)
        at += 1 + len(inside)
    return micros, out


# ---- what ran -----------------------------------------------------------------------------------

class Trace:
    """A rank's file: instructions and tasks, in the order they ended, which is that of the file."""

    def __init__(self, path):
        with open(path) as f:
            whole = json.load(f)
        if whole["otherData"]["events_left_out"]:
            raise RuntimeError("%s lacks events" % path)
        self.zero = whole["otherData"]["clock_ns_of_ts_0"]
        events = [e for e in whole["traceEvents"] if e["ph"] == "X"]
        self.pids = {e["pid"] for e in events}
        self.instrs = [e for e in events if e["cat"].startswith("instruction")]
        self.tasks = [e for e in events if e["cat"] == "task"]

    def step(self, number):
        return [e for e in self.instrs if e["args"]["step"] == number]

    def begin(self, e):
        """Nanoseconds on the clock that all ranks of this machine have."""
        return self.zero + 1000 * e["ts"]

    def end(self, e):
        return self.zero + 1000 * (e["ts"] + e["dur"])


PHASE = {"forward": "F", "backward": "B", "weights": "W"}


def phases(trace, step, stages, parts):
    """The phases of a stage, from the tasks that compute layers: ("F", "B" or "W", chunk,
    micro-batch), `parts[layer]` being the part of the model a layer is of."""
    out = []
    for t in trace.tasks:
        words = t["name"].split(".")
        if t["args"]["step"] != step or words[1:2] != ["h"]:
            continue
        if t["args"]["phase"] not in PHASE:
            raise RuntimeError("%s has phase %s" % (t["name"], t["args"]["phase"]))
        phase = (PHASE[t["args"]["phase"]], parts[t["args"]["layer"]] // stages,
                 t["args"]["micro_batch"])
        if not out or out[-1] != phase:
            out.append(phase)
    return out


def most_held(done):
    """Micro-batches of any chunk that have begun and not ended, at most."""
    ends = "W" if any(phase == "W" for phase, _, _ in done) else "B"
    held = most = 0
    for phase, _, _ in done:
        held += (phase == "F") - (phase == ends)
        most = max(most, held)
    return most


# ---- what was planned ---------------------------------------------------------------------------

def planned(path):
    """By stage: its phases in order."""
    with open(path) as f:
        events = json.load(f)
    out = {}
    for e in events:
        if e["ph"] == "X" and e["tid"] == 0 and e["name"][0] in "FBW":
            out.setdefault(e["pid"], []).append((e["ts"], e["name"][0], e["args"]["chunk"],
                                                 e["args"]["micro-batch"]))
    return {s: [x[1:] for x in sorted(list_)] for s, list_ in out.items()}


def parts_of(programs, stage_of, stages):
    """The part of the model of each layer: layers go round the stages in the order of parts."""
    layers = {}
    for r, program in programs.items():
        for _, number, _, _, _, _ in [x for x in emitted(program)[1] if x[0].split(".")[1] == "h"]:
            layers[number] = stage_of[r]
    parts, part = {}, 0
    for number in sorted(layers):
        while part % stages != layers[number]:
            part += 1
        parts[number] = part
    return parts


# ---- comparing ----------------------------------------------------------------------------------

def check_rank(checks, name, program, trace, rank):
    micros, want = emitted(program)
    checks.check(name + ": the trace is of this rank", trace.pids == {rank}, str(trace.pids))
    for step in range(1, STEPS + 1):
        got = [(e["args"]["layer"], e["args"]["micro_batch"], e["name"], e["args"]["note"])
               for e in trace.step(step)]
        wanted = [w[1:5] for w in want]
        off = next((i for i, (g, w) in enumerate(zip(got, wanted)) if g != w),
                   None if len(got) == len(wanted) else min(len(got), len(wanted)))
        checks.check("%s: %d instructions of step %d as emitted" % (name, len(wanted), step),
                     off is None and wanted,
                     "number %s: ran %s, emitted %s" % (off, got[off or 0:][:1],
                                                       wanted[off or 0:][:1]))
    tasks = [t["name"] for t in trace.tasks if t["args"]["step"] == 1]
    inside = [w[0] for w in want]
    order = [x for i, x in enumerate(inside) if not i or inside[i - 1] != x]
    seen = [x for i, x in enumerate(tasks) if (not i or tasks[i - 1] != x) and x in set(inside)]
    checks.check("%s: %d tasks as emitted" % (name, len(order)), seen == order)
    return micros


def messages(program, trace, step, kind, place, other, sign):
    """(micro-batch, event) of what a rank, at a place of its pipeline, sends to the one at place
    `other` (or receives from it), by records whose step has this sign; in order."""
    axis = next(a for a in program["axes"] if a["name"] == "pipeline")
    out = []
    for w, e in zip(emitted(program)[1], trace.step(step)):
        x = program["exchanges"][w[5]] if w[5] is not None else {"kind": ""}
        if x["kind"] == kind and x["step"] * sign > 0 and (
                (place + x["step"]) % axis["size"] == other):
            out.append((w[2], e))
    return out


def check_messages(checks, name, programs, traces, pipeline, step, micros):
    """Those among the ranks of one pipeline, by pair and direction."""
    for i, j, sign in [(i, j, s) for i in range(len(pipeline)) for j in range(len(pipeline))
                       for s in (1, -1) if i != j]:
        a, b = pipeline[i], pipeline[j]
        sent = messages(programs[a], traces[a], step, "send", i, j, sign)
        got = messages(programs[b], traces[b], step, "receive", j, i, -sign)
        next_one = j == i + sign
        if not sent and not got and not next_one:
            continue
        title = "%s: %s from rank %d to %d" % (name, "forward" if sign > 0 else "back", a, b)
        checks.check("%s: %d messages" % (title, len(sent)), len(sent) == len(got) and (
            len(sent) >= micros or not next_one), "%d received, %d micro-batches" % (
                len(got), micros))
        checks.check(title + ": received for the micro-batch they were sent for",
                     [m for m, _ in sent] == [m for m, _ in got],
                     "%s, %s" % ([m for m, _ in sent], [m for m, _ in got]))
        early = [k for k, ((_, s), (_, r)) in enumerate(zip(sent, got))
                 if traces[b].end(r) < traces[a].begin(s)]
        checks.check(title + ": none is there before it was sent", not early, str(early))


def check_stage(checks, name, done, plan, stage, stages, micros, pins, stash):
    checks.check(name + ": all micro-batches", {m for _, _, m in done} == set(range(micros)))
    checks.check("%s: %d phases as planned" % (name, len(plan)), done == plan,
                 "ran %s, planned %s" % (done, plan))
    most = most_held(done)
    checks.check("%s: %d micro-batches at once, as planned" % (name, most), most == stash,
                 "planned %d" % stash)
    if "order=one_f_one_b" in pins:
        checks.check(name + ": min(m, p - i)", most == min(micros, stages - stage), str(most))
    if "order=gpipe" in pins:
        checks.check(name + ": m", most == micros, str(most))
    if "order=zero_bubble" in pins:
        checks.check(name + ": at most min(m, p)", most <= min(micros, stages), str(most))


def check_plan(dsmc, folder, checks, row):
    model, n, pins = row
    name = "%s on %d: %s" % (model, n, pins)
    program = os.path.join(folder, "program")
    ranks.build(dsmc, model, n, pins, program)
    _, job, settings = ranks.settings_of(model)
    simulated = os.path.join(folder, "simulated.json")
    plan = ranks.object_of([dsmc, "simulate", os.path.join(exe.ROOT, "examples", job["model"]),
                            "--set", settings, "--cluster", "this-host:%d" % n, "--pin", pins,
                            "--json", "--trace", simulated])
    programs = {r: ranks.object_of([program, "schedule", "--rank", str(r), "--json"])
                for r in range(n)}
    exe.run(exe.mpirun(n, program, "train", "--data", ranks.data_of(model, folder), "--steps",
                       str(STEPS), "--threads", "1", "--seed", "1", "-q", "--timeout", "20",
                       "--trace-steps", str(STEPS), "--trace", os.path.join(folder, "trace.json")))
    traces = {r: Trace(os.path.join(folder, "trace.%d.json" % r)) for r in range(n)}
    axis = next(a for a in programs[0]["axes"] if a["name"] == "pipeline")
    stages, stride = axis["size"], axis["stride"]
    stage_of = {r: r // stride % stages for r in range(n)}
    parts, order = parts_of(programs, stage_of, stages), planned(simulated)
    for r in range(n):
        title = "%s: rank %d" % (name, r)
        micros = check_rank(checks, title, programs[r], traces[r], r)
        for step in range(1, STEPS + 1):
            check_stage(checks, "%s, step %d" % (title, step),
                        phases(traces[r], step, stages, parts), order[stage_of[r]], stage_of[r],
                        stages, micros, pins, plan["stages"][stage_of[r]]["stash"])
    for first in (r for r in range(n) if stage_of[r] == 0):
        for step in range(1, STEPS + 1):
            check_messages(checks, "%s, step %d" % (name, step), programs, traces,
                           [first + k * stride for k in range(stages)], step, micros)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [WORD...]" % sys.argv[0])
    exe.each(check_plan, PLANS, sys.argv[2:])
