#!/usr/bin/env python3
"""The peer of bench/train.py: one training step of GPT-2 124M in eager PyTorch, on the CPU.

    torch_step.py BATCH SEQ STEPS THREADS [f32|bf16]

Zero gradients, forward, backward, AdamW, on random tokens; the head is tied, nothing drops. Prints one
JSON line: seconds of each step after three, peak resident bytes. bench/train.py sets what makes it
fast on Debian: OpenBLAS with OpenMP instead of its own threads, and a malloc that keeps its memory.
"""
import json, math, resource, sys, time
import torch
from torch import nn
from torch.nn import functional as F

LAYERS, HIDDEN, HEADS, VOCAB, CONTEXT, COLD = 12, 768, 12, 50257, 1024, 3


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.c_attn, self.c_proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.c_fc, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def attention(self, x, later):
        b, s, _ = x.shape
        q, k, v = (t.reshape(b, s, HEADS, -1).transpose(1, 2)
                   for t in self.c_attn(x).chunk(3, -1))
        scores = (q @ k.transpose(2, 3)) / math.sqrt(HIDDEN // HEADS)
        a = torch.softmax(scores.masked_fill(later, -math.inf), -1) @ v
        return self.c_proj(a.transpose(1, 2).reshape(b, s, HIDDEN))

    def forward(self, x, later):
        x = x + self.attention(self.ln_1(x), later)
        return x + self.down(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(CONTEXT, HIDDEN)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.ln_f = nn.LayerNorm(HIDDEN)
        nn.init.normal_(self.wte.weight, std=0.02)

    def loss(self, tokens, later, bf16):
        s = tokens.shape[1] - 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            x = self.wte(tokens[:, :-1]) + self.wpe.weight[:s]
            for layer in self.layers:
                x = layer(x, later)
            logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def main():
    batch, seq, steps, threads = (int(a) for a in sys.argv[1:5])
    bf16 = sys.argv[5:6] == ["bf16"]
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens = torch.randint(0, VOCAB, (batch, seq + 1))
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    took = []
    for _ in range(steps + COLD):
        t = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        model.loss(tokens, later, bf16).backward()
        optimizer.step()
        took.append(time.perf_counter() - t)
    print(json.dumps({"step_s": took[COLD:], "version": torch.__version__,
                      "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


main()
