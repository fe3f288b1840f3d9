#!/usr/bin/env python3
"""Checkpoints under mpirun: any mesh goes on from any mesh's, and a kill or damage leaves no half one.

  ranks_checkpoint.py DSMC [--kills N] [--meshes NAME,...]

Builds a small tiny.dsm for one rank and for meshes, in f32 and in bf16 (where ranks hold whole copies
of weights of which each has a part). First values are the same on all, to the bit, and so are weights
that a mesh loads from one rank's save and one rank from the mesh's; this reads the files by itself, as
runtime/checkpoint.h says. Each mesh trains to half, saves, and the next one goes on: its losses are those of one
rank (1e-4 relative; 5e-3 in bf16, where sums of rounded numbers differ). A mesh that is resumed is the
mesh that was not, to the bit. Then mpirun is killed at random moments, and a file of a rank damaged:
one error in the output, naming it. Skipped without mpirun.
"""
import argparse, json, os, random, shutil, signal, subprocess, sys, tempfile, time

from exe import Checks, ROOT, mpirun, need_mpirun

MESHES = {  # name -> ranks, plan
    "one": (1, ""),
    "data": (2, "data=2,zero=0"),
    "zero1": (4, "data=4,zero=1"),
    "zero2": (2, "data=2,zero=2"),
    "zero3": (4, "data=4,zero=3"),
    "tensor": (2, "tensor=2,zero=0"),
    "both": (4, "data=2,tensor=2,zero=1"),
    "stages": (2, "pipeline=2,micro_batch=4,order=one_f_one_b"),
    "turns": (2, "pipeline=2,micro_batch=4,order=interleaved(2)"),
}
ap = argparse.ArgumentParser()
ap.add_argument("dsmc")
ap.add_argument("--kills", type=int, default=6)
ap.add_argument("--meshes", default=",".join(MESHES))
args = ap.parse_args()
args.dsmc = os.path.abspath(args.dsmc)
need_mpirun()
rng = random.Random(3)
work = tempfile.mkdtemp(prefix="dsmc-ranks-")
env = dict(os.environ, DSM_THREADS="1")
STEPS = 8
checks = Checks(quiet=True)


def build(name, precision):
    ranks, pins = MESHES[name]
    exe = os.path.join(work, f"{name}.{precision}")
    cmd = [args.dsmc, "build", os.path.join(ROOT, "examples/tiny.dsm"), "-o", exe, "--set",
           f"tiny.layers=4,tiny.hidden=32,tiny.context=32,train.seq=32,train.batch=16,train.steps={STEPS},"
           f"train.precision={precision}"]
    if ranks > 1:
        cmd += ["--cluster", f"this-host:{ranks}", "--pin", pins]
    r = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=work)
    if r.returncode:
        sys.exit(f"build {name} {precision}: {r.stdout}")
    return exe


def command(exe, *more):
    ranks = MESHES[os.path.basename(exe).split(".")[0]][0]
    words = [exe, "train", "-q", *more]
    return mpirun(ranks, *words) if ranks > 1 else words


