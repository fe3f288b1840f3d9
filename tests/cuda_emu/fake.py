"""An executable for a GPU on the fake driver: the toy program of tests/unit/toy_program.h.

What it computes are the bits of the same program on the host, whatever the order in which streams go
on; every call of the driver follows the schedule; every planted mistake is caught; and what a machine
lacks is said in one line.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

parser = argparse.ArgumentParser()
for name in ("toy", "runtime", "driver", "kernels"):
    parser.add_argument("--" + name, required=True)
A = parser.parse_args()
failed = 0


def run(argv, code=0, **env):
    """Runs a command; DSM_FAKE_CUDA_* are the keywords. Returns its two outputs."""
    e = {k: v for k, v in os.environ.items() if not k.startswith("DSM_")}
    e.update({k: str(v) for k, v in env.items()})
    p = subprocess.run(argv, env=e, capture_output=True, timeout=300)
    out, err = p.stdout.decode("latin-1"), p.stderr.decode("latin-1")
    if p.returncode != code:
        raise AssertionError(f"{' '.join(argv)} gave {p.returncode}, expected {code}\n{out}{err}")
    return out, err


def gpu(*args, code=0, **fake):
    env = {"DSM_CUDA_DRIVER": A.driver, "DSM_FAKE_CUDA_KERNELS": A.kernels, "DSM_FAKE_CUDA_PROGRAM": exe}
    for key, value in fake.items():
        name = "DSM_FAKE_CUDA_" + key.upper()
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return run([exe, *args], code, **env)


def host(*args):
    return run([A.toy, "run", *args])


def check(what, ok, more=""):
    global failed
    print(("ok     " if ok else "WRONG  ") + what)
    if not ok:
        failed += 1
        print(more)


def caught(what, part, fault, *args, **more):
    """A planted mistake ends the process with code 99 and says what it was."""
    out, err = gpu("train", "--data", corpus, "--steps", "2", "-q", *args, code=99, fault=fault, **more)
    check(f"caught: {what}", part in err, err)


def read(name):
    with open(os.path.join(folder, name), "rb") as f:
        return f.read()


def losses(name):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in map(json.loads, read(name).splitlines())]


with tempfile.TemporaryDirectory() as folder:
    exe, corpus = os.path.join(folder, "toy"), os.path.join(folder, "corpus.txt")
    run([A.toy, "write", A.runtime, exe])
    os.chmod(exe, 0o755)
    with open(corpus, "w") as f:
        f.write("the cat sat on the mat. " * 80)

    def at(name):
        return os.path.join(folder, name)

    # Without a driver, or a device, or the right module.
    for verb in (["train", "--data", corpus], ["eval", "--data", corpus], ["generate", "--prompt", "a"]):
        out, err = run([exe, *verb], 1, DSM_CUDA_DRIVER="libdsm_no_such_driver.so")
        check(f"{verb[0]} without the driver: one line", err.count("\n") == 1 and not out and
              "this executable needs an NVIDIA GPU: the driver that DSM_CUDA_DRIVER names" in err, out + err)
    out, err = run([exe, "generate", "--prompt", "a"], 1)
    check("on this machine", "this executable needs an NVIDIA GPU: " in err and err.count("\n") == 1, err)
    out, err = run([exe, "generate", "--prompt", "a"], 1, DSM_CUDA_DRIVER="libm.so.6")
    check("a library that is no driver", "libm.so.6 has no function cuInit" in err, err)
    out, err = gpu("generate", "--prompt", "a", code=1, device="none")
    check("no device", "no CUDA-capable device is detected (100)" in err and err.count("\n") == 1, err)
    out, err = gpu("generate", "--prompt", "a", code=1, device="7.5")
    check("no module for the device", "has nothing for Fake GPU (sm_75): it holds sm_80, sm_90a, compute_80"
          in err, err)
    for device, module in (("8.0", "binary one"), ("8.6", "binary one"), ("9.0", "binary two"),
                           ("10.0", ".version 8"), ("12.0", ".version 8")):
        gpu("generate", "--prompt", "a", "--tokens", "1", device=device, log=at("log"))
        check(f"device {device} loads `{module}`", f"load module 0: {module}" in read("log").decode("latin-1"))
    out, err = gpu("generate", "--prompt", "a", code=3, memory=1 << 19)
    check("too little memory of the device: exit 3", "GiB of memory, Fake GPU (sm_90) has 0.00 GiB free" in
          err, err)

    # What needs no GPU.
    out, err = run([exe, "info"])
    check("info", all(s in out for s in (", for sm_80 sm_90a", "one NVIDIA GPU", "FUNCTIONS  6", "gpu_grad",
                                         "  64.0 KiB shared", "compute_80   PTX")), out)
    j = json.loads(run([exe, "info", "--json"])[0])
    check("info --json", j["machine"] == "cuda" and j["targets"] == "sm_80 sm_90a" and
          j["functions"][0] == {"symbol": "gpu_grad", "threads": 32, "shared_bytes": 65536,
                                "registers": 40, "spill_bytes": 0} and j["modules"][2]["kind"] == "ptx", j)
    out, err = run([exe, "schedule"])
    check("schedule", all(s in out for s in (
        "  record  event 0  on compute\n  wait    event 0  on copies\n  fetch  ", "h:0x0[64]  on copies",
        "  evict  ", "loop micro 0 .. 1")), out)
    j = json.loads(run([exe, "schedule", "--json"])[0])
    train = j["entries"][0]
    check("schedule --json", j["schema"] == "dsm-schedule-1" and train["name"] == "train_step" and
          j["tasks"][train["runs"][0]["task"]]["instrs"][2]["operands"][1]["home"] == "host" and
          j["kernels"][0] == {"name": "grad", "cells": 256, "function": "gpu_grad", "threads": 32,
                              "shared_bytes": 65536, "numbers": [0]}, j)
    host_json = json.loads(host("schedule", "--json")[0])
    check("schedule --json of a host program", host_json["machine"] == "host" and host_json["events"] == 0)

    # The same bits as the host, for any order of the streams.
    host("train", "--data", corpus, "--log", at("host.log"), "--save", at("host_ck"), "--save-every", "10")
    want = losses("host.log")
    check("the toy learns", want[0][1] > 5 and want[-1][1] < 2)
    for seed in range(8):
        gpu("train", "--data", corpus, "--log", at(f"gpu{seed}.log"), "-q", seed=seed)
        check(f"training with seed {seed}: the host's losses", losses(f"gpu{seed}.log") == want)
    out, err = gpu("train", "--data", corpus, "--save", at("gpu_ck"), "--save-every", "20", "--eval",
                   corpus, "--eval-every", "16", "--profile", "--trace", at("trace.json"))
    check("the GPU's name, evaluations, profile", "; Fake GPU (sm_90); " in out and out.count("eval loss") == 3 and
          "PROFILE" in out and "grad" in out, out)
    shutil.copytree(at("gpu_ck/step-00000020"), at("rest_ck/step-00000020"))
    gpu("train", "--data", corpus, "--resume", at("rest_ck"), "-q", "--log", at("rest.log"))
    check("resumed: the host's losses", losses("rest.log") == want[20:])
    for part in ("weights", "optimizer"):
        a, b = (read(f"{d}_ck/step-00000040/{part}.safetensors") for d in ("host", "gpu"))
        c = read(f"rest_ck/step-00000040/{part}.safetensors")
        check(f"the same {part} saved", a == b == c and len(a) > 260000)
    args = ("eval", "--data", corpus, "--load", at("host_ck"), "-q")
    check("eval: the host's loss", gpu(*args)[0] == host(*args)[0])
    args = ("generate", "--load", at("host_ck"), "--prompt", "the", "--tokens", "12", "--seed", "3")
    check("generate: the host's text", gpu(*args)[0] == host(*args)[0] and
          len(gpu(*args)[0]) == 3 + 12 + 1)

    # A step that goes wrong: the part that changes states is not done, and the search finds where.
    args = ("train", "--data", corpus, "--set", "lr=1e39,schedule=constant", "--save", at("bad"))
    out, err = gpu(*args, code=5)
    check("a bad update", "loss is NaN at step 2" in err and "weight wte.weight is " in err and
          "the update of step 1 or one before made it" in err, err)

    # Launches are recorded without kernels; the schedule is followed all the same.
    gpu("train", "--data", corpus, "--steps", "3", "-q", kernels=None, log=at("log"))
    log = read("log").decode("latin-1")
    launches = log.count("\nlaunch ")
    check("the log says where to and with what", log.count("\nfetch ") == 6 and " from 0x" in log and
          all(len(line.split(" with ")[1].split()) >= 5 for line in log.splitlines() if line.startswith("launch")), log)
    check("what moves is pinned", "not pinned" not in log, log)
    # Of a step: gradients of two micro-batches, column, reduce, update, three biases, end.
    check("the log has every launch", launches == 3 * 9 and f"released after {launches} launches" in log, log)
    gpu("train", "--data", corpus, "--steps", "3", "-q", program=None)
    check("without a schedule to follow", True)

    # Planted mistakes. Of a step: waits 1 (copies for compute), 2 (compute for copies), 3 (copies for
    # compute, before the outputs); launches 1..9.
    for n in (1, 2, 3, 4, 5, 6):
        caught(f"wait {n} is not made", "cuMemcpyHtoDAsync is not what the schedule has next" if n % 3 == 1
               else "is not what the schedule has next", f"no-wait:{n}")
        if n % 3 != 1:  # with a host that waits for all streams between calls, those need no event
            caught(f"wait {n} is lost", "nothing orders them", f"lost-wait:{n}")
    for n in (1, 5, 9, 14):
        if n % 9:
            caught(f"launch {n} has another address", "buffer 0 is at byte", f"address:{n}")
        caught(f"launch {n} has another number", "number 0 is ", f"argument:{n}")
        caught(f"launch {n} is on another stream", "it is on another stream than compute", f"stream:{n}")
        caught(f"memory is freed before launch {n}", "bytes of the device that were freed", f"early-free:{n}",
               "--threads", "1")
    caught("launch 3 is made twice", "is not what the schedule has next", "twice:3")
    # The last wait before the first call is for the states that are pushed: zeros, then six of them.
    caught("the host does not wait for what it pushed", "the default stream touches, and nothing orders them",
           "no-sync:7")
    caught("memory is not freed", "bytes of the device were never freed", "no-free")
    # The same where no schedule is known: what the queues and the kernels notice by themselves.
    caught("a lost wait, without a schedule", "nothing orders them", "lost-wait:3", program=None)
    caught("memory freed early, without a schedule", "bytes of the device that were freed", "early-free:2",
           program=None)

    # A missing event is a wrong result for some order of the streams.
    wrong = 0
    for seed in range(12):
        gpu("train", "--data", corpus, "--log", at("lost.log"), "-q", "--steps", "1", seed=seed,
            fault="lost-wait:2", races="off")
        wrong += losses("lost.log")[0] != want[0]
    check(f"a lost wait makes wrong losses for {wrong} of 12 seeds", wrong > 0)

sys.exit(1 if failed else 0)
