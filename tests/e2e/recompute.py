#!/usr/bin/env python3
"""Recompute changes memory and time, and no bit: losses and final weights are the same bytes.

    tests/e2e/recompute.py build/dsmc [gpt2 bf16 llama bert t5 stored post]

Small models of the examples, with dropout where they have it, one with attention written out and 16
bits between ops, and one that carries two values and
normalises after each part (what enters its layers is not saved of itself). For each and for
micro-batches as large as the batch and smaller: `recompute=none`, `selective`, `full` and three
budgets between full and none train the same, with 1 and 2 threads; the bytes that `dsmc build`
reports as saved fall from none over selective to full and keep to each budget; the arena falls; and
`--skip recompute` is none. A budget below full is refused with 3 and the least there is.
"""
import glob
import json
import os
import re
import subprocess

import exe

STEPS = 4
POST = """
model post {
  param layers = 5, hidden = 24, vocab = 256
  dim batch, seq
  input tokens : i32[batch, seq]
  input targets : i32[batch, seq]
  weight wte : [vocab, hidden] = normal(0.1)
  x = gather(wte, tokens)
  z = 0.5 * x
  repeat (layers) as h[i] {
    x = layernorm(x + dropout(tanh(linear(z, hidden, bias=true) as a), 0.2)) as n1
    z = rmsnorm(z + x * sigmoid(linear(x, hidden) as b)) as n2
  }
  output logits = matmul(x + z, transpose(wte))
  output loss = cross_entropy(logits, targets)
}
train post {
  data = "/usr/share/common-licenses/*"
  batch = 4
  seq = 40
  steps = 4
  optimizer = adamw(lr=1e-3)
}
"""
TEXT = "/usr/share/common-licenses/*"
# text in examples/ (None: the one above), settings, data, batch, smaller micro-batches
MODELS = {
    "gpt2": ("tiny.dsm", "layers=5,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=4", TEXT, 4,
             [1]),
    "bf16": ("tiny.dsm", "layers=4,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=4,precision=bf16",
             TEXT, 4, [1]),
    "llama": ("llama.dsm", "layers=5,hidden=48,heads=4,kv_heads=2,ffn=80,vocab=256,context=64,"
              "seq=40,batch=4,steps=4", TEXT, 4, [2]),
    "bert": ("bert.dsm:bert_large", "layers=5,hidden=32,heads=4,vocab=59,context=16,drop=0.1,seq=16,"
             "batch=8,steps=4", "bert", 8, [2]),
    "t5": ("t5.dsm:t5_11b", "layers=4,hidden=24,heads=3,head=8,ffn=40,vocab=47,buckets=8,far=10,"
           "src=11,dst=7,batch=4,steps=4", "t5", 4, [1]),
    "stored": ("../bench/published/gpt2021.dsm", "layers=4,hidden=48,heads=3,vocab=256,context=64,"
               "seq=40,batch=4,steps=4", TEXT, 4, [1]),
    "post": (None, "", TEXT, 4, [1]),
}


def build(dsmc, source, sets, program, micro, mode, more=()):
    """Bytes of the arena, and what is saved before and after as the compiler itself counts."""
    pins = "micro_batch=%d,recompute=%s" % (micro, mode)
    text = exe.run([dsmc, "build", source, "--pin", pins, "-o", program, "-v", *more] +
                   (["--set", sets] if sets else []))
    info = json.loads(exe.run([program, "info", "--json"]))
    saved = re.search(r"recompute: (\d+) of (\d+) bytes saved", info["plan"])
    assert ("recompute=%s" % ("none" if "--skip" in more else mode)) in info["plan"], info["plan"]
    return info["memory_bytes"]["arena"], tuple(map(int, saved.groups())) if saved else None, text


def train(program, more, threads, count):
    """Losses, gradient norms and the bytes of the weights of a short run."""
    save = "%s.%d.ck" % (program, count)
    log = save + ".jsonl"
    exe.run([program, "train", "-q", "--steps", str(STEPS), "--save", save, "--log", log, *more],
            preexec_fn=threads)
    steps = [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)]
    weights = glob.glob(os.path.join(save, "step-*", "weights.safetensors"))[0]
    with open(weights, "rb") as f:
        return steps, f.read()


