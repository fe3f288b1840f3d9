#!/usr/bin/env python3
"""The plans of ranks.txt have every pair of features that can be together, and all (ulysses, ring) of 8.

    tests/e2e/ranks_pairs.py            # counts, and names what is missing
"""
import itertools
import re
import sys

import ranks

# One of a kind at a time.
KINDS = [("ZeRO 1", "ZeRO 2", "ZeRO 3"),
         ("GPipe", "1F1B", "interleaved", "zero bubble"),
         ("tensor", "tensor without sequence parallel"),
         ("ring", "double ring"),
         ("head first", "context first"),
         ("recompute selective", "recompute full")]
ORDERS = {"gpipe": "GPipe", "one_f_one_b": "1F1B", "interleaved": "interleaved", "zero_bubble": "zero bubble"}
ALONE = ["data", "ulysses", "some data ranks share"]


def pins_of(row):
    return dict(re.findall(r"(\w+)=((?:[^,(]|\([^)]*\))*)", row[2]))


def features(row):
    pins = pins_of(row)
    size = {a: int(pins.get(a, 1)) for a in ("data", "tensor", "pipeline", "ulysses", "ring")}
    zero, _, group = pins.get("zero", "0").partition(":")
    context_first = pins.get("placement") == "context_first"
    has = {a for a in ("data", "ulysses") if size[a] > 1}
    if zero in "123":
        has.add("ZeRO " + zero)
    if group:
        has.add("some data ranks share")
    if size["tensor"] > 1:
        has.add("tensor" + (" without sequence parallel" if pins.get("sequence_parallel") == "false" else ""))
    if size["pipeline"] > 1:
        order = pins.get("order") or ("interleaved" if "interleave" in pins else "one_f_one_b")
        has.add(ORDERS[order.split("(")[0]])
    if size["ring"] > 1:
        # Ranks of a node that lie between two neighbours of the ring.
        node, between = int(row[1].partition("x")[2] or 0), size["tensor"] * (1 if context_first else size["ulysses"])
        has.add("double ring" if between < node < between * size["ring"] else "ring")
        if size["ulysses"] > 1:
            has.add("context first" if context_first else "head first")
    if pins.get("recompute", "none") != "none":
        has.add("recompute " + pins["recompute"])
    return has


def main():
    rows = list(ranks.rows())
    covered = set()
    for row in rows:
        covered |= {frozenset(p) for p in itertools.combinations(sorted(features(row)), 2)}
    names = ALONE + [f for kind in KINDS for f in kind]
    can_be = {frozenset(p) for p in itertools.combinations(names, 2)} - {
        frozenset(p) for kind in KINDS for p in itertools.combinations(kind, 2)}
    missing = sorted(tuple(sorted(p)) for p in can_be - covered)
    split = {tuple(int(pins_of(r).get(a, 1)) for a in ("ulysses", "ring")) for r in rows}
    missing += ["ulysses %d, ring %d" % (u, 8 // u) for u in (1, 2, 4, 8) if (u, 8 // u) not in split]
    print("%d plans, %d features, %d of %d pairs" % (len(rows), len(names), len(can_be & covered), len(can_be)))
    for m in missing:
        print("missing:", m)
    sys.exit(bool(missing))


if __name__ == "__main__":
    main()
