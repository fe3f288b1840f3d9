#!/usr/bin/python3
"""Reference values and gradients of single ops, by PyTorch in float64.

Writes tests/oracle/data/ops/NAME_k.safetensors and data/scalars.json. All inputs and output
gradients are numbers of f32, kept as F64, so an f32 implementation starts from the same values.
Run it again only when a case is added:   /usr/bin/python3 tests/oracle/ref_ops.py
"""
import itertools
import json
import math
import os
import shutil

import numpy as np
import torch
import torch.nn.functional as F

import st
from ref_models import near

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
counts = {}


# --- inputs --------------------------------------------------------------------------------------

def seed_of(name):
    return sum((i + 1) * ord(c) for i, c in enumerate(name))


class Draw:
    """Random inputs of one case; every number is one of f32."""

    def __init__(self, name):
        self.rng = np.random.RandomState(seed_of(name))

    def normal(self, *shape, std=1.0, mean=0.0):
        return (mean + std * self.rng.randn(*shape)).astype(np.float32).astype(np.float64)

    def uniform(self, *shape, lo=0.2, hi=3.0):
        return self.rng.uniform(lo, hi, shape).astype(np.float32).astype(np.float64)

    def off(self, *shape, std=1.0):
        """Normal numbers that stay away from whole numbers, where floor, abs and relu bend."""
        x = self.rng.randn(*shape) * std
        part = x - np.floor(x)
        x = np.floor(x) + 0.1 + 0.8 * part
        return x.astype(np.float32).astype(np.float64)

    def apart(self, *shape):
        """Distinct numbers at least 0.05 apart, so that max and min have no ties."""
        n = int(np.prod(shape))
        x = (self.rng.permutation(n) - n / 2) * 0.05
        return x.reshape(shape).astype(np.float32).astype(np.float64)

    def ints(self, *shape, lo=0, hi=10):
        return self.rng.randint(lo, hi, shape).astype(np.int32)


def f32(values):
    return np.array(values, np.float32).astype(np.float64)


# --- one case ------------------------------------------------------------------------------------

def case(op, fn, inputs, dsm, attrs=None, grad=True, grad_bf16=False):
    """inputs: [(name or weight path, array)]. dsm: the statements after the inputs; `output` among
    them. A name with a dot, or in capitals, is a weight that an op's `as` makes, not an input."""
    k = counts.get(op, 0)
    counts[op] = k + 1
    name = "%s_%d" % (op, k)
    rng = np.random.RandomState(seed_of(name) + 1)
    given = [torch.from_numpy(np.array(a)) for _, a in inputs]
    for t in given:
        if t.dtype == torch.float64 and grad:
            t.requires_grad_()
    outs = fn(*given)
    outs = list(outs) if isinstance(outs, (tuple, list)) else [outs]
    tensors = {"in.%d" % i: np.array(a) for i, (_, a) in enumerate(inputs)}
    for i, o in enumerate(outs):
        tensors["out.%d" % i] = o.detach().numpy()
    leaves = [t for t in given if t.requires_grad]
    if grad and leaves:
        total = 0
        for i, o in enumerate(outs):
            g = rng.randn(*o.shape)
            g = np.array(g, np.float32)
            if grad_bf16:
                g = (g.view(np.uint32) & 0xffff0000).view(np.float32)
            g = g.astype(np.float64)
            tensors["grad_out.%d" % i] = g
            total = total + (o * torch.from_numpy(g)).sum()
        if total.requires_grad:
            grads = torch.autograd.grad(total, leaves, allow_unused=True)
        else:
            grads = [None] * len(leaves)                     # floor: flat almost everywhere
        found = iter(grads)
        for i, t in enumerate(given):
            if t.requires_grad:
                g = next(found)
                tensors["grad_in.%d" % i] = (torch.zeros_like(t) if g is None else g).numpy()
    for n, a in tensors.items():
        assert np.isfinite(a).all(), (name, n)
    meta = {"op": op, "names": " ".join(n for n, _ in inputs)}
    meta.update({a: v for a, v in (attrs or {}).items()})
    if dsm:
        lines = ["  input %s : %s[%s]" % (n, "i32" if a.dtype == np.int32 else "f32",
                                          ", ".join(map(str, a.shape)))
                 for n, a in inputs if "." not in n]
        body = ["  " + s for s in dsm.split("\n")]
        functions = [s[2:] for s in body if s.startswith("  top ")]
        functions = [s[len("top "):] for s in functions]
        body = [s for s in body if not s.startswith("  top ")]
        meta["dsm"] = "\n".join(functions + ["model op {"] + lines + body + ["}"]) + "\n"
    st.write(os.path.join(OUT, "ops", name + ".safetensors"), tensors, meta)


SHAPES = [(1,), (3, 17), (1, 131), (2, 3, 5)]


# --- elementwise ---------------------------------------------------------------------------------

