"""Random model texts and clusters: what `dsmc plan` is asked in tests/e2e/plan.py --random.

    model, sizes = random_model.model(r)        a `.dsm` text with a train section
    cluster = random_model.cluster(r, memory)   a text with cluster `random`

Texts are of what the language can say and examples do not: several repeats in a row of unlike blocks,
other widths between them, odd widths and head counts, attention or none, gated and plain MLPs, a
residual around a whole repeat or past a block, weights that blocks share, tied or own output weights,
encoder and decoder. Everything comes from `r`, a random.Random.
"""

DEVICE = """device small {{
  memory = {memory}B; reserve = {reserve}MiB; bandwidth = {bandwidth}GB/s
  matmul.f32 = {matmul}TFLOPS; matmul.bf16 = {matmul}TFLOPS; vector.f32 = {vector}TFLOPS
  efficiency.matmul = [[1e6, 0.1], [1e9, {share}]]
  efficiency.attention = [[1e6, 0.1], [1e9, 0.4]]
  efficiency.vector = [[1e5, 0.3], [1e8, 0.9]]
  efficiency.memory = [[1e5, 0.3], [1e8, 0.9]]
  launch = {launch}us; units = 16; cache = 4MiB{arch}
}}
"""


def cluster(r, memory):
    """One to three levels of at most 12 devices; links, cards and host memory at random. What runs
    on one device is laid out as for this host."""
    inside, boxes, halls = r.choice([(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 1), (6, 1, 1), (8, 1, 1),
                                     (2, 2, 1), (4, 2, 1), (2, 3, 1), (1, 4, 1), (3, 2, 1),
                                     (1, 2, 2), (2, 2, 2), (1, 3, 2)])
    text = DEVICE.format(memory=memory, reserve=1, bandwidth=r.choice([50, 200, 1000]),
                         matmul=r.choice([1, 10, 100]), vector=r.choice([1, 10]),
                         share=r.choice([0.4, 0.8]), launch=r.choice([1, 10]),
                         arch="; arch = cpu" if inside * boxes * halls == 1 else "")
    text += "cluster random {\n  node box {\n    members = %d * small; link = switch(%gGB/s, %gus)\n" % (
        inside, r.choice([1, 10, 100]), r.choice([1, 10]))
    text += "    nics = %d * nic(%gGbit/s, 5us)\n" % (r.choice([1, inside]), r.choice([1, 10, 100]))
    if r.random() < 0.7:
        text += "    host = memory(%dMiB, %gGB/s, 10us)\n" % (r.choice([4, 64, 1 << 14]),
                                                            r.choice([2, 20]))
    text += "  }\n"
    between = ["fat_tree()", "fat_tree(%gGB/s, 5us, 0.5)" % r.choice([1, 10]),
               "ethernet(%gGbit/s, 50us)" % r.choice([1, 25])]
    text += "  group hall { members = %d * box; link = %s }\n" % (boxes, r.choice(between))
    if halls > 1:
        text += "  group site { members = %d * hall; link = %s }\n" % (halls, r.choice(between))
    return text + "}\n"


class Body:
    """Statements of one repeat."""

    def __init__(self, r, width, memory):
        self.r, self.width, self.memory, self.lines, self.n = r, width, memory, [], 0

    def name(self, what):
        self.n += 1
        return "%s%d" % (what, self.n)

    def norm(self, of):
        kind = self.r.choice(["layernorm", "rmsnorm"])
        n = self.name("n")
        self.lines.append("%s = %s(%s) as %s" % (n, kind, of, n))
        return n

    def linear(self, of, width):
        bias = self.r.choice(["", ", bias=true"])
        return "linear(%s, %d%s) as %s" % (of, width, bias, self.name("w"))

    def attention(self, x, source=None):
        r = self.r
        groups = r.choice([1, 1, 2, 3])
        heads = groups * r.choice([1, 2, 3, 4])
        head = r.choice([2, 4, 6, 8])
        kv = r.choice([g for g in (1, groups, heads) if heads % g == 0])
        of, to = self.norm(x), source
        q, k, v, a = self.name("q"), self.name("k"), self.name("v"), self.name("a")
        rope = source is None and r.random() < 0.4
        if source is None and kv == heads and r.random() < 0.4:
            self.lines.append("%s, %s, %s = split(%s, 3)" % (q, k, v,
                                                            self.linear(of, 3 * heads * head)))
        else:
            self.lines.append("%s = %s" % (q, self.linear(of, heads * head)))
            self.lines.append("%s = %s" % (k, self.linear(to or of, kv * head)))
            self.lines.append("%s = %s" % (v, self.linear(to or of, kv * head)))
        if rope:
            self.lines.append("%s = rope(%s, heads=%d)" % (q, q, heads))
            self.lines.append("%s = rope(%s, heads=%d)" % (k, k, kv))
        mask = "" if source or r.random() < 0.2 else ", mask=%s" % r.choice(["causal", "causal", "near"])
        self.lines.append("%s = attention(%s, %s, %s, heads=%d%s)" % (a, q, k, v, heads, mask))
        return self.linear(a, self.width)

    def mlp(self, x):
        r, of = self.r, self.norm(x)
        ffn, u = r.choice([1, 2, 3, 4]) * self.width + r.choice([0, 0, 1, 5]), self.name("u")
        act = r.choice(["gelu", "relu", "silu"])
        if r.random() < 0.4:
            self.lines.append("%s = %s(%s) * (%s)" % (u, act, self.linear(of, ffn),
                                                    self.linear(of, ffn)))
        else:
            self.lines.append("%s = %s(%s)" % (u, act, self.linear(of, ffn)))
        return self.linear(u, self.width)

    def sublayer(self, x):
        if self.r.random() < 0.5:
            return self.attention(x)
        return self.mlp(x)

    def write(self, x, shared, extra=None):
        """`x` through one to three sublayers; `extra`: a value that comes past the repeat."""
        r = self.r
        way = r.choice(["rows", "rows", "rows", "parallel", "skip"])
        if self.memory and r.random() < 0.8:
            self.lines.append("%s = %s + (%s)" % (x, x, self.attention(x, self.memory)))
        if way == "parallel":  # two sublayers of one input
            self.lines.append("%s = %s + (%s) + (%s)" % (x, x, self.attention(x), self.mlp(x)))
        elif way == "skip":  # what enters comes back behind two blocks
            y = self.name("y")
            self.lines.append("%s = %s + (%s)" % (y, x, self.sublayer(x)))
            self.lines.append("%s = %s + %s + (%s)" % (x, x, y, self.sublayer(y)))
        else:
            for _ in range(r.randint(1, 3)):
                self.lines.append("%s = %s + (%s)" % (x, x, self.sublayer(x)))
        if shared and r.random() < 0.5:  # a weight that several repeats and layers read
            self.lines.append("%s = %s + matmul(%s, %s)" % (x, x, self.norm(x), shared))
        if extra:
            self.lines.append("%s = %s + %s" % (x, x, extra))


