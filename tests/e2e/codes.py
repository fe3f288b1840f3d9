#!/usr/bin/env python3
"""Every diagnostic code has a test file named after it, and `dsmc explain` knows each.

  codes.py DSMC
"""
import os, re, subprocess, sys

dsmc = sys.argv[1]
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
text = open(os.path.join(root, "frontend/diag.def")).read()
codes = sorted(set(re.findall(r"DIAG\(\w+,\s*\"([a-z0-9-]+)\"", text)))
if len(codes) < 20:
    sys.exit("codes.py: found only %d codes in diag.def" % len(codes))
tests = {os.path.splitext(f)[0] for d in ("parse", "sema") for _, _, fs in os.walk(os.path.join(root, "tests", d)) for f in fs}
passed = failed = 0
for code in codes:
    ok = code in tests
    r = subprocess.run([dsmc, "explain", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ok2 = r.returncode == 0 and len(r.stdout) > 80
    passed, failed = passed + (ok and ok2), failed + (not (ok and ok2))
    if not ok:
        print("FAILED: no test file for [%s]" % code)
    if not ok2:
        print("FAILED: explain %s" % code)
print("%d passed, %d failed" % (passed, failed))
sys.exit(1 if failed else 0)
