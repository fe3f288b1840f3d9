#!/usr/bin/env python3
"""`--pin matmul=openblas`: a library multiplies, and nothing else changes.

    tests/e2e/external.py build/dsmc

Without the library (DSM_OPENBLAS names a file that is not there): `EXE info` and `EXE schedule` work,
the schedule has gemm instructions, training stops with exit code 1 and one line that says what to do;
so with a file that is no OpenBLAS. With it: losses and gradient norms of ten steps are within 1e-4 of
those of our kernels, whole batch, micro-batches (sums that go on) and streamed head (sums that begin
somewhere); the same executable gives the same bits each time; --profile and --trace show the products with
their rates; what is left to our kernels (bf16, decoding) is. Exit code 77, skipped, where no OpenBLAS is installed
(Debian: apt install libopenblas0-pthread, 7 MB to fetch).
"""
import ctypes
import json
import os
import re
import subprocess
import sys

import exe

SETTINGS = "layers=3,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=10"
WAYS = {"whole batch": "micro_batch=4", "micro-batches": "micro_batch=2",
        "streamed head": "micro_batch=4,stream=32KiB", "recompute": "micro_batch=4,recompute=full"}


def fails(command, **env):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
                          universal_newlines=True, env=dict(os.environ, **env))
    return done.returncode, done.stderr


def missing(folder, checks, program):
    nowhere = {"env": dict(os.environ, DSM_OPENBLAS=os.path.join(folder, "nowhere.so"))}
    schedule = exe.run([program, "schedule"], **nowhere)
    gemms = re.findall(r"^  gemm +(\S+) x\d+ .*; (.*)$", schedule, re.M)
    checks.check("the schedule has gemm instructions, without the library",
                 len(gemms) > 15 and all(name.startswith("openblas_") for name, _ in gemms),
                 schedule[:2000])
    checks.check("info works without the library",
                 "matmul=openblas" in exe.run([program, "info"], **nowhere))
    for name, file in (("missing", "nowhere.so"), ("another library", "libm.so.6")):
        path = file if file == "libm.so.6" else os.path.join(folder, file)
        code, text = fails([program, "train", "-q", "--steps", "1"], DSM_OPENBLAS=path)
        lines = text.strip().split("\n")
        want = ["OpenBLAS", file] + (["matmul=openblas", "apt install libopenblas0-pthread",
                                      "--pin matmul=builtin"] if name == "missing" else [])
        checks.check(name + ": exit code 1 and one line that says what to do",
                     code == 1 and len(lines) == 1 and all(w in text for w in want),
                     "%d %s" % (code, text))


def train(program, folder, threads=2, *more):
    log = os.path.join(folder, "log.jsonl")
    if os.path.exists(log):
        os.unlink(log)
    out = exe.run([program, "train", "-q", "--threads", str(threads), "--log", log, *more])
    steps = exe.read_log(log)
    return [s["loss"] for s in steps] + [s["grad_norm"] for s in steps], out


def near(dsmc, folder, checks):
    for way, pins in WAYS.items():
        ours, lib = [exe.build(dsmc, "tiny.dsm", SETTINGS, os.path.join(folder, who),
                               pins + ",matmul=" + who) for who in ("builtin", "openblas")]
        checks.check(way + ": builtin has no gemm", "\n  gemm" not in exe.run([ours, "schedule"]))
        got, want = train(lib, folder)[0], train(ours, folder)[0]
        checks.check(way + ": ten steps", len(got) == 20 and len(set(got)) > 10, str(got))
        checks.close(way + ": losses and norms are ours", got, want, 1e-4)
        checks.check(way + ": the same bits again", train(lib, folder)[0] == got)
        checks.close(way + ": 1 thread", train(lib, folder, 1)[0], want, 1e-4)


def watched(folder, checks, program):
    trace = os.path.join(folder, "trace.json")
    _, out = train(program, folder, 2, "--steps", "3", "--profile", "--trace", trace, "-v")
    row = re.search(r"^ +([0-9.]+) +[0-9.]+ % +(\d+) +([0-9.]+) .*openblas_", out, re.M)
    checks.check("--profile shows products with calls and GFLOP/s",
                 row and float(row.group(1)) > 0 and int(row.group(2)) > 0 and float(row.group(3)) > 0,
                 out[-3000:])
    with open(trace) as f:
        events = [e for e in json.load(f)["traceEvents"] if e["name"].startswith("openblas_")]
    checks.check("--trace shows them", len(events) > 15 and
                 all(e["args"]["gflops_per_s"] > 0 and e["dur"] > 0 for e in events), str(events[:1]))


def left_to_us(dsmc, folder, checks):
    program = exe.build(dsmc, "tiny.dsm", SETTINGS + ",precision=bf16", os.path.join(folder, "bf16"),
                        "matmul=openblas")
    checks.check("bf16: no gemm", "\n  gemm" not in exe.run([program, "schedule"]))
    text = exe.run([os.path.join(folder, "openblas"), "generate", "-q", "--prompt-tokens", "84,104",
                    "--tokens", "20", "--temperature", "0"])
    checks.check("generate makes 20 tokens", len(text.split()) == 20, text)


def installed():
    try:
        ctypes.CDLL(os.environ.get("DSM_OPENBLAS") or "libopenblas.so.0")
        return True
    except OSError:
        return False


def test(dsmc, folder, checks, names):
    program = exe.build(dsmc, "tiny.dsm", SETTINGS, os.path.join(folder, "first"),
                        "micro_batch=4,matmul=openblas")
    missing(folder, checks, program)
    if not installed():
        print("skipped: OpenBLAS (libopenblas.so.0) is not installed; what needs it was not run")
        sys.exit(checks.end() or 77)
    near(dsmc, folder, checks)
    watched(folder, checks, program)
    left_to_us(dsmc, folder, checks)


if __name__ == "__main__":
    exe.main(test)
