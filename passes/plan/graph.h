// A training step as the planner looks at it: ops with how often they run, values with their size.
//
// Read off `train_step` in LOCAL form at a micro-batch of one sample, before products take
// epilogues (after pass `recompute`). Layers stay rolled: an op of a repeat is one pg_op that runs
// `count` times. The step is a row of *pieces*: a piece is either a repeat, that is `count` equal
// layers, or the ops between two repeats; each has a forward and a backward part.
//
//   GPT-2:  piece 0  x1   forward: gather, add        backward: scatter_add
//           piece 1  x12  forward: ln_1 ... mlp       backward: its gradients, reversed
//           piece 2  x1   forward: ln_f, logits, nll  backward: nll_grad, products, ln_f's gradient
//
// Values that must be placed alike are one pg_value: a slice of a stack and the stack, an operand
// of a repeat and what its body calls it, a carried value in all iterations, a weight and its
// rounded copy. Where a value may change its placement there is a pg_op: an op of the text, or one
// of
//   enter   the first value of a carried one      carry   what the body hands to the next iteration
//   leave   what it is behind the last one        store   what is saved for backward
//   update  a gradient meets its weight
// each with one operand and one result (update: an operand only, the weight is a result).
//
// What is done to each element of a product is part of the product's kernel (pass `epilogue`, which
// runs on each stage later): such an op is `carried`, and what goes from the one to the other needs
// no memory, unless it is converted between them. A value that all its readers round first is sent
// as they round it (`sent`): partial sums are rounded before they are added, as ranks that hold
// them in 16 bits do.
//
// Sizes are per sample when `batch` is set: bytes(b) = b * bytes.
#ifndef DSM_PLAN_GRAPH_H
#define DSM_PLAN_GRAPH_H

#include "passes/plan/cost.h"

typedef enum pg_phase { PG_FORWARD, PG_BACKWARD } pg_phase;
typedef enum pg_kind { PG_OP, PG_ENTER, PG_CARRY, PG_LEAVE, PG_STORE, PG_UPDATE } pg_kind;

typedef struct pg_value {
  const ir_value *v;       // one that it stands for
  const ir_state *weight;  // a weight (or the rounded copy of one)
  int copy, moments;       // then bytes an element: of the copy, 0: none; of optimizer states
  int view_of;             // the value of a weight that this is a view of; else -1
  double elements, bytes;  // of a sample, or of a layer's slice
  double sent;             // bytes when it is sent
  ir_dtype sent_as;        // rounded to this; DT_COUNT: as it is
  bool batch;              // one for each sample
  bool free;               // comes in any placement: inputs, constants
  bool saved;              // a stack between forward and backward
  bool ahead;              // that, or a view of it: it can be on its way before it is read
  bool gradient;           // of a weight, summed over micro-batches
  bool carried;            // by a repeat
  bool master;             // of a weight with a rounded copy: something reads it all the same
  int layers;              // of a stack or a stacked state; else 1
  int rank;                // dims, a layer's not counted
  int nleaf;               // indices that axes may cut: neither batch nor layer, extent > 1
  ir_index **leaf;
  int *dim;  // the dim that holds the leaf (a layer's dim not counted)
} pg_value;

typedef struct pg_op {
  pg_kind kind;
  const ir_op *op;  // PG_OP
  int piece;
  pg_phase phase;
  bool once;   // once a step, not once a micro-batch
  pc_op cost;  // PG_OP
  bool view;
  bool weights;  // some result is none of a sample's, but a gradient of a weight
  int times;     // layers of its piece, for an op of a repeat's body
  int nin, nout;
  const int *in, *out;  // values; -1: none of its business (a layer number)
  uint64_t near;        // bit i: operand i, or result i - nin, stays within the kernel
  uint64_t gathers;  // bit i: operand i is a weight that ranks which share parameters gather here:
                     // the first op of a segment that reads it; others read the same whole
  uint64_t over;     // ask pg_takes_over
} pg_op;

typedef struct pg_piece {
  const char *name;  // of the repeat; NULL: between repeats
  int64_t count;     // layers; 1 between repeats
  bool empty;        // nothing runs here
} pg_piece;

// Heads of an attention: of keys and values, and queries to each of them.
typedef struct pg_heads {
  int64_t kv, rep;
} pg_heads;

typedef struct pg_graph {
  ir_module *m;
  VEC(pg_value) value;
  VEC(pg_op) op;  // in the order they run
  VEC(pg_piece) piece;
  const int *first, *by_piece;  // ops of piece i: by_piece[first[i]] .. by_piece[first[i + 1] - 1]
  const int *of;                // by id of an ir_value that existed: its value; -1: none
  int nof;                      // length of `of`
  VEC(pg_heads) heads;          // of its ops, each pair once
  int segment;                  // of forward and backward (ir_op)
  double parameters;            // logical, each once
  double flops;           // model FLOPs of one sample, forward and backward: products and attention
  double hardware_flops;  // with what is run again
  const char *error;      // why the step cannot be planned, in the user's words
} pg_graph;

// Reads `train_step`. On something this file does not know (a repeat without its gradient) `error`
// is set.
pg_graph *pg_read(arena *a, ir_module *m);
// Reads another function of a batch, such as `evaluate`: all of it is forward.
pg_graph *pg_read_func(arena *a, ir_module *m, const ir_func *f);
// Finds what kernels carry and what is sent rounded: `near`, `carried`, `sent` (kernels.c).
void pg_find_kernels(arena *a, pg_graph *g);
// The number of leaf `x` (a root) in dim `dim` of value v, or -1.
int pg_leaf(const pg_value *v, int dim, const ir_index *x);
// Whether result j may have the place of operand i, when that dies there: what layout calls a
// chain, or what pass `epilogue` makes one kernel of. Of PG_OP.
bool pg_takes_over(const pg_op *op, int j, int i);
// "h.attn.c_attn" of an op; "carry", "store", ... of the others.
const char *pg_op_name(const pg_op *op);

#endif
