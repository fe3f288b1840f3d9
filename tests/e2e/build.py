#!/usr/bin/env python3
"""Compiling: time does not grow with depth, the same text gives the same bytes.

  build.py DSMC

gpt2.dsm at its full width under 3 s; 96 layers within 1.3 times 12 layers (medians of interleaved
pairs); two builds are byte-identical. Judged by processor seconds, which a busy machine does not
change much; wall seconds are printed beside them.
"""
import os, resource, statistics, subprocess, sys, tempfile, time

dsmc = sys.argv[1]
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
gpt2 = os.path.join(root, "examples/gpt2.dsm")
work = tempfile.mkdtemp(prefix="dsmc-build-")
failed = passed = 0
walls = []


def build(out, layers):
    t, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    r = subprocess.run([dsmc, "build", "-q", gpt2 + ":gpt2", "-o", out, "--pin", "micro_batch=1", "--set",
                        "batch=4,seq=256,layers=%d" % layers],
                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode:
        sys.exit(r.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    walls.append(time.time() - t)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def check(ok, what):
    global failed, passed
    passed, failed = passed + bool(ok), failed + (not ok)
    print("ok" if ok else "FAILED", what, flush=True)


ratios, shallow, deep = [], [], []
for i in range(3):
    shallow.append(build(os.path.join(work, "a%d" % i), 12))
    deep.append(build(os.path.join(work, "b%d" % i), 96))
    ratios.append(deep[-1] / shallow[-1])
check(statistics.median(shallow) < 3, "gpt2, 12 layers: %.2f processor seconds, %.2f to %.2f s of wall time for all builds"
      % (statistics.median(shallow), min(walls), max(walls)))
check(statistics.median(ratios) < 1.3, "96 layers / 12 layers: %.2f" % statistics.median(ratios))
for x in "ab":
    one, two = (open(os.path.join(work, x + n), "rb").read() for n in "01")
    check(one == two, "two builds are the same bytes (%s)" % x)
for f in os.listdir(work):
    os.unlink(os.path.join(work, f))
os.rmdir(work)
print("%d passed, %d failed" % (passed, failed))
sys.exit(1 if failed else 0)