def job_of(name, folder):
    text, sets, data, batch, micros = MODELS[name]
    source = os.path.join(exe.ROOT, "examples", text or "")
    if not text:
        source = os.path.join(folder, name + ".dsm")
        with open(source, "w") as f:
            f.write(POST)
    if data != TEXT:
        data = os.path.join(exe.ORACLE, data, "data")
    return source, sets, batch, micros, ["--data", data]


def one(dsmc, folder, checks, name, source, sets, micro, more):
    def make(mode, *options):
        program = os.path.join(folder, "%s-%d-%s" % (name, micro, mode))
        return program, build(dsmc, source, sets, program, micro, mode, options)

    what = "%s micro_batch=%d" % (name, micro)
    modes = {mode: make(mode) for mode in ["none", "selective", "full"]}
    before, selective = modes["selective"][1][1][1], modes["selective"][1][1][0]
    least = modes["full"][1][1][0]
    checks.check(what + ": full saves less than selective, and that less than none",
                 least < selective < before, "%d %d %d" % (least, selective, before))
    arena = [modes[mode][1][0] for mode in ["none", "selective", "full"]]
    checks.check(what + ": the arena falls", arena[0] > arena[1] > arena[2],
                 str(arena))
    for part in [0, 1, 2]:
        budget = least + (before - least) * part // 3
        mode = "%dB" % budget
        modes[mode] = make(mode)
        saved = modes[mode][1][1][0]
        checks.check("%s: at most %d bytes" % (what, budget), least <= saved <= budget, str(saved))
    want = None
    for mode, (program, _) in modes.items():
        for n in [1, 2]:
            threads = exe.threads(n)
            if not threads:
                continue
            got = train(program, more, threads, n)
            want = want or got
            checks.check("%s %s: same bits, %d threads" % (what, mode, n), got == want,
                         "%s, not %s; weights %s" % (got[0], want[0],
                                                     "equal" if got[1] == want[1] else "differ"))
    losses = [loss for loss, _ in want[0]]
    checks.check(what + ": it learns something", len(losses) == STEPS and len(set(losses)) > 1,
                 str(losses))
    again = [exe.run([program, "schedule"]).count(" recompute") for program, _ in modes.values()]
    checks.check(what + ": clones in the program", again[0] == 0 and 0 < again[1] <= again[2],
                 str(again))
    program = modes["full"][0] + "-skipped"
    build(dsmc, source, sets, program, micro, "full", ["--skip", "recompute"])
    checks.check(what + ": --skip recompute is none", exe.run([program, "schedule"]) ==
                 exe.run([modes["none"][0], "schedule"]))
    refused = subprocess.run([dsmc, "build", source, "--pin", "micro_batch=%d,recompute=%dB" % (
        micro, least - 1), "-o", program] + (["--set", sets] if sets else []),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    checks.check(what + ": less than full is refused", refused.returncode == 3 and
                 "[does-not-fit]" in refused.stdout and "%d bytes" % least in refused.stdout,
                 "%d %s" % (refused.returncode, refused.stdout))


def profiles(folder, checks, name, micro, more):
    program = os.path.join(folder, "%s-%d-full" % (name, micro))
    trace = os.path.join(folder, "trace.json")
    text = exe.run([program, "train", "-q", "--steps", "2", "--profile", "--trace", trace, *more])
    share = re.search(r"([0-9.]+) %  of these kernels run again in backward", text)
    checks.check(name + ": the profile says what it costs", share and
                 0 < float(share.group(1)) < 90, text)
    with open(trace) as f:
        kinds = [e.get("cat") for e in json.load(f)["traceEvents"]]
    checks.check(name + ": the trace says what runs again", 0 <
                 kinds.count("instruction,recompute") < kinds.count("instruction"))


def test(dsmc, folder, checks, names):
    for name in names or MODELS:
        source, sets, batch, micros, more = job_of(name, folder)
        for micro in [batch] + micros:
            try:
                one(dsmc, folder, checks, name, source, sets, micro, more)
            except (RuntimeError, OSError, ValueError, KeyError, AttributeError) as e:
                checks.check("%s micro_batch=%d" % (name, micro), False, repr(e))
        if name == "post":
            profiles(folder, checks, name, batch, more)


if __name__ == "__main__":
    exe.main(test)
