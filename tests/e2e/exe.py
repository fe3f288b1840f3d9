"""What the end-to-end tests share: building, running, comparing, reporting."""
import json
import os
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ORACLE = os.path.join(ROOT, "tests", "oracle", "data")


class Checks:
    """Prints `ok NAME` (unless it is quiet) or `FAILED NAME: why`, and at the end how many there
    were."""

    def __init__(self, quiet=False):
        self.passed, self.failed, self.quiet = 0, 0, quiet

    def check(self, name, good, why=""):
        if good:
            self.passed += 1
            if not self.quiet:
                print("ok %s" % name, flush=True)
        else:
            self.failed += 1
            print("FAILED %s: %s" % (name, why), flush=True)
        return good

    def close(self, name, got, want, tolerance):
        """Lists of numbers, each relative to the wanted one."""
        if len(got) != len(want):
            return self.check(name, False, "%d values for %d" % (len(got), len(want)))
        worst, at = 0.0, 0
        for i, (g, w) in enumerate(zip(got, want)):
            off = abs(g - w) / max(abs(w), 1e-30) if g == g else float("inf")
            if off > worst:
                worst, at = off, i
        return self.check("%s (worst %.1e)" % (name, worst), worst <= tolerance,
                          "number %d: %r for %r, off by %.3g, more than %g" % (
                              at, got[at], want[at], worst, tolerance))

    def end(self):
        print("%d passed, %d failed" % (self.passed, self.failed))
        return 1 if self.failed else 0


def run(command, **more):
    """Output of a command; an error that shows what it printed when it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=300, **more)
    if done.returncode:
        raise RuntimeError("%s\nexit code %d\n%s" % (
            " ".join(command), done.returncode, done.stdout[-4000:]))
    return done.stdout


def need_mpirun():
    """Leaves as skipped where there is none."""
    if not shutil.which("mpirun"):
        print("skipped: there is no mpirun")
        sys.exit(77)


def mpirun(ranks, *words):
    return ["mpirun", "--allow-run-as-root", "--oversubscribe", "-q", "-n", str(ranks), *words]


def expected(model):
    with open(os.path.join(ORACLE, model, "expected.json")) as f:
        return json.load(f)


def build(dsmc, model, settings, exe, pins=""):
    """Builds examples/MODEL for the job of expected.json."""
    command = [dsmc, "build", os.path.join(ROOT, "examples", model), "--set", settings, "-o", exe,
               "-q"]
    if pins:
        command += ["--pin", pins]
    run(command)
    return exe


def job_settings(job):
    """The settings that make a job of the oracle: no warm-up, no shuffling."""
    return ",".join([job["settings"], "batch=%d" % job["batch"], "steps=%d" % job["steps"],
                     "optimizer=" + job["optimizer"], "clip=%s" % job["clip"],
                     "schedule=constant", "shuffle=false"])


def read_log(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def threads(n):
    """A preexec_fn that leaves the process n CPUs, or None when there are not so many."""
    cpus = sorted(os.sched_getaffinity(0))
    return (lambda: os.sched_setaffinity(0, cpus[:n])) if len(cpus) >= n else None


def main(test):
    """test(dsmc, folder, checks, names); the command line is DSMC [NAME...]."""
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [NAME...]" % sys.argv[0])
    checks = Checks()
    with tempfile.TemporaryDirectory() as folder:
        test(os.path.abspath(sys.argv[1]), folder, checks, sys.argv[2:])
    sys.exit(checks.end())


def each(test, rows, words):
    """test(dsmc, folder, checks, row) on MPI ranks, for each row whose text has all these words."""
    need_mpirun()
    chosen = [r for r in rows if all(w in " ".join(map(str, r)) for w in words)]
    if not chosen:
        sys.exit("no row has all of %s" % " ".join(words))
    checks = Checks()
    for row in chosen:
        with tempfile.TemporaryDirectory() as folder:
            try:
                test(os.path.abspath(sys.argv[1]), folder, checks, row)
            except (RuntimeError, OSError, ValueError, KeyError, subprocess.TimeoutExpired) as e:
                checks.check("%s on %s: %s" % row[:3], False, str(e)[-1500:])
    sys.exit(checks.end())
