#!/usr/bin/env python3
"""Prediction against reality on this host: step time and memory of ten settings.

    bench/predict_host.py [--dsmc build/dsmc] [--cache DIR] [--steps 6]

Calibrates this machine (into --cache; without it a folder that is thrown away), and for each row
asks `dsmc plan --cluster this-host:1` with the row's pins, builds with the same pins, trains some
steps and compares: the median of step_s in the log without the first step against step_s of the
plan, the arena that the executable was given against the peak of the plan. Nothing is fitted. Other
work on the machine makes the measured steps longer.
"""
import argparse
import json
import os
import re
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
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return done.stdout


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--dsmc", default=os.path.join(ROOT, "build", "dsmc"))
    p.add_argument("--cache", help="folder of an earlier calibration")
    p.add_argument("--steps", type=int, default=6)
    o = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = o.cache or os.path.join(folder, "cache")
        if not os.path.exists(os.path.join(cache, "this-host.dsm")):
            print(run(o.dsmc, "calibrate", "--cache", cache).strip())
        exe, log = os.path.join(folder, "x"), os.path.join(folder, "log")
        print("%-45s %-31s %9s %9s %7s %9s %9s %7s" % (
            "settings", "pins", "planned", "measured", "error", "planned", "arena", "error"))
        time_errors, memory_errors = [], []
        for text, settings, pins in ROWS:
            path = os.path.join(ROOT, "examples", text)
            common = [path, "--set", settings + ",steps=%d" % o.steps, "--pin", pins, "--cache",
                      cache]
            best = json.loads(run(o.dsmc, "plan", *common, "--cluster", "this-host:1",
                                  "--json"))["best"]
            built = run(o.dsmc, "build", *common, "-o", exe)
            size, unit = re.search(r"arena ([0-9.]+) (\w+)", built).groups()
            arena = float(size) * {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}[unit]
            run(exe, "train", "--data", "/usr/share/common-licenses/*", "--log", log, "-q")
            with open(log) as f:
                steps = [json.loads(line)["step_s"] for line in f][1:]
            measured = statistics.median(steps)
            a, b = best["step_s"] / measured - 1, best["memory_bytes"]["peak"] / arena - 1
            time_errors.append(abs(a))
            memory_errors.append(abs(b))
            print("%-45s %-31s %7.0fms %7.0fms %+6.1f%% %6.1fMiB %6.1fMiB %+6.1f%%" % (
                text[:-4] + " " + settings, pins, 1e3 * best["step_s"], 1e3 * measured, 100 * a,
                best["memory_bytes"]["peak"] / 2**20, arena / 2**20, 100 * b), flush=True)
        print("average error: step %.1f %%, memory %.1f %%; worst %.1f %%, %.1f %%" % (
            100 * statistics.mean(time_errors), 100 * statistics.mean(memory_errors),
            100 * max(time_errors), 100 * max(memory_errors)))


main()
