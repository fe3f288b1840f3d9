#!/usr/bin/env python3
"""The planner against published measurements (/work/shared/published, or --data FOLDER).

    bench/published.py [build/dsmc] [--data FOLDER] [--fit a100|h100] [--free]

Prints, for every measured row, what was measured, what `dsmc plan` predicts for that model, cluster and mesh, and the
error of the step time; then average and worst error, how many rows lie in the plan's 80 % interval, and the same for
the simplest rival, one constant share of the peak fitted on the very rows it is judged on. Devices of the stacks are in
bench/published/DEVICE.json: that of 2021 has round figures of what such cards do (half to three quarters of the peak in
products, 5/6 of memory and links), that of 2024 is fitted on Megatron-Core 0.8; all other rows are predictions. `--fit`
searches their numbers again (coordinate search over predictions) and prints them. `--free` lets the planner choose for
Narayanan's rows, and sets its choice beside the authors'.

What a row does not say is minimised over: micro-batch 1 to 16; chunks of a stage. Where one run was measured on three or more
numbers of data ranks (MT-NLG), its rows say more: they have one micro-batch, and only with the right one do planned times
stand to each other as the measured ones do, however fast the stack. Errors are printed for every micro-batch, those of the
fastest (1) too, and the table has the one at which they differ least. The stacks of 2021 and 2022 are unlike
ours in ways that their published sources show (DeepSpeed 0.6.5; Megatron-LM of 2021 as we remember it). They are added to the
planner's step by name:

  reduce      gradients are reduced after backward and not beside it.
  accumulate  a kernel of its own adds the gradients of a micro-batch to those before, where our products go on in the
              sum. Megatron-LM of 2021: in 16 bits, 2 + 2 read and 2 written a parameter (its products do so themselves
              from 2022 on, so Korthikanti's rows have nothing here). DeepSpeed with bf16 (its BF16_Optimizer): they are
              made f32, 2 read and 4 written, and then added, 8 read and 4 written: 18.
  engine      DeepSpeed's pipeline sends on the stream that computes, a part of an activation from each tensor rank, and
              gathers it behind: four sends a micro-batch (two out, two in), and three gatherings, the bytes of each of
              which are also cleared, copied from the buffer of the exchange, and cloned.

That of 2024 gathers the parameters of ZeRO 1 while it computes, which the planner does not, so all but the first layer's
share of `data` is left out.
"""
import csv, json, math, os, re, statistics, subprocess, sys, tempfile
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOM = os.path.join(HERE, "published")
KEYS = ("matmul_1e10", "matmul_1e11", "matmul_1e12", "attention", "bandwidth", "link", "nic")


def device(kind, d, memory="4TiB"):
    """The text of a cluster whose devices run as those of the stack did. Capacity is not held against the authors' plans."""
    peak, nodes = {"a100": (312, 560), "h100": (989.4, 3072)}[kind]
    return f"""
device gpu {{
  memory = {memory}; reserve = 3GiB; bandwidth = {d['bandwidth']:.0f}GB/s
  matmul.bf16 = {peak}TFLOPS; vector.f32 = {peak / 16}TFLOPS; arch = sm_80; launch = 4us
  efficiency.matmul = [[1e9, {d['matmul_1e10'] / 2}], [1e10, {d['matmul_1e10']}], [1e11, {d['matmul_1e11']}], [1e12, {d['matmul_1e12']}]]
  efficiency.attention = [[1e10, {d['attention']}]]
}}
cluster stack {{
  node dgx {{ members = 8 * gpu; link = switch({d['link']:.0f}GB/s, 3us); nics = 8 * nic({d['nic']:.2f}GB/s, 5us) }}
  group pod {{ members = {nodes} * dgx; link = fat_tree() }}
}}
"""


