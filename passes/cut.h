// Cuts the layers of a model into stages of a pipeline: one LOCAL module becomes one for each
// stage.
//
// A stage has a range of the layers, and what stands before, between and behind them where it is
// used: a tail of the step, whole repeats and a head. It runs between pass `recompute` (what
// backward saves is decided) and `epilogue`, on a step that `localise` has cut into micro-batches,
// in two steps, and a third one on demand:
//
//   cut_repeats   Layers are dealt out to *parts*. A repeat whose layers are of several parts
//   becomes
//                 several, one after the other; its stacks, weights and gradients likewise, and
//                 what is done to them layer by layer is done to each. Still one device, and the
//                 same numbers but for the order of sums over layers.
//
//     %x.1, %n = repeat(%x, %w) {count=4}        %w : f32[layer=4, ...]
//       becomes, for parts of 3 and 1,
//     %y, %n.0 = repeat(%x, %w.0) {count=3, first=0}
//     %x.1, %n.1 = repeat(%y, %w.1) {count=1, first=3}
//
//   cut_stages    That, and then every op is given the stages that compute it, and what one stage
//                 makes and another needs becomes a `send` and a `receive`.
//
//   cut_weights   In each stage's module backward falls in two: what other stages wait for, the
//                 gradients of activations, and what nobody does, those of weights.
//
//     %dx, %dw.0, %dw.1 = repeat(%dy, ...)       repeat of backward
//       becomes
//     %dx, %s = repeat(%dy, ...)                 stacks what the other one reads
//     %dw.0, %dw.1 = repeat(%s, ...)
//
// Who computes what. Parts of repeats are at home on their stage, and what follows from them is: in
// forward where the last of its operands is, in backward where the first is. What follows from
// inputs and constants alone, or from weights alone, is done wherever it is needed: every rank
// loads the inputs. A lookup in a weight by an input (an embedding) is done once, on the first
// stage that needs it. A weight is on every stage that reads it (tied embeddings), and updated on
// each.
//
// What crosses. An activation, and its gradient, travel from stage to stage, each stage that has
// received one sending it on: a long way down a decoder is many hops, all within the loop over
// micro-batches. A sum over micro-batches of which several stages make parts (the gradient of a
// weight on several stages) never crosses in the loop: each stage sums its own part, and the parts
// meet behind the loop, on the first stage that needs the sum, which gives it to the others that
// do; what all stages need (the squares of the gradient norm, the loss) is an `all_reduce`.
//
// Chunks. Part k is chunk k / stages of stage k % stages, so what goes on from part to part goes
// round the stages, and comes back to a stage for its next chunk. The loop over micro-batches is
// several segments of a stage's module then, its *turns*, phase by phase: forward of chunk 0, 1,
// ..., backward of the last one, ..., of chunk 0, and, where they are cut off, the weights'
// gradients of the last one, ..., of chunk 0; a stage without chunks has two or three. Pass `order`
// puts them in the order of the pipeline. A message belongs to the turn that makes what it carries,
// and to the turn of the next part round; messages of forward (step 1) and of backward (step -1) do
// not wait for each other, and turns of weights' gradients have none.
//
// Loss and gradient norm are outputs of every stage, equal on all; each weight counts in the norm
// once. Entries that generate are left out: their caches and their logits belong to one rank.
//
//   const int64_t first[] = {0, 3, 4};                 // layers 0 1 2 | 3
//   ir_module *stage[2];
//   const char *why = cut_stages(m, &(cut_job){.stages = 2, .first = first}, stage);
#ifndef DSM_CUT_H
#define DSM_CUT_H

#include "ir/ir.h"

#define CUT_MAX_STAGES 64

typedef struct cut_job {
  int stages;            // 2 .. CUT_MAX_STAGES
  int chunks;            // parts of a stage (interleaving); 1, or 0: one
  const int64_t *first;  // [stages * chunks + 1] part k takes layers first[k] .. first[k + 1] - 1,
                         // counted over all repeats of the forward pass; the last is cut_layers(m)
  bool weights;          // gradients of weights have turns of their own
} cut_job;

// Layers of all repeats of the forward pass of train_step (or of evaluate, without it).
int64_t cut_layers(ir_module *m);
// As even as can be, late parts first: 5 layers in 2 parts are 2 and 3. [parts + 1]
int64_t *cut_evenly(arena *a, int64_t layers, int parts);

// Both return NULL, or why the step cannot be cut there, in the user's words. The module is
// changed, and after an error no longer of use.
const char *cut_repeats(ir_module *m, const cut_job *j);
// The modules of the stages, in `out`; they are in the arena of `m` and share nothing with each
// other that passes change.
const char *cut_stages(ir_module *m, const cut_job *j, ir_module **out);

// The turn of an op at the top of `f`, or -1.
static inline int cut_turn_of(const ir_func *f, const ir_op *op) {
  int turn = (op->segment - f->loop) / 2;
  return (op->segment & 1) && op->segment >= f->loop && turn < f->turns ? turn : -1;
}

// The phase of a turn, and of which chunk it is; the turn of a phase of a chunk.
typedef enum cut_phase { CUT_FORWARD, CUT_BACKWARD, CUT_WEIGHTS } cut_phase;
static inline cut_phase cut_phase_of(const ir_func *f, int turn) {
  return (cut_phase)(turn / f->chunks);
}
static inline int cut_turn(cut_phase phase, int chunk, int chunks) {
  return phase == CUT_FORWARD ? chunk : ((int)phase + 1) * chunks - 1 - chunk;
}

// ---- inside ------------------------------------------------------------------------------------

// By the number of an op at the top of `f`: whether the loss follows from it; of a function that
// does not train, all ops.
bool *cut_forward(arena *a, const ir_func *f);
// True for a repeat over layers (and not over chunks of an index).
bool cut_is_layers(const ir_op *op);
// The layer index of a repeat, from what it reads or writes stacked; NULL: it stacks nothing.
ir_index *cut_layer_index(const ir_op *op);
// True for a value of which each micro-batch has a part, a sum; micro: axis of the mesh, or -1.
bool cut_is_partial(const ir_value *v, int micro);
// The third step, of a stage's train_step: what turns of backward have and no other stage waits for
// goes to those of the weights' gradients. Ops must stand behind what they read, whatever their
// segments. Leaves dead results.
void cut_weights(ir_func *f);

#endif
