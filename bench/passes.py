#!/usr/bin/env python3
"""What passes, choices (`dsmc help skip`) and pins bring: GPT-2 124M with and without each, on this CPU.

    bench/passes.py [--rounds 3] [--steps 5] [--threads 2] [--share 0.93] [--dsmc build/dsmc] [NAME...]
    bench/passes.py --against OTHER/dsmc [...]

NAME is a case below, or `arenas`; without one, all. A line a case prints each round's median step with
and without, in turn (decoding: tokens/s), the median of the ratios without/with (decoding:
with/without), the ratio of the best steps of all rounds, and the arena of both. A round next to a
reading of bench/share.c below --share is left out: a core was missing. `arenas` prints what is planned
without each choice of pass `layout`, and measures nothing. --against compares with another dsmc, an older one say,
in f32 and bf16: for what has no switch because it changes bits.
"""
import argparse, json, os, random, re, statistics, struct, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
# name: (settings, pins, then options with and without)
CASES = {
    "epilogue": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "epilogue"]),
    "round": ("batch=4,seq=256,precision=bf16", "micro_batch=4", [], ["--skip", "round"]),
    "sink": ("batch=8,seq=64", "micro_batch=2", [], ["--skip", "sink"]),
    "stream": ("batch=4,seq=256", "micro_batch=4", ["--pin", "stream=64MiB"],
               ["--pin", "stream=none"]),
    "recompute": ("batch=4,seq=256", "micro_batch=4", ["--pin", "recompute=full"],
                  ["--pin", "recompute=none"]),
    "updates": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "updates"]),
    "chains": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "chains"]),
    "preround": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "preround"]),
    "tall": ("batch=4,seq=256", "micro_batch=4", [], ["--skip", "tall"]),
    "tall-bf16": ("batch=4,seq=256,precision=bf16", "micro_batch=4", [], ["--skip", "tall"]),
    "hidden": ("batch=4,seq=256", "micro_batch=4", [], ["--skip", "hidden"]),
    "buffers": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "buffers"]),
    "buffers-bf16": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "buffers"]),
    "direct": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "direct"]),
    "direct-bf16": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "direct"]),
    "near": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "near"]),
    "near-bf16": ("batch=4,seq=256,precision=bf16", "micro_batch=4", [], ["--skip", "near"]),
    "prefetch": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "prefetch"]),
    "prefetch-bf16": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "prefetch"]),
    "broad": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "broad"]),
    "strips": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "strips"]),
    "bands": ("batch=4,seq=64", "micro_batch=4", [], ["--skip", "bands"]),
    "bands-bf16": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "bands"]),
    "matmul": ("batch=4,seq=64", "micro_batch=4", ["--pin", "matmul=openblas"],
               ["--pin", "matmul=builtin"]),
    "narrow": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], ["--skip", "narrow"]),
    "narrow256": ("batch=4,seq=256,precision=bf16", "micro_batch=4", [], ["--skip", "narrow"]),
    "decode": ("batch=1,seq=256,context=256,precision=bf16", None, [], ["--skip", "narrow"]),
}

AGAINST = {
    "f32": ("batch=4,seq=64", "micro_batch=4", [], []),
    "bf16": ("batch=4,seq=64,precision=bf16", "micro_batch=4", [], []),
}

LAYOUT = ["frames", "chains", "caches", "updates"]
PROGRAMS = [("batch=4,seq=64", "micro_batch=4"), ("batch=4,seq=64", "micro_batch=1"),
            ("batch=4,seq=256", "micro_batch=4"), ("batch=4,seq=64,precision=bf16", "micro_batch=4")]


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit("%s\n%s" % (" ".join(command), done.stdout))
    return done.stdout


def step(exe, args):
    log = exe + ".jsonl"
    if os.path.exists(log):
        os.unlink(log)
    run([exe, "train", "-q", "--steps", str(args.steps + 2), "--threads", str(args.threads), "--log", log])
    return [1e3 * json.loads(line)["step_s"] for line in list(open(log))[2:]]


def tokens(exe, _):
    text = run([exe, "generate", "-v", "--prompt-tokens", "1,2,3", "--tokens", "120"])
    return [float(re.findall(r"([0-9.]+) tokens/s", text)[-1])]


def case(args, folder, share, name):
    sets, pins, *options = (AGAINST if args.against else CASES)[name]
    training = pins is not None
    sides = []
    for side, more in zip(("with", "without"), options):
        exe = os.path.join(folder, name + side)
        data = ',clip=none,data="%s/tokens.bin"' % folder if training else ""
        dsmc = args.against if args.against and side == "without" else args.dsmc
        run([dsmc, "build", "-q", os.path.join(ROOT, "examples/gpt2.dsm:gpt2"), "-o", exe, "--set",
             sets + data] + (["--pin", pins] if pins else []) + more)
        arena = json.loads(run([exe, "info", "--json"]))["memory_bytes"]["arena"]
        sides.append((exe, arena))
    measure, rounds = (step if training else tokens), []
    for _ in range(args.rounds):
        before = share()
        got = [measure(exe, args) for exe, _ in sides]
        if min(before, share()) >= args.share:
            rounds.append(got)
    if not rounds:
        print("%-12s machine busy, not measured" % name, flush=True)
        return
    best = [(min if training else max)(x for r in rounds for x in r[side]) for side in (0, 1)]
    rounds = [[statistics.median(x) for x in r] for r in rounds]
    ratio = statistics.median(b / a if training else a / b for a, b in rounds)
    print("%-12s with %s, without %s %s; ratio %.3f, of the best %.3f; arena %.0f and %.0f MB" % (
        name, " ".join("%.1f" % a for a, _ in rounds), " ".join("%.1f" % b for _, b in rounds),
        "ms" if training else "tokens/s", ratio,
        best[1] / best[0] if training else best[0] / best[1], sides[0][1] / 1e6, sides[1][1] / 1e6), flush=True)


def arenas(args):
    for sets, pins in PROGRAMS:
        line = "%s, %s:" % (sets, pins)
        for skip in [""] + LAYOUT + [",".join(LAYOUT)]:
            text = run([args.dsmc, "ir", os.path.join(ROOT, "examples/gpt2.dsm:gpt2"), "--form", "schedule",
                        "--set", sets, "--pin", pins] + (["--skip", skip] if skip else []))
            name = "none of them" if "," in skip else "without " + skip if skip else "all"
            line += " %s %.1f," % (name, int(re.search("arena ([0-9]+)", text).group(1)) / 1e6)
        print(line[:-1] + " MB", flush=True)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("names", nargs="*", metavar="NAME")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=5)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--share", type=float, default=0.93)
    ap.add_argument("--against", metavar="DSMC")
    ap.add_argument("--dsmc", default=os.path.join(ROOT, "build/dsmc"))
    args = ap.parse_args()
    cases = list(AGAINST) if args.against else list(CASES) + ["arenas"]
    names = args.names or cases
    unknown = [n for n in names if n not in cases]
    if unknown:
        ap.error("no case %s; there are %s" % (unknown[0], " ".join(cases)))
    if "arenas" in names:
        arenas(args)
        names.remove("arenas")
    with tempfile.TemporaryDirectory() as folder:
        tool = os.path.join(folder, "share")
        run(["gcc", "-O2", "-pthread", os.path.join(HERE, "share.c"), "-o", tool])
        draw = random.Random(1)
        with open(os.path.join(folder, "tokens.bin"), "wb") as f:
            f.write(b"".join(struct.pack("<H", draw.randrange(50257)) for _ in range(100000)))
        for name in names:
            case(args, folder, lambda: float(run([tool, "0.3"])), name)


main()
