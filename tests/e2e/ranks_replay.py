#!/usr/bin/env python3
"""A step over two simulated nodes, of a pipeline or a double ring, takes what the simulator says.

    tests/e2e/ranks_replay.py build/dsmc          # all orders
    tests/e2e/ranks_replay.py build/dsmc gpipe

The cluster is inputs/slow_nodes.dsm: two nodes of two slow devices. `train --replay` sleeps for
what `dsmc simulate` says kernels take, messages are real and late by what the cluster says of its
links (DSM_LINK_DELAY). The step then takes what was simulated within 15 %, and less where links are as they
are, by most of what the simulator says that messages cost.
"""
import json
import os
import sys

import exe
import ranks

CLUSTER = os.path.join(exe.HERE, "inputs", "slow_nodes.dsm")
# Within a node 1 MB/s and 200 us; between nodes 2 ms, and half of a card of 1 MB/s for each device.
LINKS = "intra=0.0002/1e6,inter=0.002/5e5:2"
# Model, ranks, pins, what it is called.
ROWS = [("gpt2-even:batch=8,layers=4", "4", "pipeline=4,zero=0,micro_batch=1,order=" + x, x)
        for x in ("one_f_one_b", "gpipe", "zero_bubble")] + [("llama-long", "2x2", "ring=4,zero=0,recompute=full", "double ring")]
STEPS = 5


def ask(dsmc, verb, model, cluster, pins):
    _, job, settings = ranks.settings_of(model)
    return ranks.object_of([dsmc, verb, os.path.join(exe.ROOT, "examples", job["model"]),
                            "--set", settings, "--cluster", cluster, "--pin", pins, "--json"])


def simulate(dsmc, model, pins, path):
    said = ask(dsmc, "simulate", model, CLUSTER, pins)
    with open(path, "w") as f:
        json.dump(said, f)
    return said


def step_of(folder, model, program, plan, links):
    """Seconds of a step: the median."""
    log = ranks.log_with_links(program, model, 4, folder, links, STEPS, "--timeout", "20", "--replay", plan)
    return sorted(s["step_s"] for s in log)[STEPS // 2]


def check_sends(checks, order, sends):
    """Links of the test are those of the cluster: an activation of 16 positions of 64 numbers."""
    n = 16 * 64 * 4
    for i, (name, by_hand) in enumerate((("a node", 0.0002 + n / 1e6), ("two", 0.002 + n / 5e5))):
        checks.check("%s: a message within %s takes %.4f s" % (order, name, by_hand),
                     abs(sends[i] - by_hand) < 1e-3 * by_hand, "planned %r" % sends[i])


def check_order(dsmc, folder, checks, row):
    model, _, pins, order = row
    program, plan = os.path.join(folder, "program"), os.path.join(folder, "plan.json")
    said = simulate(dsmc, model, pins, plan)
    _, job, settings = ranks.settings_of(model)
    exe.run([dsmc, "build", "-q", os.path.join(exe.ROOT, "examples", job["model"]), "--set", settings, "--cluster", CLUSTER,
             "--pin", pins, "-o", program])
    want = said["simulated_step_s"]
    took, fast = (step_of(folder, model, program, plan, links) for links in (LINKS, ""))
    sends = [s["send_s"] for s in said["stages"]]
    if len(sends) > 1:
        check_sends(checks, order, sends)
    else:
        sends = [want - said["stages"][0]["forward_s"] - said["stages"][0]["backward_s"] - said["stages"][0]["outside_s"]]
    checks.check("%s: a step takes %.4f s, simulated %.4f s (%+.1f %%)" % (
        order, took, want, 100 * (took / want - 1)), abs(took / want - 1) <= 0.15)
    checks.check("%s: with links as they are %.4f s" % (order, fast), fast < took - sum(sends),
                 "messages of one way through take %.4f s" % sum(sends))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: %s DSMC [WORD...]" % sys.argv[0])
    exe.each(check_order, ROWS, sys.argv[2:])
