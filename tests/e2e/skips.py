#!/usr/bin/env python3
"""An optional pass changes no bit: `--skip` of each, and of all, gives the same run.

    tests/e2e/skips.py build/dsmc

Trains the tiny example, reduced, and the oracle's llama for a few steps with every optional pass of
`dsmc build --skip` left out in turn: losses, gradient norms and the final weights must be the same
bytes, and leaving them all out must change the program (or the test would test nothing). Pass
`recompute` does nothing without a pin: recompute.py skips it.
"""
import glob
import os

import exe

PASSES = ["canonicalise", "common", "stream", "round", "fuse", "sink", "epilogue"]
TINY = "layers=2,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=6"


def run(program, save, more):
    log = save + ".jsonl"
    exe.run([program, "train", "-q", "--steps", "6", "--save", save, "--log", log, *more])
    steps = [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)]
    weights = glob.glob(os.path.join(save, "step-*", "weights.safetensors"))[0]
    with open(weights, "rb") as f:
        return steps, f.read()


def test(dsmc, folder, checks, names):
    llama = os.path.join(exe.ORACLE, "llama")
    job = exe.expected("llama")
    jobs = [("tiny", "tiny.dsm", TINY, "", []),
            ("tiny, micro-batches", "tiny.dsm", TINY, "micro_batch=2", []),
            ("tiny, bf16", "tiny.dsm", TINY + ",precision=bf16", "micro_batch=2", []),
            ("tiny, logits in chunks", "tiny.dsm", TINY, "micro_batch=2,stream=8KiB", []),
            ("llama", job["model"], exe.job_settings(job).replace("steps=20", "steps=6"), "",
             ["--load", os.path.join(llama, "init.safetensors"), "--data", os.path.join(llama, "data")])]
    for name, text, sets, pins, more in jobs:
        source = os.path.join(exe.ROOT, "examples", text)
        want, programs = None, set()
        for skip in [""] + PASSES + [",".join(PASSES)]:
            program = os.path.join(folder, (name + skip).replace(",", "-").replace(" ", ""))
            exe.run([dsmc, "build", "-q", source, "--set", sets, "-o", program] +
                    (["--skip", skip] if skip else []) + (["--pin", pins] if pins else []))
            got = run(program, program + ".ck", more)
            programs.add(exe.run([program, "schedule"]))
            want = want or got
            checks.check("%s without %s" % (name, skip or "nothing"), got == want,
                         "%s, not %s; weights %s" % (got[0][-1], want[0][-1],
                                                     "equal" if got[1] == want[1] else "differ"))
        checks.check("%s: the passes do something" % name, len(programs) > 2, str(len(programs)))


if __name__ == "__main__":
    exe.main(test)
