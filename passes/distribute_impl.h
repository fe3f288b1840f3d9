// Inside `distribute`: placements of values as codes, and how one becomes another.
#ifndef DSM_PASSES_DISTRIBUTE_IMPL_H
#define DSM_PASSES_DISTRIBUTE_IMPL_H

#include "passes/distribute.h"
#include "passes/plan/steps.h"

typedef struct made_form {
  const ir_value *of;
  codes in;
  const ir_region *at;
  int segment;
  ir_value *now;
} made_form;

typedef struct dist {
  ir_module *m;
  arena *scratch;
  const distribution *d;
  const pg_graph *g;
  const sh_rules *rules;
  sh_result *axis[BL_INNER];  // NULL: the axis has one rank
  const steps_ways *ways;     // of these
  ir_type *whole;             // by value id: its type before
  int nwhole;
  unsigned *cut;  // by value id, of what comes behind forward and backward: mesh axes that cut it
  int ncut;
  VEC(const ir_index *) mirrored;  // leaves that the ring cuts in zigzag
  map extents;                     // local indices that were made, by what they are a part of
  VEC(made_form) forms;
  VEC(ir_value *) sums;  // of gradients, behind forward and backward
  ir_value **stands;     // by value id: what its readers read in its place; NULL: itself
  const char *error;
} dist;

// The value's number in the graph, or -1.
int dist_value(const dist *d, const ir_value *v);
// The placement it is made in.
codes dist_made(const dist *d, int value);
// What an op of the graph asks for (side < nin) or makes.
codes dist_side(const dist *d, int op, int side);

// The type of one rank's part: `whole` is a type of the value, with a layer's dim in front or not.
ir_type dist_local(dist *d, const ir_type *whole, int value, codes in);
// The value in another placement: the form that was made before in this place, or exchanges at the
// end of `r`.
ir_value *dist_form(dist *d, ir_region *r, int segment, ir_value *v, codes in);
// From one placement to another, by exchanges at the end of `r`; `whole` as for dist_local.
ir_value *dist_bring(dist *d, ir_region *r, int segment, ir_value *v, const ir_type *whole,
                     int value, codes from, codes to);
// steps_inside of its graph.
bool dist_inside(const dist *d, int value, int code, int y, int x);
// Mesh axes, by bits, that cut / over which it is partial.
unsigned dist_cut_axes(const dist *d, codes in);
unsigned dist_partial_axes(const dist *d, codes in);
// How ranks share a weight (ir_state) placed so.
void dist_share(dist *d, ir_state *st, int value, codes in);
// Says once why the module cannot be distributed.
void dist_refuse(dist *d, const ir_op *op, const char *why);
void dist_refuse_state(dist *d, const ir_state *st, const char *why);

// Whether the ring, which is axis x, cuts the leaf of `code` in zigzag: where attention is causal a
// rank has early and late positions. Found by dist_find_mirrored, before anything is written.
bool dist_mirrors(const dist *d, int value, int code, int x);
void dist_find_mirrored(dist *d);
// Whether axis x, where it cuts the leaf of `code`, leaves the last ranks less than the others
// (distribute_padding.c).
bool dist_pads(const dist *d, int value, int code, int x);
// Refuses what would read padding as if it were something.
void dist_check_padding(dist *d);

// What of an op depends on where its part begins: attributes, ids, masks (distribute_ops.c). `op`
// is the last op of `r`; values it needs are put in front of it. Returns nothing: see d->error.
void dist_adapt(dist *d, ir_region *r, ir_op *op, int number);

// Masks and biases are functions of the sample, head, query and key, counted in the whole: argument
// `arg` of them becomes the local number and where the part begins, which is one more capture.
// Where only some of each group are of the part, `group` of `groups`, others lie between (0: it is
// a range).
typedef struct dist_count {
  ir_value *begin;
  ir_value *edge, *gap;  // zigzag: from local number `edge` on it is `gap` more; NULL: no
  int64_t group, groups;
} dist_count;
void dist_shift(ir_module *m, ir_op *op, const dist_count *c, int arg);
// Whether a mask or bias asks for that argument.
bool dist_asks_for(const ir_op *op, int arg);

#endif
