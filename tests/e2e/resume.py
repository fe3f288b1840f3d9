#!/usr/bin/env python3
"""Training survives: kill -9 at random moments, damaged checkpoints, a full disk.

  resume.py DSMC [--kills N] [--seed S]

Builds a small tiny.dsm, trains it undisturbed, then again under `--resume` with a kill -9 at random
moments until it ends: the final weights must be the same bytes. Then flips bits in and truncates a
checkpoint at many places: each must be refused before the first step, naming file and tensor. Last a
full disk while saving: a clear error, and the older checkpoint loads.
"""
import argparse, os, random, resource, shutil, subprocess, sys, tempfile, time

ap = argparse.ArgumentParser()
ap.add_argument("dsmc")
ap.add_argument("--kills", type=int, default=8)
ap.add_argument("--flips", type=int, default=40)
ap.add_argument("--seed", type=int, default=1)
args = ap.parse_args()
rng = random.Random(args.seed)
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
work = tempfile.mkdtemp(prefix="dsmc-resume-")
exe = os.path.join(work, "tiny")
STEPS = 12
failures = 0
passed = 0


def check(ok, what):
    global failures, passed
    if ok:
        passed += 1
    else:
        failures += 1
        print("FAILED:", what, flush=True)


def run(*argv, **kw):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


def train(folder, *more):
    return [exe, "train", "-q", "--steps", str(STEPS), "--save", folder, "--save-every", "2",
            "--resume", folder, *more]


def newest(folder):
    steps = sorted(d for d in os.listdir(folder) if d.startswith("step-"))
    return os.path.join(folder, steps[-1]) if steps else None


def weights(folder):
    with open(os.path.join(newest(folder), "weights.safetensors"), "rb") as f:
        return f.read()


r = run(args.dsmc, "build", os.path.join(root, "examples/tiny.dsm"), "-o", exe, "--set",
        "layers=2,hidden=48,heads=3,seq=48,batch=8,drop=0.1,steps=%d" % STEPS)
if r.returncode:
    sys.exit("build failed:\n" + r.stdout)

# Undisturbed.
a = os.path.join(work, "a")
t0 = time.time()
r = run(*train(a))
check(r.returncode == 0, "undisturbed run: " + r.stdout)
whole = time.time() - t0
want = weights(a)

# kill -9 at random moments of the run, resume, until it ends.
kills = 0
b = os.path.join(work, "b")
while kills < args.kills:
    shutil.rmtree(b, ignore_errors=True)
    for _ in range(1000):
        p = subprocess.Popen(train(b), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            p.wait(timeout=rng.uniform(0.01, 1.1 * whole) if kills < args.kills else None)
        except subprocess.TimeoutExpired:
            p.kill()
            p.communicate()
            kills += 1
            continue
        err = p.communicate()[1]
        check(p.returncode == 0, "resumed run exits %d: %s" % (p.returncode, err))
        break
    check(newest(b) is not None and weights(b) == want, "final weights after %d kills differ" % kills)
    if failures:
        break
print("%d kills, weights equal" % kills, flush=True)

# SIGTERM saves and exits with 75.
c = os.path.join(work, "c")
p = subprocess.Popen(train(c), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(0.5 * whole)
p.terminate()
p.wait()
check(p.returncode in (75, 0), "SIGTERM: exit %d" % p.returncode)
r = run(*train(c))
check(r.returncode == 0 and weights(c) == want, "after SIGTERM and resume the weights differ")

# One damaged byte anywhere, or a cut, is refused and named.
good = newest(a)
bad = os.path.join(work, "bad")
for i in range(args.flips):
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(a, bad)
    names = ["weights.safetensors", "optimizer.safetensors", "manifest.json"]
    name = names[i % 3]
    path = os.path.join(bad, os.path.basename(good), name)
    size = os.path.getsize(path)
    cut = i % 4 == 3
    with open(path, "r+b") as f:
        if cut:
            f.truncate(rng.randrange(size))
        else:
            at = rng.randrange(size) if i % 2 else rng.randrange(min(size, 400))
            f.seek(at)
            x = f.read(1)[0] ^ (1 << rng.randrange(8))
            f.seek(at)
            f.write(bytes([x]))
    r = run(exe, "train", "-q", "--steps", str(STEPS + 2), "--resume", bad)
    ok = r.returncode == 1 and (name in r.stdout or "manifest" in r.stdout)
    check(ok, "%s of %s: exit %d, %s" % ("truncation" if cut else "flip", name, r.returncode, r.stdout))

# A disk that is full while saving: the older checkpoint stays and loads.
d = os.path.join(work, "d")
r = run(exe, "train", "-q", "--steps", "2", "--save", d, "--save-every", "2")
check(r.returncode == 0, "short run: " + r.stdout)
limit = os.path.getsize(os.path.join(newest(d), "weights.safetensors")) // 2


def small_files():
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


r = run(exe, "train", "-q", "--steps", "4", "--save", d, "--save-every", "2", "--resume", d,
        preexec_fn=small_files)
check(r.returncode == 1 and "step-" in r.stdout, "full disk: exit %d, %s" % (r.returncode, r.stdout))
left = [x for x in os.listdir(d) if not x.startswith("step-")]
check(not left, "left behind: %s" % left)
r = run(exe, "train", "-q", "--steps", "4", "--save", d, "--resume", d)
check(r.returncode == 0, "after the full disk: " + r.stdout)

shutil.rmtree(work, ignore_errors=True)
print("%d passed, %d failed" % (passed, failures))
sys.exit(1 if failures else 0)
