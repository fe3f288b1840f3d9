#!/usr/bin/env python3
"""The kernel cache never changes what is built.

    tests/e2e/cache.py build/dsmc

tiny.dsm without a cache, with an empty one, a full one, one with damaged entries, several compilers
filling one at the same time, and folders that cannot be used: always the same bytes, and --time says
how many kernels came from the cache. A change of some kernels compiles those only.
"""
import os
import random
import re
import shutil
import subprocess

import exe

MODEL = os.path.join(exe.ROOT, "examples", "tiny.dsm")
SETTINGS = "layers=2,hidden=64,heads=2,batch=4,seq=32"


class Builder:
    def __init__(self, dsmc, folder):
        self.dsmc, self.out, self.cache = dsmc, os.path.join(folder, "out"), os.path.join(folder, "cache")

    def command(self, out, cache, more=(), settings=SETTINGS):
        return [self.dsmc, "build", MODEL, "-q", "-o", out, "--set", settings, "--time", "--cache",
                cache, *more]

    def __call__(self, cache, *more, settings=SETTINGS):
        """(bytes of the executable, (hits, misses) or what --time says instead)"""
        text = exe.run(self.command(self.out, cache, more, settings))
        line = re.search(r"^kernel cache +(.*)$", text, re.M).group(1)
        numbers = re.fullmatch(r"(\d+) hits, (\d+) misses", line)
        with open(self.out, "rb") as f:
            return f.read(), tuple(int(x) for x in numbers.groups()) if numbers else line


def entries(cache):
    folder = os.path.join(cache, "kernels")
    return sorted(os.path.join(folder, name) for name in os.listdir(folder))


def damage(paths, rng):
    """One kind of damage a file; returns how many entries cannot be used."""
    for i, path in enumerate(paths):
        with open(path, "rb") as f:
            data = bytearray(f.read())
        if i % 5 == 0:
            data = data[:rng.randrange(len(data))]
        elif i % 5 == 1:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif i % 5 == 2:
            data = bytearray(len(data))
        elif i % 5 == 3:
            data += b"x"
        else:
            with open(paths[i - 1], "rb") as f:
                data = bytearray(f.read())[:-1]  # the one before, a valid entry of another kernel
        with open(path, "wb") as f:
            f.write(data)
    return len(paths)


def test(dsmc, folder, checks, names):
    build = Builder(dsmc, folder)
    want, said = build("none")
    checks.check("--cache none", said == "off", said)
    got, (hits, misses) = build(build.cache)
    n = misses
    checks.check("empty cache: same bytes", got == want and hits == 0 and n > 20, (hits, misses))
    checks.check("one entry a kernel, no other files", len(entries(build.cache)) == n)
    for jobs in ("1", "2", "7"):
        got, said = build(build.cache, "-j", jobs)
        checks.check("full cache, -j %s: same bytes" % jobs, got == want and said == (n, 0), said)
        got, said = build("none", "-j", jobs)
        checks.check("no cache, -j %s: same bytes" % jobs, got == want, said)

    rng = random.Random(1)
    bad = damage(rng.sample(entries(build.cache), 15), rng)
    got, said = build(build.cache)
    checks.check("damaged entries: same bytes, compiled again", got == want and said == (n - bad, bad), said)
    got, said = build(build.cache)
    checks.check("damaged entries were written again", got == want and said == (n, 0), said)

    _, (hits, misses) = build(build.cache, settings=SETTINGS.replace("seq=32", "seq=64"))
    checks.check("another length: some kernels are known", hits > 0 and misses > 0, (hits, misses))

    shutil.rmtree(build.cache)
    outs = [os.path.join(folder, "out%d" % i) for i in range(4)]
    crowd = [subprocess.Popen(build.command(out, build.cache), stderr=subprocess.DEVNULL) for out in outs]
    good = [p.wait() == 0 for p in crowd]
    checks.check("four compilers fill one cache: same bytes",
                 all(good) and all(open(out, "rb").read() == want for out in outs))
    got, said = build(build.cache)
    checks.check("and leave it whole", got == want and said == (n, 0), said)

    # `dsmc run` has its executables in the same folder.
    text = exe.run([dsmc, "run", MODEL, "--set", SETTINGS, "--cache", build.cache, "--time", "--", "info"])
    checks.check("run: all from the cache", "%d hits, 0 misses" % n in text, text)
    done = subprocess.run([dsmc, "run", MODEL, "--cache", "none"], stderr=subprocess.PIPE)
    checks.check("run --cache none: refused in words", done.returncode == 2 and b"cache" in done.stderr)

    os.chmod(os.path.join(build.cache, "kernels"), 0o777)
    got, said = build(build.cache)
    checks.check("others may write the folder: not used", got == want and said == "cannot be used", said)
    file = os.path.join(folder, "file")
    open(file, "w").close()
    for cache in (file, "/dev/null/x", "/proc/no/such"):
        got, said = build(cache)
        checks.check("cache %s: same bytes, no error" % os.path.basename(cache),
                     got == want and said == "cannot be used", said)


if __name__ == "__main__":
    exe.main(test)
