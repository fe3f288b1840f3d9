#!/usr/bin/env python3
"""dsmc pack over a folder of lists of buffers: how low, how sure, how long.

  bench/pack.py DSMC FOLDER [--limit SECONDS] [--reference TIMES.csv] [--no-capacity]
  bench/pack.py --generate FOLDER [--pieces N] [--lists K] [--drop PERCENT]

Every FOLDER/NAME.CAPACITY.csv (or NAME.csv, which has no capacity) is packed in one process. The
offsets are checked here once more. TIMES.csv has lines `NAME,SECONDS`, for a column to compare with.

--generate writes lists whose best height is known: a full rectangle of time and 1,048,576 bytes is
cut into pieces, a third of the cuts in pinwheels that no straight cuts could make. --drop leaves
some out, which makes them harder: there is waste, and no sign of where.
"""
import argparse, csv, json, os, random, subprocess, sys, time


def pieces(seed, n, width=2048, height=1024):
    r = random.Random(seed)
    aspect = r.choice((2, 10, 30))
    all = [(0, width, 0, height)]
    for _ in range(100 * n):
        if len(all) >= n:
            break
        all.sort(key=lambda p: (p[0] - p[1]) * (p[3] - p[2]))
        k = min(int(r.expovariate(4 / (len(all) + 4))), len(all) - 1)
        x0, x1, y0, y1 = all[k]
        w, h = x1 - x0, y1 - y0
        if w >= 8 and h >= 8 and r.random() < 0.3:
            a = r.randint(x0 + 1, x1 - 2)
            b = r.randint(a + 1, x1 - 1)
            c = r.randint(y0 + 1, y1 - 2)
            d = r.randint(c + 1, y1 - 1)
            all[k:k + 1] = [(x0, b, y0, c), (b, x1, y0, d), (a, x1, d, y1), (x0, a, c, y1), (a, b, c, d)]
        elif w >= 2 and r.random() * (w + aspect * h) < w:
            a = r.randint(x0 + 1, x1 - 1)
            all[k:k + 1] = [(x0, a, y0, y1), (a, x1, y0, y1)]
        elif h >= 2:
            a = r.randint(y0 + 1, y1 - 1)
            all[k:k + 1] = [(x0, x1, y0, a), (x0, x1, a, y1)]
    r.shuffle(all)
    return all, r


def generate(folder, n, lists, drop):
    os.makedirs(folder, exist_ok=True)
    for seed in range(1, lists + 1):
        all, r = pieces(seed, n)
        with open(os.path.join(folder, "%d.1048576.csv" % seed), "w") as f:
            f.write("id,lower,upper,size\n")
            for i, (x0, x1, y0, y1) in enumerate(all):
                if r.random() * 100 >= drop:
                    f.write("%d,%d,%d,%d\n" % (i, x0 * 512, x1 * 512, (y1 - y0) * 1024))


def check(path, answer):
    rows = [(r["id"], int(r["lower"]), int(r["upper"]), int(r["size"])) for r in csv.DictReader(open(path))]
    placed = [(l, u, answer["offsets"][i], answer["offsets"][i] + s) for i, l, u, s in rows if s]
    assert all(p[2] >= 0 for p in placed)
    assert max([p[3] for p in placed], default=0) == answer["height"], "height"
    for k, a in enumerate(placed):
        for b in placed[:k]:
            assert a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3], "overlap"
    return len(rows)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dsmc", nargs="?")
    p.add_argument("folder", nargs="?")
    p.add_argument("--limit", default="60")
    p.add_argument("--reference")
    p.add_argument("--no-capacity", action="store_true")
    p.add_argument("--generate", metavar="FOLDER")
    p.add_argument("--pieces", type=int, default=200)
    p.add_argument("--lists", type=int, default=10)
    p.add_argument("--drop", type=float, default=0)
    a = p.parse_args()
    if a.generate:
        return generate(a.generate, a.pieces, a.lists, a.drop)
    if not a.folder:
        p.error("DSMC and FOLDER, or --generate FOLDER")
    reference = {}
    if a.reference:
        reference = {r[0]: float(r[1]) for r in csv.reader(open(a.reference)) if len(r) > 1}
    print("%-24s %8s %12s %12s %-8s %9s %9s" % ("file", "buffers", "max load", "height", "optimal", "seconds", "reference" if reference else ""))
    lists = least = unfit = 0
    for name in sorted(f for f in os.listdir(a.folder) if f.endswith(".csv")):
        path, stem = os.path.join(a.folder, name), name[:-4]
        capacity = stem.rsplit(".", 1)[1] if "." in stem else ""
        command = [a.dsmc, "pack", path, "--json", "--limit", a.limit]
        if capacity.isdigit() and not a.no_capacity:
            command += ["--capacity", capacity]
        began = time.monotonic()
        r = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seconds = time.monotonic() - began
        if r.returncode not in (0, 3):
            sys.exit("%s: exit code %d\n%s" % (path, r.returncode, r.stderr))
        answer = json.loads(r.stdout)
        n = check(path, answer)
        lists, least, unfit = lists + 1, least + answer["optimal"], unfit + (r.returncode == 3)
        short = stem.rsplit(".", 1)[0] if stem not in reference else stem
        print("%-24s %8d %12d %12d %-8s %9.3f %9s" % (stem, n, answer["lower_bound"], answer["height"], ("yes" if answer["optimal"] else "no") + (" UNFIT" if r.returncode else ""), seconds, reference.get(stem, reference.get(short, ""))), flush=True)
    print("%d lists, %s, %d proved least" % (lists, "%d do not fit" % unfit if unfit else "all fit", least))
    return 1 if unfit else 0


sys.exit(main())
