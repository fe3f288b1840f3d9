#!/usr/bin/env python3
"""Overlapped gradient reduction on this host: 2 ranks x 1 thread, data=2, with and without pass `overlap`.

    bench/overlap.py [--bind core|none] [--rounds 10] [--steps 20] [--share 0.93] [--dsmc build/dsmc] [--json] [CASE...]

Three programs of one model take turns, each on both cores, each process on one of them, as mpirun
binds two ranks by itself (--bind none: on any): the plan with overlap, the plan with `--skip
overlap`, and compute alone: two processes, each the one-rank program with a rank's half of the
batch, at the same time. Communication alone is what a profile of the plan without overlap says
of its exchanges with the smallest batch there is (they move the gradients whatever the batch), so
that ranks hardly wait for each other. A round counts when bench/share.c gives both cores before and
behind it. Neighbours on the host slow a step by up to a half, for seconds or minutes at a time, and
never make one faster. So two things are printed, in ms a step: `quiet`, the tenth quantile of all
steps of a program, those that were left alone; and `of_rounds`, the median over rounds of what each
round's median step is (its programs ran within seconds of each other). And the ratios, of
`of_rounds` too the median of each round's own:

    pays   step without overlap / step with overlap      at least 1 is asked for
    max    max(compute, communication) / step with       0.9 is aimed at
    sum    (compute + communication) / step with         what two cores can give at best where
                                                         communication is work of the same cores

On one host a message is work of the processor: it copies and adds up on the cores that compute, so
`max` could only be reached with a third core, and `sum` says what is lost besides.
"""
import argparse, array, json, os, random, re, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
# name: (settings without batch, samples of a rank)
CASES = {
    "balanced": ("layers=8,hidden=256,heads=4,vocab=512,context=64,seq=64,drop=0", 2),
    "compute": ("layers=8,hidden=256,heads=4,vocab=512,context=64,seq=64,drop=0", 16),
    "wide": ("layers=4,hidden=768,heads=12,vocab=2048,context=64,seq=64,drop=0", 4),
}


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit("%s\n%s" % (" ".join(command), done.stdout))
    return done.stdout


def mpirun(args):
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", args.bind, "-n", "2"]


