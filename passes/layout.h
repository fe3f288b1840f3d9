// Inside pass `layout`: what layout.c, layout_lives.c and layout_loops.c share.
//
// Values become *items*, storage objects with a lifetime and a size (ir/schedule.h), in this order:
//   1. lives_find     lifetimes of values at the top of the function
//   2. lives_chains   which results are written over an operand that dies
//   3. loops_frames   stacks that one repeat writes and another reads backwards, with gradients
//   4. loops_bind     rings, stacks, aliases of every repeat
//   5. top level, bodies of repeats (loops_bind_body), scratch: layout.c
// The packer then gives items their offsets and every value gets its place from its binding.
#ifndef DSM_LAYOUT_H
#define DSM_LAYOUT_H

#include "ir/schedule.h"
#include "ir/view.h"
#include "passes/pass.h"

#define LAYOUT_ALIGN 64

typedef enum bind_kind { BIND_NONE, BIND_ITEM, BIND_STATE, BIND_ARG, BIND_ALIAS } bind_kind;

// How a root value gets its place.
typedef struct binding {
  bind_kind kind;
  int index;           // item, state or arg number
  const ir_value *of;  // BIND_ALIAS
  int64_t offset, layer_stride, layer_add, layer_mod, micro_stride, bytes;
  bool sliced;    // BIND_ALIAS: the slice of one layer of `of`
  int64_t slice;  // of a stack: bytes between the slices of neighbouring layers; 0: dense
} binding;

// The part of a frame that a stacked result has: slice l at `offset` + l * `stride` of the item.
typedef struct frame_part {
  int item;  // -1: none
  int64_t offset, stride;
} frame_part;

typedef struct lay {
  sched *s;
  sched_entry *e;
  skip_set skip;  // choices that are left out
  int entry, first_item, glues;
  int *first, *last;               // by value id, of top-level roots: positions
  binding *bind;                   // by value id
  const ir_value **over, **under;  // by value id: what it is written over, what over it, or NULL
  frame_part *frame;               // by value id, of stacked results
  map states;                      // by name: number + 1
} lay;

// ---- layout.c ----
int64_t lay_align(int64_t x);
int64_t lay_bytes(const ir_value *v);
int lay_item(lay *l, const char *name, int64_t bytes, int first, int last);
int lay_item_of(lay *l, const ir_value *v, int64_t bytes, int first, int last);  // of value v
void lay_bind_item(lay *l, const ir_value *v, int item, int64_t offset);
bool lay_bound(const lay *l, const ir_value *v);
// Binds `v` to the storage of `of`: the whole, or the slice of one layer.
void lay_bind_alias(lay *l, const ir_value *v, const ir_value *of, bool sliced);
int lay_state(const lay *l, const char *name);  // its number
// The segment by whose time a value lives: turns of a pipeline are one.
int lay_segment(const lay *l, int segment);
// The value whose storage an op that updates in place writes, or NULL.
const ir_value *lay_target(const ir_value *v);

// ---- layout_lives.c ----
// Whether result k of a top-level op is a sum over micro-batches, which may be reduced in place.
bool lives_sums(const ir_op *op, int k);
void lives_find(lay *l);
// Binds what is `set` to the state itself where that overwrites nothing that is read afterwards.
void lives_bind_sets(lay *l);
// Lifetimes in the bodies of repeats, and chains.
void lives_chains(lay *l);
// The first and the last value of the chain that `v` is in.
const ir_value *lives_head(const lay *l, const ir_value *v);
const ir_value *lives_tail(const lay *l, const ir_value *v);

// ---- layout_loops.c ----
void loops_frames(lay *l);
void loops_bind(lay *l, ir_op *repeat);
// Whether the scratch of an instruction of a body is no part of the body's transients: it is used
// by an exchange that is on its way longer.
bool loops_scratch_apart(const sched_task *t, const sched_instr *in);
void loops_bind_body(lay *l, sched_task *t);

#endif
