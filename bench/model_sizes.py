#!/usr/bin/env python3
"""Parameters and model FLOPs of published transformers, against what is published and the formula.

    bench/model_sizes.py [build/dsmc]

Parameters: the count of the paper or of the checkpoint (exact where one is given, else the formula of
Narayanan 2021, 12 L h^2 (1 + 13/12h + (V + S)/12Lh), which the paper's own rounded number must round to).
FLOPs: products and attention, attention full (no mask counted), no recompute; backward twice forward. GPT:
72 B S L h^2 (1 + S/6h + V/12Lh). Others: six times tokens times weights that are multiplied, and 12 S T h
for each attention of S queries on T keys with heads of total width h. Exit code 1 when a row is off by more
than 0.1 %.
"""
import json, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = os.path.join(HERE, "published", "models.dsm")
LIMIT = 1e-3


def gpt(L, h, V, S):
    n = 12 * L * h * h * (1 + 13 / (12 * h) + (V + S) / (12 * L * h))
    return n, 72 * S * L * h * h * (1 + S / (6 * h) + V / (12 * L * h))


def llama(L, h, ffn, V, S, heads, kv):
    head = h // heads
    layer = h * h * 2 + 2 * h * kv * head + 3 * h * ffn
    return 0, 6 * S * (L * layer + V * h) + 12 * L * S * S * h


def bert(L, h, V, S):
    layer = 12 * h * h
    return 0, 6 * S * (L * layer + h * h + V * h) + 12 * L * S * S * h


def t5(L, h, wide, ffn, V, src, dst):
    encoder = src * (4 * h * wide + 2 * h * ffn)
    decoder = dst * (4 * h * wide + 2 * h * wide + 2 * h * ffn) + src * 2 * h * wide
    attention = 12 * wide * (src * src + dst * dst + dst * src)
    return 0, 6 * (L * (encoder + decoder) + dst * V * h) + L * attention


# model, settings, (parameters, FLOPs of a sequence) by formula, published parameters, digits of it, source
ROWS = [
    ("gpt2", "seq=1024", gpt(12, 768, 50257, 1024), 124439808, 0, "checkpoint openai-community/gpt2"),
    ("gpt2_xl", "seq=1024", gpt(48, 1600, 50257, 1024), 1557611200, 0, "checkpoint openai-community/gpt2-xl"),
    ("gpt3_175b", "seq=2048", gpt(96, 12288, 50257, 2048), 174600e6, 1e8, "arXiv 2005.14165, table D.1"),
    ("nv_1_7b", "seq=2048", gpt(24, 2304, 51200, 2048), 1.7e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_3_6b", "seq=2048", gpt(30, 3072, 51200, 2048), 3.6e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_7_5b", "seq=2048", gpt(36, 4096, 51200, 2048), 7.5e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_18b", "seq=2048", gpt(40, 6144, 51200, 2048), 18.4e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_39b", "seq=2048", gpt(48, 8192, 51200, 2048), 39.1e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_76b", "seq=2048", gpt(60, 10240, 51200, 2048), 76.1e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_146b", "seq=2048", gpt(80, 12288, 51200, 2048), 145.6e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_310b", "seq=2048", gpt(96, 16384, 51200, 2048), 310.1e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_530b", "seq=2048", gpt(105, 20480, 51200, 2048), 529.6e9, 1e8, "arXiv 2104.04473, table 1"),
    ("nv_1t", "seq=2048", gpt(128, 25600, 51200, 2048), 1008.0e9, 1e8, "arXiv 2104.04473, table 1"),
    ("mt_nlg", "seq=2048", gpt(105, 20480, 50257, 2048), 530e9, 1e9, "arXiv 2201.11990"),
    ("kor_22b", "seq=2048", gpt(48, 6144, 51200, 2048), 22e9, 1e9, "arXiv 2205.05198, table 3"),
    ("kor_175b", "seq=2048", gpt(96, 12288, 51200, 2048), 175e9, 1e9, "arXiv 2205.05198, table 3"),
    ("kor_1t", "seq=2048", gpt(128, 25600, 51200, 2048), 1e12, 1e11, "arXiv 2205.05198, table 3"),
    ("llama2_7b", "seq=4096", llama(32, 4096, 11008, 32000, 4096, 32, 32), 6738415616, 0, "checkpoint meta-llama/Llama-2-7b"),
    ("llama2_70b", "seq=4096", llama(80, 8192, 28672, 32000, 4096, 64, 8), 68976648192, 0, "checkpoint meta-llama/Llama-2-70b"),
    ("llama3_8b", "seq=8192", llama(32, 4096, 14336, 128256, 8192, 32, 8), 8030261248, 0, "checkpoint meta-llama/Meta-Llama-3-8B"),
    ("llama3_405b", "seq=8192", llama(126, 16384, 53248, 128256, 8192, 128, 8), 405.9e9, 1e8, "checkpoint meta-llama/Llama-3.1-405B"),
    ("t5_11b", "src=512,dst=114", t5(24, 1024, 16384, 65536, 32128, 512, 114), 11307321344, 0, "checkpoint google-t5/t5-11b"),
    ("bert_large", "seq=512", bert(24, 1024, 30522, 512), 335174458, 0, "checkpoint bert-large-uncased, masked-token head"),
]


def ask(dsmc, row):
    name, settings = row[0], row[1]
    run = subprocess.run(
        [dsmc, "plan", f"{TEXT}:{name}", "--cluster", "dgx-a100-80g:1", "--json", "--set", settings + ",batch=2",
         "--pin", "micro_batch=1,zero=0,recompute=none,interleave=1"], capture_output=True, text=True)
    if run.returncode not in (0, 3):  # 3: it does not fit on one device, as was to be expected
        sys.exit(f"{name}: {run.stderr}")
    m = json.loads(run.stdout)["model"]
    m["flops_per_step"] /= 2
    return m


def main():
    dsmc = sys.argv[1] if len(sys.argv) > 1 else "build/dsmc"
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda row: ask(dsmc, row), ROWS))
    bad = 0
    print(f"{'model':<12} {'parameters':>15} {'published':>15} {'off':>8} {'TFLOP/seq':>11} {'formula':>11} {'off':>8}  source")
    for (name, _, (count, flops), published, digit, source), m in zip(ROWS, found):
        n, f = m["parameters"], m["flops_per_step"]
        off = n / published - 1
        # A rounded number is right when the exact one rounds to it, and the formula says the same.
        good = abs(off) <= LIMIT if not digit else abs(n - published) <= digit / 2 * 1.001 or abs(off) <= LIMIT
        good = good and (not count or abs(n / count - 1) <= LIMIT) and abs(f / flops - 1) <= LIMIT
        bad += not good
        print(f"{name:<12} {n:>15,d} {published:>15,.0f} {100 * off:>7.3f}% {f / 1e12:>11.3f} {flops / 1e12:>11.3f} "
              f"{100 * (f / flops - 1):>7.3f}%  {source}{'' if good else '   OFF'}")
    if bad:
        sys.exit(f"{bad} rows are off by more than {100 * LIMIT} %")


if __name__ == "__main__":
    main()
