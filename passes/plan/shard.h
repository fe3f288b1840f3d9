// Placements by rule: how the values of a step are cut over one axis of the mesh, at least cost.
//
// From the index rules of the op table follows, for every op, what it can do on an axis: run
// replicated, or with one of its indices cut, which makes results cut, or partial where the index
// is summed. These are its *strategies*. Between what one op leaves and the next one asks for
// stands a conversion, which is a collective (ir/place.h) and costs time. The cheapest set of
// strategies and conversions is found exactly (elim.h). Nothing here knows a layer by name:
//
//   einsum "a b k, n k -> a b n"   replicated | a | b | n: x whole, w cut, y cut (column)
//                                  | k: x cut, w cut, y partial (row)
//   layernorm "... n; n; n -> ..." replicated | any of `...`; `n` is whole
//   add                            replicated | any index | both operands partial
//
// gives GPT the column/row pattern of Megatron with norms cut along the sequence, one all-gather
// and one reduce-scatter for attention and for the FFN, forward and backward.
//
// What is saved for backward lies cut where it can, and is gathered again while backward computes
// what comes before its reader.
//
// A weight has one placement, and its gradient is brought to it once a step. Placements on other
// axes are found before and enter as fractions: what an axis cuts is smaller for all that come
// after (and, once all are found, for the collectives of those before: block.c).
#ifndef DSM_PLAN_SHARD_H
#define DSM_PLAN_SHARD_H

#include <stdio.h>

#include "ir/cluster.h"
#include "passes/plan/elim.h"
#include "passes/plan/graph.h"

// A placement (ir/place.h) on one axis, as a number: replicated, partial sum, or cut by leaf
// `code - SH_LEAF` of the value.
enum { SH_REPLICATED, SH_PARTIAL, SH_LEAF };

typedef struct sh_strategy {
  const signed char *code;  // of each operand, then of each result; -1: none of its business
  bool cuts;                // each rank does a part of the work
  int reduces;              // all-reduces inside it, of the size of a result (ir_parts)
  const bool *streams;  // [operands] whose conversions overlap it, chunk by chunk: what a prefix
                        // is cut of (keys and values of attention); NULL: none
  ir_index *index;      // that is cut
} sh_strategy;

typedef struct sh_memo sh_memo;  // what searches of a graph share: shard.c fills it
sh_memo *sh_memo_new(arena *a);

typedef struct sh_rules {
  const pg_graph *g;
  int *n;                    // strategies of each op
  sh_strategy **strategy;    // [op][strategy]
  VEC(ir_index *) position;  // of tokens: cut as a causal prefix, or reduced by lse, in some op
  VEC(ir_index *) table;     // looked up, or classes of a loss, in some op
  VEC(ir_index *) stream;    // of what goes from layer to layer: of x[batch, seq, hidden] both
  sh_memo *memo;
} sh_rules;
// What each op can do; once for a graph.
sh_rules *sh_rules_of(arena *a, const pg_graph *g);

// What an axis may cut.
typedef enum sh_domain {
  SH_ANY,          // tensor: any index, of weights too
  SH_ACTIVATIONS,  // ulysses: any index of what is made for each sample; weights are replicated
  SH_SEQUENCE,     // ring: the queries' and keys' positions only
} sh_domain;

// Where and at what size it runs.
typedef struct sh_env {
  const cl_cluster *cluster;
  const cl_device *device;
  int64_t size, stride;  // the axis: ranks, and devices between two of them
  sh_domain domain;
  bool whole_stream;      // what goes from layer to layer is not cut (no sequence parallelism)
  int64_t micro_batch;    // samples
  int64_t micro_batches;  // in a step: what happens once costs a share of it each
  // Text that is equal where the axes before it were solved in equal ways: what is found is kept
  // and found again by it and all of the above. NULL: nothing is kept.
  const char *behind;
  // Codes of the graph's values, of which those of weights are as they say: where another function
  // has them. All searches of a graph in one domain have the same. NULL: they are found.
  const signed char *weights;
} sh_env;

// A conversion that is made.
typedef struct sh_move {
  int value;
  int from, to;  // codes
  cl_collective kind;
  int piece;
  pg_phase phase;
  int times;  // a micro-batch (or a step when `once`): layers
  bool once;
  double bytes;     // of the value as this axis sees it whole, at the micro-batch
  cl_cost cost;     // of one
  bool streamed;    // overlaps the attention it feeds
  bool prefetched;  // of what was saved for backward: it can be on its way before it is read
  int next;         // another of the same value: its place in `moves` + 1; 0: there is none
} sh_move;

typedef struct sh_result {
  short *strategy;     // of each op
  signed char *code;   // of each value, as it is produced
  double *value_part;  // fraction of each value that a rank holds: 1 or 1 / size (padded: more)
  double *op_part;     // fraction of each op's work
  VEC(sh_move) moves;
  int *first;            // of a value's moves: its place + 1; 0: it has none
  VEC(sh_move) reduces;  // inside ops (loss)
  el_stats stats;
} sh_result;

// The moves of a value, each in turn, of a result with strategies.
#define SH_MOVES_OF(s, v, m)                                                             \
  for (sh_move *m = (s)->first[v] ? &(s)->moves.at[(s)->first[v] - 1] : NULL; m != NULL; \
       m = m->next ? &(s)->moves.at[m->next - 1] : NULL)

// Why an axis is not solved whose values depend on each other in too many ways for the exact search
// (elim.h: a function of more than EL_LARGEST entries).
#define SH_ENTANGLED "its ops are too entangled to place exactly"

// Solves one axis. `value_part`, `op_part`: fractions that earlier axes leave, or NULL. NULL when
// the axis cannot be used (no index divides by its size), with the reason in *why. size 1 gives the
// trivial result.
sh_result *sh_solve(arena *a, const sh_rules *r, const sh_env *e, const double *value_part,
                    const double *op_part, const char **why);

// When a value is made: what its conversions count with.
typedef struct sh_made {
  int times;  // a micro-batch (or a step when `once`): layers
  bool once;
  int piece;
  pg_phase phase;
} sh_made;
sh_made sh_made_of(const sh_rules *r, int value);

// Whether x is a position of tokens.
bool sh_is_position(const sh_rules *r, const ir_index *x);
// Whether an index can be cut in `n` parts: it divides, or it is that of tables, of which the last
// part is padded (passes/distribute_padding.c), and the padding is less than 1/64 of it.
bool sh_divides(const sh_rules *r, const ir_index *x, int64_t n);
// The fraction of an index that a rank holds: ceil(size / n) / size.
static inline double sh_part(const ir_index *x, int64_t n) {
  return (double)((x->size + n - 1) / n) / (double)x->size;
}
// "kv_heads/tensor", "partial/tensor", or "" when replicated.
const char *sh_code_text(arena *a, const pg_value *v, int code, const char *axis);

// What was found, a line each: where weights lie, then the collectives of a micro-batch in the
// order of the ops behind them, those of a layer once, with the bytes of the whole value:
//
//   weight    h.attn.c_attn.weight    heads/tensor
//   h         forward   all_gather      ln_1       seq/tensor -> whole   50331648 bytes
//
// For golden files and for looking at a plan while working on the planner.
void sh_print(FILE *out, arena *a, const sh_rules *r, const sh_result *s, const char *axis);

#endif
