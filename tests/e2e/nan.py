#!/usr/bin/env python3
"""A step whose loss or gradient norm is not finite is caught at that step, and its origin named.

    tests/e2e/nan.py build/dsmc

Builds a small model whose layers hold `exp`, trains it well, then goes on with a learning rate that
makes the weights huge, in f32 and in bf16: exit code 5, the value and line where the infinity is
made, in which task, layer, micro-batch and samples; the bad step changed no weight, the last
checkpoint is the step before it, and both it and the older one load. Then a logarithm that turns NaN in layer 1 only, a
gradient that is infinite where the loss is not, and weights that are bad from the start.
"""
import json
import os
import re
import shutil
import struct
import subprocess

import exe

MODEL = """\
model bad {
  param layers = 3, hidden = 16, vocab = 256
  dim batch, seq
  input tokens : i32[batch, seq]
  input targets : i32[batch, seq]
  weight wte as wte.weight : [vocab, hidden] = normal(0.02)
  x = gather(wte, tokens)
  repeat (layers) as h[i] {
    u = linear(x, hidden, bias=true) as fc
    e = %s
    x = x + 0.01 * dropout(linear(e, hidden) as proj, 0.2)
  }
  output logits = matmul(x, transpose(wte))
  output loss = cross_entropy(logits, targets)
}
train bad {
  data = "%s"
  batch = 8
  seq = 16
  steps = 20
  precision = f32
  optimizer = sgd(lr=0.1)
}
"""
LINE = 10  # of `e = ...`


def build(dsmc, folder, name, text, pins=("--pin", "micro_batch=2"), precision="f32"):
    """Builds MODEL with `text` for the value e."""
    data = os.path.join(folder, "text.txt")
    with open(data, "w") as f:
        f.write("the quick brown fox jumps over the lazy dog. " * 200)
    source = os.path.join(folder, name + ".dsm")
    with open(source, "w") as f:
        f.write(MODEL % (text, data))
    program = os.path.join(folder, name)
    exe.run([dsmc, "build", source, "-o", program, "-q", "--set", "precision=" + precision, *pins])
    return program


