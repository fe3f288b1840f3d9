#!/usr/bin/python3
"""Reference training runs for the four example models, in plain PyTorch and float64.

Each model is written here a second time, from the text in examples/*.dsm and from nothing else of
dsmc. A weight is a tensor in a dictionary under its checkpoint name. Run it again only when an
example changes:   /usr/bin/python3 tests/oracle/ref_models.py [MODEL...]
"""
import math
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F

import st

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 20


# --- what the models share -----------------------------------------------------------------------

def linear(W, path, x):
    y = x @ W[path + ".weight"].T                       # weights are [out, in]
    return y + W[path + ".bias"] if path + ".bias" in W else y


def layernorm(W, path, x, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], W[path + ".weight"], W[path + ".bias"], eps)


def rmsnorm(W, path, x, eps=1e-6):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * W[path + ".weight"]


def rope(x, heads, theta):
    """Rotates element i of a head with element i + size/2, by position * theta^(-2i/size)."""
    b, s, width = x.shape
    size = width // heads
    x = x.view(b, s, heads, size)
    angle = torch.arange(s, dtype=x.dtype)[:, None] \
        * theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)[None, :]
    cos, sin = angle.cos()[None, :, None, :], angle.sin()[None, :, None, :]
    lo, hi = x[..., :size // 2], x[..., size // 2:]
    return torch.cat([lo * cos - hi * sin, hi * cos + lo * sin], -1).reshape(b, s, width)


def attention(q, k, v, heads, mask=None, bias=None, scale=None):
    """mask: bool, bias: number, both broadcast to [batch, heads, queries, keys]."""
    b, s, width = q.shape
    t, size = k.shape[1], width // heads
    kv = k.shape[2] // size
    q = q.view(b, s, heads, size).transpose(1, 2)
    k = k.view(b, t, kv, size).transpose(1, 2).repeat_interleave(heads // kv, 1)
    v = v.view(b, t, kv, size).transpose(1, 2).repeat_interleave(heads // kv, 1)
    scores = q @ k.transpose(2, 3) * (size ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, s, width)


def causal(n):
    i = torch.arange(n)
    return (i[None, :] <= i[:, None])[None, None]


def present(length, keys):
    return (torch.arange(keys)[None, :] < length[:, None])[:, None, None, :]


def cross_entropy(logits, targets, ignore=-100):        # gpt2 and llama have no such target
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten().long(), ignore_index=ignore)


class Init:
    """Draws initial weights in the order they are asked for."""

    def __init__(self, seed):
        self.rng, self.W = np.random.RandomState(seed), {}

    def normal(self, name, shape, std, mean=0.0):
        self.W[name] = (mean + std * self.rng.randn(*shape)).astype(np.float32)

    def linear(self, path, out, into, bias=False, std=0.2):
        self.normal(path + ".weight", (out, into), std)
        if bias:
            self.normal(path + ".bias", (out,), 0.05)

    def norm(self, path, n, bias=False):
        self.normal(path + ".weight", (n,), 0.1, 1.0)
        if bias:
            self.normal(path + ".bias", (n,), 0.05)


def sequences(rng, count, length, vocab, cycle=None):
    """Learnable tokens: mostly t -> 3t + 5 mod cycle, one draw in five of all tokens, skewed."""
    cycle = cycle or vocab
    x = np.zeros((count, length), np.int64)
    x[:, 0] = (rng.rand(count) ** 3 * vocab).astype(np.int64)
    for s in range(1, length):
        jump = rng.rand(count) < 0.2
        x[:, s] = np.where(jump, (rng.rand(count) ** 3 * vocab).astype(np.int64),
                           (3 * x[:, s - 1] + 5) % cycle)
    return x.astype(np.int32)


# --- gpt2 ----------------------------------------------------------------------------------------

class gpt2:
    text = "gpt2.dsm:gpt2"
    layers, hidden, heads, vocab, context, seq, batch = 2, 32, 4, 61, 24, 17, 4
    settings = "layers=2,hidden=32,heads=4,vocab=61,context=24,drop=0,seq=17,batch=4"
    optimizer = dict(kind="adamw", lr=1e-2, betas=[0.9, 0.95], eps=1e-8, weight_decay=0.1)
    clip = 1.0

    def init(self):
        w = Init(11)
        w.normal("wte.weight", (self.vocab, self.hidden), 0.2)
        w.normal("wpe.weight", (self.context, self.hidden), 0.1)
        for i in range(self.layers):
            p = "h.%d." % i
            w.norm(p + "ln_1", self.hidden, True)
            w.linear(p + "attn.c_attn", 3 * self.hidden, self.hidden, True)
            w.linear(p + "attn.c_proj", self.hidden, self.hidden, True, 0.1)
            w.norm(p + "ln_2", self.hidden, True)
            w.linear(p + "mlp.c_fc", 4 * self.hidden, self.hidden, True)
            w.linear(p + "mlp.c_proj", self.hidden, 4 * self.hidden, True, 0.1)
        w.norm("ln_f", self.hidden, True)
        return w.W

    def data(self, n):
        x = sequences(np.random.RandomState(12), n, self.seq + 1, self.vocab)
        return {"tokens": x[:, :-1], "targets": x[:, 1:]}

    def logits(self, W, tokens, targets):
        s = tokens.shape[1]
        x = W["wte.weight"][tokens.long()] + W["wpe.weight"][:s]
        for i in range(self.layers):
            p = "h.%d." % i
            q, k, v = linear(W, p + "attn.c_attn", layernorm(W, p + "ln_1", x)).chunk(3, -1)
            x = x + linear(W, p + "attn.c_proj", attention(q, k, v, self.heads, causal(s)))
            u = linear(W, p + "mlp.c_fc", layernorm(W, p + "ln_2", x))
            u = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
            x = x + linear(W, p + "mlp.c_proj", u)
        return layernorm(W, "ln_f", x) @ W["wte.weight"].T


# --- llama ---------------------------------------------------------------------------------------

class llama:
    text = "llama.dsm:llama3_8b"
    layers, hidden, heads, kv_heads, ffn, vocab, seq, batch = 2, 48, 4, 2, 80, 53, 13, 4
    theta = 1e4
    settings = ("layers=2,hidden=48,heads=4,kv_heads=2,ffn=80,vocab=53,context=16,theta=1e4,"
                "tied=false,seq=13,batch=4")
    optimizer = gpt2.optimizer
    clip = 1.0

    def init(self):
        w, h, size = Init(21), self.hidden, self.hidden // self.heads
        w.normal("model.embed_tokens.weight", (self.vocab, h), 0.2)
        for i in range(self.layers):
            p = "model.layers.%d." % i
            w.norm(p + "input_layernorm", h)
            w.linear(p + "self_attn.q_proj", h, h)
            w.linear(p + "self_attn.k_proj", self.kv_heads * size, h)
            w.linear(p + "self_attn.v_proj", self.kv_heads * size, h)
            w.linear(p + "self_attn.o_proj", h, h)
            w.norm(p + "post_attention_layernorm", h)
            w.linear(p + "mlp.gate_proj", self.ffn, h)
            w.linear(p + "mlp.up_proj", self.ffn, h)
            w.linear(p + "mlp.down_proj", h, self.ffn)
        w.norm("model.norm", h)
        w.linear("lm_head", self.vocab, h)
        return w.W

    def data(self, n):
        x = sequences(np.random.RandomState(22), n, self.seq + 1, self.vocab)
        return {"tokens": x[:, :-1], "targets": x[:, 1:]}

    def logits(self, W, tokens, targets):
        x = W["model.embed_tokens.weight"][tokens.long()]
        for i in range(self.layers):
            p = "model.layers.%d." % i
            n = rmsnorm(W, p + "input_layernorm", x)
            q = rope(linear(W, p + "self_attn.q_proj", n), self.heads, self.theta)
            k = rope(linear(W, p + "self_attn.k_proj", n), self.kv_heads, self.theta)
            v = linear(W, p + "self_attn.v_proj", n)
            a = attention(q, k, v, self.heads, causal(tokens.shape[1]))
            x = x + linear(W, p + "self_attn.o_proj", a)
            n = rmsnorm(W, p + "post_attention_layernorm", x)
            gate, up = linear(W, p + "mlp.gate_proj", n), linear(W, p + "mlp.up_proj", n)
            x = x + linear(W, p + "mlp.down_proj", gate * torch.sigmoid(gate) * up)
        return linear(W, "lm_head", rmsnorm(W, "model.norm", x, 1e-5))


# --- bert ----------------------------------------------------------------------------------------

class bert:
    text = "bert.dsm:bert_large"
    layers, hidden, heads, vocab, context, seq, batch = 2, 32, 4, 59, 16, 16, 8
    settings = "layers=2,hidden=32,heads=4,vocab=59,context=16,drop=0,seq=16,batch=8"
    optimizer = gpt2.optimizer
    clip = None
    EMB, CLS = "bert.embeddings.", "cls.predictions."

    def init(self):
        w, h = Init(31), self.hidden
        w.normal(self.EMB + "word_embeddings.weight", (self.vocab, h), 0.2)
        w.normal(self.EMB + "position_embeddings.weight", (self.context, h), 0.2)
        w.normal(self.EMB + "token_type_embeddings.weight", (2, h), 0.2)
        w.normal(self.CLS + "bias", (self.vocab,), 0.05)
        w.norm(self.EMB + "LayerNorm", h, True)
        for i in range(self.layers):
            p = "bert.encoder.layer.%d." % i
            for name in ("attention.self.query", "attention.self.key", "attention.self.value",
                         "attention.output.dense"):
                w.linear(p + name, h, h, True)
            w.norm(p + "attention.output.LayerNorm", h, True)
            w.linear(p + "intermediate.dense", 4 * h, h, True)
            w.linear(p + "output.dense", h, 4 * h, True)
            w.norm(p + "output.LayerNorm", h, True)
        w.linear(self.CLS + "transform.dense", h, h, True)
        w.norm(self.CLS + "transform.LayerNorm", h, True)
        return w.W

    def make(self, seed, n, seq, length):
        rng = np.random.RandomState(seed)
        x = sequences(rng, n, seq, self.vocab - 1, 7)                # the last token is [MASK]
        valid = np.arange(seq)[None, :] < length[:, None]
        chosen = (rng.rand(n, seq) < 0.3) & valid
        return {"tokens": np.where(chosen, self.vocab - 1, np.where(valid, x, 0)).astype(np.int32),
                "segments": ((np.arange(seq)[None, :] >= (length // 2)[:, None]) & valid)
                .astype(np.int32),
                "length": length.astype(np.int32),
                "targets": np.where(chosen, x, -100).astype(np.int32)}

    def data(self, n):
        length = np.random.RandomState(32).randint(1, self.seq + 1, n)
        length[:2] = 1, self.seq
        return self.make(33, n, self.seq, length)

    def eval_data(self):
        return self.make(34, 8, 8, np.arange(1, 9))

    def logits(self, W, tokens, segments, length, targets):
        s = tokens.shape[1]
        word = W[self.EMB + "word_embeddings.weight"]
        x = word[tokens.long()] + W[self.EMB + "position_embeddings.weight"][:s] \
            + W[self.EMB + "token_type_embeddings.weight"][segments.long()]
        x = layernorm(W, self.EMB + "LayerNorm", x, 1e-12)
        for i in range(self.layers):
            p = "bert.encoder.layer.%d." % i
            q, k, v = (linear(W, p + "attention.self." + n, x) for n in ("query", "key", "value"))
            a = attention(q, k, v, self.heads, present(length, s))
            a = linear(W, p + "attention.output.dense", a)
            x = layernorm(W, p + "attention.output.LayerNorm", x + a, 1e-12)
            u = linear(W, p + "intermediate.dense", x)
            u = linear(W, p + "output.dense", u * 0.5 * (1 + torch.erf(u / math.sqrt(2))))
            x = layernorm(W, p + "output.LayerNorm", x + u, 1e-12)
        h = F.gelu(linear(W, self.CLS + "transform.dense", x))
        h = layernorm(W, self.CLS + "transform.LayerNorm", h, 1e-12)
        return h @ word.T + W[self.CLS + "bias"]


# --- t5 ------------------------------------------------------------------------------------------

def near(d, n, far):
    """Bucket of a distance: half of the n buckets exact, half logarithmic up to far."""
    half = n // 2
    if d < half:
        return d
    return min(n - 1, half + math.floor(math.log(d / half) / math.log(far / half) * (n - half)))


class t5:
    text = "t5.dsm:t5_11b"
    layers, hidden, heads, head, ffn, vocab, buckets, far = 2, 24, 3, 8, 40, 47, 8, 10
    src, dst, batch = 11, 7, 4
    settings = ("layers=2,hidden=24,heads=3,head=8,ffn=40,vocab=47,buckets=8,far=10,"
                "src=11,dst=7,batch=4")
    optimizer = dict(kind="sgd", lr=0.1, momentum=0.9)
    clip = None
    ENC_REL = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    DEC_REL = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

    def init(self):
        w, h, inner = Init(41), self.hidden, self.heads * self.head

        def attend(path):
            w.linear(path + ".q", inner, h, std=0.08)       # no 1/sqrt(size) in T5: a smaller q
            w.linear(path + ".k", inner, h)
            w.linear(path + ".v", inner, h)
            w.linear(path + ".o", h, inner)

        def ffn(path):
            w.norm(path + ".layer_norm", h)
            w.linear(path + ".DenseReluDense.wi", self.ffn, h)
            w.linear(path + ".DenseReluDense.wo", h, self.ffn)

        w.normal("shared.weight", (self.vocab, h), 1.0)
        w.normal(self.ENC_REL, (self.buckets, self.heads), 0.5)
        w.normal(self.DEC_REL, (self.buckets, self.heads), 0.5)
        for i in range(self.layers):
            p = "encoder.block.%d." % i
            w.norm(p + "layer.0.layer_norm", h)
            attend(p + "layer.0.SelfAttention")
            ffn(p + "layer.1")
        w.norm("encoder.final_layer_norm", h)
        for i in range(self.layers):
            p = "decoder.block.%d." % i
            w.norm(p + "layer.0.layer_norm", h)
            attend(p + "layer.0.SelfAttention")
            w.norm(p + "layer.1.layer_norm", h)
            attend(p + "layer.1.EncDecAttention")
            ffn(p + "layer.2")
        w.norm("decoder.final_layer_norm", h)
        return w.W

    def data(self, n):
        rng = np.random.RandomState(42)
        length = rng.randint(1, self.src + 1, n)
        length[:2] = self.src, 1
        valid = np.arange(self.src)[None, :] < length[:, None]
        source = np.where(valid, sequences(rng, n, self.src, self.vocab, 7), 0)
        out = sequences(rng, n, self.dst, self.vocab, 7)
        out[:, 0] = source[:, 0]                                     # something to copy
        ends = rng.randint(2, self.dst + 1, n)
        targets = np.where(np.arange(self.dst)[None, :] < ends[:, None], out, -100)
        tokens = np.concatenate([np.zeros((n, 1), np.int64), out[:, :-1]], 1)   # shifted right
        return {"source": source.astype(np.int32), "length": length.astype(np.int32),
                "tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32)}

    def attend(self, W, p, x, memory, mask, bias):
        q, k, v = linear(W, p + ".q", x), linear(W, p + ".k", memory), linear(W, p + ".v", memory)
        return linear(W, p + ".o", attention(q, k, v, self.heads, mask, bias, 1.0))

    def ffn_block(self, W, p, x):
        u = F.relu(linear(W, p + ".DenseReluDense.wi", rmsnorm(W, p + ".layer_norm", x)))
        return x + linear(W, p + ".DenseReluDense.wo", u)

    def logits(self, W, source, length, tokens, targets):
        s, d, n = source.shape[1], tokens.shape[1], self.buckets
        enc = torch.tensor([[(n // 2 if j > i else 0) + near(abs(j - i), n // 2, self.far)
                             for j in range(s)] for i in range(s)])
        dec = torch.tensor([[near(max(i - j, 0), n, self.far) for j in range(d)] for i in range(d)])
        enc_bias = W[self.ENC_REL][enc].permute(2, 0, 1)[None]
        dec_bias = W[self.DEC_REL][dec].permute(2, 0, 1)[None]
        m = W["shared.weight"][source.long()]
        for i in range(self.layers):
            p = "encoder.block.%d." % i
            h = rmsnorm(W, p + "layer.0.layer_norm", m)
            m = m + self.attend(W, p + "layer.0.SelfAttention", h, h, present(length, s), enc_bias)
            m = self.ffn_block(W, p + "layer.1", m)
        m = rmsnorm(W, "encoder.final_layer_norm", m)
        x = W["shared.weight"][tokens.long()]
        for i in range(self.layers):
            p = "decoder.block.%d." % i
            h = rmsnorm(W, p + "layer.0.layer_norm", x)
            x = x + self.attend(W, p + "layer.0.SelfAttention", h, h, causal(d), dec_bias)
            h = rmsnorm(W, p + "layer.1.layer_norm", x)
            x = x + self.attend(W, p + "layer.1.EncDecAttention", h, m, present(length, s), None)
            x = self.ffn_block(W, p + "layer.2", x)
        x = rmsnorm(W, "decoder.final_layer_norm", x)
        return x / math.sqrt(self.hidden) @ W["shared.weight"].T


# --- training ------------------------------------------------------------------------------------

def batch_of(data, first, count):
    return {k: torch.from_numpy(v[first:first + count]) for k, v in data.items()}


def update(W, grads, state, opt, step):
    """One step, written out. AdamW decays weights of two or more axes, before the Adam step."""
    for name, g in grads.items():
        w = W[name].data
        if opt["kind"] == "sgd":
            v = state.setdefault(name, torch.zeros_like(w))
            v.mul_(opt["momentum"]).add_(g)
            w.sub_(opt["lr"] * v)
            continue
        m, v = state.setdefault(name, (torch.zeros_like(w), torch.zeros_like(w)))
        b1, b2 = opt["betas"]
        m.mul_(b1).add_((1 - b1) * g)
        v.mul_(b2).add_((1 - b2) * g * g)
        if w.dim() >= 2:
            w.mul_(1 - opt["lr"] * opt["weight_decay"])
        mhat, vhat = m / (1 - b1 ** step), v / (1 - b2 ** step)
        w.sub_(opt["lr"] * mhat / (vhat.sqrt() + opt["eps"]))


def train(model, init, data, dtype):
    W = {k: torch.from_numpy(v.copy()).to(dtype).requires_grad_() for k, v in init.items()}
    state, losses, norms, first = {}, [], [], None
    for step in range(STEPS):
        inputs = batch_of(data, step * model.batch, model.batch)
        loss = cross_entropy(model.logits(W, **inputs), inputs["targets"])
        grads = dict(zip(W, torch.autograd.grad(loss, list(W.values()))))
        norm = math.sqrt(sum((g.double() ** 2).sum().item() for g in grads.values()))
        losses.append(loss.item())
        norms.append(norm)
        if first is None:
            first = {k: g.clone() for k, g in grads.items()}
        if model.clip and norm > model.clip:
            grads = {k: g * (model.clip / norm) for k, g in grads.items()}
        update(W, grads, state, model.optimizer, step + 1)
    return W, losses, norms, first


def job_text(model):
    o = model.optimizer
    if o["kind"] == "adamw":
        text = "adamw(lr=%g, betas=%s, eps=%g, weight_decay=%g)" % (
            o["lr"], o["betas"], o["eps"], o["weight_decay"])
    else:
        text = "sgd(lr=%g, momentum=%g)" % (o["lr"], o["momentum"])
    return text


def run(name):
    model = globals()[name]()
    init, data = model.init(), model.data(STEPS * model.batch)
    W, losses, norms, first = train(model, init, data, torch.float64)
    _, losses32, _, _ = train(model, init, data, torch.float32)
    with torch.no_grad():
        inputs = batch_of(data, 0, model.batch)
        logits = model.logits(W, **inputs)
    last = logits.shape[1] - 1
    expected = {
        "model": model.text,
        "settings": model.settings,
        "batch": model.batch,
        "steps": STEPS,
        "optimizer": job_text(model),
        "clip": model.clip if model.clip else "none",
        "parameters": int(sum(v.size for v in init.values())),
        "losses_f64": losses,
        "losses_f32": losses32,
        "grad_norms": norms,                            # of all weights together, before the clip
        "final_logits": {
            "shape": list(logits.shape),
            "l2": logits.norm().item(),
            "rows": [{"index": [b, s], "values": logits[b, s].tolist()}
                     for b, s in ((0, 0), (1, last // 2), (model.batch - 1, last))]},
        "first_gradients": {k: {"max_abs": g.abs().max().item(), "l2": g.norm().item()}
                            for k, g in first.items()}}
    if hasattr(model, "eval_data"):
        ev = model.eval_data()
        inputs = batch_of(ev, 0, 8)

        def loss(weights, dtype):
            with torch.no_grad():
                w = {k: torch.as_tensor(v).to(dtype) for k, v in weights.items()}
                return cross_entropy(model.logits(w, **inputs), inputs["targets"]).item()
        expected["eval"] = {"settings": model.settings.replace("seq=16", "seq=8"), "batch": 8,
                            "loss_init_f64": loss(init, torch.float64),
                            "loss_init_f32": loss(init, torch.float32),
                            "loss_final_f64": loss(W, torch.float64)}
        st.write(os.path.join(HERE, "data", name, "eval", "eval.safetensors"), ev)
    folder = os.path.join(HERE, "data", name)
    st.write(os.path.join(folder, "init.safetensors"), init)
    st.write(os.path.join(folder, "grads.safetensors"),
             {k: g.numpy().astype(np.float32) for k, g in first.items()})
    st.write(os.path.join(folder, "data", "data.safetensors"), data)
    st.write_json(os.path.join(folder, "expected.json"), expected)
    gap = max(abs(a - b) / a for a, b in zip(losses, losses32))
    print("%-6s %6d weights  loss %.4f -> %.4f  norm %.2f..%.2f  f32 off by %.1e" % (
        name, expected["parameters"], losses[0], losses[-1], min(norms), max(norms), gap))


if __name__ == "__main__":
    torch.set_num_threads(1)
    for model_name in sys.argv[1:] or ["gpt2", "llama", "bert", "t5"]:
        run(model_name)
