#!/usr/bin/env python3
"""One seed, one result: training and generating give the same bits every time.

    tests/e2e/same.py build/dsmc

A tiny.dsm with dropout and micro-batches trains three times from one seed, with 2, 1 and 2 threads:
logs (but for times) and every byte of the checkpoints are equal; another seed gives others. Then the
same for the text that `generate` makes, greedy and drawn. All of it in f32 and in bf16, whose losses are near.
"""
import os

import exe

SETTINGS = "layers=2,hidden=48,heads=3,seq=48,batch=8,drop=0.1,steps=20"
TIMES = ("step_s", "tokens_per_s", "peak_bytes", "page_faults")


def files_of(folder):
    files = {}
    for base, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            with open(path, "rb") as f:
                files[os.path.relpath(path, folder)] = f.read()
    return files


def train(program, folder, name, threads, seed):
    save, log = os.path.join(folder, name), os.path.join(folder, name + ".jsonl")
    exe.run([program, "train", "-q", "--threads", str(threads), "--seed", str(seed), "--log", log,
             "--save", save, "--save-every", "10"])
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in exe.read_log(log)]
    return save, lines, files_of(save)


def generate(program, save, threads, *more):
    return exe.run([program, "generate", "-q", "--threads", str(threads), "--load", save,
                    "--prompt-tokens", "84,104,101", "--tokens", "60", *more])


def test(dsmc, folder, checks, names):
    losses = {}
    for precision in ("f32", "bf16"):
        os.mkdir(os.path.join(folder, precision))
        losses[precision] = one(dsmc, os.path.join(folder, precision), checks, precision)
    # Rounding what products multiply is seen, and does not matter to training.
    first, last = [[losses[p][i] for p in ("f32", "bf16")] for i in (0, -1)]
    checks.check("bf16: the first loss is that of f32 to 1e-3",
                 first[0] != first[1] and abs(first[0] / first[1] - 1) < 1e-3, repr(first))
    checks.check("bf16: the loss falls as with f32, to 1 %",
                 last[0] < 0.95 * first[0] and abs(last[0] / last[1] - 1) < 1e-2, repr(last))


def one(dsmc, folder, checks, precision):
    program = exe.build(dsmc, "tiny.dsm", SETTINGS + ",precision=" + precision,
                        os.path.join(folder, "tiny"), "micro_batch=4")
    save, log, files = train(program, folder, "first", 2, 7)
    checks.check(precision + ": 20 steps, 2 checkpoints of 3 files",
                 len(log) == 20 and len(files) == 6, "%d steps, %s" % (len(log), sorted(files)))
    for name, threads in (("second", 1), ("third", 2)):
        _, log2, files2 = train(program, folder, name, threads, 7)
        checks.check("%s, %s run, %d threads: same log" % (precision, name, threads), log2 == log)
        checks.check("%s, %s run, %d threads: same checkpoints" % (precision, name, threads), files2 == files)
    _, log2, files2 = train(program, folder, "other", 2, 8)
    checks.check(precision + ": another seed differs", log2 != log and files2 != files)

    for more in (["--temperature", "0"], ["--seed", "3"], ["--top-k", "5"], ["--top-p", "0.7"]):
        texts = [generate(program, save, n, *more) for n in (2, 1, 2)]
        checks.check("%s: generate %s: same text three times, 1 and 2 threads" %
                     (precision, " ".join(more)),
                     len(texts[0].split()) == 60 and len(set(texts)) == 1, repr(texts))
    checks.check(precision + ": generate with another seed differs",
                 generate(program, save, 2, "--seed", "3") != generate(program, save, 2, "--seed", "4"))
    return [line["loss"] for line in log]


if __name__ == "__main__":
    exe.main(test)
