#!/usr/bin/env python3
"""GPT-2 124M, one training step (forward, backward, AdamW): dsmc against eager PyTorch on this CPU.

    bench/train.py [--batch 4] [--seq 64] [--precision f32|bf16] [--pairs 5] [--steps 6]
                   [--dsmc build/dsmc]

Runs both in turn, A B A B, and prints each side and the median of the pairs' ratios. Before and after
each run it measures what share of every core the machine gives (bench/share.c); a run between two
readings of which one is below 0.93 is thrown away and done again, up to 4 times, and then the answer
is "machine busy, not measured". PyTorch gets its best settings on Debian: OpenBLAS with OpenMP
(libopenblas0-openmp), two threads, a malloc that does not trim. Needs python3-torch.
"""
import argparse, json, os, random, statistics, struct, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TORCH = "/usr/bin/python3"
ENOUGH = 0.93
TUNED = {
    "LD_LIBRARY_PATH": "/usr/lib/x86_64-linux-gnu/openblas-openmp",
    "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=8589934592:"
                      "glibc.malloc.top_pad=268435456",
}


def run(command, **env):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=dict(kept, **env))
    if done.returncode:
        sys.exit("%s\n%s%s" % (" ".join(command), done.stdout, done.stderr))
    return done.stdout


class Bench:
    def __init__(self, args, folder):
        self.args, self.folder = args, folder
        self.share_exe = os.path.join(folder, "share")
        run(["gcc", "-O2", "-pthread", os.path.join(HERE, "share.c"), "-o", self.share_exe])
        self.exe = os.path.join(folder, "gpt2")
        draw = random.Random(1)
        with open(os.path.join(folder, "tokens.bin"), "wb") as f:
            for _ in range(100000):
                f.write(struct.pack("<H", draw.randrange(50257)))
        run([args.dsmc, "build", "-q", os.path.join(ROOT, "examples/gpt2.dsm:gpt2"), "-o", self.exe,
             "--set", 'batch=%d,seq=%d,clip=none,precision=%s,data="%s/tokens.bin"' % (
                 args.batch, args.seq, args.precision, folder),
             "--pin", "micro_batch=%d" % args.batch])

    def share(self):
        return float(run([self.share_exe, "0.4"]))

    def dsmc(self):
        log = os.path.join(self.folder, "log.jsonl")
        if os.path.exists(log):
            os.unlink(log)
        run([self.exe, "train", "-q", "--steps", str(self.args.steps + 3), "--log", log])
        steps = [json.loads(line) for line in open(log)]
        return {"step_s": [s["step_s"] for s in steps[3:]], "peak_bytes": steps[-1]["peak_bytes"]}

    def torch(self):
        out = run([TORCH, os.path.join(HERE, "torch_step.py"), str(self.args.batch),
                   str(self.args.seq), str(self.args.steps), "2", self.args.precision], OMP_NUM_THREADS="2", **TUNED)
        return json.loads(out.strip().split("\n")[-1])

    def clean(self, what):
        """A run with all cores there before and after, or None."""
        before = self.share()
        for _ in range(4):
            while_busy = 0
            while before < ENOUGH and while_busy < 5:
                time.sleep(2)
                before, while_busy = self.share(), while_busy + 1
            got = what()
            after = self.share()
            if before >= ENOUGH and after >= ENOUGH:
                return got
            before = after
        return None


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--batch", type=int, default=4)
    ap.add_argument("--seq", type=int, default=64)
    ap.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    ap.add_argument("--pairs", type=int, default=5)
    ap.add_argument("--steps", type=int, default=6)
    ap.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    args = ap.parse_args()
    weights, width = 124439808 - 1024 * 768, 12 * args.seq * 768
    flops = 3.0 * args.batch * args.seq * (2 * weights + 4 * width)
    with tempfile.TemporaryDirectory() as folder:
        b = Bench(args, folder)
        pairs = []
        for i in range(args.pairs):
            ours, theirs = b.clean(b.dsmc), b.clean(b.torch)
            if not ours or not theirs:
                print("pair %d: machine busy, not measured" % (i + 1), flush=True)
                continue
            x, y = statistics.median(ours["step_s"]), statistics.median(theirs["step_s"])
            pairs.append((x, y, ours["peak_bytes"], theirs["peak_bytes"]))
            print("pair %d: dsmc %.0f ms, PyTorch %.0f ms, ratio %.3f" % (
                i + 1, 1e3 * x, 1e3 * y, y / x), flush=True)
        if not pairs:
            sys.exit("machine busy: nothing was measured")
        for name, k in (("dsmc", 0), ("PyTorch", 1)):
            s = statistics.median(p[k] for p in pairs)
            print("%-8s %7.0f ms a step, %6.1f tokens/s, %5.1f GFLOP/s, peak %.0f MiB" % (
                name, 1e3 * s, args.batch * args.seq / s, flops / s * 1e-9,
                max(p[k + 2] for p in pairs) / 2**20))
        print("ratio    %.3f (median of %d pairs)" % (
            statistics.median(p[1] / p[0] for p in pairs), len(pairs)))


main()
