#!/usr/bin/env python3
"""Prediction against reality on this host: step time and memory of ten settings.

    bench/predict_host.py [--dsmc build/dsmc] [--steps 10] [--limit 6] [--prefix "chrt -f 10"]

For each row: calibrates this machine, asks `dsmc plan --cluster this-host:1` with the row's pins,
builds with the same pins and trains some steps. Nothing is fitted. Compared are

- time: step_s of the plan against the fastest quarter of the steps (the first left out). calibrate
  takes the fastest quarter of its tries too: both sides are the machine when others leave it alone,
  and lie close together in time, because its cores come and go. The median is printed beside it.
- memory: peak_bytes of the plan against the arena of the executable, in bytes: they must be equal.

--prefix stands before every command that is timed, calibrate and train: on a machine that others use
`chrt -f 10` (as root) keeps them off for these seconds. What neighbours of a virtual machine take of
its cores it does not: bench/rate.c tells how fast they are before calibrate, between it and train, and
behind. Where these are more than a tenth apart calibrate and train met two machines, and the row is
done again, at most three times; the last time counts in any case, and is marked. Exits with 1 where
memory differs.
"""
import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROWS = [  # text, settings, pins
    ("tiny.dsm", "batch=16", "micro_batch=16,recompute=none"),
    ("tiny.dsm", "batch=16", "micro_batch=4,recompute=none"),
    ("tiny.dsm", "batch=16", "micro_batch=16,recompute=full"),
    ("tiny.dsm", "batch=32,layers=8", "micro_batch=8,recompute=none"),
    ("tiny.dsm", "batch=8,hidden=384,heads=6", "micro_batch=8,recompute=none"),
    ("tiny.dsm", "batch=8,hidden=384,heads=6", "micro_batch=2,recompute=selective"),
    ("tiny.dsm", "batch=8,hidden=512,heads=8,vocab=8192", "micro_batch=4,recompute=none"),
    ("tiny.dsm", "batch=8,hidden=256,heads=4,precision=bf16", "micro_batch=8,recompute=none"),
    ("gpt2.dsm", "batch=2,seq=256,layers=4,vocab=8192", "micro_batch=1,recompute=none"),
    ("gpt2.dsm", "batch=2,seq=256,layers=4,vocab=8192", "micro_batch=2,recompute=full"),
]


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit("%s\n%s" % (" ".join(command), done.stdout))
    return done.stdout


def run_json(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return json.loads(done.stdout)


TRIES, APART = 3, 1.1


def rate(program):
    """Nanoseconds of the same additions: more, the slower the cores are just now."""
    return float(run(program, "0.3").split()[0])


def shares(seconds):
    """Largest first: "products 68 %, attention 17 %"."""
    total = sum(seconds.values()) or 1
    order = sorted(seconds, key=seconds.get, reverse=True)
    return ", ".join("%s %.0f %%" % (k, 100 * seconds[k] / total) for k in order)


def parts_of(profile):
    """Seconds of kernels by kind. Optimizer's updates are among the others."""
    seconds = {"products": 0.0, "attention": 0.0, "others": 0.0}
    for line in profile[profile.index("ceiling   kernel"):].splitlines()[1:]:
        row = re.match(r"\s+([0-9.]+)\s+[0-9.]+ %\s+\d+\s.*?(?:compute|memory)\s+(?:\*\s+)?(\w+)", line)
        if not row:
            break
        name = row.group(2)
        kind = ("products" if name.startswith("matmul") else
                "attention" if name.startswith("attention") else "others")
        seconds[kind] += float(row.group(1))
    return seconds


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--dsmc", default=os.path.join(ROOT, "build", "dsmc"))
    p.add_argument("--steps", type=int, default=10)
    p.add_argument("--limit", default="6", help="seconds to calibrate for, before each row")
    p.add_argument("--prefix", default="", help="a command to run what is timed by")
    o = p.parse_args()
    prefix = shlex.split(o.prefix)
    with tempfile.TemporaryDirectory() as folder:
        cache, exe = os.path.join(folder, "cache"), os.path.join(folder, "x")
        print("%-50s %-31s %8s %17s %7s %12s %12s" % (
            "settings", "pins", "planned", "measured (median)", "error", "planned", "arena"))
        speed = os.path.join(folder, "rate")
        run(os.environ.get("CC", "cc"), "-O2", "-pthread", os.path.join(ROOT, "bench", "rate.c"), "-o", speed)
        time_errors, differ, changed = [], 0, 0
        for text, settings, pins in ROWS:
            path = os.path.join(ROOT, "examples", text)
            common = [path, "--set", settings + ",steps=%d" % o.steps, "--pin", pins, "--cache",
                      cache]
            log = os.path.join(folder, "log")
            for attempt in range(TRIES):
                rates = [rate(speed)]
                run(*prefix, o.dsmc, "calibrate", "--cache", cache, "--limit", o.limit, "-q")
                best = run_json(o.dsmc, "plan", *common, "--cluster", "this-host:1", "--json")["best"]
                run(o.dsmc, "build", *common, "-o", exe)
                arena = run_json(exe, "info", "--json")["memory_bytes"]["arena"]
                rates.append(rate(speed))
                profile = run(*prefix, exe, "train", "--data", "/usr/share/common-licenses/*", "--log",
                              log, "--profile", "-v")
                rates.append(rate(speed))
                with open(log) as f:
                    steps = sorted([json.loads(line)["step_s"] for line in f][1:])
                os.unlink(log)
                steady = max(rates) <= APART * min(rates)
                if steady:
                    break
            changed += not steady
            measured, peak = steps[len(steps) // 4], best["memory_bytes"]["peak"]
            error = best["step_s"] / measured - 1
            planned = dict(best["compute_s"])
            planned["others"] += best["time_s"]["optimizer"]
            time_errors.append(abs(error))
            differ += peak != arena
            print("%-50s %-31s %6.0fms %6.0fms (%6.0fms) %+6.1f%% %12d %12d\n    planned: %s; "
                  "measured: %s; cores: %s us%s" % (
                      text[:-4] + " " + settings, pins, 1e3 * best["step_s"], 1e3 * measured,
                      1e3 * statistics.median(steps), 100 * error, peak, arena,
                      shares(planned), shares(parts_of(profile)),
                      ", ".join("%.1f" % (r / 1e3) for r in rates), "" if steady else ", not steady"),
                  flush=True)
        if changed:
            print("%d rows on cores whose speed changed by more than a tenth" % changed)
        print("step time: average error %.1f %%, worst %.1f %%; memory: %s" % (
            100 * statistics.mean(time_errors), 100 * max(time_errors),
            "equal to the byte in all rows" if not differ else "differs in %d rows" % differ))
    sys.exit(1 if differ else 0)


main()