def train(exe, *more):
    r = subprocess.run(command(exe, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                       env=env, timeout=300)
    return r.returncode, r.stdout


def good(exe, *more):
    code, text = train(exe, *more)
    checks.check(f"{exe} {more}: {text[-800:]}", code == 0)
    return code == 0


def losses(path):
    with open(path) as f:
        rows = [json.loads(line) for line in f]
    return {r["step"]: r["loss"] for r in rows if "loss" in r and "step" in r}


def save_dir(folder):
    steps = sorted(d for d in os.listdir(folder) if d.startswith("step-"))
    return os.path.join(folder, steps[-1])


def tensors(folder):
    """The bytes of the files of tensors of the newest save."""
    files = {}
    for name in sorted(os.listdir(save_dir(folder))):
        if name.endswith(".safetensors"):
            with open(os.path.join(save_dir(folder), name), "rb") as f:
                files[name] = f.read()
    return files


def keep(index, cut):
    """What a cut "place/parts x block" leaves of a list, as runtime/checkpoint.h says."""
    place, rest = cut.split("/")
    p, n, b = int(place), *map(int, rest.split("x"))
    rows = [index[i:i + n * b] for i in range(0, len(index), n * b)]
    return [i for row in rows for i in row[p * b:p * b + b]]


def whole(folder, kind):
    """The whole tensors of a class by name, put together from whatever files hold their parts."""
    result, there = {}, {}
    for name, data in tensors(folder).items():
        if not name.startswith(kind):
            continue
        n = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + n])
        meta = header.pop("__metadata__")
        for tensor, t in header.items():
            lo, hi = t["data_offsets"]
            unit = {"F32": 4, "BF16": 2, "I32": 4}[t["dtype"]]
            body = data[8 + n + lo:8 + n + hi]
            shape, cuts = t["shape"], []
            if "part " + tensor in meta:
                text, cuts = meta["part " + tensor].split("]")
                shape, cuts = json.loads(text + "]"), cuts.split()
            size = 1
            for d in shape:
                size *= d
            index = list(range(size))
            for cut in cuts:
                index = keep(index, cut)
            checks.check(f"{folder} {tensor}: {len(body)} bytes for {len(index)}", len(index) * unit == len(body))
            at = result.setdefault(tensor, bytearray(size * unit))
            there[tensor] = there.get(tensor, 0) + len(index)
            for k, i in enumerate(index):
                at[i * unit:(i + 1) * unit] = body[k * unit:(k + 1) * unit]
            result[tensor] = at
    for tensor, at in result.items():
        checks.check(f"{folder} {tensor}: {there[tensor]} elements", there[tensor] in (len(at) // 4, len(at) // 2))
    return result


def path(*names):
    return os.path.join(work, *names)


def meshes_agree(precision, tolerance):
    exes = {name: build(name, precision) for name in args.meshes.split(",")}
    one = exes["one"]
    good(one, "--save", path("whole"), "--log", path("whole.jsonl"))
    want = losses(path("whole.jsonl"))
    checks.check(f"one rank's log has {len(want)} steps", len(want) == STEPS)
    # Steps that change no weight: what is saved behind them is what was made, or loaded.
    still = ["--set", "optimizer.lr=0,schedule.floor=0", "--save"]
    good(one, "--steps", "1", *still, path("first"))
    first, last = whole(path("first"), "weights"), whole(path("whole"), "weights")
    checks.check("a model of its first values", len(first) == len(last) > 20 and first != last)
    for name, exe in exes.items():
        if name == "one":
            continue
        good(exe, "--steps", "1", *still, path("a"))
        checks.check(f"{name} {precision}: first values", whole(path("a"), "weights") == first)
        good(exe, "--steps", str(STEPS + 1), "--resume", path("whole"), *still, path("b"))
        checks.check(f"{name} {precision}: weights of one rank", whole(path("b"), "weights") == last)
        good(one, "--steps", str(STEPS + 2), "--resume", path("b"), *still, path("c"))
        checks.check(f"{name} {precision}: and back", whole(path("c"), "weights") == last)
        good(exe, "--steps", "1", "--load", path("whole"), *still, path("d"))
        checks.check(f"{name} {precision}: loaded", whole(path("d"), "weights") == last)
        for folder in "abcd":
            shutil.rmtree(path(folder))
    # Half on one mesh, half on the next.
    order = list(exes)
    for i, name in enumerate(order):
        then, folder = order[(i + 1) % len(order)], path("half")
        half = str(STEPS // 2)
        good(exes[name], "--save", folder, "--steps", half, "--log", path("a.jsonl"))
        good(exes[then], "--resume", folder, "--log", path("b.jsonl"))
        got = {**losses(path("a.jsonl")), **losses(path("b.jsonl"))}
        checks.check(f"{name} to {then}: steps {sorted(got)}", sorted(got) == sorted(want))
        for step, loss in want.items():
            off = abs(got.get(step, 0) - loss) / loss
            checks.check(f"{name} to {then} {precision}: step {step} {got.get(step)} not {loss}", off <= tolerance)
        shutil.rmtree(folder)
        # The same mesh all the way, with and without a stop.
        good(exes[name], "--save", path("u"))
        good(exes[name], "--save", folder, "--steps", half)
        good(exes[name], "--resume", folder)
        checks.check(f"{name} {precision}: resumed is not undisturbed", tensors(path("u")) == tensors(folder))
        for f in path("u"), folder:
            shutil.rmtree(f)
    for f in path("whole"), path("first"):
        shutil.rmtree(f)
    return exes


def survives(exe):
    folder, undisturbed = path("killed"), path("undisturbed")
    good(exe, "--save", undisturbed, "--save-every", "1")
    hits = 0
    for k in range(args.kills):
        if os.path.isdir(os.path.join(folder, f"step-{STEPS:08d}")):
            shutil.rmtree(folder)
        p = subprocess.Popen(command(exe, "--resume", folder, "--save-every", "1"), env=env,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # After the first save is there, some moment later: most of the time goes into saves.
        end = time.time() + 20
        before = os.listdir(folder) if os.path.isdir(folder) else []
        while time.time() < end and p.poll() is None:
            now = os.listdir(folder) if os.path.isdir(folder) else []
            if now and now != before:
                break
        time.sleep(rng.random() * 0.05)
        try:
            with open(f"/proc/{p.pid}/task/{p.pid}/children") as f:
                ranks = f.read().split()
            os.kill(int(rng.choice(ranks)) if ranks else p.pid, signal.SIGKILL)
            hits += 1
        except (ProcessLookupError, FileNotFoundError):
            pass
        p.wait()
    checks.check("no kill hit", hits > 0)
    good(exe, "--resume", folder, "--save-every", "1")
    checks.check("killed and resumed is not undisturbed", tensors(folder) == tensors(undisturbed))
    checks.check("leftovers of killed saves", not [f for f in os.listdir(folder) if f.startswith(".tmp")])
    # Damage: said once, by file.
    names = [n for n in tensors(folder) if n.startswith("optimizer-")]
    checks.check("the optimizer is not in files of ranks", len(names) > 1)
    for name in names:
        file = os.path.join(save_dir(folder), name)
        with open(file, "r+b") as f:
            f.seek(-3, 2)
            byte = f.read(1)
            f.seek(-3, 2)
            f.write(bytes([byte[0] ^ 16]))
        code, text = train(exe, "--resume", folder)
        errors = [line for line in text.splitlines() if line.startswith("error:")]
        checks.check(f"damaged {name}: exit {code}, {errors}", code == 1 and len(errors) == 1)
        checks.check(f"damaged {name}: {text}", errors and name in errors[0] and "is damaged" in errors[0])
        with open(file, "r+b") as f:
            f.seek(-3, 2)
            f.write(byte)
    os.rename(os.path.join(save_dir(folder), names[0]), path("away"))
    code, text = train(exe, "--resume", folder)
    checks.check(f"missing file: {text}", code == 1 and text.count("error:") == 1 and "No such file" in text)


try:
    exes = meshes_agree("f32", 1e-4)
    meshes_agree("bf16", 5e-3)
    survives(exes.get("zero1") or build("zero1", "f32"))
finally:
    shutil.rmtree(work)
sys.exit(checks.end())