class Row:
    def __init__(self, r, kind):
        self.more = ""  # settings of its model
        self.told = False  # its micro-batch is not published, and was found from the rows of its run
        self.kind, self.name, self.source = kind, r["model"], r["source"]
        for k, c in dict(L="layers", h="hidden", heads="heads", ffn="ffn", V="vocab", S="seq", n="n_gpus", tp="tp",
                         pp="pp", dp="dp", batch="global_batch").items():
            setattr(self, k, int(r[c]))
        self.micro = [int(r["micro_batch"])] if r["micro_batch"] else [1, 2, 4, 8, 16]
        self.interleave = [int(r["interleave"])] if r["interleave"] else None
        self.recompute = r["recompute"] or "none"
        self.note = "SP" if r["cp_or_sp"].startswith("SP") else ""
        self.zero = 1 if kind == "h100" else 0
        # Bytes that its stack moves for a parameter to add up the gradients of a micro-batch, and its pipeline.
        self.accumulate = {"2104.04473": 6, "2201.11990": 18}.get(self.source.split("arXiv:")[-1], 0)
        self.deepspeed = "2201.11990" in self.source
        v, B, L, h, S, V = float(r["value"]), self.batch, self.L, self.h, self.S, self.V
        self.model_flops = 72 * B * S * L * h * h * (1 + S / (6 * h) + V / (12 * L * h))
        # Narayanan and MT-NLG count the layers' recompute among the FLOPs of a step, the others do not.
        counted = 96 * B * S * L * h * h * (1 + S / (6 * h) + V / (16 * L * h)) \
            if "2104.04473" in self.source or "2201.11990" in self.source else self.model_flops
        metric = r["metric"]
        self.measured = v if metric == "iter_time" else \
            counted / (self.n * v * 1e12) if metric == "tflops_per_gpu" else self.model_flops / (self.n * 312e12 * v / 100)

    def choices(self):
        m = self.batch // self.dp
        for b in self.micro:
            if m % b:
                continue
            for v in self.interleave or [1, 2, 3, 4, 6]:
                if v == 1 or (self.pp > 1 and self.L % (self.pp * v) == 0 and (m // b) % self.pp == 0):
                    yield b, v


def builtin(name):
    """A built-in cluster of dsmc under the name that plans ask for, with room for any split."""
    with open(os.path.join(HERE, "..", "frontend", "clusters", name + ".dsm")) as f:
        text = f.read()
    return re.sub(r"memory = 80GiB", "memory = 4TiB", re.sub(r"cluster \w+ ", "cluster stack ", text))


class Planner:
    def __init__(self, dsmc, text=None):
        self.dsmc, self.seen, self.text = os.path.abspath(dsmc), {}, text
        self.kept = tempfile.TemporaryDirectory(prefix="published-")  # goes with the planner
        self.folder = self.kept.name

    def ask(self, row, d, b, v):
        text = self.text or device(row.kind, d)
        key = (text, row.note, row.name, row.h, row.L, row.V, row.n, row.tp, row.pp, row.batch, row.recompute, row.more, b, v)
        if key not in self.seen:
            model = "gpt2021" if row.kind == "a100" else "gpt2024"
            base = os.path.join(ROOM, model + ".dsm")
            path = os.path.join(self.folder, f"{abs(hash(key))}.dsm")
            with open(path, "w") as f:
                f.write(f'import "{base}"\nmodel m = {model}(layers={row.L}, hidden={row.h}, heads={row.heads}, '
                        f"ffn={row.ffn}, vocab={row.V}, context={row.S}{row.more})\n{text}")
            pins = f"data={row.dp},tensor={row.tp},pipeline={row.pp},micro_batch={b},zero={row.zero}," \
                   f"sequence_parallel={'true' if row.note or row.kind == 'h100' else 'false'}," \
                   f"recompute={row.recompute},offload=none,interleave={v},ulysses=1,ring=1,order=" + \
                   ("one_f_one_b" if v == 1 else f"interleaved({v})")
            run = subprocess.run([self.dsmc, "plan", path + ":m", "--cluster", f"stack:{row.n}", "--json", "--set",
                                  f"batch={row.batch},seq={row.S},precision=bf16", "--pin", pins], capture_output=True, text=True)
            best = json.loads(run.stdout)["best"] if run.returncode in (0, 3) else None
            if best is None:
                sys.stderr.write(f"{row.name} {pins}: {run.stderr[:300] or run.stdout[-900:]}\n")
            self.seen[key] = best
        return self.seen[key]

    def free(self, row, d):
        """The planner's own choice for the model on the cluster, nothing pinned, on devices of 80 GB."""
        path = os.path.join(self.folder, f"free-{row.name.replace(' ', '-')}-{row.n}.dsm")
        with open(path, "w") as f:
            f.write(f'import "{os.path.join(ROOM, "gpt2021.dsm")}"\nmodel m = gpt2021(layers={row.L}, hidden={row.h}, '
                    f"heads={row.heads}, ffn={row.ffn}, vocab={row.V}, context={row.S})\n{device(row.kind, d, '80GiB')}")
        run = subprocess.run([self.dsmc, "plan", path + ":m", "--cluster", f"stack:{row.n}", "--json", "--set",
                              f"batch={row.batch},seq={row.S},precision=bf16"], capture_output=True, text=True)
        return json.loads(run.stdout)

    def step(self, row, d, b, v):
        """Seconds of the stack: the plan's, and what the stack does beside; and both parts."""
        best = self.ask(row, d, b, v)
        if best is None:
            return math.inf, {}, None
        parts = dict(best["time_s"])
        if row.kind == "a100":
            parts["reduce"] = best["busy_s"]["data"] - best["time_s"]["data"]
            # Micro-batches, and those that a stage could have done while the pipeline fills.
            micros, fill = row.batch / row.dp / b, (row.pp - 1) / v
            turns = micros + fill
            # The slowest stage is the last one: it has the embedding's table too, for the head. The others fill and drain.
            layers, table = 12 * row.h**2 * row.L / row.pp, row.V * row.h
            parts["accumulate"] = row.accumulate * (turns * layers + micros * table) / row.tp / (d["bandwidth"] * 1e9)
            act = 2 * b * row.S * row.h
            if row.deepspeed:
                send = 5e-6 + act / row.tp / (d["nic"] * 1e9)
                gather = 3e-6 + act * (row.tp - 1) / row.tp / (d["link"] * 1e9) + act * (5 + 2 / row.tp) / (d["bandwidth"] * 1e9)
                parts["engine"] = turns * (4 * send + 3 * gather)
        elif row.zero == 1 and row.dp > 1:
            # Updated parameters are gathered while the next forward runs, all but those of its first layer.
            parts["data"] *= row.pp / row.L
        return sum(parts.values()), parts, best

    def best(self, row, d):
        return min(((*self.step(row, d, b, v), b, v) for b, v in row.choices()), key=lambda x: x[0])


def share(d, x):
    points = [(9, d["matmul_1e10"] / 2), (10, d["matmul_1e10"]), (11, d["matmul_1e11"]), (12, d["matmul_1e12"])]
    l = min(max(math.log10(x), 9), 12)
    for (a, p), (b, q) in zip(points, points[1:]):
        if l <= b:
            return p + (q - p) * (l - a) / (b - a)


def load(folder, name, kind):
    with open(os.path.join(folder, name)) as f:
        rows = [r for r in csv.DictReader(f)]
    # HFU follows from MFU, and MT-NLG's TFLOP/s from its seconds; one row for each measured step.
    keep = [r for r in rows if r["metric"] in ("iter_time", "tflops_per_gpu", "mfu")]
    timed = {(r["model"], r["n_gpus"], r["recompute"]) for r in keep if r["metric"] == "iter_time"}
    return [Row(r, kind) for r in keep if r["metric"] == "iter_time" or (r["model"], r["n_gpus"], r["recompute"]) not in timed]


def rival(rows):
    """One share of the peak, least average error on these rows, full recompute counted as work."""
    peak = {"a100": 312e12, "h100": 989.4e12}
    ideal = [r.model_flops * (4 / 3 if r.recompute == "full" else 1) / (r.n * peak[r.kind]) for r in rows]
    best = min((k / 1000 for k in range(200, 900)),
               key=lambda e: sum(abs(t / e / r.measured - 1) for t, r in zip(ideal, rows)))
    return best, [t / best / r.measured - 1 for t, r in zip(ideal, rows)]


def mean(errors):
    return 100 * sum(map(abs, errors)) / len(errors)


def worst(errors):
    return 100 * max(map(abs, errors))


def one_run(planner, rows, d):
    """The micro-batch of one run on several numbers of data ranks, where it is not published: that at which its rows' errors
    differ least (standard deviation of log(planned / measured)), whatever their size. Prints what each would give."""
    if len(rows) < 3 or any(len(r.micro) == 1 for r in rows) or len({(r.source, r.name, r.tp, r.pp, r.batch, r.recompute) for r in rows}) > 1:
        return
    spread = {}
    print("  the same run, so the same micro-batch; errors with each, and by how much they differ:")
    for b in rows[0].micro:
        choices = [[c for c in r.choices() if c[0] == b] for r in rows]
        if not all(choices):
            continue
        errors = [min(planner.step(r, d, *c)[0] for c in cs) / r.measured - 1 for r, cs in zip(rows, choices)]
        spread[b] = statistics.pstdev(math.log1p(e) for e in errors)
        print(f"    {b:>2}: {', '.join(f'{100 * e:+.1f} %' for e in errors)}; average {mean(errors):.1f} %, worst {worst(errors):.1f} %; differ by {100 * spread[b]:.1f} %")
    for r in rows:
        r.micro, r.told = [min(spread, key=spread.get)], True


def table(planner, title, rows, d):
    print(f"\n{title}")
    one_run(planner, rows, d)
    print(f"  {'model':<13}{'GPUs':>5} {'tp x pp x dp':>12} {'recompute':<10}{'micro x chunks':>14} {'measured':>9} {'planned':>9} {'error':>7}   largest parts")
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda r: planner.best(r, d), rows))
    errors, inside = [], 0
    for r, (t, parts, best, b, v) in zip(rows, found):
        e = t / r.measured - 1
        errors.append(e)
        half = best["step_s_high"] / best["step_s"] - 1
        inside += t * (1 - half) <= r.measured <= t * (1 + half)
        big = sorted(((x, k) for k, x in parts.items() if x > 0.01 * t), reverse=True)
        free = "+" if r.told else "*" if len(r.micro) > 1 or not r.interleave else " "
        mesh = f"{r.tp}x{r.pp}x{r.dp}"
        print(f"  {r.name:<13}{r.n:>5} {mesh:>12} {r.recompute + (' ' + r.note if r.note else ''):<13}{b:>5} x {v}{free:<4} {r.measured:>8.2f}s {t:>8.2f}s {100 * e:>+6.1f}%   "
              + ", ".join(f"{k} {100 * x / t:.0f}%" for x, k in big[:6]))
    constant, other = rival(rows)
    print(f"  average {mean(errors):.1f} %, worst {worst(errors):.1f} %, in the 80 % interval {inside} of {len(rows)};"
          f" rival (constant {constant:.3f} of the peak): average {mean(other):.1f} %, worst {worst(other):.1f} %")


