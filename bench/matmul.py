#!/usr/bin/env python3
"""GFLOP/s of generated matrix products at GPT-2 124M's shapes, beside what this machine can do.

    bench/matmul.py [--rows 256,1024] [--types f32,bf16,stored] [--modes fdw] [--threads 2,1]
                    [--seconds 0.4] [--copies 1] [--tries 3] [--shapes] [--build build]
                    [--skip NAME,...]

Shapes: 12 x {768->2304, 768->768, 768->3072, 3072->768} + 768->50257, weighted as they occur in one
pass (all multiply-adds over all time; `all`: of all modes). f = X W^T (forward), d = dY W and w = dY^T X (backward); rows
are tokens. `bf16` rounds f32 operands as it reads them, `stored` reads bf16 buffers; results are f32.
The ceiling is a loop of multiply-adds on registers (f32: fma, bf16: vdpbf16ps), run in between.
The figure is the best of a shape's calls, the median stands beside it: where others use the machine,
the median measures them too. A line is measured again, up to --tries times, while a ceiling before
or after it is below 93 % of the highest seen for its type: then the machine's cores were not all
there, and a line that stays so says "busy". --threads 0 is for such a machine: one thread, cells in pieces of less
than a millisecond, of each of which the best time counts. --copies N uses N sets of buffers in turn, so that operands are not in
the last-level cache from the call before. --skip leaves out choices (`dsmc help skip`), to measure what they bring.
"""
import argparse, os, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHAPES = [(12, 768, 2304), (12, 768, 768), (12, 768, 3072), (12, 3072, 768), (1, 768, 50257)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rows", default="256,1024")
    ap.add_argument("--types", default="f32,bf16,stored")
    ap.add_argument("--modes", default="fdw")
    ap.add_argument("--threads", default="2,1")
    ap.add_argument("--seconds", type=float, default=0.4)
    ap.add_argument("--copies", type=int, default=1)
    ap.add_argument("--tries", type=int, default=3)
    ap.add_argument("--shapes", action="store_true", help="print each shape too")
    ap.add_argument("--build", default=os.path.join(ROOT, "build"))
    ap.add_argument("--skip", default="")
    args = ap.parse_args()
    subprocess.run(["cmake", "--build", args.build, "--target", "bench_matmul"], check=True,
                   stdout=subprocess.DEVNULL)
    exe = os.path.join(args.build, "bench_matmul")

    def ceiling(threads):
        out = subprocess.run([exe, "ceiling", max("1", threads)], check=True, capture_output=True, text=True).stdout
        return [float(x) for x in out.split()]

    print("%7s %6s %6s %4s %8s %8s %8s %6s" % (
        "threads", "type", "rows", "", "best", "median", "ceiling", "share"))
    highest = {}

    def measure(threads, kind, rows, mode):
        """(best and median of all shapes, lines of single shapes, were all cores there, GFLOP)"""
        lines = "".join("%s %s %d %d %s\n" % (mode, rows, k, n, kind) for _, k, n in SHAPES)
        before = ceiling(threads)
        done = subprocess.run([exe, "run", threads, str(args.seconds), str(args.copies), args.skip],
                              input=lines, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        after = ceiling(threads)
        i, key = kind != "f32", (threads, kind != "f32")
        highest[key] = max(highest.get(key, 0), before[i], after[i])
        flops = best = median = 0.0
        shapes = []
        for (times, k, n), line in zip(SHAPES, done.stdout.splitlines()):
            word = line.split()
            work = 2e-9 * times * int(rows) * k * n
            flops, median, best = flops + work, median + work / float(word[5]), best + work / float(word[6])
            shapes.append("%7s %6s %6s %4s %8s %8s    %d -> %d" % (
                threads, kind, rows, mode, word[6], word[5], k, n))
        return flops / best, flops / median, shapes, min(before[i], after[i]) > 0.93 * highest[key], flops

    for threads in args.threads.split(","):
        for kind in args.types.split(","):
            for rows in args.rows.split(","):
                total = []
                for mode in args.modes:
                    got = measure(threads, kind, rows, mode)
                    for _ in range(args.tries - 1):
                        if got[3]:
                            break
                        got = max(got, measure(threads, kind, rows, mode), key=lambda g: (g[3], g[0]))
                    best, median, shapes, quiet, flops = got
                    total.append((flops, flops / best, flops / median, quiet))
                    if args.shapes:
                        print("\n".join(shapes))
                    top = highest[threads, kind != "f32"]
                    print("%7s %6s %6s %4s %8.1f %8.1f %8.1f %5.1f%%%s" % (
                        threads, kind, rows, mode, best, median, top, 100 * best / top,
                        "" if quiet else "  busy"), flush=True)
                if len(total) > 1:
                    flops, best, median = (sum(t[i] for t in total) for i in range(3))
                    print("%7s %6s %6s %4s %8.1f %8.1f %8.1f %5.1f%%%s" % (
                        threads, kind, rows, "all", flops / best, flops / median, top, 100 * flops / best / top,
                        "" if all(t[3] for t in total) else "  busy"), flush=True)


main()
