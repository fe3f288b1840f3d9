#!/usr/bin/env python3
"""Rings: what is handed on, over which factor, and what a double ring saves between nodes.

    tests/e2e/ring.py build/dsmc [WORD...]       # cases whose line has all these words

For rings of n ranks in nodes of w: a body looks at keys n times, once with `attention` and else with
`attention_next`; keys and values make n - 1 hops each, n/w - 1 of them between nodes, gradients of
both n - 1 to come home, n/w of them between nodes. A run counts as many messages over each factor.
Positions are cut in zigzag: by the masks and places of the program each rank of the ring sees as many pairs of query and
key as the others, exactly, and all together see each once. At last two nodes are simulated (DSM_LINK_DELAY): a step's messages are late by the hops between nodes, and by no more.
(That losses are those of one rank is ranks.txt's.)
"""
import json
import os
import re
import sys

import exe
import ranks

LAYERS = 2
SHORT, LONG = "gpt2-long", "gpt2-long:context=256,seq=256"
# Model, ranks (nodes x ranks of each), size of the ring, ranks of it in a node, pins.
CASES = [(SHORT, "4", 4, 4, "ring=4,zero=0"),
         (SHORT, "8", 4, 4, "ulysses=2,ring=4,zero=0"),
         (SHORT, "2x2", 4, 2, "ring=4,zero=0"),
         (LONG, "2x4", 8, 4, "ring=8,zero=0"),
         (LONG, "4x2", 8, 2, "ring=8,zero=0")]
LATE = 0.02  # seconds of a message between nodes
STEPS = 4


def compile_as(dsmc, model, ranks_, pins, verb, *options):
    _, job, settings = ranks.settings_of(model)
    return exe.run([dsmc, verb, os.path.join(exe.ROOT, "examples", job["model"]), "--set", settings, "--cluster",
                    ranks.cluster_of(ranks_), "--pin", pins, *options])


def bodies(text):
    """Of train_step's two repeats: the ops in it, and what permutes go over: (axes, sums)."""
    text = text[text.index("train_step"):]
    text = text[:text.index("evaluate")] if "evaluate" in text else text
    for body in re.findall(r"= repeat\(.*?\n    \}\n", text, re.S)[:2]:
        permutes = re.findall(r"= permute\([^)]*\) \{([^}]*)\}", body)
        yield (re.findall(r"= (\w+)\(", body),
               [(re.search(r'axes="([^"]*)"', p).group(1), "sums=1" in p) for p in permutes])


