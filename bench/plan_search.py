#!/usr/bin/env python3
"""How long the planner searches: medians of three runs, with what it looked at.

    bench/plan_search.py [DSMC]

`search` is the search for the best plan, `all` the whole of `dsmc plan` (lowering, search, alternatives), `memory` its peak.
One core: the planner has one thread. The line to compare with is Calculon's 195 configurations a second and core
(128,288 candidates in 657 s, for 530B on 512 GPUs); ours are points of the space, of which most are refuted, not worked out.
"""
import json, os, resource, statistics, subprocess, sys, time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GPT = "layers={},hidden={},heads={},vocab=51200,context=2048,seq=2048,batch={},precision=bf16"
LLAMA = ("layers=126,hidden=16384,heads=128,kv_heads=8,ffn=53248,vocab=128256,context=131072,seq=131072,batch=2048,"
         "precision=bf16")
ROWS = [("GPT-3 175B, 1024 A100", "gpt2", GPT.format(96, 12288, 96, 1536), "dgx-a100-80g:1024", 1),
        ("GPT 1T, 3072 A100", "gpt2", GPT.format(128, 25600, 160, 3072), "dgx-a100-80g:3072", 2),
        ("Llama-3 405B at 128k, 16,384 H100", "llama", LLAMA, "dgx-h100:16384", 3)]


def main():
    dsmc = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "build", "dsmc")
    print("| | points | blocks made | worked out | search, s | goal | points/s | all, s | memory, MiB |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: |")
    for name, example, settings, cluster, goal in ROWS:
        runs, wall = [], []
        for _ in range(3):
            start = time.monotonic()
            out = subprocess.run([dsmc, "plan", os.path.join(HERE, "examples", example + ".dsm"), "--set", settings,
                                  "--cluster", cluster, "--json"], capture_output=True, text=True, check=True).stdout
            wall.append(time.monotonic() - start)
            runs.append(json.loads(out)["search"])
        s = sorted(runs, key=lambda r: r["seconds"])[1]
        assert all(r["optimal"] for r in runs)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of all so far: no less
        print("| %s | %s | %d of %d | %d | %.2f | %d | %s | %.1f | %.0f |" %
              (name, f"{s['points']:,}", s["fronts"], s["predicted_fronts"], s["evaluated"], s["seconds"], goal,
               f"{s['points'] / s['seconds']:,.0f}", statistics.median(wall), peak))


main()
