#!/usr/bin/env python3
"""Memory runs out at every request of the front end: one clean line, exit 1, no crash.

  alloc.py DSMC [--every N]

DSMC_TEST_FAIL_AT=n makes the n-th request for memory fail. Walks n until a run succeeds.
"""
import argparse, os, subprocess, sys

ap = argparse.ArgumentParser()
ap.add_argument("dsmc")
ap.add_argument("--every", type=int, default=1)
args = ap.parse_args()
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
passed = failed = 0
for name, argv in (("check", ["check", "-q", os.path.join(root, "tests/e2e/inputs/small.dsm")]),
                   ("bad", ["check", "-q", os.path.join(root, "tests/e2e/inputs/bad.dsm")]),
                   ("fmt", ["fmt", os.path.join(root, "tests/e2e/inputs/small.dsm")])):
    n = 1
    normal = subprocess.run([args.dsmc] + argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while True:
        r = subprocess.run([args.dsmc] + argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env=dict(os.environ, DSMC_TEST_FAIL_AT=str(n)))
        if "out of memory" not in r.stderr:
            break
        if r.returncode == 1:
            passed += 1
        else:
            failed += 1
            print("FAILED %s, request %d: exit %d\n%s" % (name, n, r.returncode, r.stderr[:2000]))
            if failed > 5:
                sys.exit(1)
        n += args.every
    if r.returncode != normal.returncode or n < 10:
        failed += 1
        print("FAILED %s: after %d requests exit %d\n%s" % (name, n, r.returncode, r.stderr[:2000]))
    print("%s: %d requests failed in turn" % (name, (n - 1) // args.every), flush=True)
print("%d passed, %d failed" % (passed, failed))
sys.exit(1 if failed else 0)