def elementwise():
    gelu_tanh = lambda x: F.gelu(x, approximate="tanh")      # noqa: E731
    smooth, positive = "normal", "uniform"
    unary = [
        ("neg", lambda x: -x, "-a", smooth), ("abs", torch.abs, "abs(a)", "off"),
        ("exp", torch.exp, "exp(a)", smooth), ("log", torch.log, "log(a)", positive),
        ("sqrt", torch.sqrt, "sqrt(a)", positive), ("rsqrt", torch.rsqrt, "rsqrt(a)", positive),
        ("tanh", torch.tanh, "tanh(a)", smooth), ("sin", torch.sin, "sin(a)", smooth),
        ("cos", torch.cos, "cos(a)", smooth), ("erf", torch.erf, "erf(a)", smooth),
        ("sigmoid", torch.sigmoid, "sigmoid(a)", smooth),
        ("relu", torch.relu, "relu(a)", "off"), ("gelu", F.gelu, "gelu(a)", smooth),
        ("gelu_tanh", gelu_tanh, "gelu(a, approximate=true)", smooth),
        ("silu", F.silu, "silu(a)", smooth),
        ("mish", F.mish, "mish(a)", smooth),
        ("softplus", lambda x: torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0), "softplus(a)",
         smooth),
        ("relu2", lambda x: torch.relu(x) ** 2, "relu2(a)", "off"),
        ("square", torch.square, "square(a)", smooth),
        ("floor", torch.floor, "floor(a)", "off")]
    far = [1e-30, 1e-3, 1, 5, 10, 20, 30, 40, 80]
    far = f32([-x for x in far] + far)
    wide = f32([1e-30, 1e-12, 1e-6, 1e-3, 0.5, 1, 1.5, 2, 3, 10, 1e3, 1e6, 1e12, 1e30])
    ends = {"exp": far, "tanh": far, "erf": far, "sigmoid": far, "gelu": far, "gelu_tanh": far,
            "silu": far, "softplus": far, "sin": far, "cos": far, "log": wide, "sqrt": wide,
            "rsqrt": f32([1e-12, 1e-6, 1e-3, 0.5, 1, 2, 3, 1e3, 1e6, 1e12])}
    for name, fn, text, kind in unary:
        d = Draw(name)
        for shape in SHAPES:
            if name == "softplus" and kind == smooth:
                x = d.off(*shape, std=2.0)                   # the formula above bends at 0 only
            else:
                x = getattr(d, kind)(*shape) if kind == positive else getattr(d, kind)(*shape,
                                                                                       std=2.0)
            case(name, fn, [("a", x)], "output y = " + text)
        if name in ends:
            case(name, fn, [("a", ends[name])], "output y = " + text, {"range": "extreme"})

    pairs = [((1,), (1,)), ((3, 17), (3, 17)), ((2, 131), (131,)), ((3, 1, 7), (5, 1)),
             ((4, 1), (1, 13)), ((5,), (2, 3, 5))]
    binary = [("add", lambda a, b: a + b, "a + b"), ("sub", lambda a, b: a - b, "a - b"),
              ("mul", lambda a, b: a * b, "a * b"), ("div", lambda a, b: a / b, "a / b"),
              ("max", torch.maximum, "max(a, b)"), ("min", torch.minimum, "min(a, b)"),
              ("pow", torch.pow, "a ^ b")]
    for name, fn, text in binary:
        d = Draw(name)
        for sa, sb in pairs:
            a, b = d.normal(*sa), d.normal(*sb)
            if name == "div":
                b = d.uniform(*sb) * np.where(d.rng.rand(*sb) < 0.5, -1, 1)
            if name == "pow":
                a = d.uniform(*sa)
            if name in ("max", "min"):
                a, b = d.off(*sa), np.floor(d.normal(*sb))   # never equal
            case(name, fn, [("a", a), ("b", b)], "output y = " + text)
    d = Draw("constants")
    x, p = d.normal(3, 17), d.uniform(3, 17)
    case("add", lambda a: a + 2.5, [("a", x)], "output y = a + 2.5")
    case("sub", lambda a: 1 - a, [("a", x)], "output y = 1 - a")
    case("mul", lambda a: 3 * a, [("a", x)], "output y = 3 * a")
    case("mul", lambda a: a * a, [("a", x)], "output y = a * a")
    case("div", lambda a: 2 / a, [("a", p)], "output y = 2 / a")
    case("div", lambda a: a / 8, [("a", x)], "output y = a / 8")
    case("max", lambda a: a.clamp(min=0), [("a", d.off(3, 17))], "output y = max(a, 0)")
    case("min", lambda a: a.clamp(max=1), [("a", d.off(3, 17))], "output y = min(a, 1)")
    far_from_whole = d.off(3, 17, std=3.0)
    case("mod", lambda a: torch.remainder(a, 1.0), [("a", far_from_whole)], "output y = a % 1")
    case("mod", torch.remainder, [("a", d.off(3, 17, std=5.0)), ("b", f32([[1], [-2], [3]]))],
         "output y = a % b")
    case("floordiv", lambda a: torch.floor(a), [("a", far_from_whole)], "output y = a // 1")
    t = d.ints(3, 17, lo=-20, hi=20)
    case("mod", lambda t: torch.remainder(t, 7), [("t", t)], "output y = t % 7", grad=False)
    case("floordiv", lambda t: torch.div(t, 7, rounding_mode="floor"), [("t", t)],
         "output y = t // 7", grad=False)
    for e, x2 in ((2, x), (3, x), (0.5, p), (-1, p), (1.7, p), (0, x), (1, x)):
        case("pow", lambda a, e=e: a ** e, [("a", x2)], "output y = a ^ %s" % (
            e if e >= 0 else "(%s)" % e))
    case("pow", lambda a: 2 ** a, [("a", x)], "output y = 2 ^ a")
    case("neg", lambda a: -a ** 2, [("a", x)], "output y = -a^2")

    a, b = d.off(3, 17), np.floor(d.normal(3, 17, std=1.5))
    for sign in ("<", "<=", ">", ">="):
        case("where", lambda a, b, s=sign: torch.where(eval("a %s b" % s), a * b, b - a),
             [("a", a), ("b", b)], "output y = where(a %s b, a * b, b - a)" % sign,
             {"compare": sign})
    t, u = d.ints(3, 17, hi=4), d.ints(17, hi=4)
    for sign in ("==", "!=", "<", "<=", ">", ">="):
        case("where", lambda t, u, a, b, s=sign: torch.where(eval("t %s u" % s), a, b),
             [("t", t), ("u", u), ("a", a), ("b", b)], "output y = where(t %s u, a, b)" % sign,
             {"compare": sign})
    case("where", lambda a, b, c: torch.where(a > 0, b, c),
         [("a", d.off(2, 2, 131)), ("b", d.normal(2, 1)), ("c", d.normal(131))],
         "output y = where(a > 0, b, c)")
    case("where", lambda t, a: torch.where((t > 0) & (t != 2) | ~(t < 3), a, torch.zeros_like(a)),
         [("t", t), ("a", a)],
         "fn pick(t, a) = where(t > 0 and t != 2 or not t < 3, a, 0)\noutput y = pick(t, a)")
    case("where", lambda a: torch.where(a > 0, a, torch.full_like(a, -1.5)),
         [("a", a)], "output y = where(a > 0, a, -1.5)")

    def through(dtype):                                      # a cast whose gradient is the identity
        return lambda a: a.detach().to(dtype).double() + (a - a.detach())
    edge = np.concatenate([d.normal(20, std=3.0), f32([
        0, 1, -1, 1.00390625, 1.01171875, 255.5, 3.3895e38, 1e-38, 65504, 1e-5, -0.1, 1 / 3])])
    half = np.concatenate([d.normal(20, std=3.0), f32([0, 1, 1.00048828125, 65504, 6.1e-5, 1e-7])])
    case("cast", through(torch.bfloat16), [("a", edge)], "output y = cast(a, bf16)",
         {"to": "bf16"}, grad_bf16=True)
    case("cast", through(torch.float16), [("a", half)], "output y = cast(a, f16)",
         {"to": "f16"}, grad_bf16=True)
    case("cast", lambda a: a.to(torch.int32).double(), [("a", f32(
        [-2.9, -2, -1.5, -0.5, 0, 0.5, 1.5, 2, 2.9, 1e6]))], "output y = cast(a, i32)",
        {"to": "i32"}, grad=False)
    case("cast", lambda t: t.double(), [("t", np.array([[0, 1, -7], [131, 1 << 20, -99999]],
                                                       np.int32))],
         "output y = cast(t, f32)", {"to": "f32"}, grad=False)