def model(r):
    """(text, sizes): sizes has what the job was made of, for messages."""
    width = r.choice([8, 12, 16, 20, 24, 30, 31, 32, 48])
    vocab = r.choice([50, 97, 128, 500])
    seq = r.choice([7, 16, 24, 33, 64])
    batch = r.choice([1, 2, 3, 4, 6, 8])
    tied, decodes = r.random() < 0.5, r.random() < 0.2
    repeats = r.choice([1, 1, 2, 2, 3])
    depth = [r.choice([1, 1, 2, 3, 4, 6]) for _ in range(repeats)]
    shared = "every" if r.random() < 0.3 else None
    head = ["input tokens : i32[batch, seq]", "input targets : i32[batch, seq]",
            "weight embed as embed.weight : [%d, %d] = normal(0.02)" % (vocab, width)]
    if shared:
        head.append("weight every as every.weight : [%d, %d] = normal(0.02)" % (width, width))
    lines, memory = [], None
    if decodes:
        head.insert(0, "input source : i32[batch, src]")
        lines.append("m = gather(embed, source)")
        b = Body(r, width, None)
        b.write("m", shared)
        lines.append("repeat (%d) as encoder[i] {\n    %s\n  }" % (r.randint(1, 3), "\n    ".join(b.lines)))
        lines.append("m = rmsnorm(m) as encoder_norm")
        memory = "m"
    lines.append("x = gather(embed, tokens)")
    if r.random() < 0.4:
        head.append("weight places as places.weight : [%d, %d] = normal(0.02)" % (seq, width))
        lines.append("x = x + places[0:seq]")
    now = width
    for k in range(repeats):
        around = r.random() < 0.3
        if around:  # a residual around the whole repeat
            lines.append("s%d = x" % k)
        b = Body(r, now, memory)
        b.write("x", shared if now == width else None, "s%d" % k if around and r.random() < 0.3 else None)
        lines.append("repeat (%d) as part%d[i] {\n    %s\n  }" % (depth[k], k, "\n    ".join(b.lines)))
        if around:
            lines.append("x = x + s%d" % k)
        if k + 1 < repeats and r.random() < 0.4:  # another width from here on
            now = r.choice([12, 16, 24, 33])
            lines.append("x = linear(x, %d) as between%d" % (now, k))
        elif k + 1 < repeats and r.random() < 0.4:
            lines.append("x = x + (linear(gelu(x), %d) as between%d)" % (now, k))
    lines.append("x = %s(x) as norm_last" % r.choice(["layernorm", "rmsnorm"]))
    if tied:
        if now != width:
            lines.append("x = linear(x, %d) as back" % width)
        lines.append("output logits = matmul(x, transpose(embed))")
    else:
        lines.append("output logits = linear(x, %d) as head" % vocab)
    lines.append("output loss = cross_entropy(logits, targets)")
    text = "model random {\n  dim batch, seq%s\n  " % (", src" if decodes else "")
    text += "fn near(i, j) = j <= i and i - j < 5\n  "
    text += "\n  ".join(head + lines) + "\n}\n"
    text += "train random {\n  data = \"x\"; optimizer = %s; steps = 1; batch = %d; seq = %d%s\n" % (
        r.choice(["adamw(lr=1e-3)", "sgd(lr=0.1)", "sgd(lr=0.1, momentum=0.9)"]), batch, seq,
        "; src = %d" % r.choice([5, 16, 32]) if decodes else "")
    text += "  precision = %s%s\n}\n" % (r.choice(["f32", "bf16"]), r.choice(["", "; clip = 1.0"]))
    return text, {"batch": batch, "layers": depth}
