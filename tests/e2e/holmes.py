#!/usr/bin/env python3
"""Plans on clusters of unlike parts (SYSTEMS.md, Holmes): what may cross the slow link between two networks, how layers are
cut over devices of unlike speed, and from which speed of the link on a reduction across it pays.

    tests/e2e/holmes.py build/dsmc
"""
import itertools
import json
import os
import subprocess
import sys
import tempfile

DSMC = os.path.abspath(sys.argv[1])
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LLAMA = os.path.join(ROOT, "examples", "llama.dsm")
TEXT = """
device slow {{
  memory = {memory}; reserve = 1GiB; bandwidth = 900GB/s
  matmul.f32 = 3.4TFLOPS; matmul.bf16 = 25TFLOPS; vector.f32 = 4TFLOPS; launch = 4us
}}
cluster c {{
  node x {{ members = 2 * a100_80g; link = switch(300GB/s, 3us); nics = 2 * nic({first}Gbit/s, 5us)
            host = memory(1TiB, 25GB/s) }}
  node y {{ members = 2 * {device}; link = switch(300GB/s, 3us); nics = 2 * nic({second}Gbit/s, 9us)
            host = memory(1TiB, 25GB/s) }}
  group ib {{ members = {nodes[0]} * x; link = fat_tree() }}
  group roce {{ members = {nodes[1]} * y; link = fat_tree() }}
  members = ib + roce
  link = ethernet({between}Gbit/s, 50us)
}}
"""
REDUCING = {"data", "tensor", "ulysses", "ring"}


def run(*args):
    done = subprocess.run([DSMC, "plan", *args], capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"exit {done.returncode}: dsmc plan {' '.join(args)}\n{done.stdout}{done.stderr}")
    return done.stdout


def arguments(folder, pins="", layers=8, batch=16, memory="80GiB", first=200, second=100, device="a100_80g", nodes=(2, 2),
              between=25):
    path = os.path.join(folder, "cluster.dsm")
    with open(path, "w") as f:
        f.write(TEXT.format(memory=memory, first=first, second=second, device=device, nodes=nodes, between=between))
    sets = f"layers={layers},hidden=1024,heads=8,kv_heads=8,ffn=3072,vocab=4096,context=512,seq=512,batch={batch}"
    return [LLAMA, "--set", sets, "--cluster", path, *(["--pin", pins] if pins else [])]


def plan(folder, **how):
    return json.loads(run(*arguments(folder, **how), "--json"))


# ---- what crosses --------------------------------------------------------------------------------

def only_boundaries_cross(folder):
    j = plan(folder)
    b = j["best"]
    assert j["search"]["optimal"] and b["spans_unlike"] == [], b["spans_unlike"]
    assert b["mesh"]["pipeline"] > 1 and b["mesh"]["order"][0] == "pipeline", b["plan"]
    assert sorted({s["group"] for s in b["stages"]}) == ["ib", "roce"], b["stages"]
    # The RDMA networks are not the same either: a stage behind the slower one is the slower one. No bytes of a reduction
    # cross the link; what is sent is the boundary's.
    link = j["link_crossing"]
    assert not link["spans_now"] and link["inside_s"] == b["step_s"] < link["across_s"], link
    # The best plan of two stages with data ranks outermost has each data group on both networks.
    step = {}
    for name, pins in (("inside", "pipeline=2,data=4,zero=0"), ("across", "pipeline=1,data=8,zero=0")):
        step[name] = plan(folder, pins=pins)["best"]
    assert step["inside"]["spans_unlike"] == [] and step["across"]["spans_unlike"] == ["data"], step
    assert step["inside"]["step_s"] < step["across"]["step_s"], step
    # Alike networks have nothing to say on this.
    alike = plan(folder, nodes=(2, 2), second=200)["best"]
    assert alike["spans_unlike"] in ([], ["data"]) and alike["step_s"] <= b["step_s"] * (1 + 1e-9)


def between_the_pure(folder):
    """Slower than InfiniBand everywhere, faster than Ethernet everywhere."""
    hybrid = plan(folder)["best"]["step_s"]
    fast = plan(folder, second=200, between=800)["best"]["step_s"]
    slow = plan(folder, first=6.25, second=6.25, between=25)["best"]["step_s"]
    assert fast < hybrid < slow, (fast, hybrid, slow)


def straddling(folder):
    """Groups of 3 and 1 nodes: two stages of two nodes each, so the second one lies on both."""
    b = plan(folder, nodes=(3, 1), pins="pipeline=2,data=4")["best"]
    assert [s["group"] for s in b["stages"]] == ["ib", "ib + roce"], b["stages"]
    assert b["spans_unlike"] == ["data"], b["spans_unlike"]
    four = plan(folder, nodes=(3, 1), pins="pipeline=4,data=2")["best"]
    assert [s["group"] for s in four["stages"]] == ["ib", "ib", "ib", "roce"] and four["spans_unlike"] == []


def placements_are_apart(folder):
    """Whether ulysses or ring ranks share a node is another plan on unlike networks too: a free search finds the better one."""
    pins = "pipeline=2,data=1,tensor=1,ulysses=2,ring=2,zero=0,recompute=none,micro_batch=1,interleave=1"
    step = {way: plan(folder, pins=pins + ",placement=" + way)["best"]["step_s"] for way in ("head_first", "context_first")}
    assert step["head_first"] != step["context_first"], step
    free = plan(folder, pins=pins)["best"]
    assert free["step_s"] == min(step.values()) == step[free["placement"]], (free["step_s"], free["placement"], step)
    both = json.loads(run(*arguments(folder, pins=pins), "--json", "--top", "2"))["candidates"]
    got = {c["placement"]: c["step_s"] for c in both}
    assert got == step, (got, step)