# --- products ------------------------------------------------------------------------------------

def products():
    d = Draw("matmul")
    for sa, sb in [((1, 1), (1, 1)), ((3, 17), (17, 5)), ((5, 131), (131, 7)), ((17, 19), (19, 33)),
                   ((1, 13), (13, 131)), ((131, 1), (1, 3)), ((3, 5, 7), (3, 7, 11)),
                   ((1, 2, 3, 131), (1, 2, 131, 3)), ((3, 1, 5, 7), (2, 7, 11)),
                   ((4, 5, 13), (13, 9)), ((5, 13), (4, 13, 9)), ((32, 16), (16, 16))]:
        case("matmul", torch.matmul, [("a", d.normal(*sa)), ("b", d.normal(*sb))],
             "output y = matmul(a, b)")
    a, b = d.normal(2, 5, 17), d.normal(13, 17)
    case("matmul", lambda a, b: a @ b.T, [("a", a), ("b", b)], "output y = matmul(a, transpose(b))")
    for shape in [(1, 1), (3, 17), (2, 2, 131), (2, 3, 5, 7)]:
        case("transpose", lambda a: a.transpose(-1, -2), [("a", d.normal(*shape))],
             "output y = transpose(a)")

    d = Draw("einsum")
    for rule, shapes in [
            ("b s k, k n -> b s n", [(2, 5, 17), (17, 3)]),
            ("b h q d, b h k d -> b h q k", [(2, 3, 5, 7), (2, 3, 11, 7)]),
            ("b h q k, b h k d -> b h q d", [(1, 2, 3, 131), (1, 2, 131, 5)]),
            ("e c h, e f h -> e c f", [(3, 5, 13), (3, 7, 13)]),
            ("i j -> j i", [(3, 17)]),
            ("b s h d -> b h s d", [(2, 5, 3, 7)]),
            ("i j -> i", [(3, 131)]),
            ("a b c -> b", [(3, 5, 7)]),
            ("i, j -> i j", [(5,), (7,)]),
            ("i j, i j -> i j", [(3, 17), (3, 17)]),
            ("b i, b i -> b", [(3, 131), (3, 131)]),
            ("b q g r d, b k g d -> b g r q k", [(2, 3, 2, 2, 5), (2, 7, 2, 5)])]:
        letters = rule.replace(" ", "")
        ins = [(n, d.normal(*s)) for n, s in zip("ab", shapes)]
        case("einsum", lambda *t, r=letters: torch.einsum(r, *t), ins,
             'output y = einsum("%s", %s)' % (rule, ", ".join(n for n, _ in ins)), {"rule": rule})

    d = Draw("linear")
    for shape, n, bias in [((3, 17), 5, True), ((2, 2, 131), 7, True), ((1, 1), 1, True),
                           ((2, 5, 13), 67, False), ((131, 3), 5, True)]:
        ins = [("x", d.normal(*shape)), ("p.weight", d.normal(n, shape[-1]))]
        if bias:
            ins.append(("p.bias", d.normal(n)))
        case("linear", F.linear, ins, "output y = linear(x, %d%s) as p" % (
            n, ", bias=true" if bias else ""), {"bias": str(bias).lower()})


