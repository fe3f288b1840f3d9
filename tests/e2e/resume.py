#!/usr/bin/env python3
"""Training survives: kill -9 at random moments, damaged checkpoints, a full disk.

  resume.py DSMC [--kills N] [--flips N] [--seed S]

Builds a small tiny.dsm, trains it undisturbed, then again under `--resume` with a kill -9 at random
moments until it ends: every file of the last checkpoint must be the same bytes, and every line of the
log the same but for times. The moments are of three kinds in turn: any, while a checkpoint is being
written, and around the rename that publishes it; threads alternate between 1 and 2. What the folder
holds after a kill says where it hit, and with many kills each place must have been hit. Then flips
bits in and truncates a checkpoint at many places: each must be refused before the first step, naming
file and tensor. Last a full disk while saving: a clear error, and the older checkpoint loads.
"""
import argparse, collections, json, os, random, resource, shutil, subprocess, sys, tempfile, time

from exe import Checks, ROOT

ap = argparse.ArgumentParser()
ap.add_argument("dsmc")
ap.add_argument("--kills", type=int, default=8)
ap.add_argument("--flips", type=int, default=40)
ap.add_argument("--seed", type=int, default=1)
args = ap.parse_args()
rng = random.Random(args.seed)
work = tempfile.mkdtemp(prefix="dsmc-resume-")
exe = os.path.join(work, "tiny")
STEPS = 40
checks = Checks(quiet=True)


def run(*argv, **kw):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kw)


def train(folder, *more):
    return [exe, "train", "-q", "--steps", str(STEPS), "--save", folder, "--save-every", "2",
            "--resume", folder, *more]


def newest(folder):
    steps = sorted(d for d in os.listdir(folder) if d.startswith("step-"))
    return os.path.join(folder, steps[-1]) if steps else None


def result(folder):
    """The last checkpoint: name of each file and its bytes."""
    files = {}
    for name in sorted(os.listdir(newest(folder))):
        with open(os.path.join(newest(folder), name), "rb") as f:
            files[name] = f.read()
    return files


def losses(path):
    """The log without times and memory."""
    with open(path) as f:
        return [{k: v for k, v in json.loads(line).items()
                 if k not in ("step_s", "tokens_per_s", "peak_bytes", "page_faults")} for line in f]


def listing(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


def saving(folder, pid):
    """The folder of the checkpoint that the process is writing, or None."""
    for name in listing(folder):
        if name.startswith(".tmp-step-") and name.endswith("-%d" % pid):
            return os.path.join(folder, name)
    return None


def wait_for_moment(p, kind, folder, whole):
    """Returns at a random moment of the wanted kind, or when the process has ended."""
    if kind == "any":
        end = time.time() + rng.uniform(0, 1.1 * whole)
        while time.time() < end and p.poll() is None:
            time.sleep(0.0002)
        return
    for _ in range(rng.randint(1, 4)):  # not always the first one
        while p.poll() is None:
            tmp = saving(folder, p.pid)
            if tmp and (kind == "save" or os.path.exists(os.path.join(tmp, "manifest.json"))):
                break
        end = time.time() + rng.uniform(0, 0.004)
        while time.time() < end and p.poll() is None:
            pass


def where_hit(folder, pid):
    if saving(folder, pid):
        return "inside a save"
    names = listing(folder)
    saves = [x for x in names if x.startswith("step-")]
    if len(saves) > 2 or any(x.startswith(".tmp-gone") for x in names):
        return "between rename and clean-up"
    return "between saves"


def kill_until_it_ends(folder, log, whole, hits):
    """Trains in `folder` with kills in between; returns how many there were."""
    kills = 0
    while True:
        kind = ("any", "save", "rename")[kills % 3]
        p = subprocess.Popen(train(folder, "--log", log, "--threads", str(1 + kills % 2)),
                             stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_moment(p, kind, folder, whole)
        p.kill()
        err = p.communicate()[1]
        if p.returncode != -9:
            checks.check("resumed run exits %d: %s" % (p.returncode, err), p.returncode == 0)
            return kills
        kills += 1
        hits[where_hit(folder, p.pid)] += 1


r = run(args.dsmc, "build", os.path.join(ROOT, "examples/tiny.dsm"), "-o", exe, "--set",
        "layers=2,hidden=48,heads=3,seq=48,batch=8,drop=0.1,steps=%d" % STEPS)
if r.returncode:
    sys.exit("build failed:\n" + r.stdout)

# Undisturbed.
a = os.path.join(work, "a")
log = os.path.join(work, "a.jsonl")
t0 = time.time()
r = run(*train(a, "--log", log))
checks.check("undisturbed run: " + r.stdout, r.returncode == 0)
whole = time.time() - t0
want, want_log = result(a), losses(log)
checks.check("undisturbed log has %d lines" % len(want_log), len(want_log) == STEPS)

# kill -9 at random moments of the run, resume, until it ends; then anew until there were enough.
kills, runs, hits = 0, 0, collections.Counter()
b = os.path.join(work, "b")
log = os.path.join(work, "b.jsonl")
while kills < args.kills and not checks.failed:
    shutil.rmtree(b, ignore_errors=True)
    if os.path.exists(log):
        os.unlink(log)
    kills += kill_until_it_ends(b, log, whole, hits)
    runs += 1
    checks.check("the last checkpoint after %d kills differs" % kills,
                 newest(b) is not None and result(b) == want)
    checks.check("the log after %d kills differs" % kills, losses(log) == want_log)
if args.kills >= 50:
    for place in ("inside a save", "between rename and clean-up", "between saves"):
        checks.check("only %d kills %s" % (hits[place], place), hits[place] >= args.kills // 50)
print("%d kills in %d runs, checkpoints and logs equal; %s" % (
    kills, runs, ", ".join("%s %d" % x for x in sorted(hits.items()))), flush=True)

# SIGTERM saves and exits with 75.
c = os.path.join(work, "c")
p = subprocess.Popen(train(c), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(0.5 * whole)
p.terminate()
p.wait()
checks.check("SIGTERM: exit %d" % p.returncode, p.returncode in (75, 0))
r = run(*train(c))
checks.check("after SIGTERM and resume the checkpoint differs", r.returncode == 0 and result(c) == want)

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
    checks.check("%s of %s: exit %d, %s" % ("truncation" if cut else "flip", name, r.returncode, r.stdout), ok)

# A disk that is full while saving: the older checkpoint stays and loads.
d = os.path.join(work, "d")
r = run(exe, "train", "-q", "--steps", "2", "--save", d, "--save-every", "2")
checks.check("short run: " + r.stdout, r.returncode == 0)
limit = os.path.getsize(os.path.join(newest(d), "weights.safetensors")) // 2


def small_files():
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


r = run(exe, "train", "-q", "--steps", "4", "--save", d, "--save-every", "2", "--resume", d,
        preexec_fn=small_files)
checks.check("full disk: exit %d, %s" % (r.returncode, r.stdout), r.returncode == 1 and "step-" in r.stdout)
left = [x for x in os.listdir(d) if not x.startswith("step-")]
checks.check("left behind: %s" % left, not left)
r = run(exe, "train", "-q", "--steps", "4", "--save", d, "--resume", d)
checks.check("after the full disk: " + r.stdout, r.returncode == 0)

shutil.rmtree(work, ignore_errors=True)
sys.exit(checks.end())
