#!/usr/bin/env python3
"""What may be left out changes no bit: `--skip` of each optional pass and choice gives the same run.

    tests/e2e/skips.py build/dsmc [JOB...]

Trains the tiny example, reduced, and the oracle's other models for a few steps with every name of
`dsmc help skip` left out in turn, and with all of them: losses, gradient norms, the final weights and
what is generated with them must be the same bytes. With and without the weights' rounded copies
(`narrow`) a run that is stopped and resumed must end so too, and `eval` must agree. Each name must change the code or the schedule of
some job (or the test would test nothing), or the kernels for a GPU. What is for ranks overlap.py runs. `recompute` does
nothing without a pin: recompute.py skips it.
"""
import glob
import os
import re
import struct

import exe

TINY = "layers=2,hidden=48,heads=3,seq=40,batch=4,drop=0.1,steps=4"
# Products of over 512 rows and several tiles, and operands whose rows are 16 KiB.
WIDE = "layers=2,hidden=192,heads=3,seq=40,batch=14,vocab=4096,drop=0.1,steps=4"
# Keys in several tiles, hidden, mixed and seen.
LONG = "layers=2,hidden=32,heads=2,seq=200,context=208,batch=2,steps=4"
JOBS = [("tiny", TINY, ""),
        ("tiny, micro-batches", TINY, "micro_batch=2"),
        ("tiny, bf16", TINY + ",precision=bf16", "micro_batch=2"),
        ("tiny, logits in chunks", TINY, "micro_batch=2,stream=8KiB"),
        ("wide", WIDE, ""),
        ("wide, bf16", WIDE + ",precision=bf16", ""),
        ("long", LONG, "")]


def names_of(dsmc):
    """What `dsmc help skip` names, and those of them that are for a GPU; ranks' are for overlap.py, and recompute does nothing here."""
    named = dict(re.findall(r"^  (\w+)  +([a-z].*)$", exe.run([dsmc, "help", "skip"]), re.M))
    here = [n for n, what in named.items() if n != "recompute" and "among ranks:" not in what and not what.startswith("among ranks")]
    for_gpus = {n for n in here if "for a GPU" in named[n]}
    return [n for n in here if n not in for_gpus], for_gpus


def run(program, more, prompt, stops=("4",)):
    """Losses and norms, the final weights, and some tokens made with them; in a process for each stop."""
    save = program + ".ck" + "-".join(stops)
    log = save + ".jsonl"
    for i, stop in enumerate(stops):
        exe.run([program, "train", "-q", "--steps", stop, "--save", save, "--log", log, *(["--resume", save] if i else more)])
    steps = [(s["loss"], s["grad_norm"]) for s in exe.read_log(log)]
    weights = sorted(glob.glob(os.path.join(save, "step-*", "weights.safetensors")))[-1]
    with open(weights, "rb") as f:
        weights = f.read()
    return steps, weights, prompt and exe.run([program, "generate", "-q", "--load", save, "--tokens", "24", *prompt])


def evaluated(program, text):
    return exe.run([program, "eval", "-q", "--load", program + ".ck4", "--data", text])


def made(program):
    """The schedule, and the checksum of the code (prog_trailer of runtime/program.h)."""
    with open(program, "rb") as f:
        f.seek(-64, os.SEEK_END)
        return exe.run([program, "schedule"]), struct.unpack("<8s7Q", f.read())[3]


def test(dsmc, folder, checks, chosen):
    names, for_gpus = names_of(dsmc)
    checks.check("`dsmc help skip` names passes and choices",
                 {"fuse", "narrow", "frames", "preround", "bands"} <= set(names), str(names))
    prompt = ["--prompt-tokens", "4,10,31"]
    jobs = [(name, "examples/tiny.dsm", sets, pins, [], prompt) for name, sets, pins in JOBS]
    jobs.append(("twice", "tests/e2e/inputs/twice.dsm", "steps=4", "", [], prompt))
    for model, prompt in (("llama", prompt), ("bert", None), ("t5", prompt + ["--source-tokens", "5,6,7,8"])):
        job, data = exe.expected(model), os.path.join(exe.ORACLE, model)
        jobs.append((model, "examples/" + job["model"], exe.job_settings(job).replace("steps=20", "steps=4"), "",
                     ["--load", os.path.join(data, "init.safetensors"), "--data", os.path.join(data, "data")], prompt))
    idle = set(names) | for_gpus
    lines = os.path.join(folder, "lines.txt")  # short, for `eval` reads all of it
    with open(lines, "w") as f:
        f.write("".join("line %d is not line %d\n" % (i, i * i) for i in range(300)))
    for number, (name, text, sets, pins, more, prompt) in enumerate(jobs):
        if chosen and name not in chosen:
            continue
        want, plain, loss = None, None, None
        for skip in [""] + names + [",".join(names)]:
            program = os.path.join(folder, "%d-%s" % (number, skip if skip in names else "all" if skip else "none"))
            exe.run([dsmc, "build", "-q", os.path.join(exe.ROOT, text), "--set", sets,
                     "-o", program] + (["--skip", skip] if skip else []) + (["--pin", pins] if pins else []))
            got, now = run(program, more, prompt), made(program)
            want, plain = want or got, plain or now
            if now != plain:
                idle.discard(skip)
            if name == "tiny, bf16" and (not skip or "narrow" in skip):
                again, text_loss = run(program, more, prompt, ("2", "4")), evaluated(program, lines)
                loss = loss or text_loss
                checks.check("%s without %s, resumed and evaluated" % (name, skip or "nothing"),
                             again == want and text_loss == loss, "%s %s" % (again[0][-1], text_loss))
            checks.check("%s without %s" % (name, skip or "nothing"), got == want,
                         "%s, not %s; weights %s; generated %s" % (
                             got[0][-1], want[0][-1], *("equal" if got[i] == want[i] else "differ" for i in (1, 2))))
    # What is for a GPU alone shows in the kernels for one.
    for skip in sorted(idle):
        kernels = [dsmc, "ir", os.path.join(exe.ROOT, "examples/tiny.dsm"), "--form", "kernel", "--target", "sm_80"]
        if exe.run(kernels) != exe.run(kernels + ["--skip", skip]):
            idle.discard(skip)
    if not chosen:
        checks.check("each pass and choice does something", not idle, " ".join(sorted(idle)))


if __name__ == "__main__":
    exe.main(test)