# --- reductions, norms, losses -------------------------------------------------------------------

def reductions():
    for name in ("sum", "mean", "max", "min"):
        d = Draw("reduce" + name)
        fn = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax, "min": torch.amin}[name]
        for shape, axis, keep in [((3, 17), None, False), ((3, 17), -1, False), ((3, 17), 0, False),
                                  ((2, 2, 131), -1, False), ((2, 131, 5), 1, False),
                                  ((1,), -1, False), ((3, 5, 7), -1, True),
                                  ((2, 2, 131), None, False)]:
            a = d.apart(*shape) if name in ("max", "min") else d.normal(*shape)
            text = "a" + ("" if axis is None else ", axis=%d" % axis) + (
                ", keep=true" if keep else "")
            dims = tuple(range(len(shape))) if axis is None else axis
            case("reduce_" + name, lambda x, f=fn, m=dims, k=keep: f(x, dim=m, keepdim=k),
                 [("a", a)], "output y = %s(%s)" % (name, text),
                 {"axis": "all" if axis is None else axis, "keep": str(keep).lower()})

    for name, fn in (("softmax", torch.softmax), ("log_softmax", torch.log_softmax)):
        d = Draw(name)
        for x in [d.normal(1, 1), d.normal(3, 17), d.normal(2, 2, 131, std=3.0),
                  d.normal(3, 13, std=50.0), d.normal(2, 7, mean=1e4)]:
            case(name, lambda x, f=fn: f(x, -1), [("a", x)], "output y = %s(a)" % name)

    d = Draw("layernorm")
    for x, eps in [(d.normal(3, 17), 1e-5), (d.normal(2, 2, 131), 1e-5), (d.normal(3, 24), 1e-12),
                   (d.normal(2, 33, mean=100.0), 1e-5), (d.normal(2, 9, std=1e-3), 1e-5),
                   (d.normal(3, 1), 1e-5), (np.full((2, 5), 3.0), 1e-5)]:
        n = x.shape[-1]
        case("layernorm", lambda x, w, b, e=eps: F.layer_norm(x, w.shape, w, b, e),
             [("x", x), ("p.weight", d.normal(n, mean=1.0)), ("p.bias", d.normal(n))],
             "output y = layernorm(x%s) as p" % ("" if eps == 1e-5 else ", eps=%g" % eps),
             {"eps": eps})
    d = Draw("rmsnorm")

    def rms(x, w, eps):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * w
    for x, eps in [(d.normal(3, 17), 1e-6), (d.normal(2, 2, 131), 1e-6), (d.normal(3, 24), 1e-5),
                   (d.normal(2, 9, std=1e-3), 1e-6), (d.normal(3, 1), 1e-6),
                   (np.zeros((2, 5)), 1e-6)]:
        case("rmsnorm", lambda x, w, e=eps: rms(x, w, e),
             [("x", x), ("p.weight", d.normal(x.shape[-1], mean=1.0))],
             "output y = rmsnorm(x%s) as p" % ("" if eps == 1e-6 else ", eps=%g" % eps),
             {"eps": eps})
    for shape, heads in [((2, 5, 21), 3), ((3, 262), 2)]:
        size = shape[-1] // heads
        case("rmsnorm", lambda x, w, h=heads, s=size: rms(
            x.reshape(x.shape[:-1] + (h, s)), w, 1e-6).reshape(x.shape),
            [("x", d.normal(*shape)), ("p.weight", d.normal(size, mean=1.0))],
            "output y = rmsnorm(x, heads=%d) as p" % heads, {"eps": 1e-6, "heads": heads})

    d = Draw("cross_entropy")

    def loss(x, t, ignore):
        keep = t != ignore if ignore is not None else torch.ones_like(t, dtype=torch.bool)
        picked = torch.log_softmax(x, -1).gather(
            -1, torch.where(keep, t, torch.zeros_like(t)).long()[..., None])[..., 0]
        return (-picked * keep).sum() / max(1, int(keep.sum()))
    for shape, ignore, rate, std in [((3, 17), None, 0, 1), ((2, 2, 131), None, 0, 2),
                                     ((2, 2, 131), -100, 0.4, 2), ((7, 13), -1, 0.5, 1),
                                     ((4, 11), -100, 1.0, 1), ((1, 1), None, 0, 1),
                                     ((3, 9), None, 0, 60), ((5, 13), 3, 0, 1)]:
        t = d.ints(*shape[:-1], hi=shape[-1])
        if rate:
            t = np.where(d.rng.rand(*t.shape) < rate, ignore, t).astype(np.int32)
        if ignore == 3:
            t[1] = 3
        text = "logits, targets" + ("" if ignore is None else ", ignore=%d" % ignore)
        case("cross_entropy", lambda x, t, i=ignore: loss(x, t, i),
             [("logits", d.normal(*shape, std=std)), ("targets", t)],
             "output loss = cross_entropy(%s)" % text,
             {"ignore": "none" if ignore is None else ignore, "valid": int(
                 t.size if ignore is None else (t != ignore).sum())})


