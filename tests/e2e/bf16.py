#!/usr/bin/env python3
"""`precision = bf16` trains as f32 does, for all kinds of model.

    tests/e2e/bf16.py build/dsmc

GPT-2, LLaMA, BERT and T5, reduced, in micro-batches: what products multiply is rounded, so losses and
gradient norms of four steps are not those of f32, but near: 1e-3 for losses, 1e-2 for norms.
"""
import os

import exe
import recompute

LOSS, NORM = 1e-3, 1e-2


def train(dsmc, folder, name, precision):
    source, settings, _, micros, more = recompute.job_of(name, folder)
    program = os.path.join(folder, name + precision)
    exe.run([dsmc, "build", "-q", source, "--set", settings + ",precision=" + precision, "-o", program,
             "--pin", "micro_batch=%d" % micros[0]])
    log = program + ".jsonl"
    exe.run([program, "train", "-q", "--steps", "4", "--log", log, *more])
    return [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)]


def test(dsmc, folder, checks, names):
    for name in names or ["gpt2", "llama", "bert", "t5"]:
        exact, rounded = train(dsmc, folder, name, "f32"), train(dsmc, folder, name, "bf16")
        near = all(abs(a / b - 1) < LOSS and abs(g / h - 1) < NORM
                   for (a, g), (b, h) in zip(exact, rounded))
        checks.check(name + ": 4 steps, near those of f32, not the same",
                     len(exact) == len(rounded) == 4 and near and exact[0] != rounded[0],
                     "%s, %s" % (exact, rounded))


if __name__ == "__main__":
    exe.main(test)
