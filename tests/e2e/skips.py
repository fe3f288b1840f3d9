#!/usr/bin/env python3
"""An optional pass changes no bit: `--skip` of each, and of all, gives the same run.

    tests/e2e/skips.py build/dsmc

Trains the tiny example, reduced, and the oracle's llama for a few steps with every optional pass of
`dsmc build --skip` left out in turn: losses, gradient norms and the final weights must be the same
bytes, and so must what `eval` and `generate` make of these weights, and a run that is stopped in the
middle and resumed. Leaving them all out must change the program (or the test would test nothing).
Pass `recompute` does nothing without a pin: recompute.py skips it.
"""
import glob
import os

import exe

PASSES = ["canonicalise", "common", "narrow", "stream", "round", "fuse", "sink", "epilogue"]
TINY = "layers=2,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=6"


def train(program, save, stops, load, data):
    """Trains in as many processes as there are stops: losses and norms, and the last weights."""
    log = save + ".jsonl"
    for i, stop in enumerate(stops):
        go_on = ["--resume", save] if i else load
        exe.run([program, "train", "-q", "--steps", str(stop), "--save", save, "--log", log, *go_on, *data])
    steps = [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)]
    weights = sorted(glob.glob(os.path.join(save, "step-*", "weights.safetensors")))[-1]
    with open(weights, "rb") as f:
        return steps, f.read()


def use(program, save, data):
    """What `eval` and `generate` print for the weights of `save`."""
    return (exe.run([program, "eval", "-q", "--load", save, *data]),
            exe.run([program, "generate", "-q", "--load", save, "--prompt-tokens", "7,8,9",
                     "--tokens", "12", "--temperature", "0"]))


def test(dsmc, folder, checks, names):
    llama = os.path.join(exe.ORACLE, "llama")
    job = exe.expected("llama")
    lines = os.path.join(folder, "lines.txt")  # short, for `eval` reads all of it
    with open(lines, "w") as f:
        f.write("".join("line %d is not line %d\n" % (i, i * i) for i in range(300)))
    text = ["--data", lines]
    jobs = [("tiny", "tiny.dsm", TINY, "", [], text),
            ("tiny, micro-batches", "tiny.dsm", TINY, "micro_batch=2", [], text),
            ("tiny, bf16", "tiny.dsm", TINY + ",precision=bf16", "micro_batch=2", [], text),
            ("tiny, logits in chunks", "tiny.dsm", TINY, "micro_batch=2,stream=8KiB", [], text),
            ("llama", job["model"], exe.job_settings(job).replace("steps=20", "steps=6"), "",
             ["--load", os.path.join(llama, "init.safetensors")], ["--data", os.path.join(llama, "data")])]
    for name, model, sets, pins, load, data in jobs:
        source = os.path.join(exe.ROOT, "examples", model)
        want, used, programs = None, None, set()
        for skip in [""] + PASSES + [",".join(PASSES)]:
            program = os.path.join(folder, (name + skip).replace(",", "-").replace(" ", ""))
            exe.run([dsmc, "build", "-q", source, "--set", sets, "-o", program] +
                    (["--skip", skip] if skip else []) + (["--pin", pins] if pins else []))
            got = train(program, program + ".ck", [6], load, data)
            programs.add(exe.run([program, "schedule"]))
            want = want or got
            checks.check("%s without %s" % (name, skip or "nothing"), got == want,
                         "%s, not %s; weights %s" % (got[0][-1], want[0][-1],
                                                     "equal" if got[1] == want[1] else "differ"))
            again = train(program, program + ".again", [3, 6], load, data)
            now = use(program, program + ".again", data)
            used = used or now
            checks.check("%s without %s, stopped and resumed, evaluates and generates" %
                         (name, skip or "nothing"), again == want and now == used,
                         "%s, not %s; %s, not %s" % (again[0][-1], want[0][-1], now, used))
        checks.check("%s: the passes do something" % name, len(programs) > 2, str(len(programs)))


if __name__ == "__main__":
    exe.main(test)