# --- moving data ---------------------------------------------------------------------------------

def moving():
    d = Draw("gather")
    for rows, width, shape in [(7, 5, (3,)), (61, 17, (2, 5)), (3, 131, (2, 7)), (1, 1, (4,))]:
        case("gather", lambda w, t: w[t.long()],
             [("w", d.normal(rows, width)), ("t", d.ints(*shape, hi=rows))],
             "output y = gather(w, t)")
    d = Draw("slice")
    for shape, pick, index in [
            ((7, 3), "2:5", np.s_[2:5]), ((3, 17), ".., 0", np.s_[..., 0]),
            ((2, 2, 131), ".., 3:130", np.s_[..., 3:130]), ((2, 5, 7), ":, 1:4", np.s_[:, 1:4]),
            ((2, 5, 7), "1", np.s_[1]), ((2, 5, 7), ".., none, :", np.s_[..., None, :]),
            ((2, 5, 7), ":, 4:, :3", np.s_[:, 4:, :3]), ((3, 5), "none, ..", np.s_[None]),
            ((2, 5, 7), "1, 2:4, 6", np.s_[1, 2:4, 6])]:
        case("slice", lambda x, i=index: x[i], [("x", d.normal(*shape))],
             "output y = x[%s]" % pick, {"pick": pick})
    d = Draw("concat")
    for sa, sb, axis in [((3, 5), (3, 12), -1), ((2, 5), (7, 5), 0), ((2, 3, 7), (2, 1, 7), 1),
                         ((2, 2, 131), (2, 2, 1), -1)]:
        case("concat", lambda a, b, m=axis: torch.cat([a, b], m),
             [("a", d.normal(*sa)), ("b", d.normal(*sb))],
             "output y = concat(a, b, axis=%d)" % axis, {"axis": axis})
    case("concat", lambda a, b, c: torch.cat([a, b, c], -1),
         [("a", d.normal(3, 2)), ("b", d.normal(3, 5)), ("c", d.normal(3, 1))],
         "output y = concat(a, b, c, axis=-1)", {"axis": -1})
    d = Draw("split")
    for shape, n, axis in [((3, 15), 3, None), ((2, 393), 3, None), ((6, 5), 2, 0),
                           ((2, 3), 3, None)]:
        names = "abc"[:n]
        case("split", lambda x, c=n, m=-1 if axis is None else axis: x.chunk(c, m),
             [("x", d.normal(*shape))], "output %s = split(x, %d%s)" % (
                 ", ".join(names), n, "" if axis is None else ", axis=%d" % axis),
             {"parts": n, "axis": -1 if axis is None else axis})

    d = Draw("rope")

    def rope(x, heads, theta):
        """By complex numbers, on purpose unlike ref_models.py."""
        s, size = x.shape[-2], x.shape[-1] // heads
        half = size // 2
        y = x.reshape(x.shape[:-1] + (heads, size))
        z = torch.complex(y[..., :half], y[..., half:])
        turn = torch.tensor([[[complex(math.cos(p * theta ** (-2 * i / size)),
                                       math.sin(p * theta ** (-2 * i / size)))
                               for i in range(half)]] for p in range(s)], dtype=torch.complex128)
        z = z * turn
        return torch.cat([z.real, z.imag], -1).reshape(x.shape)
    for shape, heads, theta in [((2, 5, 24), 3, 1e4), ((1, 1, 2), 1, 1e4), ((1, 131, 8), 2, 5e5),
                                ((1, 13, 30), 5, 100.0), ((1, 5, 134), 1, 1e4)]:
        case("rope", lambda x, h=heads, t=theta: rope(x, h, t), [("x", d.normal(*shape))],
             "output y = rope(x, heads=%d, theta=%g)" % (heads, theta),
             {"heads": heads, "theta": theta})


# --- attention -----------------------------------------------------------------------------------

