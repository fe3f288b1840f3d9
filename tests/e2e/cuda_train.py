#!/usr/bin/env python3
"""Executables for a GPU, run without one: the fake driver carries out what the runtime asks for
(tests/cuda_emu/fake.h), emulated kernels compute (tests/cuda_emu/emu_api.h).

    tests/e2e/cuda_train.py build/dsmc EMU_BUILD FAKE_DRIVER [gpt2 llama bert t5]

For each of the four example models, reduced: the losses of the first steps within 1e-4 of PyTorch's in
float64 and of the same model's executable for this host, gradient norms within 1e-3; micro-batches;
streams, blocks and threads in other orders give the same bits. For GPT-2 also bf16, evaluation, generation, a resumed run,
a step that goes wrong, and planted mistakes. Every call of the driver follows the schedule of the
executable: the driver checks that itself, and ends the process with code 99 when one does not.
"""
import os
import subprocess
import sys
import tempfile

import exe

MODELS = ["gpt2", "llama", "bert", "t5"]
STEPS = 5
SKIPPED = 77


class Gpu:
    """An executable for a GPU with its emulated kernels, and one for this host of the same job."""

    def __init__(self, tools, folder, name, model, settings, pins=""):
        self.dsmc, emu_build, self.driver = tools
        self.program, self.kernels = (os.path.join(folder, name + end) for end in (".gpu", ".so"))
        source = [os.path.join(exe.ROOT, "examples", model), "--set", settings, "--target", "sm_80"]
        if pins:
            source += ["--pin", pins]
        exe.run([self.dsmc, "build", *source, "-o", self.program, "-q"])
        text = os.path.join(folder, name + ".cu")
        with open(text, "w") as f:
            f.write(subprocess.run([self.dsmc, "ir", *source, "--form", "cuda"], check=True,
                                   stdout=subprocess.PIPE, universal_newlines=True).stdout)
        exe.run([emu_build, text, self.kernels])
        self.host = exe.build(self.dsmc, model, settings, os.path.join(folder, name + ".host"), pins)

    def environment(self, **fake):
        env = dict(os.environ, DSM_CUDA_DRIVER=self.driver, DSM_FAKE_CUDA_KERNELS=self.kernels,
                   DSM_FAKE_CUDA_PROGRAM=self.program)
        env.update(("DSM_FAKE_CUDA_" + k.upper(), str(v)) for k, v in fake.items())
        return env

    def run(self, *args, **fake):
        return exe.run([self.program, *args], env=self.environment(**fake))

    def fails(self, code, *args, program=None, **fake):
        """What a run that must end with `code` says."""
        done = subprocess.run([program or self.program, *args], env=self.environment(**fake), timeout=300,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        if done.returncode != code:
            raise RuntimeError("%s gave %d, expected %d\n%s" % (
                " ".join(args), done.returncode, code, done.stdout[-4000:]))
        return done.stdout


def arguments(model, log, steps=STEPS):
    folder = os.path.join(exe.ORACLE, model)
    return ["train", "--load", os.path.join(folder, "init.safetensors"), "--data",
            os.path.join(folder, "data"), "--steps", str(steps), "--log", log, "-q"]


def read(log):
    steps = exe.read_log(log)
    return [s["loss"] for s in steps], [s["grad_norm"] for s in steps]


def compare(checks, name, got, want, losses=1e-4, norms=1e-3):
    checks.close(name + " losses", got[0], want[0], losses)
    checks.close(name + " gradient norms", got[1], want[1], norms)


def model_trains(tools, folder, checks, model):
    job = exe.expected(model)
    settings = exe.job_settings(job)
    torch = job["losses_f64"][:STEPS], job["grad_norms"][:STEPS]
    for micro in (job["batch"], 1):
        name = "%s micro_batch=%d" % (model, micro)
        gpu = Gpu(tools, folder, model, job["model"], settings, "micro_batch=%d" % micro)
        logs = [os.path.join(folder, n) for n in ("gpu.jsonl", "host.jsonl", "seed.jsonl")]
        gpu.run(*arguments(model, logs[0]))
        exe.run([gpu.host, *arguments(model, logs[1])])
        compare(checks, name, read(logs[0]), torch)
        compare(checks, name + " and the host's", read(logs[0]), read(logs[1]))
        gpu.run(*arguments(model, logs[2]), seed=micro + 7)
        checks.check(name + " same bits in other orders", read(logs[2]) == read(logs[0]),
                     "%s and %s" % (read(logs[2]), read(logs[0])))
    return gpu


def rounds(tools, folder, checks):
    """Products in bf16: dots add in another order than the host's, so what is rounded next may differ."""
    job = exe.expected("gpt2")
    gpu = Gpu(tools, folder, "bf16", job["model"], exe.job_settings(job) + ",precision=bf16")
    logs = [os.path.join(folder, n) for n in ("gpu.jsonl", "host.jsonl")]
    gpu.run(*arguments("gpt2", logs[0]))
    exe.run([gpu.host, *arguments("gpt2", logs[1])])
    compare(checks, "gpt2 bf16 and the host's", read(logs[0]), read(logs[1]), 2e-3, 2e-2)


def drops(tools, folder, checks):
    """With dropout: the same numbers are drawn, whatever the machine."""
    job = exe.expected("gpt2")
    settings = exe.job_settings(job).replace("drop=0", "drop=0.1")
    gpu = Gpu(tools, folder, "drop", job["model"], settings, "micro_batch=2")
    logs = [os.path.join(folder, n) for n in ("gpu.jsonl", "host.jsonl")]
    gpu.run(*arguments("gpt2", logs[0]))
    exe.run([gpu.host, *arguments("gpt2", logs[1])])
    compare(checks, "gpt2 drop=0.1 and the host's", read(logs[0]), read(logs[1]))
    apart = max(abs(a - b) for a, b in zip(read(logs[0])[0], job["losses_f64"]))
    checks.check("gpt2 drop=0.1 is not drop=0", apart > 1e-3, str(apart))


def text_of(run, *args):
    return run("generate", "--prompt-tokens", "1,2,3,4,5", "--tokens", "6", "-q", *args).split()


def does_the_rest(gpu, folder, checks):
    """Evaluation, generation, saving and resuming of gpt2, whose micro-batches have one sample."""
    def at(name):
        return os.path.join(folder, name)

    def host(*args):
        return exe.run([gpu.host, *args])

    log, rest = at("gpu.jsonl"), at("rest.jsonl")
    saved = at("ck")
    gpu.run(*arguments("gpt2", log, 4), "--save", saved, "--save-every", "2", "--keep", "9")
    os.makedirs(at("two"))
    os.rename(os.path.join(saved, "step-00000002"), at("two/step-00000002"))
    data = os.path.join(exe.ORACLE, "gpt2", "data")
    gpu.run("train", "--data", data, "--resume", at("two"), "--steps", "4", "--log", rest, "-q")
    checks.check("gpt2 resumed: the same bits", read(rest)[0] == read(log)[0][2:] and
                 read(rest)[1] == read(log)[1][2:], "%s and %s" % (read(rest), read(log)))
    same = []
    for part in ("weights", "optimizer"):
        files = [os.path.join(at(d), "step-00000004", part + ".safetensors") for d in ("ck", "two")]
        with open(files[0], "rb") as a, open(files[1], "rb") as b:
            same.append(a.read() == b.read())
    checks.check("gpt2 resumed: the same weights and optimizer", all(same), str(same))
    evaluate = ["eval", "--data", data, "--load", saved, "-q"]
    checks.close("gpt2 evaluation and the host's", [float(gpu.run(*evaluate).split()[1])],
                 [float(host(*evaluate).split()[1])], 1e-5)
    greedy = [text_of(run, "--load", saved, "--temperature", "0") for run in (gpu.run, host)]
    checks.check("gpt2 generates the host's tokens", greedy[0] == greedy[1] and len(greedy[0]) >= 6,
                 str(greedy))
    out = gpu.fails(5, "train", "--data", data, "--set", "lr=1e39", "--steps", "4")
    checks.check("gpt2 a bad update", "is NaN at step 2" in out and "the update of step 1 or one before" in out,
                 out)
    bad = ["train", "--data", data, "--set", "lr=1e15", "--steps", "4", "-q"]
    out, host_out = gpu.fails(5, *bad), gpu.fails(5, *bad, program=gpu.host)
    checks.check("gpt2 finds what made the first NaN, as the host does",
                 out == host_out and "the first NaN is made by `" in out, out + host_out)
    names = gpu.fails(99, *arguments("gpt2", log), fault="argument:7")
    checks.check("gpt2 caught: a wrong number", "is not what the schedule has next" in names, names)
    names = gpu.fails(99, *arguments("gpt2", log), fault="address:20")
    checks.check("gpt2 caught: a wrong address", "buffer 0 is at byte" in names, names)
    names = gpu.fails(99, *arguments("gpt2", log), fault="lost-wait:2")
    checks.check("gpt2 caught: a lost wait", "nothing orders them" in names, names)
    names = gpu.fails(99, *arguments("gpt2", log), fault="no-free")
    checks.check("gpt2 caught: memory that is not freed", "were never freed" in names, names)


def without_a_driver(gpu, checks):
    env = dict(os.environ, DSM_CUDA_DRIVER="libdsm_no_such_driver.so")
    done = subprocess.run([gpu.program, "generate", "--prompt-tokens", "1"], env=env, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True)
    checks.check("without a driver: one line, exit 1", done.returncode == 1 and
                 done.stdout.count("\n") == 1 and "needs an NVIDIA GPU" in done.stdout, done.stdout)
    info = exe.run([gpu.program, "info"], env=env)
    checks.check("info needs no driver", ", for sm_80" in info and "FUNCTIONS" in info, info)
    schedule = exe.run([gpu.program, "schedule"], env=env)
    checks.check("schedule needs no driver", "on copies" in schedule and "  fetch  " in schedule, schedule[:2000])


def can_run(tools, folder):
    """A line that says what is missing, or None."""
    empty = os.path.join(folder, "empty.cu")
    open(empty, "w").close()
    done = subprocess.run([tools[1], empty, os.path.join(folder, "empty.so")], stderr=subprocess.PIPE,
                          universal_newlines=True)
    if done.returncode:
        return done.stderr.strip() if done.returncode == SKIPPED else None
    tiny = os.path.join(exe.ROOT, "examples", "tiny.dsm")
    sets = "layers=1,hidden=8,heads=1,seq=4,batch=1"
    done = subprocess.run([tools[0], "build", tiny, "--set", sets, "--target", "sm_80", "-o",
                           os.path.join(folder, "probe"), "-q"], stderr=subprocess.PIPE, universal_newlines=True)
    return "skipped: " + done.stderr.strip() if done.returncode and "NVRTC" in done.stderr else None


def main():
    if len(sys.argv) < 4:
        sys.exit("usage: %s DSMC EMU_BUILD FAKE_DRIVER [NAME...]" % sys.argv[0])
    tools = [os.path.abspath(p) for p in sys.argv[1:4]]
    checks = exe.Checks()
    with tempfile.TemporaryDirectory() as folder:
        missing = can_run(tools, folder)
        if missing:
            print(missing)
            sys.exit(SKIPPED)
        for model in sys.argv[4:] or MODELS:
            try:
                gpu = model_trains(tools, folder, checks, model)
                if model == "gpt2":
                    does_the_rest(gpu, folder, checks)
                    without_a_driver(gpu, checks)
                    rounds(tools, folder, checks)
                    drops(tools, folder, checks)
            except (RuntimeError, OSError, ValueError, KeyError) as e:
                checks.check(model, False, str(e))
    sys.exit(checks.end())


if __name__ == "__main__":
    main()
