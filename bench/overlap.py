#!/usr/bin/env python3
"""Overlapped gradient reduction on this host: 2 ranks x 1 thread, data=2, with and without pass `overlap`.

    bench/overlap.py [--bind core|none] [--rounds 10] [--seconds 10] [--share 0.93] [--dsmc build/dsmc] [--json] [CASE...]

Three programs of one model, each on both cores, each process on one of them, as mpirun binds two ranks by itself (--bind none:
on any): the plan with overlap, the plan with `--skip overlap`, and compute alone: two processes, each the one-rank program with
a rank's half of the batch. Communication alone is what a profile of the plan without overlap says of its exchanges with the
smallest batch there is (they move the gradients whatever the batch), so that ranks hardly wait for each other.

All three run from the beginning and are stopped (SIGSTOP) but for one, which goes on for a *slice* of seven steps, or half a
second; then it is the next one's turn. Neighbours on the host slow a step by up to a half, for seconds or minutes at a time, so
what is compared are slices that follow one another. A step in which a program was stopped does not count. A round is --seconds of slices;
it counts when bench/share.c gives both cores before and behind it. Two things are printed, in ms a step: `quiet`, the tenth
quantile of all steps of a program, those that were left alone; and `of_slices`, the median over turns of what each turn's median
step is. And the ratios, of `of_slices` the median of each turn's own, with the interval that has it with 95 %:

    pays   step without overlap / step with overlap      at least 1 is asked for
    max    max(compute, communication) / step with       0.9 is asked for
    sum    (compute + communication) / step with         what two cores can give at best where
                                                         communication is work of the same cores

On one host what ranks exchange is work of the processor: it reads and adds up on the cores that compute, so `max` could only
be reached with a third core, and `sum` says what is lost besides.
"""
import argparse, array, atexit, json, math, os, random, re, signal, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
ENDLESS = 1000000  # steps: jobs are ended
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
         "%s,batch=%d,steps=%d" % (sets, batch, ENDLESS), "-o", program] +
        (["--cluster", "this-host:2", "--pin", "data=2,zero=0,micro_batch=%d" % (batch // 2)]
         if ranks > 1 else ["--pin", "micro_batch=%d" % batch]) + more)
    return program


def tokens(folder):
    """Random tokens below every vocabulary: what is learnt does not matter here."""
    path = os.path.join(folder, "tokens.bin")
    if not os.path.exists(path):
        draw = random.Random(1)
        with open(path, "wb") as f:
            array.array("H", (draw.randrange(512) for _ in range(200000))).tofile(f)
    return path


def command(program, log, steps, more=()):
    data = tokens(os.path.dirname(program))
    return [program, "train", "-q", "--data", data, "--threads", "1", "--seed", "1", "--steps", str(steps),
            "--log", log, *more]


class Job:
    """A program that runs in slices. It begins stopped, a few steps from its start."""

    def __init__(self, program, commands, logs):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.logs, self.slices = logs, []
        self.started = [subprocess.Popen(c, **quiet) for c in commands]
        while min(self.lines()) < 4:
            if any(p.poll() is not None for p in self.started):
                sys.exit("%s ended early" % program)
            time.sleep(0.05)
        self.processes = [int(child) for p in self.started for child in children(p.pid) or [p.pid]]
        self.signal(signal.SIGSTOP)

    def signal(self, number):
        for pid in self.processes:
            os.kill(pid, number)

    def lines(self):
        counts = []
        for log in self.logs:
            try:
                with open(log, "rb") as f:
                    counts.append(f.read().count(b"\n"))
            except FileNotFoundError:
                counts.append(0)
        return counts

    def step_s(self):
        with open(self.logs[0]) as f:
            return json.loads(f.readlines()[3])["step_s"]

    def slice(self, seconds):
        begin = self.lines()
        self.signal(signal.SIGCONT)
        time.sleep(seconds)
        self.signal(signal.SIGSTOP)
        self.slices.append((begin, self.lines()))

    def forget(self, slices):
        del self.slices[len(self.slices) - slices:]

    def kill(self):
        for pid in self.processes:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # mpirun ends them all when one is ended
        self.processes = []
        for p in self.started:
            p.kill()
            p.wait()

    def end(self):
        """ms of the steps of each slice: of several processes, those of the slower one."""
        self.kill()
        steps = []
        for log in self.logs:
            with open(log) as f:
                steps.append([1e3 * json.loads(line)["step_s"] for line in f.read().split("\n")[:-1]])
        # Line `begin` is the step in which the slice began.
        return [max((each[b + 1:e] for each, b, e in zip(steps, begin, end)), key=lambda t: quantile(t, 0.5))
                for begin, end in self.slices]


def children(pid):
    return subprocess.run(["pgrep", "-P", str(pid)], stdout=subprocess.PIPE, text=True).stdout.split()


def on_ranks(args, program):
    log = program + ".jsonl"
    return Job(program, [mpirun(args) + command(program, log, ENDLESS)], [log])


def apart(args, program):
    """Two processes with nothing to say to each other."""
    logs = ["%s.%d.jsonl" % (program, i) for i in range(2)]
    cores = sorted(os.sched_getaffinity(0))[:2]
    return Job(program, [(["taskset", "-c", str(core)] if args.bind == "core" else []) + command(program, log, ENDLESS)
                         for core, log in zip(cores, logs)], logs)


def exchanges(args, program):
    """ms a step in exchanges, by the profile of rank 0."""
    text = run(mpirun(args) + command(program, program + ".jsonl", 20, ["--profile", "-v"]))
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
    jobs = [on_ranks(args, over), on_ranks(args, plain), apart(args, alone)]
    for job in jobs:
        atexit.register(job.kill)  # also when this program is ended
    seconds = max(0.5, 7 * jobs[0].step_s())
    turns = max(1, round(args.seconds / (3 * seconds)))
    messages, thrown = [], 0
    while len(messages) < args.rounds and thrown < 4 * args.rounds:
        before = float(run([share, "0.2"]))
        for turn in range(turns):
            for k in range(3):
                jobs[(turn + k) % 3].slice(seconds)
        said = exchanges(args, least)
        if min(before, float(run([share, "0.2"]))) >= args.share:
            messages.append(said)
        else:
            thrown += 1
            for job in jobs:
                job.forget(turns)
    slices = [job.end() for job in jobs]
    if not messages:
        return {"case": name, "measured": False, "why": "machine busy", "thrown": thrown}
    r = {"case": name, "measured": True, "rounds": len(messages), "turns": len(slices[0]), "thrown": thrown}
    r["quiet"] = ratios(*(quantile([t for one in each for t in one], 0.1) for each in slices), quantile(messages, 0.1))
    each = [ratios(*(quantile(one, 0.5) for one in turn), messages[i // turns]) for i, turn in enumerate(zip(*slices))]
    r["of_slices"] = {key: quantile([one[key] for one in each], 0.5) for key in r["quiet"]}
    r["between"] = {key: interval([one[key] for one in each]) for key in ("pays", "max", "sum")}
    return r


def interval(values):
    """Where the median of what these were drawn from lies with 95 %: order statistics, by the sign test."""
    n, width = len(values), 0.98 * math.sqrt(len(values))
    low = max(0, math.floor(n / 2 - width))
    return [sorted(values)[low], sorted(values)[n - 1 - low]]


def ratios(w, p, c, x):
    return {"with_ms": w, "without_ms": p, "compute_ms": c, "communication_ms": x, "pays": p / w,
            "max": max(c, x) / w, "sum": (c + x) / w}


def quantile(values, share):
    return sorted(values)[int(share * (len(values) - 1))]


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bind", choices=["core", "none"], default="core")
    a.add_argument("--rounds", type=int, default=10)
    a.add_argument("--seconds", type=float, default=10)
    a.add_argument("--share", type=float, default=0.93)
    a.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    a.add_argument("--json", action="store_true")
    a.add_argument("case", nargs="*")
    args = a.parse_args()
    args.dsmc = os.path.abspath(args.dsmc)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        run(["gcc", "-O2", "-pthread", os.path.join(HERE, "share.c"), "-o", os.path.join(folder, "share")])
        for name in args.case or CASES:
            r = measure(args, folder, name)
            if args.json:
                print(json.dumps(r), flush=True)
            elif not r["measured"]:
                print("%-9s not measured: machine busy (%d rounds thrown away)" % (name, r["thrown"]), flush=True)
            else:
                for kind in ("quiet", "of_slices"):
                    print("%-9s %-9s with %.1f ms, without %.1f; compute alone %.1f, communication alone %.1f; "
                          "pays %.3f, max %.2f, sum %.2f" % (name, kind, *r[kind].values()), flush=True)
                print("%-9s of_slices " % name + ", ".join("%s %.3f to %.3f" % (key, *r["between"][key])
                                                           for key in r["between"]) + " with 95 %", flush=True)
                print("%-9s %d rounds with %d turns, %d thrown away" % (name, r["rounds"], r["turns"], r["thrown"]), flush=True)


if __name__ == "__main__":
    main()