def attend(q, k, v, heads, visible=None, bias=None, scale=None):
    """Head by head, with sums written out; a query that sees no key gives 0."""
    size = q.shape[-1] // heads
    kv = k.shape[-1] // size
    width = v.shape[-1] // kv
    outs = []
    for h in range(heads):
        g = h // (heads // kv)
        qh = q[..., h * size:(h + 1) * size]
        kh, vh = k[..., g * size:(g + 1) * size], v[..., g * width:(g + 1) * width]
        s = torch.einsum("bid,bjd->bij", qh, kh) * (size ** -0.5 if scale is None else scale)
        if bias is not None:
            s = s + bias(h)
        m = torch.ones_like(s, dtype=torch.bool) if visible is None else visible.expand_as(s)
        top = torch.where(m, s, torch.full_like(s, -1e300)).amax(-1, keepdim=True).detach()
        e = torch.where(m, torch.exp(torch.where(m, s - top, torch.zeros_like(s))),
                        torch.zeros_like(s))
        total = e.sum(-1, keepdim=True)
        p = e / torch.where(total > 0, total, torch.ones_like(total))
        outs.append(torch.einsum("bij,bjd->bid", p, vh))
    return torch.cat(outs, -1)


def grid(s, t, rule):
    return torch.tensor([[bool(rule(i, j)) for j in range(t)] for i in range(s)])[None]


