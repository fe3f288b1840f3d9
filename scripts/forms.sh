#!/bin/sh
# Writes docs/forms.md: the forms of examples/tiny.dsm as dsmc prints them, with a reader's guide.
#
#   scripts/forms.sh [FILE]       FILE instead of docs/forms.md; tests/passes/forms.test compares
set -eu
cd "$(dirname "$0")/.."
dsmc=${DSMC:-build/dsmc} out=${1:-docs/forms.md}
sets="--set layers=4,batch=16,seq=128"
form() { "$dsmc" ir examples/tiny.dsm $sets --form "$1"; }
func() { awk -v f="$1" '$1=="func" && $2==f {p=1} p {print} p && /^}/ {exit}'; }
{
cat <<'TEXT'
# The four forms of one program

`dsmc ir FILE --form graph|local|schedule|kernel` prints a program at each stage of its way to an
executable. This page shows `examples/tiny.dsm`, a byte-level GPT with 4 layers, and says how to read
it. It is written by `scripts/forms.sh`; what stands in the boxes is what dsmc prints.

## GRAPH: what to compute

One line is one op: `%result = op(%operands) {attributes} : type`. A type is an element type and a
list of *indices*, each a name and an extent. `(part=3 heads=4 head=32)` is one dimension of 384 that
is the ordered product of three indices: `split` said that the dimension has 3 parts, `attention` said
that a part is heads times the size of a head, and since the same index stands in the weight, the
weight knows it too.

`repeat` is a loop over layers that is never unrolled. Its operands are, in this order: carried values
(here `%x`), *stacked* ones (weights with a leading index `layers`; the body sees the slice of its
layer), and invariants. `yield` gives the carried values of the next layer. Where a region hangs under
`attention`, it is the mask: a function of (sample, head, query position, key position).

This is `evaluate`, the forward pass with the loss. `cross_entropy` has become a sum over all targets
of the batch, divided by how many there are.

```
TEXT
form graph | func evaluate
cat <<'TEXT'
```

## LOCAL: what one micro-batch computes, fused

The passes have run: `train_step` now has a backward pass and the optimizer. The forward `repeat` has
more results than before: stacks of what the backward loop needs. The second `repeat` runs from the
last layer to the first (`reverse=1`), carries the gradient of `%x` and stacks the gradients of the
weights. A `map` is an elementwise function given by its region; chains have been fused into one.

```
TEXT
form local | func train_step
cat <<'TEXT'
```

## SCHEDULE: in which order, and where

The arena is one block of memory. States have fixed places at its beginning; entries overlay the rest.
An entry is a list of runs; a run executes a *task* for a range of layers. `%x@A + layer*S` is the
value `%x` at byte `A` plus `S` for each layer: a task is written once, whatever the depth. Where a
carried value is also saved for the backward pass, the layer reads slot `layer` and writes slot
`layer+1` of one stack. A `frame` is a set of stacks whose bytes the gradients of later layers take
over, layer by layer; `; %y over %x` says that a result lies where an operand lay that died there.

```
TEXT
form schedule | sed -n '/^; arena/p; /^entry train_step/,/^entry evaluate/p' | sed '$d'
form schedule | sed -n '/^task forward.h/,/^$/p' | head -n 30
cat <<'TEXT'
```

## Kernels: how one piece of work is done

A kernel is a grid of independent cells and a body that each cell runs on *tiles*: small blocks of
rows and columns. `load x[%1 + 128*r + c]` reads a tile whose element (r, c) is at that offset; limits
say which rows and columns exist. `dot` multiplies tiles. Loops carry tiles. The same text becomes
LLVM IR for the CPU; the LayerNorm of tiny:

```
TEXT
form kernel | awk '/^kernel .*norm/ {p=1} p {print} p && /^$/ {exit}' | head -n 60
echo '```'
} > "$out.new"
mv "$out.new" "$out"