def memory(planner, folder, d):
    """Korthikanti's figures 1 and 7: formula bytes of states and of activations. The formulas count layers: they leave out
    the mask of the embedding's dropout, of which a first stage keeps one for each micro-batch in flight."""
    print("\nKorthikanti 2022, figures 1 and 7: bytes by the authors' formulas, which count layers only (not fitted)")
    with open(os.path.join(folder, "korthikanti2022.csv")) as f:
        rows = [r for r in csv.DictReader(f) if "mem_" in r["metric"]]
    whole = {r["model"]: float(r["value"]) for r in rows if r["metric"] == "mem_activations" and r["recompute"] == "none"}
    errors = {}
    for r in rows:
        row, b = Row(r, "a100"), int(r["micro_batch"])
        row.more = ", p_embed=0"
        if row.recompute == "selective":  # ours drops more; the text has theirs
            row.recompute, row.more = "none", row.more + ", core=true"
        if row.batch == b * row.dp:
            row.batch *= 2  # with one micro-batch gradients come where activations go
        stages = [s["memory_bytes"] for s in planner.ask(row, d, b, int(r["interleave"]))["stages"]]
        if r["metric"] == "mem_params_optimizer":  # parameters * 18 / GPUs: the mean of stages
            kind, measured = "states", float(r["value"])
            held = sum(sum(s[k] for k in ("parameters", "gradients", "optimizer")) for s in stages) / len(stages) / 2**30
        else:  # of the first stage
            kind, measured = "activations", float(r["value"]) * (whole[r["model"]] / 100 if "pct" in r["metric"] else 1)
            held = max(s["activations"] for s in stages) / 2**30
        e = held / measured - 1
        errors.setdefault(kind, []).append(e)
        name = "states" if kind == "states" else f"activations {r['recompute']} {row.note}"
        print(f"  {r['model']:<10}{r['n_gpus']:>4} {name:<26} {measured:>7.2f} GiB {held:>7.2f} GiB {100 * e:>+6.1f}%")
    for kind, es in errors.items():
        print(f"  {kind}: average {100 * sum(map(abs, es)) / len(es):.1f} %, worst {100 * max(map(abs, es)):.1f} %")