# ---- cuts ----------------------------------------------------------------------------------------

def cuts(layers, stages):
    for ends in itertools.combinations_with_replacement(range(layers + 1), stages - 1):
        yield [b - a for a, b in zip((0, *ends), (*ends, layers))]


def cut_equals_brute_force(folder):
    """Four stages, two on each device: seconds of a layer on either are those of the middle stages, what the ends add is what
    the others have more. Of all ways to deal the layers none has a shorter pipeline, which is the sum of the stages and, for
    each further micro-batch, the slowest; with many micro-batches it is the slowest that counts."""
    for layers, batch in itertools.product((8, 11, 17), (32, 512)):
        for more in ({"device": "slow"}, {"device": "slow", "memory": "40GiB"}, {}):
            pins = "pipeline=4,data=2,micro_batch=2,interleave=1,recompute=none,zero=0"
            b = plan(folder, layers=layers, batch=batch, pins=pins, **more)["best"]
            stages, further = b["stages"], b["micro_batches"] - 1
            own = [s["layers"] for s in stages]
            seconds = [s["forward_s"] + s["backward_s"] for s in stages]
            assert sum(own) == layers and own[1] > 0 and own[2] > 0, own
            layer = [seconds[1] / own[1]] * 2 + [seconds[2] / own[2]] * 2
            ends = [seconds[0] - own[0] * layer[0], 0, 0, seconds[3] - own[3] * layer[3]]
            assert ends[0] > 0 and ends[3] > 0, ends
            if more:
                assert layer[2] > 2 * layer[1] and own[2] < own[1], (layer, own)
                assert [s["device"] for s in stages] == ["a100_80g", "a100_80g", "slow", "slow"]
            every = [[n * t + e for n, t, e in zip(c, layer, ends)] for c in cuts(layers, 4)]
            best = min(sum(w) + further * max(w) for w in every)
            assert abs(sum(seconds) + further * max(seconds) - best) <= 1e-9 * best, (own, seconds, best)
            if further > 100:
                assert max(seconds) <= 1.001 * min(max(w) for w in every), (own, seconds)


def capacity_of_the_stage(folder):
    """A device with too little room takes fewer layers than its speed asks for, and the plan says what it has."""
    pins = "pipeline=4,data=2,micro_batch=8,interleave=1,recompute=none,zero=0,offload=none"
    wide = plan(folder, layers=16, batch=512, pins=pins, device="slow")["best"]
    room = max(s["memory_bytes"]["peak"] for s in wide["stages"][2:])
    tight = plan(folder, layers=16, batch=512, pins=pins, device="slow", memory=f"{int(room * 0.8) + 2**30}B")["best"]
    for s in tight["stages"]:
        assert s["memory_bytes"]["peak"] <= s["capacity"], s
    assert tight["stages"][2]["capacity"] < tight["stages"][0]["capacity"]
    layers = [[s["layers"] for s in b["stages"]] for b in (wide, tight)]
    assert layers[0] != layers[1] and max(layers[1][2:]) < max(layers[0][2:]), layers


# ---- the link ------------------------------------------------------------------------------------

def says(folder, sentence, **how):
    """On the terminal and on the page."""
    page = os.path.join(folder, "page.html")
    text = run(*arguments(folder, **how), "--report", page)
    assert max(map(len, text.splitlines())) <= 100
    for printed in (text, open(page).read()):
        assert sentence in " ".join(printed.split()), text


def crossing(folder):
    fewer = "ulysses=1,ring=1,offload=none"  # to look at; the rest is free
    link = plan(folder, pins=fewer)["link_crossing"]
    gbit = link["spans_from"] * 8e-9
    assert 25 < gbit < link["speed_most"] * 8e-9, link
    says(folder, f"from {gbit:.3g} Gbit/s a reduction across is better", pins=fewer)
    for share in (0.9, 1.1):
        j = plan(folder, pins=fewer, between=f"{gbit * share:.6f}")
        spans = bool(REDUCING & set(j["best"]["spans_unlike"]))
        assert spans == (share > 1) == j["link_crossing"]["spans_now"], (share, j["best"]["plan"], j["link_crossing"])
        again = j["link_crossing"]["spans_from"] * 8e-9  # from the other side it is the same
        assert abs(again / gbit - 1) < 1e-3, (again, gbit)
    # Devices of half the speed in one part: data ranks, which all have the same share, never pay.
    link = plan(folder, device="slow", pins=fewer)["link_crossing"]
    most = link["speed_most"] * 8e-9
    assert link["spans_from"] is None and not link["spans_now"], link
    says(folder, f"so it is up to {most:.3g} Gbit/s", device="slow", pins=fewer)
    assert plan(folder, device="slow", pins=fewer, between=f"{most:.6f}")["best"]["spans_unlike"] == []
    alike = json.loads(run(LLAMA, "--set", "layers=4,hidden=512,heads=8,kv_heads=8,ffn=1024,vocab=4096,context=512,seq=512,batch=16",
                           "--cluster", "dgx-a100-80g:16", "--json"))
    assert "link_crossing" not in alike and "group" not in alike["best"]["stages"][0]


with tempfile.TemporaryDirectory() as where:
    for check in (only_boundaries_cross, between_the_pure, straddling, placements_are_apart, cut_equals_brute_force, capacity_of_the_stage, crossing):
        check(where)
        print(check.__name__, "holds")
