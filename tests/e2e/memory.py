#!/usr/bin/env python3
"""An executable maps the memory that was planned, uses no other, and takes it before the first step.

    tests/e2e/memory.py build/dsmc [small | gpt2]

For each program, while it trains: one mapping has the size of the planned arena, to the page, and all
of it is resident; what the process has resident outside files is the arena and at most 64 MiB; no
step after the second meets a page fault (`page_faults` in the log). `small`: four models, also in
micro-batches; `gpt2`: GPT-2 124M, 4 x 64 tokens a step.
"""
import json
import os
import re
import subprocess
import time

import exe

SLACK = 64 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")
HUGE = 2 << 20
SMALL = "layers=3,hidden=64,heads=2,ffn=128,vocab=256"
CASES = {
    "small": [
        ("tiny", "tiny.dsm", "batch=8,seq=64", ("8", "2")),
        ("gpt2", "gpt2.dsm:gpt2", SMALL + ",batch=4,seq=64", ("1",)),
        ("llama", "llama.dsm", SMALL + ",kv_heads=1,batch=4,seq=64", ("4",)),
        ("t5", "t5.dsm", SMALL + ",batch=4", ("2",)),
    ],
    "gpt2": [("gpt2 124M", "gpt2.dsm:gpt2", "batch=4,seq=64,clip=none", ("4",))],
}


def mappings(pid):
    """(bytes, bytes resident) of every mapping."""
    found, size = [], 0
    with open("/proc/%d/smaps" % pid) as f:
        for line in f:
            if line.startswith("Size:"):
                size = int(line.split()[1]) << 10
            elif line.startswith("Rss:"):
                found.append((size, int(line.split()[1]) << 10))
    return found


def resident_outside_files(pid):
    with open("/proc/%d/status" % pid) as f:
        found = re.search(r"RssAnon:\s*(\d+) kB", f.read())
    return int(found.group(1)) << 10 if found else 0


def watch(program, steps, log):
    """Trains; the most RssAnon seen, and the mappings after the first step."""
    child = subprocess.Popen([program, "train", "-q", "--steps", str(steps), "--log", log],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    most, maps = 0, []
    while child.poll() is None:
        try:
            most = max(most, resident_outside_files(child.pid))
            if not maps and os.path.exists(log) and os.path.getsize(log):
                maps = mappings(child.pid)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has ended
        time.sleep(0.005)
    text = child.stdout.read()
    if child.returncode:
        raise RuntimeError("exit code %d\n%s" % (child.returncode, text))
    return most, maps


def one(dsmc, folder, checks, name, model, settings, micro, steps):
    program, log = os.path.join(folder, "p"), os.path.join(folder, "log")
    data = os.path.join(folder, "data.txt")
    with open(data, "w") as f:
        f.write("".join("line %d is not line %d\n" % (i, i * i) for i in range(20000)))
    exe.build(dsmc, model, settings + ',data="%s"' % data, program, "micro_batch=" + micro)
    if os.path.exists(log):
        os.unlink(log)
    name = "%s micro_batch=%s" % (name, micro)
    info = json.loads(exe.run([program, "info", "--json"]))
    memory = info["memory_bytes"]
    largest = max(e["transient_bytes"] for e in info["entries"])
    checks.check(name + ": the arena is the states and the largest entry",
                 0 <= memory["arena"] - memory["states"] - largest < 64,
                 "%d, %d + %d" % (memory["arena"], memory["states"], largest))
    most, maps = watch(program, steps, log)
    # With huge pages the arena is a mapping of its own; without them, part of one that leaves room
    # to start on one.
    pages = (memory["arena"] + PAGE - 1) // PAGE * PAGE
    whole = (memory["arena"] + HUGE - 1) // HUGE * HUGE + HUGE
    arena = [m for m in maps if m[0] == pages] or [m for m in maps if m[0] == whole]
    checks.check(name + ": one mapping of the planned size, all resident",
                 len(arena) == 1 and arena[0][1] == pages,
                 "planned %d, %d with whole pages; mapped %r" % (memory["arena"], pages, maps))
    checks.check(name + ": planned %d, resident outside files %d" % (memory["arena"], most),
                 memory["arena"] <= most + PAGE and most <= memory["arena"] + SLACK)
    with open(program, "rb") as f:
        if b"__asan_init" in f.read():
            return  # its allocator and shadow memory fault in any step
    faults = [s["page_faults"] for s in exe.read_log(log)]
    checks.check(name + ": no page fault after the second of %d steps" % steps,
                 len(faults) == steps and not any(faults[2:]), str(faults))


def test(dsmc, folder, checks, names):
    for group in names or CASES:
        for name, model, settings, micros in CASES[group]:
            for micro in micros:
                one(dsmc, folder, checks, name, model, settings, micro, 12 if group == "small" else 6)


if __name__ == "__main__":
    exe.main(test)