def attentions():
    d = Draw("attention")

    def qkv(b, s, t, heads, kv, size, std=1.0):
        return [("q", d.normal(b, s, heads * size, std=std)), ("k", d.normal(b, t, kv * size)),
                ("v", d.normal(b, t, kv * size))]

    def run(ins, heads, text, fn="", attrs=None, **how):
        """how: visible and bias are functions of the extra inputs."""
        def forward(q, k, v, *extra):
            args = {n: f(*extra) if callable(f) else f for n, f in how.items()}
            return attend(q, k, v, heads, **args)
        a = {"heads": heads}
        a.update(attrs or {})
        case("attention", forward, ins, (fn + "\n" if fn else "") +
             "output y = attention(q, k, v, heads=%d%s)" % (heads, text), a)

    causal = lambda i, j: j <= i                             # noqa: E731
    run(qkv(1, 1, 1, 1, 1, 1), 1, "")
    run(qkv(2, 5, 5, 3, 3, 7), 3, "")
    run(qkv(2, 5, 5, 3, 3, 7), 3, ", mask=causal", visible=grid(5, 5, causal))
    run(qkv(1, 131, 131, 2, 2, 3), 2, ", mask=causal", visible=grid(131, 131, causal))
    run(qkv(1, 7, 7, 1, 1, 67), 1, ", mask=causal", visible=grid(7, 7, causal))
    run(qkv(1, 17, 17, 2, 2, 8, std=4.0), 2, ", mask=causal", visible=grid(17, 17, causal),
        attrs={"range": "large scores"})
    run(qkv(2, 13, 13, 2, 2, 6), 2, ", mask=window", "fn window(i, j) = j <= i and i - j < 5",
        visible=grid(13, 13, lambda i, j: j <= i and i - j < 5))
    run(qkv(1, 67, 67, 1, 1, 4), 1, ", mask=window", "fn window(i, j) = j <= i and i - j < 5",
        visible=grid(67, 67, lambda i, j: j <= i and i - j < 5))
    # block-sparse text of LANGUAGE 5, at a size where blocks count
    run(qkv(1, 37, 37, 1, 1, 4), 1, ", mask=sparse",
        "fn sparse(i, j) = j <= i and (i//4 == j//4 or (j//4) % 3 == 2)",
        visible=grid(37, 37, lambda i, j: j <= i and (i // 4 == j // 4 or j // 4 % 3 == 2)))
    # ragged keys
    length = np.array([1, 5, 11], np.int32)
    ragged = lambda n, *_: torch.arange(11)[None, None, :] < n[:, None, None]   # noqa: E731
    run(qkv(3, 11, 11, 2, 2, 5) + [("length", length)], 2, ", mask=present",
        "fn present(i, j) = j < length", visible=ragged)
    run(qkv(3, 4, 11, 2, 2, 5) + [("length", length)], 2, ", mask=present",
        "fn present(i, j) = j < length", visible=ragged)
    run(qkv(3, 11, 11, 2, 2, 5) + [("length", length)], 2, ", mask=both",
        "fn both(i, j) = j <= i and j < length",
        visible=lambda n: grid(11, 11, causal) & ragged(n))
    # rows that see nothing
    run(qkv(3, 4, 11, 2, 2, 5) + [("length", np.array([0, 3, 0], np.int32))], 2, ", mask=present",
        "fn present(i, j) = j < length", {"empty": "samples 0 and 2"}, visible=ragged)
    run(qkv(2, 7, 7, 2, 2, 5), 2, ", mask=before", "fn before(i, j) = j < i",
        {"empty": "query 0"}, visible=grid(7, 7, lambda i, j: j < i))
    # a mask that reads a value along the positions
    kind = d.ints(2, 9, hi=3)
    run(qkv(2, 9, 9, 2, 2, 4) + [("kind", kind)], 2, ", mask=same",
        "fn same(i, j) = kind[i] == kind[j]",
        visible=lambda t: t[:, :, None] == t[:, None, :])
    # grouped heads
    run(qkv(2, 7, 7, 4, 2, 6), 4, ", mask=causal", visible=grid(7, 7, causal),
        attrs={"kv_heads": 2})
    run(qkv(2, 7, 13, 6, 1, 3), 6, "", attrs={"kv_heads": 1})
    run(qkv(1, 33, 33, 6, 2, 4), 6, ", mask=causal", visible=grid(33, 33, causal),
        attrs={"kv_heads": 2})
    # cross attention and scale
    run(qkv(2, 3, 17, 2, 2, 5), 2, "")
    run(qkv(1, 17, 131, 1, 1, 3), 1, ", scale=0.25", scale=0.25, attrs={"scale": 0.25})
    run(qkv(2, 5, 5, 2, 2, 8, std=0.5), 2, ", mask=causal, scale=1", visible=grid(5, 5, causal),
        scale=1.0, attrs={"scale": 1})
    # biases
    near_text = ("top fn near(d, n, far) = where(d < n//2, d, min(n - 1, n//2 + floor("
                 "log(d / (n//2)) / log(far / (n//2)) * (n - n//2))))\n"
                 "fn rel(h, i, j) = ")

    def enc(table, s, n=8, far=10):
        ids = torch.tensor([[(n // 2 if j > i else 0) + near(abs(j - i), n // 2, far)
                             for j in range(s)] for i in range(s)])
        return lambda h: table[ids, h]

    def dec(table, s, n=8, far=10):
        ids = torch.tensor([[near(max(i - j, 0), n, far) for j in range(s)] for i in range(s)])
        return lambda h: table[ids, h]
    enc_text = near_text + "table[where(j > i, 4, 0) + near(abs(j - i), 4, 10), h]"
    dec_text = near_text + "table[near(max(i - j, 0), 8, 10), h]"
    for s in (5, 19):
        run(qkv(2, s, s, 3, 3, 4, std=0.5) + [("table", d.normal(8, 3))], 3, ", bias=rel, scale=1",
            enc_text, {"scale": 1}, bias=lambda t, s=s: enc(t, s), scale=1.0)
        run(qkv(2, s, s, 3, 3, 4, std=0.5) + [("table", d.normal(8, 3))], 3,
            ", mask=causal, bias=rel, scale=1", dec_text, {"scale": 1},
            visible=grid(s, s, causal), bias=lambda t, s=s: dec(t, s), scale=1.0)
    slope = lambda h: torch.tensor([[-0.25 * (h + 1) * abs(i - j) for j in range(13)]   # noqa: E731
                                    for i in range(13)], dtype=torch.float64)
    run(qkv(1, 13, 13, 2, 2, 4), 2, ", mask=causal, bias=slope",
        "fn slope(h, i, j) = -0.25 * (h + 1) * abs(i - j)", visible=grid(13, 13, causal),
        bias=lambda: slope)
    run(qkv(2, 5, 7, 3, 3, 4) + [("pair", d.normal(3, 5, 7))], 3, ", bias=pair",
        bias=lambda t: lambda h: t[h])
    run(qkv(2, 5, 7, 3, 3, 4) + [("pair", d.normal(2, 3, 5, 7))], 3, ", bias=pair",
        bias=lambda t: lambda h: t[:, h])
    run(qkv(2, 5, 7, 3, 3, 4) + [("res", d.normal(2, 1, 1, 7)), ("pair", d.normal(3, 5, 7))], 3,
        ", bias=[res, pair]", bias=lambda r, t: lambda h: r[:, 0] + t[h])


# --- optimizers ----------------------------------------------------------------------------------

def optimizers():
    d = Draw("optimizers")
    for shape, step, lr, decay, betas, eps, zero in [
            ((3, 17), 1, 1e-2, 0.1, (0.9, 0.95), 1e-8, True),
            ((3, 17), 7, 1e-2, 0.1, (0.9, 0.95), 1e-8, False),
            ((131,), 7, 1e-2, 0.1, (0.9, 0.999), 1e-8, False),      # one axis: no decay
            ((2, 5, 13), 1000, 3e-4, 0.01, (0.9, 0.999), 1e-6, False),
            ((3, 17), 2, 1e-3, 0.0, (0.9, 0.95), 1e-8, False)]:
        p, g = d.normal(*shape), d.normal(*shape, std=0.3)
        m = d.normal(*shape, std=0.0 if zero else 0.1)
        v = d.uniform(*shape, lo=1e-4, hi=0.2) * (0 if zero else 1)

        def adamw(p, g, m, v, t=step, lr=lr, wd=decay, betas=betas, eps=eps):
            w = torch.nn.Parameter(p.clone())
            o = torch.optim.AdamW([w], lr=lr, betas=betas, eps=eps,
                                  weight_decay=wd if p.dim() >= 2 else 0.0)
            o.state[w] = {"step": torch.tensor(float(t - 1)), "exp_avg": m.clone(),
                          "exp_avg_sq": v.clone()}
            w.grad = g.clone()
            o.step()
            return w.detach(), o.state[w]["exp_avg"], o.state[w]["exp_avg_sq"]
        case("adamw", adamw, [("p", p), ("g", g), ("m", m), ("v", v)], None,
             {"step": step, "lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps,
              "weight_decay": decay,
              "optimizer": "adamw(lr=%g, betas=%s, eps=%g, weight_decay=%g)" % (
                  lr, list(betas), eps, decay)}, grad=False)
    for shape, momentum, zero in [((3, 17), 0.9, True), ((3, 17), 0.9, False), ((131,), 0.5, False),
                                  ((5, 7), 0.0, True)]:
        p, g = d.normal(*shape), d.normal(*shape, std=0.3)
        m = d.normal(*shape, std=0.0 if zero else 0.1)

        def sgd(p, g, m, mu=momentum):
            w = torch.nn.Parameter(p.clone())
            o = torch.optim.SGD([w], lr=0.05, momentum=mu)
            if mu:
                o.state[w]["momentum_buffer"] = m.clone()
            w.grad = g.clone()
            o.step()
            return w.detach(), o.state[w]["momentum_buffer"] if mu else g.clone()
        case("sgd", sgd, [("p", p), ("g", g), ("m", m)], None,
             {"lr": 0.05, "momentum": momentum,
              "optimizer": "sgd(lr=0.05, momentum=%g)" % momentum}, grad=False)
    for std, limit in ((1.0, 1.0), (0.01, 1.0), (100.0, 2.5), (0.0, 1.0)):
        def clip(*g, limit=limit):
            norm = math.sqrt(math.fsum(float(x) ** 2 for t in g for x in t.flatten()))
            f = limit / norm if norm > limit else 1.0
            return [t * f for t in g] + [torch.tensor([norm], dtype=torch.float64)]
        case("clip", clip, [("g0", d.normal(3, 17, std=std)), ("g1", d.normal(131, std=std)),
                            ("g2", d.normal(1, std=std))], None, {"clip": limit}, grad=False)


# --- scalars -------------------------------------------------------------------------------------

def scalars():
    """[x, f(x)], x a number of f32 written exactly, f(x) in f64; inf and nan as strings."""
    single = lambda x: float(np.float32(x))                  # noqa: E731
    tiny = [1.401298464324817e-45, 1e-40, 1.1754943508222875e-38, 1e-30, 1e-20, 1e-10, 1e-7, 1e-4]
    usual = [0.01, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, math.e, 3, math.pi, 4, 5, 6, 8, 9, 10, 15, 20,
             30, 50, 80]
    both = [0.0] + [s * x for x in tiny + usual for s in (1, -1)]
    turns = [math.pi / 4, math.pi / 2, 1.5 * math.pi, 2 * math.pi, 100, 1000, 1e4, 8192, 131071,
             1e5, 1e6, 1e10, 1e30]
    edge = {
        "exp": both + [87, 88, 88.5, 88.72283, 88.73, 89, 100, -87, -87.3, -88, -100, -103.9, -104,
                       -1000, 1000],
        "tanh": both + [100, -100, 1e30],
        "erf": both + [100, -100, 1e30],
        "log": [0.0] + tiny + usual + [1e10, 1e20, 1e30, 3.4028234663852886e38, 1.0000001,
                                       0.99999994, -1.0],
        "sin": both + [s * x for x in turns for s in (1, -1)],
        "cos": both + [s * x for x in turns for s in (1, -1)],
        "sqrt": [0.0] + tiny + usual + [1e10, 3.4028234663852886e38, -1.0],
        "sigmoid": both + [100, -100], "softplus": both + [100, -100],
        "gelu": both, "silu": both}
    fns = {"exp": np.exp, "tanh": np.tanh, "log": np.log, "sin": np.sin, "cos": np.cos,
           "sqrt": np.sqrt, "erf": np.vectorize(math.erf),
           "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "softplus": lambda x: np.logaddexp(0, x),
           "gelu": lambda x: 0.5 * x * math.erfc(-x / math.sqrt(2)),
           "silu": lambda x: x / (1 + np.exp(-x))}

    def number(x):
        x = float(x)
        if math.isnan(x):
            return "nan"
        return x if math.isfinite(x) else "inf" if x > 0 else "-inf"
    table = {}
    with np.errstate(all="ignore"):
        for name in sorted(edge):
            table[name] = [[single(x), number(fns[name](np.float64(single(x))))]
                           for x in edge[name]]
    path = os.path.join(OUT, "scalars.json")
    with open(path, "w") as f:
        f.write("{\n" + ",\n".join(
            '"%s": [\n%s\n]' % (n, ",\n".join("  " + json.dumps(p) for p in table[n]))
            for n in sorted(table)) + "\n}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(os.path.join(OUT, "ops"), ignore_errors=True)
    for group in (elementwise, products, reductions, moving, attentions, optimizers, scalars):
        group()
    total = sum(os.path.getsize(os.path.join(OUT, "ops", f))
                for f in os.listdir(os.path.join(OUT, "ops")))
    print("%d cases of %d ops, %d kB" % (sum(counts.values()), len(counts), total // 1000))