def check_hops(checks, name, text, n, w):
    """Of each body; the first is forward's."""
    inner, outer = ("ring", None) if n == w else ("ring.1", "ring.0")
    both = "ring.0.ring.1"
    for backward, (ops, hops) in enumerate(bodies(text)):
        body = "%s, %s" % (name, "backward" if backward else "forward")
        one, more = ("attention_grad", "attention_grad") if backward else ("attention", "attention_next")
        looks = ops.count(one) + (ops.count(more) if more != one else 0)
        checks.check(body + ": keys are looked at %d times" % n, looks == n and (backward or ops.count(one) == 1),
                     "%d times" % looks)
        want = {(inner, False): 2 * (n - n // w), (outer, False): 2 * (n // w - 1)}
        if backward and n == w:
            want[(inner, True)] = 2 * (n - 1)
        elif backward:
            want[(inner, True)], want[(both, True)] = 2 * (n - 1 - n // w), 2 * (n // w)
        want = {k: v for k, v in want.items() if v}
        got = {k: hops.count(k) for k in set(hops)}
        checks.check(body + ": hops of keys and values", got == want, "%r, not %r" % (got, want))


def places(text, mesh):
    """By name, what `place` gives at the coordinates of `mesh`: [(size, coordinate)]."""
    found = {}
    for name, attrs in re.findall(r"(%[\w.]+) = place\(\) \{([^}]*)\}", text):
        lists = {k: [int(x) for x in v.split(",")] for k, v in re.findall(r"(begins|turn)=\[([^]]*)\]", attrs)}
        base = re.search(r"base=(-?\d+)", attrs)
        turn = lists.get("turn", [0] * len(mesh))
        found[name] = int(base.group(1) if base else 0) + sum(
            by * ((at + more) % size) for by, more, (size, at) in zip(lists["begins"], turn, mesh))
    return found


OPS = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "ge": lambda a, b: a >= b, "le": lambda a, b: a <= b,
       "where": lambda c, a, b: a if c else b, "at": lambda a: a}


def pairs_seen(body, mesh):
    """Pairs of positions (query, key) that the masks of a forward body let a rank see; the last op says each position's number."""
    at, seen = places(body, mesh), []
    for op in re.finditer(r"= attention(_next)?\((.*?)\) \{.*?seq[.\d]*=(\d+).*?region\((.*?)\) \{\n(.*?)yield (%[\w.]+)", body, re.S):
        captures = [at[v] for v in op.group(2).split(", ")[5 if op.group(1) else 3:]]
        names = [a.split(" : ")[0] for a in op.group(4).split(", ")]
        lines = re.findall(r"(%[\w.]+) = (\w+)\((.*?)\)(?: \{([^}]*)\})?", op.group(5))
        rows = int(op.group(3))
        for i in range(rows):
            for j in range(rows):
                env = dict(zip(names, [0, 0, i, j] + captures))
                for name, code, args, attrs in lines:
                    env[name] = (int(re.search(r"value=(-?\d+)", attrs).group(1)) if code == "const"
                                 else OPS[code](*(env[a] for a in args.split(", "))))
                if env[op.group(6)]:
                    compared = next(args for _, code, args, _ in lines if code == "le").split(", ")
                    seen.append((env[compared[1]], env[compared[0]]))
    return seen


def check_balance(checks, name, text, n):
    body = re.search(r"= repeat\(.*?\n    \}\n", text[text.index("train_step"):], re.S).group(0)
    sizes = [(a, int(s)) for a, s in re.findall(r"([\w.]+)=(\d+)", re.search(r"^mesh (.*)$", text, re.M).group(1))]
    seen = []
    for rank in range(n):
        left, mesh = rank, []
        for a, size in reversed(sizes):
            ours = a.startswith("ring")
            mesh.insert(0, (size, left % size if ours else 0))
            left = left // size if ours else left
        seen.append(pairs_seen(body, mesh))
    counts, positions = {len(s) for s in seen}, len({q for s in seen for q, _ in s})
    checks.check("%s: each rank sees as many pairs as the others" % name, len(counts) == 1, repr(counts))
    everything = [p for s in seen for p in s]
    checks.check("%s: together each once" % name, sorted(everything) == [(i, j) for i in range(positions) for j in range(i + 1)])


def times(sent, kind, axes):
    """What all ranks did together, in a step."""
    row = sent.get("%s over %s" % (kind, axes.replace(".ring", ", ring")))
    return row["exchanges"] if row else 0


def check_case(dsmc, folder, checks, case):
    model, ranks_, n, w, pins = case
    name = "%s ranks: %s" % (ranks_, pins)
    text = compile_as(dsmc, model, ranks_, pins, "ir", "--after", "ring")
    check_hops(checks, name, text, n, w)
    check_balance(checks, name, text, n)
    program = os.path.join(folder, "program")
    compile_as(dsmc, model, ranks_, pins, "build", "-q", "-o", program)
    all_ranks = ranks.number_of(ranks_)
    sent = ranks.log_with_links(program, model, all_ranks, folder, "", STEPS)[0]["sent"]
    # Forward and backward of all layers, keys and values; over the whole ring other things are gathered too.
    for axes, hops in (("ring.1", n - n // w), ("ring.0", n // w - 1)):
        if n != w:
            got, want = times(sent, "all_gather", axes), 2 * 2 * LAYERS * hops * all_ranks
            checks.check("%s: %d hops of keys over %s in a run" % (name, hops, axes), got == want, "%d, not %d" % (got, want))
    if ranks_ == "2x2":
        check_delay(folder, checks, name, program, model, n, w)


def check_delay(folder, checks, name, program, model, n, w):
    """Milliseconds that rank 0 waits for hops, with nodes apart."""
    trace = os.path.join(folder, "trace.json")
    ranks.log_with_links(program, model, n, folder, "intra=0,inter=%g:%d" % (LATE, w), STEPS,
                         "--trace", trace, "--trace-steps", str(STEPS))
    with open(trace.replace(".json", ".0.json")) as f:
        events = json.load(f)["traceEvents"]
    took = sum(e["dur"] for e in events if e.get("ph") == "X" and e["name"].startswith("permute")) / 1e6 / STEPS
    # Keys' and values' of a layer's forward and backward, and their gradients'.
    want = LATE * LAYERS * 2 * (2 * (n // w - 1) + n // w)
    checks.check("%s: hops between nodes of %g s each: a step waits %.3f s, %.3f s by count" % (name, LATE, took, want),
                 abs(took / want - 1) < 0.15)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [WORD...]" % sys.argv[0])
    exe.each(check_case, CASES, sys.argv[2:])