def build(args, folder, name, sets, batch, ranks, more):
    program = os.path.join(folder, name)
    run([args.dsmc, "build", "-q", os.path.join(ROOT, "examples/gpt2.dsm"), "--set",
         "%s,batch=%d,steps=%d" % (sets, batch, args.steps), "-o", program] +
        (["--cluster", "this-host:2", "--pin", "data=2,zero=0,micro_batch=%d" % (batch // 2)]
         if ranks > 1 else ["--pin", "micro_batch=%d" % batch]) + more)
    return program


def steps_of(log):
    """The steps in ms, but for the first two."""
    with open(log) as f:
        times = [1e3 * json.loads(line)["step_s"] for line in f]
    os.remove(log)
    return times[2:]


def tokens(folder):
    """Random tokens below every vocabulary: what is learnt does not matter here."""
    path = os.path.join(folder, "tokens.bin")
    if not os.path.exists(path):
        draw = random.Random(1)
        with open(path, "wb") as f:
            array.array("H", (draw.randrange(512) for _ in range(200000))).tofile(f)
    return path


def command(args, program, log, more=()):
    data = tokens(os.path.dirname(program))
    return [program, "train", "-q", "--data", data, "--threads", "1", "--seed", "1", "--steps", str(args.steps),
            "--log", log, *more]


def on_ranks(args, program):
    log = program + ".jsonl"
    run(mpirun(args) + command(args, program, log))
    return steps_of(log)


def apart(args, program):
    """Two processes with nothing to say to each other; the slower one of a step counts."""
    logs = ["%s.%d.jsonl" % (program, i) for i in range(2)]
    cores = sorted(os.sched_getaffinity(0))[:2]
    both = [subprocess.Popen((["taskset", "-c", str(core)] if args.bind == "core" else []) +
                             command(args, program, log), stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL) for core, log in zip(cores, logs)]
    if any([p.wait() for p in both]):
        sys.exit("%s failed" % program)
    return [max(both) for both in zip(*map(steps_of, logs))]


def exchanges(args, program):
    """ms a step in exchanges, by the profile of rank 0."""
    text = run(mpirun(args) + command(args, program, program + ".jsonl", ["--profile", "-v"]))
    os.remove(program + ".jsonl")
    steps = re.search(r"mean of (\d+)", text)
    row = re.search(r"^ +([0-9.]+) +[0-9.]+ %.*\(exchange among ranks\)", text, re.M)
    if not steps or not row:
        sys.exit("no exchanges in the profile:\n" + text)
    return 1e3 * float(row.group(1)) / int(steps.group(1))


def measure(args, folder, name):
    sets, samples = CASES[name]
    over = build(args, folder, "over", sets, 2 * samples, 2, [])
    plain = build(args, folder, "plain", sets, 2 * samples, 2, ["--skip", "overlap"])
    alone = build(args, folder, "alone", sets, samples, 1, [])
    least = build(args, folder, "least", sets.replace("seq=64", "seq=2"), 2, 2, ["--skip", "overlap"])
    share = os.path.join(folder, "share")
    rounds, thrown = [], 0
    while len(rounds) < args.rounds and thrown < 4 * args.rounds:
        before = float(run([share, "0.2"]))
        one = (on_ranks(args, over), on_ranks(args, plain), apart(args, alone), exchanges(args, least))
        good = min(before, float(run([share, "0.2"]))) >= args.share
        if good:
            rounds.append(one)
        thrown += not good
    if not rounds:
        return {"case": name, "measured": False, "why": "machine busy", "thrown": thrown}
    r = {"case": name, "measured": True, "rounds": len(rounds), "thrown": thrown}
    pools = [[t for one in rounds for t in one[i]] for i in range(3)]
    quiet = ratios(*(quantile(pool, 0.1) for pool in pools), quantile([one[3] for one in rounds], 0.1))
    each = [ratios(*(quantile(one[i], 0.5) for i in range(3)), one[3]) for one in rounds]
    r["quiet"] = quiet
    r["of_rounds"] = {key: quantile([one[key] for one in each], 0.5) for key in quiet}
    return r


def ratios(w, p, c, x):
    return {"with_ms": w, "without_ms": p, "compute_ms": c, "communication_ms": x, "pays": p / w,
            "max": max(c, x) / w, "sum": (c + x) / w}


def quantile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bind", choices=["core", "none"], default="core")
    a.add_argument("--rounds", type=int, default=10)
    a.add_argument("--steps", type=int, default=20)
    a.add_argument("--share", type=float, default=0.93)
    a.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    a.add_argument("--json", action="store_true")
    a.add_argument("case", nargs="*")
    args = a.parse_args()
    args.dsmc = os.path.abspath(args.dsmc)
    with tempfile.TemporaryDirectory() as folder:
        run(["gcc", "-O2", "-pthread", os.path.join(HERE, "share.c"), "-o", os.path.join(folder, "share")])
        for name in args.case or CASES:
            r = measure(args, folder, name)
            if args.json:
                print(json.dumps(r), flush=True)
            elif not r["measured"]:
                print("%-9s not measured: machine busy (%d rounds thrown away)" % (name, r["thrown"]), flush=True)
            else:
                for kind in ("quiet", "of_rounds"):
                    print("%-9s %-9s with %.1f ms, without %.1f; compute alone %.1f, communication alone %.1f; "
                          "pays %.3f, max %.2f, sum %.2f" % (name, kind, *r[kind].values()), flush=True)
                print("%-9s %d rounds, %d thrown away" % (name, r["rounds"], r["thrown"]), flush=True)


if __name__ == "__main__":
    main()
