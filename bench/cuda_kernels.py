#!/usr/bin/env python3
"""Every GPU function of the examples at real sizes: what it is for, what it takes, whether it spills.

    bench/cuda_kernels.py [--dsmc build/dsmc] [--targets sm_80,sm_90a,sm_100] [NAME...] > docs/cuda-kernels.md

Each row of CASES (NAME picks some) is lowered and compiled for all targets by `dsmc ir --form cuda --cost
--json`; registers, spills and local memory are those that ptxas reports. Needs NVRTC (scripts/nvrtc.sh)
and no GPU. Exit code 1 when a kernel has no lowering or a function uses local memory.
"""
import argparse, collections, json, os, subprocess, sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
# name: (what it is called, file, settings)
CASES = collections.OrderedDict([
    ("gpt2", ("GPT-2 124M", "gpt2.dsm", "")),
    ("gpt2-bf16", ("GPT-2 124M, bf16", "gpt2.dsm", "precision=bf16")),
    ("llama", ("LLaMA-3 8B", "llama.dsm", "")),
    ("llama-bf16", ("LLaMA-3 8B, bf16", "llama.dsm", "precision=bf16")),
    ("bert", ("BERT-large", "bert.dsm", "")),
    ("bert-bf16", ("BERT-large, bf16", "bert.dsm", "precision=bf16")),
    ("t5", ("T5-11B", "t5.dsm", "")),
    ("t5-bf16", ("T5-11B, bf16", "t5.dsm", "precision=bf16")),
    ("tiny", ("tiny", "tiny.dsm", "")),
])


def cost(args, file, settings):
    command = [args.dsmc, "ir", os.path.join(ROOT, "examples", file), "--form", "cuda", "--cost", "--json",
               "--target", args.targets]
    if settings:
        command += ["--set", settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if not done.stdout:
        sys.exit("%s\n%s" % (" ".join(command), done.stderr))
    return json.loads(done.stdout)


def merged(report):
    """One row a function, with what it takes on each target."""
    rows = collections.OrderedDict()
    for t in report["targets"]:
        for f in t["functions"]:
            if "registers" not in f:
                sys.exit("NVRTC is not here: scripts/nvrtc.sh fetches it")
            rows.setdefault(f["function"], (f, {}))[1][t["name"]] = f
    return rows.values()


def local(on):
    return max(f["local_bytes"] + f["spill_store_bytes"] + f["spill_load_bytes"] for f in on.values())


def per_target(on, text):
    values = [text(f) for f in on.values()]
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def section(title, report, out):
    names = [t["name"] for t in report["targets"]]
    rows = list(merged(report))
    entries = list(rows[0][0]["launches"])
    train = sum(1 for f, _ in rows if f["launches"].get("train_step"))
    out.append("## %s\n" % title)
    out.append("Batch %d = %d x %d, arena %.1f GiB; %d kernels are %d functions, %d of them in `train_step`.\n" % (
        report["batch"], report["batch"] // report["micro_batch"], report["micro_batch"],
        report["arena_bytes"] / 2**30, report["kernels"], len(rows), train))
    out.append("| function | made for | %s | threads | registers | shared | local | MB | GFLOP | us |" % " | ".join(entries))
    out.append("| --- | --- |%s --: | --: | --: | --: | --: | --: | --: |" % (" --: |" * len(entries)))
    for f, on in rows:
        out.append("| `%s` | %s | %s | %d | %s | %s | %d | %.1f | %.2f | %s |" % (
            f["function"], f["made_for"], " | ".join(str(f["launches"][e]) for e in entries), f["threads"],
            per_target(on, lambda g: str(g["registers"])),
            per_target(on, lambda g: str(g["dynamic_shared_bytes"] + g["static_shared_bytes"])), local(on),
            f["bytes"] * 1e-6, f["flops"] * 1e-9, " / ".join("%.1f" % (on[n]["seconds"] * 1e6) for n in names)))
    out.append("")
    for r in report["refused"]:
        out.append("- no lowering: `%s`, made for %s: %s" % (r["kernel"], r["made_for"], r["why"]))
    most = {n: max(on[n]["registers"] for _, on in rows) for n in names}
    least = {n: 1e3 * sum(on[n]["seconds"] * f["launches"].get("train_step", 0) for f, on in rows) for n in names}
    spilling = sum(1 for _, on in rows if local(on))
    row = "| %s | %d | %d | %d | %s | %d | %s | %d |" % (
        title, report["kernels"], len(rows), train, " / ".join(str(most[n]) for n in names), spilling,
        " / ".join("%.1f" % least[n] for n in names), len(report["refused"]))
    return row, spilling + len(report["refused"])


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dsmc", default=os.path.join(ROOT, "build", "dsmc"))
    p.add_argument("--targets", default="sm_80,sm_90a,sm_100")
    p.add_argument("names", nargs="*", metavar="NAME")
    args = p.parse_args()
    doctor = json.loads(subprocess.check_output([args.dsmc, "doctor", "--json"], universal_newlines=True))
    version = [f["detail"].split(" ")[0] for f in doctor["findings"] if f["what"] == "NVRTC"][0]
    summary, body, bad = [], [], 0
    for name in args.names or CASES:
        title, file, settings = CASES[name]
        print(name, file=sys.stderr)
        row, wrong = section(title, cost(args, file, settings), body)
        summary.append(row)
        bad += wrong
    names = args.targets.replace(",", " / ")
    print("# Functions on GPUs\n")
    print("Written by `bench/cuda_kernels.py`: the examples as they stand, compiled by NVRTC %s for %s. Where a "
          "column has several numbers they are for these, in this order.\n" % (version, names))
    print("A *function* is CUDA C that is compiled once; kernels that differ in strides, extents and constants only share one. "
          "*local* is what it keeps in local memory, spilled registers or arrays, in bytes of a thread on the worst "
          "target: 0 is what we want. *shared* is shared memory of a block in bytes. *us* is the roofline of a launch: "
          "its bytes at the memory's bandwidth or its FLOPs at the peak (codegen/targets.def), whichever takes longer; "
          "nothing here was run.\n")
    print("| model | kernels | functions | in train_step | most registers | with local memory | train_step at the least, ms | no lowering |")
    print("| --- | --: | --: | --: | --: | --: | --: | --: |")
    print("\n".join(summary) + "\n")
    print("\n".join(body).rstrip())
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