def free(planner, rows, d):
    """The planner's own choice beside the authors' configuration, both predicted."""
    print("\nOwn choice for Narayanan's rows: model and cluster given, nothing pinned (80 GiB a device)")
    print(f"  {'model':<13}{'GPUs':>5} {'authors':>9} {'own':>9} {'gain':>6} {'search':>7}   own plan; where it takes less")
    for r in rows:
        best, theirs = planner.free(r, d), planner.best(r, d)
        own, t = best["best"], theirs[2]["step_s"]
        less = sorted(((theirs[2]["time_s"][k] - own["time_s"][k], k) for k in own["time_s"]), reverse=True)
        why = ", ".join(f"{k} {x:.2f}s" for x, k in less[:3] if x > 0.005 * t)
        print(f"  {r.name:<13}{r.n:>5} {t:>8.2f}s {own['step_s']:>8.2f}s {100 * (1 - own['step_s'] / t):>+5.1f}% "
              f"{best['search']['seconds']:>6.1f}s   {own['plan']}; {why}", flush=True)


def fit(planner, rows, d):
    """Coordinate search: least average squared error, from the numbers there are."""
    # No device is faster than its data sheet.
    sheet = {"a100": (2039, 300), "h100": (3350, 450)}[rows[0].kind]
    bound = dict(matmul_1e10=(0.2, 0.9), matmul_1e11=(0.3, 0.95), matmul_1e12=(0.4, 0.98), attention=(0.1, 0.8),
                 bandwidth=(sheet[0] / 2, sheet[0]), link=(sheet[1] / 2, sheet[1]))
    pick = {id(r): planner.best(r, d)[3:] for r in rows}

    def loss(x):
        with ThreadPoolExecutor(2) as pool:
            return sum(e * e for e in pool.map(lambda r: planner.step(r, x, *pick[id(r)])[0] / r.measured - 1, rows))

    best, width = loss(d), 0.16
    while width > 0.015:
        moved = False
        for k in KEYS:
            if k == "nic" or (k == "attention" and rows[0].kind == "a100"):
                continue  # the cards' rate is their sheet's; the stack of 2021 has no attention kernel
            for f in (1 + width, 1 / (1 + width)):
                x = dict(d, **{k: d[k] * f})
                if k in bound and not bound[k][0] <= x[k] <= bound[k][1] or x["matmul_1e10"] > x["matmul_1e11"] or \
                   x["matmul_1e11"] > x["matmul_1e12"]:
                    continue
                l = loss(x)
                if l < best * 0.999:
                    d, best, moved = x, l, True
                    break
        print(f"  width {width:.3f}: root mean square error {100 * math.sqrt(best / len(rows)):.2f} %", flush=True)
        if not moved:
            width /= 2
        else:
            pick = {id(r): planner.best(r, d)[3:] for r in rows}
            best = loss(d)
    return d


