#!/usr/bin/env python3
"""Trains the four example models, reduced, against PyTorch's losses (tests/oracle/README.md).

    tests/e2e/models.py build/dsmc [gpt2 llama bert t5]

For each model: all 20 losses of the executable within 1e-4 of PyTorch's in float64 and all gradient
norms within 1e-3; the same with micro-batches of one sample; the same bits with 1 and 2 threads; for
BERT, whose sequences are padded, the loss of one batch of lengths 1 to 8 at every micro-batch, and
the same training with dropout for every micro-batch.
"""
import os

import exe

MODELS = ["gpt2", "llama", "bert", "t5"]


def train(program, model, log, more=(), **how):
    folder = os.path.join(exe.ORACLE, model)
    exe.run([program, "train", "--load", os.path.join(folder, "init.safetensors"),
             "--data", os.path.join(folder, "data"), "--steps", "20", "--log", log, *more], **how)
    steps = exe.read_log(log)
    return [s["loss"] for s in steps], [s["grad_norm"] for s in steps]


def check_training(checks, name, got, job):
    checks.close(name + " losses", got[0], job["losses_f64"], 1e-4)
    checks.close(name + " gradient norms", got[1], job["grad_norms"], 1e-3)


def model_trains(dsmc, folder, checks, model):
    job = exe.expected(model)
    settings = exe.job_settings(job)
    log = os.path.join(folder, model + ".jsonl")
    whole = exe.build(dsmc, job["model"], settings, os.path.join(folder, model))
    got = train(whole, model, log, preexec_fn=exe.threads(1))
    check_training(checks, model, got, job)
    two = exe.threads(2)
    if two:
        again = train(whole, model, log, preexec_fn=two)
        checks.check(model + " same bits with 1 and 2 threads", again == got,
                     "%s and %s" % (got[0][-1], again[0][-1]))
    for micro in (1, 2):
        pins = "micro_batch=%d" % micro
        cut = exe.build(dsmc, job["model"], settings, os.path.join(folder, model + ".cut"), pins)
        check_training(checks, "%s %s" % (model, pins), train(cut, model, log), job)


def bert_drops(dsmc, folder, checks):
    """With dropout, in attention too: the same numbers are drawn whatever a micro-batch is."""
    job = exe.expected("bert")
    settings = exe.job_settings(job).replace("drop=0", "drop=0.1")
    got = []
    for micro in (8, 2, 1):
        pins = "micro_batch=%d" % micro
        program = exe.build(dsmc, job["model"], settings, os.path.join(folder, "drop"), pins)
        got.append(train(program, "bert", os.path.join(folder, "drop.jsonl")))
        if micro < 8:
            checks.close("bert drop=0.1 losses " + pins, got[-1][0], got[0][0], 1e-5)
            checks.close("bert drop=0.1 gradient norms " + pins, got[-1][1], got[0][1], 1e-5)
    apart = max(abs(a - b) for a, b in zip(got[0][0], job["losses_f64"]))
    checks.check("bert drop=0.1 is not drop=0", apart > 1e-3, str(apart))


def bert_evaluates(dsmc, folder, checks):
    job = exe.expected("bert")["eval"]
    data = os.path.join(exe.ORACLE, "bert", "eval")
    init = os.path.join(exe.ORACLE, "bert", "init.safetensors")
    for micro in (1, 2, 4, 8):
        settings = "%s,batch=%d,steps=1" % (job["settings"], job["batch"])
        program = exe.build(dsmc, "bert.dsm:bert_large", settings, os.path.join(folder, "eval"),
                            "micro_batch=%d" % micro)
        text = exe.run([program, "eval", "--load", init, "--data", data])
        checks.close("bert eval micro_batch=%d" % micro, [eval_loss(text)],
                     [job["loss_init_f64"]], 1e-4)


def eval_loss(text):
    """The number behind the word `loss` in what `EXE eval` prints."""
    words = text.replace("=", " ").replace(":", " ").replace(",", " ").split()
    return float(words[words.index("loss") + 1])


def test(dsmc, folder, checks, names):
    for model in names or MODELS:
        try:
            model_trains(dsmc, folder, checks, model)
            if model == "bert":
                bert_evaluates(dsmc, folder, checks)
                bert_drops(dsmc, folder, checks)
        except (RuntimeError, OSError, ValueError, KeyError) as e:
            checks.check(model, False, str(e))


if __name__ == "__main__":
    exe.main(test)
