#!/usr/bin/env python3
"""`precision = bf16` trains as f32 does, for all kinds of model.

    tests/e2e/bf16.py build/dsmc

GPT-2, LLaMA, BERT and T5, reduced, in micro-batches: what products multiply is rounded, so losses and
gradient norms of four steps are not those of f32, but near: 1e-3 for losses, 1e-2 for norms. And so do texts
that cast what lies between ops to bf16 (those of bench/published), in one micro-batch or in several.
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
    for name in ("gpt2021", "gpt2024"):
        stored(dsmc, folder, checks, name)


def stored(dsmc, folder, checks, name):
    """A text that keeps 16 bits between ops against the same text with its casts to f32."""
    with open(os.path.join(exe.ROOT, "bench", "published", name + ".dsm")) as f:
        text = f.read()
    settings = "layers=3,hidden=48,heads=3,vocab=256,context=64,seq=40,batch=4,steps=4,schedule=constant"
    got = []
    for kind, micro in (("f32", 4), ("bf16", 4), ("bf16", 1)):
        source = os.path.join(folder, name + kind + ".dsm")
        with open(source, "w") as f:
            f.write(text.replace(", bf16)", ", f32)") if kind == "f32" else text)
        program = os.path.join(folder, name + kind + str(micro))
        exe.run([dsmc, "build", "-q", source, "--set", settings + ",precision=" + kind, "-o", program,
                 "--pin", "micro_batch=%d" % micro])
        exe.run([program, "train", "-q", "--steps", "4", "--data", recompute.TEXT, "--log", program + ".jsonl"])
        got.append([(s["loss"], s["grad_norm"]) for s in exe.read_log(program + ".jsonl")])
    for what, other in (("casts to f32", got[0]), ("micro_batch=1", got[2])):
        near = all(abs(a / b - 1) < 4 * LOSS and abs(g / h - 1) < 4 * NORM for (a, g), (b, h) in zip(got[1], other))
        checks.check("%s: 4 steps, near those with %s" % (name, what), len(other) == 4 and near, "%s, %s" % (got[1], other))


if __name__ == "__main__":
    exe.main(test)
