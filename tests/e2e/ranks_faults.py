#!/usr/bin/env python3
"""What a person sees when ranks are started wrongly, stopped, killed or frozen: one error, naming the rank.

  ranks_faults.py DSMC

Builds a small tiny.dsm for two ranks (and another seed of it, and one rank), starts them wrongly, then
trains by `dsmc run` and by mpirun, and signals single ranks: SIGSTOP is told by the heartbeat, SIGKILL
ends the run within 10 s, SIGTERM to one rank or to `dsmc run` stops all after the same step, saved.
Skipped without mpirun.
"""
import os, re, shutil, signal, subprocess, sys, tempfile, time

from exe import Checks, ROOT, mpirun, need_mpirun

dsmc = os.path.abspath(sys.argv[1])
need_mpirun()
work = tempfile.mkdtemp(prefix="dsmc-faults-")
env = dict(os.environ, DSM_THREADS="1")
SMALL = "tiny.layers=2,tiny.hidden=32,tiny.context=32,train.seq=32,train.batch=8,train.steps=100000"
PLAN = ["--cluster", "this-host:2", "--pin", "data=2,zero=1"]
checks = Checks(quiet=True)


def build(name, more, plan):
    exe = os.path.join(work, name)
    cmd = [dsmc, "build", os.path.join(ROOT, "examples/tiny.dsm"), "-o", exe, "--set", SMALL + more, *plan]
    r = subprocess.run(cmd, capture_output=True, text=True)
    if r.returncode:
        sys.exit(r.stdout + r.stderr)
    return exe


def errors(text):
    return [line for line in text.splitlines() if line.startswith("error: ")]


def refused(what, cmd, part, code=1):
    r = subprocess.run(cmd, capture_output=True, text=True, env=env, timeout=60)
    told = errors(r.stdout + r.stderr)
    checks.check(what, r.returncode == code and len(told) == 1 and part in told[0], f"{r.returncode} {told}\n{r.stderr}")


def ranks_of(exe):
    """rank -> process, of all that run this file."""
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.path.realpath(f"/proc/{pid}/exe") != os.path.realpath(exe):
                continue
            words = open(f"/proc/{pid}/environ").read().split("\0")
            found[int(next(w for w in words if w.startswith("OMPI_COMM_WORLD_RANK=")).split("=")[1])] = int(pid)
        except (OSError, StopIteration):
            pass
    return found


def signalled(what, cmd, exe, number, rank, limit, code, part):
    """Runs until the log has three steps, signals a rank (None: the command), and looks at the end."""
    log = os.path.join(work, "log")
    if os.path.exists(log):
        os.remove(log)
    p = subprocess.Popen(cmd + ["--log", log], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    until = time.time() + 90
    while time.time() < until and (not os.path.exists(log) or open(log).read().count("\n") < 3):
        time.sleep(0.1)
    victim = p.pid if rank is None else ranks_of(exe()).get(rank)
    checks.check(what + ": no such rank", victim is not None)
    begin = time.time()
    if victim:
        os.kill(victim, number)
    try:
        text = p.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        p.kill()
        text = p.communicate()[0]
    took = time.time() - begin
    checks.check(what + f": exit code {p.returncode}", p.returncode in code, text)
    checks.check(what + f": took {took:.1f} s", took < limit, text)
    checks.check(what + f": `{part}` not said once", sum(part in line for line in text.splitlines()) == 1, text)
    checks.check(what + ": several errors", len(errors(text)) <= 1, text)
    time.sleep(0.5)
    left = ranks_of(exe())
    checks.check(what + f": ranks are left: {left}", not left)
    print(f"{what}: {took:.1f} s", flush=True)


two, other, one = build("two", "", PLAN), build("other", ",train.seed=2", PLAN), build("one", "", [])
refused("without mpirun", [two, "train", "--steps", "1"], "start it with `mpirun -n 2`")
refused("three ranks", mpirun(3, two, "train", "--steps", "1"), "built for 2 ranks, mpirun started 3")
refused("two of one", mpirun(2, one, "train", "--steps", "1"), "built for 1 rank, mpirun started 2")
refused("no data", mpirun(2, two, "train", "--data", "/none"), "/none")
refused("usage", mpirun(2, two, "train", "--stps", "1"), "did you mean `--steps`", 2)
refused("two executables", mpirun(1, two, "train", "--steps", "1") + [":", "-n", "1", other, "train", "--steps", "1"],
        "another executable")

train = [two, "train", "-q", "--timeout", "3"]
signalled("frozen 1", mpirun(2, *train), lambda: two, signal.SIGSTOP, 1, 10, (70,), "rank 1 has given no sign of life")
signalled("frozen 0", mpirun(2, *train), lambda: two, signal.SIGSTOP, 0, 10, (70,), "rank 0 has given no sign of life")
signalled("killed 0", mpirun(2, *train), lambda: two, signal.SIGKILL, 0, 10, (137, 70), "rank 0 has died")
signalled("killed 1", mpirun(2, *train), lambda: two, signal.SIGKILL, 1, 10, (137, 70), "rank 1 has died")
save = os.path.join(work, "save")
signalled("stopped 1", mpirun(2, *train, "--save", save), lambda: two, signal.SIGTERM, 1, 10, (75,), "saved in")
checks.check("one checkpoint", len(os.listdir(save)) == 1)
cache = os.path.join(work, "cache")
run = [dsmc, "run", os.path.join(ROOT, "examples/tiny.dsm"), "--set", SMALL, *PLAN, "--cache", cache, "-q", "--"]


def cached():
    return next(os.path.join(cache, f) for f in os.listdir(cache) if re.match(r"tiny-[0-9a-f]{16}$", f))


signalled("dsmc run stopped", run + ["train", "-q", "--save", save + "2"], cached, signal.SIGTERM, None, 15, (75,),
          "saved in")
shutil.rmtree(work)
sys.exit(checks.end())