def train(program, *more):
    done = subprocess.run([program, "train", *more], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    return done.returncode, done.stderr, done.stdout


def saves(folder):
    return sorted(os.listdir(folder)) if os.path.isdir(folder) else []


def bytes_of(folder, step):
    with open(os.path.join(folder, "step-%08d" % step, "weights.safetensors"), "rb") as f:
        return f.read()


def explodes(dsmc, folder, checks, precision="f32"):
    program = build(dsmc, folder, "explodes", "exp(u)", precision=precision)
    good, ck, log = (os.path.join(folder, precision + x) for x in ("good", "ck", "log.jsonl"))
    code, err, _ = train(program, "--steps", "4", "--save", good, "-q")
    checks.check("trains well", code == 0, err)
    shutil.copytree(good, ck)
    code, err, _ = train(program, "--resume", ck, "--set", "lr=1e6", "--log", log, "--keep", "9")
    checks.check("exit code 5", code == 5, "%d\n%s" % (code, err))
    steps = exe.read_log(log)
    bad = steps[-1]["step"]
    checks.check("the log ends with the bad step", steps[-1]["loss"] is None and bad > 5,
                 json.dumps(steps[-1]))
    checks.check("names the step", re.search(r"^error: loss is (NaN|\+Inf) at step %d " % bad, err),
                 err)
    made = re.search(r"the first \+Inf is made by `(.*)` in task (\S+), layer (\d+), "
                     r"micro-batch (\d+) \(samples (\d+) \.\. (\d+)\): element \d+ of \d+", err)
    if checks.check("names where the infinity is made", made, err):
        note, task, layer, micro, first, last = made.groups()
        checks.check("value and line", re.search("[%%,]e line %d$" % LINE, note), note)
        checks.check("task and layer", task.startswith("forward.h") and int(layer) < 3,
                     task + " " + layer)
        want = 8 * (bad - 1) + 2 * int(micro)
        checks.check("samples of the micro-batch", (int(first), int(last)) == (want, want + 1),
                     "%s .. %s, expected %d" % (first, last, want))
    checks.check("the weights are kept", "the step changed no weight" in err, err)
    checks.check("the step gives the same numbers again", "gave other numbers" not in err, err)
    checks.check("the step before is saved, the bad one is not",
                 saves(ck) == ["step-%08d" % s for s in (4, bad - 1)], str(saves(ck)))
    # What was saved is what an undisturbed run has after that step.
    again = os.path.join(folder, precision + "again")
    shutil.copytree(good, again)
    code, err, _ = train(program, "--resume", again, "--set", "lr=1e6", "--steps", str(bad - 1),
                         "-q")
    checks.check("the weights of the step before",
                 code == 0 and bytes_of(again, bad - 1) == bytes_of(ck, bad - 1), err)
    shutil.rmtree(os.path.join(ck, "step-%08d" % (bad - 1)))
    code, err, _ = train(program, "--resume", ck, "--steps", "6", "-q")
    checks.check("the older checkpoint loads", code == 0, err)
    code, err, _ = train(program, "--resume", good, "--steps", "6", "-q")
    checks.check("and trains to the same bits",
                 code == 0 and bytes_of(ck, 6) == bytes_of(good, 6), err)


def explodes_in_bf16(dsmc, folder, checks):
    """There the update writes the bf16 copies of weights too: it must be held back with them."""
    explodes(dsmc, folder, checks, "bf16")


def layer_of_nan(dsmc, folder, checks):
    """log of a negative number, in one column of layer 1; all else is small."""
    program = build(dsmc, folder, "log", "log(u + 0.5)", pins=())
    weights = os.path.join(folder, "w.safetensors")
    write_weights(weights, {("h.1.fc.bias", 3): -1.0})
    code, err, _ = train(program, "--load", weights)
    checks.check("NaN in layer 1: exit code 5", code == 5, "%d\n%s" % (code, err))
    made = re.search(r"the first NaN is made by `(.*) line (\d+)` in task \S+, layer (\d+) "
                     r"\(samples 0 \.\. 7\): element 3 of 2048, and 127 more", err)
    if checks.check("NaN in layer 1 is found there", made, err):
        checks.check("NaN in layer 1: line and layer",
                     (int(made.group(2)), int(made.group(3))) == (LINE, 1), made.group(0))
    checks.check("NaN at the first step saves nothing", "nothing was saved" in err, err)


def gradient_only(dsmc, folder, checks):
    """The square root's gradient at 0 is infinite where its value is not."""
    program = build(dsmc, folder, "sqrt", "sqrt(u)")
    weights = os.path.join(folder, "w.safetensors")
    write_weights(weights, {})
    code, err, _ = train(program, "--load", weights)
    checks.check("infinite gradient: exit code 5", code == 5, "%d\n%s" % (code, err))
    checks.check("infinite gradient: the norm is named, with a good loss",
                 re.search(r"^error: the gradient norm is (NaN|\+Inf) at step 1 \(lr 0\.1, "
                           r"loss [\d.]+\)", err), err)
    checks.check("infinite gradient: drawn again, the loss is the same bits",
                 "gave other numbers" not in err, err)
    checks.check("infinite gradient: made in the backward of that line",
                 re.search(r"the first (NaN|[+-]Inf) is made by `.* line %d` in task backward" %
                           LINE, err), err)


def bad_weights(dsmc, folder, checks):
    program = build(dsmc, folder, "start", "exp(u)")
    weights = os.path.join(folder, "w.safetensors")
    write_weights(weights, {("h.2.proj.weight", 17): float("nan")})
    code, err, _ = train(program, "--load", weights)
    checks.check("weights that are bad already are named",
                 code == 5 and "weight h.2.proj.weight is NaN at element 17 of [16, 16] in what "
                 "this run started from" in err, "%d\n%s" % (code, err))


def write_weights(path, changes):
    """Zeros for every weight of MODEL, but for some elements: (name, element) to value."""
    shapes = {"wte.weight": [256, 16]}
    for i in range(3):
        shapes.update({"h.%d.fc.weight" % i: [16, 16], "h.%d.fc.bias" % i: [16],
                       "h.%d.proj.weight" % i: [16, 16]})
    header, body = {}, b""
    for name, shape in shapes.items():
        n = shape[0] * (shape[1] if len(shape) > 1 else 1)
        x = [0.01 if name == "wte.weight" or "proj" in name else 0.0] * n
        for (where, element), value in changes.items():
            if where == name:
                x[element] = value
        header[name] = {"dtype": "F32", "shape": shape,
                        "data_offsets": [len(body), len(body) + 4 * n]}
        body += struct.pack("<%df" % n, *x)
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)


def test(dsmc, folder, checks, names):
    for part in (explodes, explodes_in_bf16, layer_of_nan, gradient_only, bad_weights):
        try:
            part(dsmc, folder, checks)
        except (RuntimeError, OSError, ValueError, KeyError) as e:
            checks.check(part.__name__, False, str(e))


if __name__ == "__main__":
    exe.main(test)
