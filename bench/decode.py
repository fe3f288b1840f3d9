#!/usr/bin/env python3
"""GPT-2 124M, generating with one sample on this CPU: tokens/s against what reading the weights takes.

    bench/decode.py [--runs 3] [--context 256] [--threads 2] [--dsmc build/dsmc]
                    [--set NAME=VALUE,...] [--against OTHER/dsmc]

Each token reads every weight but the table of positions once, so bytes/s against what memory gives
(bench/read.c, on as many threads) says how good decoding is. What memory gives changes from second to
second on a shared machine, by up to a factor of two: so the executable is stopped every 0.3 seconds
while the ceiling is measured, a window's tokens count from the first to the last of it, and a window
between two ceilings that differ by more than a tenth, or next to a moment in which a core was taken
away (bench/share.c), is thrown away. Weights are the initial ones; the
prompt is 3 tokens; the prefill is not counted. With --against, another compiler's executable takes
turns with this one's. Prints medians of the windows.
"""
import argparse, json, os, select, signal, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
ENOUGH, STEADY, WINDOW = 0.93, 0.10, 0.3


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return done.stdout


class Ceiling:
    def __init__(self, folder, threads):
        tool = os.path.join(folder, "read")
        run(["gcc", "-O3", "-march=native", "-pthread", os.path.join(HERE, "read.c"), "-o", tool])
        self.share = os.path.join(folder, "share")
        run(["gcc", "-O2", "-pthread", os.path.join(HERE, "share.c"), "-o", self.share])
        self.p = subprocess.Popen([tool, "0.06", str(threads), "-"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)

    def __call__(self):
        """What memory gives now, in GB/s; 0 when not all cores are there."""
        if float(run([self.share, "0.05"])) < ENOUGH:
            return 0
        self.p.stdin.write("\n")
        self.p.stdin.flush()
        return float(self.p.stdout.readline().split()[0])


def tokens_until(p, end):
    """When each token came in, until `end` or the last one; None at the end in that case."""
    times = []
    fd = p.stdout.fileno()
    while time.time() < end:
        if select.select([fd], [], [], max(0, end - time.time()))[0]:
            text = os.read(fd, 4096)
            if not text:
                return times + [None]
            times += [time.time()] * text.count(b" ")
    return times


def windows(exe, args, ceiling):
    """(tokens/s, ceiling) of every steady window of one run."""
    p = subprocess.Popen([exe, "generate", "-q", "--threads", str(args.threads), "--prompt-tokens",
                          "1,2,3", "--tokens", str(args.context - 4)], stdout=subprocess.PIPE)
    os.read(p.stdout.fileno(), 1)  # the first token: behind the prefill
    got, before = [], None
    while True:
        p.send_signal(signal.SIGSTOP)
        after = ceiling()
        if before and after and abs(before - after) <= STEADY * max(before, after) and len(times) > 5:
            got.append(((len(times) - 1) / (times[-1] - times[0]), max(before, after)))
        before = after
        tokens_until(p, time.time())  # what was still on its way
        p.send_signal(signal.SIGCONT)
        times = tokens_until(p, time.time() + WINDOW)
        if times and times[-1] is None:
            p.wait()
            return got


def weight_bytes(exe):
    states = {s["name"]: s for s in json.loads(run([exe, "info", "--json"]))["states"]}
    # With `precision = bf16` what is multiplied is read from its rounded copy.
    return sum(states.get(name + ".bf16", s)["bytes"] for name, s in states.items()
               if s["class"] == "weights" and name != "wpe.weight")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--runs", type=int, default=3)
    ap.add_argument("--context", type=int, default=256)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    ap.add_argument("--set", default="")
    ap.add_argument("--against")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ceiling = Ceiling(folder, args.threads)
        sides = []
        for name, dsmc in (("this", args.dsmc), ("other", args.against)):
            if not dsmc:
                continue
            exe = os.path.join(folder, name)
            run([dsmc, "build", "-q", os.path.join(ROOT, "examples/gpt2.dsm:gpt2"), "-o", exe, "--set",
                 "batch=1,seq=%d,context=%d%s" % (args.context, args.context,
                                                  "," + args.set if args.set else "")])
            sides.append((name, exe, []))
        for i in range(args.runs):
            for name, exe, got in sides:
                got += windows(exe, args, ceiling)
        for name, exe, got in sides:
            if not got:
                print("%s: machine busy, not measured" % name)
                continue
            mb = 1e-6 * weight_bytes(exe)
            shares = sorted(speed * mb * 1e-3 / memory for speed, memory in got)
            print("%-6s %.1f tokens/s (best %.1f), %.0f MB a token, %.1f GB/s; memory gives %.1f GB/s; share %.3f"
                  " (quartiles %.3f %.3f, %d windows)" % (
                      name, statistics.median(x for x, _ in got), max(x for x, _ in got), mb,
                      statistics.median(x for x, _ in got) * mb * 1e-3,
                      statistics.median(y for _, y in got), statistics.median(shares),
                      shares[len(shares) // 4], shares[3 * len(shares) // 4], len(got)))
        ceiling.p.stdin.close()
        ceiling.p.wait()


main()
