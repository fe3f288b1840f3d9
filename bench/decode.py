#!/usr/bin/env python3
"""GPT-2 124M, generating with one sample on this CPU: tokens/s against what reading the weights takes.

    bench/decode.py [--runs 5] [--tokens 120] [--context 128] [--threads 2] [--dsmc build/dsmc]
                    [--set NAME=VALUE,...] [--against OTHER/dsmc]

Each token reads every weight but the table of positions once, so bytes/s against what memory gives
(bench/read.c, taken before and after each run, on as many threads) says how good decoding is. Weights
are the initial ones; the prompt is 3 tokens; the prefill is not counted. A run between two readings of
the ceiling that differ by more than a tenth, or while a core was taken away (bench/share.c), is thrown
away and done again, up to 6 times; then the answer is "machine busy, not measured". With --against,
another compiler's executable takes turns with this one's.
"""
import argparse, json, os, re, statistics, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
ENOUGH, STEADY = 0.93, 0.10


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return done


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.tool = {}
        for name in ("share", "read"):
            self.tool[name] = os.path.join(folder, name)
            run(["gcc", "-O3", "-march=native", "-pthread", os.path.join(HERE, name + ".c"), "-o",
                 self.tool[name]])

    def build(self, dsmc, name):
        exe = os.path.join(self.folder, name)
        more = "," + self.args.set if self.args.set else ""
        run([dsmc, "build", "-q", os.path.join(ROOT, "examples/gpt2.dsm:gpt2"), "-o", exe, "--set",
             "batch=1,seq=%d,context=%d%s" % (self.args.context, self.args.context, more)])
        return exe

    def share(self):
        return float(run([self.tool["share"], "0.2"]).stdout)

    def ceiling(self):
        return float(run([self.tool["read"], "0.3", str(self.args.threads)]).stdout.split()[0])

    def decode(self, exe):
        """Tokens a second behind the prefill."""
        said = run([exe, "generate", "-v", "--threads", str(self.args.threads), "--prompt-tokens",
                    "1,2,3", "--tokens", str(self.args.tokens)]).stderr
        return float(re.search(r"([\d.]+) tokens/s", said).group(1))

    def clean(self, exe):
        """(tokens/s, ceiling) of an undisturbed run, or None."""
        for _ in range(6):
            before, ok = self.ceiling(), self.share() >= ENOUGH
            speed = self.decode(exe)
            after, ok = self.ceiling(), ok and self.share() >= ENOUGH
            if ok and abs(before - after) <= STEADY * max(before, after):
                return speed, max(before, after)
        return None


def weight_bytes(exe):
    states = json.loads(run([exe, "info", "--json"]).stdout)["states"]
    return sum(s["bytes"] for s in states if s["class"] == "weights" and s["name"] != "wpe.weight")


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--runs", type=int, default=5)
    ap.add_argument("--tokens", type=int, default=120)
    ap.add_argument("--context", type=int, default=128)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    ap.add_argument("--set", default="")
    ap.add_argument("--against")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(args, folder)
        sides = [("this", b.build(args.dsmc, "this"))]
        if args.against:
            sides.append(("other", b.build(args.against, "other")))
        got = {name: [] for name, _ in sides}
        for i in range(args.runs):
            for name, exe in sides:
                one = b.clean(exe)
                if not one:
                    print("run %d, %s: machine busy, not measured" % (i + 1, name), flush=True)
                    continue
                gbs = one[0] * weight_bytes(exe) * 1e-9
                got[name].append((one[0], gbs, one[1], gbs / one[1]))
                print("run %d, %s: %.1f tokens/s, %.1f GB/s of %.1f, %.0f %%" % (
                    (i + 1, name, one[0], gbs, one[1], 100 * gbs / one[1])), flush=True)
        for name, exe in sides:
            if not got[name]:
                sys.exit("machine busy: nothing was measured")
            m = [statistics.median(x[k] for x in got[name]) for k in range(4)]
            print("%s: %.1f tokens/s, %.0f MB a token, %.1f GB/s; memory gives %.1f; share %.3f (medians of %d)"
                  % (name, m[0], 1e-6 * weight_bytes(exe), m[1], m[2], m[3], len(got[name])))


main()
