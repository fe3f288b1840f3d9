#!/usr/bin/env python3
"""How long the planner searches: medians of three runs, with what it looked at.

    bench/plan_search.py [DSMC]

`search` is the search for the best plan, `all` the whole of `dsmc plan` (lowering, search, alternatives), `CPU` what it took of
a core (on a machine that others use, less than `all`), `memory` the peak. The last row's text is generated: 512 layers of which
no two are equal.
One core: the planner has one thread. The line to compare with is Calculon's 195 configurations a second and core
(128,288 candidates in 657 s, for 530B on 512 GPUs); ours are points of the space, of which most are refuted, not worked out.
"""
import json, os, statistics, subprocess, sys, tempfile, threading, time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GPT = "layers={},hidden={},heads={},vocab=51200,context=2048,seq=2048,batch={},precision=bf16"
LLAMA = ("layers=126,hidden=16384,heads=128,kv_heads=8,ffn=53248,vocab=128256,context=131072,seq=131072,batch=2048,"
         "precision=bf16")
ROWS = [("GPT-3 175B, 1024 A100", "gpt2", GPT.format(96, 12288, 96, 1536), "dgx-a100-80g:1024", 1),
        ("GPT 1T, 3072 A100", "gpt2", GPT.format(128, 25600, 160, 3072), "dgx-a100-80g:3072", 2),
        ("Llama-3 405B at 128k, 16,384 H100", "llama", LLAMA, "dgx-h100:16384", 3),
        ("512 unlike layers, 8 A100", None, "batch=256", "dgx-a100-80g:8", 10)]
UNLIKE = """
model unlike {
  param hidden = 1024, heads = 16, vocab = 50304, widths = [%s]
  dim batch, seq
  input tokens : i32[batch, seq]
  input targets : i32[batch, seq]
  weight wte as wte.weight : [vocab, hidden] = normal(0.02)
  x = gather(wte, tokens)
  repeat (512) as h[i] {
    n = layernorm(x) as ln_1
    q, k, v = split(linear(n, 3*hidden) as attn.c_attn, 3)
    x = x + linear(attention(q, k, v, heads=heads, mask=causal), hidden) as attn.c_proj
    n = layernorm(x) as ln_2
    x = x + linear(gelu(linear(n, widths[i]) as mlp.c_fc), hidden) as mlp.c_proj
  }
  output logits = matmul(layernorm(x) as ln_f, transpose(wte))
  output loss = cross_entropy(logits, targets)
}
train unlike { optimizer = adamw(lr=1e-4); steps = 10; batch = 256; seq = 1024; precision = bf16 }
"""


def source(example, folder):
    if example:
        return os.path.join(HERE, "examples", example + ".dsm")
    path = os.path.join(folder, "unlike.dsm")
    with open(path, "w") as f:
        f.write(UNLIKE % ",".join(str(1024 + 16 * i) for i in range(512)))
    return path


LIMIT = 120  # seconds of a run


def measure(dsmc, path, settings, cluster):
    """(what `search` says, seconds, CPU seconds, MiB) of one run; None where it took more than LIMIT seconds."""
    start = time.monotonic()
    p = subprocess.Popen([dsmc, "plan", path, "--set", settings, "--cluster", cluster, "--json"], stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, text=True)
    late = threading.Event()
    timer = threading.Timer(LIMIT, lambda: (late.set(), p.kill()))
    timer.start()
    out = p.stdout.read()
    _, status, used = os.wait4(p.pid, 0)
    timer.cancel()
    if late.is_set():
        return None
    if status:
        raise SystemExit(f"dsmc plan {path}: status {status}")
    return json.loads(out)["search"], time.monotonic() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def main():
    dsmc = sys.argv[1] if len(sys.argv) > 1 else os.path.join(HERE, "build", "dsmc")
    print("| | points | blocks made | worked out | search, s | goal | points/s | all, s | CPU, s | memory, MiB |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory() as folder:
        for name, example, settings, cluster, goal in ROWS:
            runs = []
            while len(runs) < 3 and None not in runs:
                runs.append(measure(dsmc, source(example, folder), settings, cluster))
            if None in runs:
                print("| %s | took more than the limit of %d s | | | | %d | | | | |" % (name, LIMIT, goal), flush=True)
                continue
            assert all(r[0]["optimal"] for r in runs)
            s = sorted((r[0] for r in runs), key=lambda r: r["seconds"])[1]
            wall, cpu, peak = (statistics.median(r[k] for r in runs) for k in (1, 2, 3))
            print("| %s | %s | %d of %d | %d | %.2f | %d | %s | %.1f | %.1f | %.0f |" %
                  (name, f"{s['points']:,}", s["fronts"], s["predicted_fronts"], s["evaluated"], s["seconds"], goal,
                   f"{s['points'] / s['seconds']:,.0f}", wall, cpu, peak), flush=True)


if __name__ == "__main__":
    main()