def main():
    args = sys.argv[1:]
    option = lambda k, x: args.pop(args.index(k) + 1) if k in args else x
    folder, which = option("--data", "/work/shared/published"), option("--fit", None)
    plain = [a for a in args if not a.startswith("--")]
    planner = Planner(plain[0] if plain else "build/dsmc")
    d = {}
    for kind in ("a100", "h100"):
        with open(os.path.join(ROOM, kind + ".json")) as f:
            d[kind] = json.load(f)
    sets = [("Narayanan 2021, table 1 (nothing is fitted: see a100.json)", load(folder, "narayanan2021_table1.csv", "a100")),
            ("Korthikanti 2022, table 5 and abstract (not fitted)", load(folder, "korthikanti2022.csv", "a100")),
            ("MT-NLG 530B (not fitted, but for which micro-batch it was)", load(folder, "mtnlg530b.csv", "a100")),
            ("Megatron-Core 0.8 on H100 (fitted on these)", load(folder, "megatron_core_h100.csv", "h100"))]
    if which:
        rows = sets[0][1] if which == "a100" else sets[3][1]
        d[which] = {k: float(f"{x:.4g}") for k, x in fit(planner, rows, d[which]).items()}
        print(json.dumps(d[which], indent=2))
        return
    for title, rows in sets:
        table(planner, title, rows, d[rows[0].kind])
    memory(planner, folder, d["a100"])
    print("\nThe same rows on the built-in clusters")
    for name, title, rows in [("dgx-a100-80g", *sets[0]), ("dgx-a100-80g", *sets[1]), ("dgx-h100", *sets[3])]:
        on = Planner(planner.dsmc, builtin(name))
        errors = [100 * (on.best(r, d[r.kind])[0] / r.measured - 1) for r in rows]
        print(f"  {name:<13} {title.split(',')[0].split(' 0.8')[0]:<17} average {sum(map(abs, errors)) / len(errors):.1f} %, worst {max(errors, key=abs):+.1f} %")
    if "--free" in args:
        free(planner, sets[0][1], d["a100"])
    print("\n* micro-batch or chunks are not published: the fastest of those tried\n"
          "+ micro-batch is not published: that at which the rows of the run stand to each other as measured")


if __name__ == "__main__":
    main()
