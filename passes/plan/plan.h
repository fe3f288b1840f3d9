// Plans: how a job is spread over a cluster, what it takes, why it won.
//
// The planner (search.h) makes a plan_result; text, JSON, the report and `--why` print it. Nothing
// that prints computes: every number a reader sees is a field here. Units: seconds, bytes, FLOPs.
//
//   plan_result *r = plan_search(a, job, cluster, &pins, &options);
//   plan_print_text(r, stdout, columns);    plan_print_json(r, stdout);
#ifndef DSM_PLAN_H
#define DSM_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "ir/cluster.h"
#include "passes/plan/pipeline.h"
#include "runtime/base/arena.h"
#include "runtime/base/vec.h"

// The axes of a mesh. ORDER AXES: names in plan_axis_name, rows of keys.def, --pin, JSON.
typedef enum plan_axis {
  PLAN_DATA,
  PLAN_PIPELINE,
  PLAN_TENSOR,
  PLAN_ULYSSES,
  PLAN_RING,
  PLAN_EXPERT,
  PLAN_AXES
} plan_axis;
const char *plan_axis_name(plan_axis x);  // "data"

typedef enum plan_recompute {
  PLAN_KEEP,
  PLAN_SELECTIVE,
  PLAN_FULL,
  PLAN_RECOMPUTES
} plan_recompute;
const char *plan_recompute_name(plan_recompute r);  // "none", "selective", "full"

// Homes, in order of distance from the device.
typedef enum plan_home { PLAN_DEVICE, PLAN_HOST, PLAN_DISK, PLAN_HOMES } plan_home;
const char *plan_home_name(plan_home h);  // "device"
// Classes of bytes that have a home of their own.
typedef enum plan_class {
  PLAN_PARAMETERS,
  PLAN_GRADIENTS,
  PLAN_OPTIMIZER,
  PLAN_ACTIVATIONS,
  PLAN_CLASSES
} plan_class;
const char *plan_class_name(plan_class c);  // "parameters"

// What is chosen. A point of the space of space.def.
typedef struct plan_choice {
  int64_t size[PLAN_AXES];     // they multiply to the devices
  plan_axis order[PLAN_AXES];  // outer to inner
  bool context_first;          // ring ranks lie closer together than ulysses ranks
  int64_t micro_batch;         // sequences of one data rank
  int64_t micro_batches;       // of a data rank, in a step
  pipe_kind pipe;
  int64_t interleave;  // chunks of a stage; 1 without
  int zero;            // 0..3
  int64_t zero_group;  // ranks that share a state: data times ulysses and ring, or with a factor of
                       // data instead of all of it; 1 without ZeRO
  plan_recompute recompute;  // of all layers, or of those that `also` leaves
  plan_recompute also;  // of as many of each stage's first layers as memory asks for; PLAN_KEEP: of
                        // none
  plan_home home[PLAN_CLASSES];
  bool whole_stream;       // pinned: `tensor` cuts nothing that goes from layer to layer
  bool sequence_parallel;  // norms and residuals cut by `tensor` along the sequence: found by the
                           // placements, reported
} plan_choice;

typedef enum plan_memory {
  PLAN_M_PARAMETERS,
  PLAN_M_GRADIENTS,
  PLAN_M_OPTIMIZER,
  PLAN_M_ACTIVATIONS,  // of all micro-batches in flight
  PLAN_M_WORKSPACE,    // the highest transient beside them
  PLAN_MEMORIES
} plan_memory;
const char *plan_memory_name(plan_memory m);

// Where the critical rank's seconds go; they sum to step_s. And what each link or engine is busy
// for, hidden or not.
typedef enum plan_time {
  PLAN_T_COMPUTE,
  PLAN_T_TENSOR,
  PLAN_T_SEQUENCE,  // ulysses and ring
  PLAN_T_EXPERT,
  PLAN_T_PIPELINE,
  PLAN_T_DATA,
  PLAN_T_OPTIMIZER,
  PLAN_T_OFFLOAD,
  PLAN_T_BUBBLE,
  PLAN_TIMES
} plan_time;
const char *plan_time_name(plan_time t);

// Bytes that a rank sends in a step: exact, the mean of a group where its ranks' pieces are unlike.
// `data` has what ranks with the same weights reduce and gather, those of ulysses and ring among
// them. Sums of single numbers (losses, norms, counts) are not in it.
typedef struct plan_bytes {
  double bytes[PLAN_AXES][CL_COLLECTIVES][2];  // [..][..][0] inside nodes, [1] between them
  int64_t calls[PLAN_AXES][CL_COLLECTIVES];    // collectives a rank takes part in, in a step
} plan_bytes;

typedef struct plan_stage {
  int64_t first_layer, last_layer;  // first > last: none; interleaved stages have only some of them
  int64_t layers;                   // how many; 0: all from first to last (plan_stage_layers)
  const char *extra;                // "embed", "head", "embed+head", or NULL
  double parameters;                // logical ones, on each of its ranks
  int64_t memory[PLAN_MEMORIES];
  int64_t peak, capacity;      // capacity: of the least of its devices
  const char *device, *group;  // on an unlike cluster: the devices it lies on, and the part of the
                               // cluster; "a + b" when it straddles; NULL on others
  int64_t host, disk;          // bytes of a rank there
  double time[PLAN_TIMES];
  double forward_s, backward_s;  // of one micro-batch
  plan_bytes bytes;              // sent by each of its ranks
  int64_t stash;                 // micro-batches in flight at most
  const char *peak_at;           // "warm-up, layer 11, mlp.c_fc"
} plan_stage;

// Layers that follow each other and are recomputed alike.
typedef struct plan_layers {
  int64_t first, last;
  plan_recompute recompute;
} plan_layers;

// How one value or weight is cut over `tensor`: "h.attn.c_attn.weight" "kv_heads/tensor".
typedef struct plan_cut {
  const char *name, *cut;
} plan_cut;

// A plan and what it takes.
typedef struct plan_candidate {
  plan_choice choice;
  int nstages;
  plan_stage *stage;
  int64_t critical;                    // the stage that `time` is of
  double step_s, step_low, step_high;  // an 80 % interval
  double tokens_per_s, tflops_per_device, mfu, hfu;
  double time[PLAN_TIMES], busy[PLAN_TIMES];
  double products_s, attention_s;  // of time[PLAN_T_COMPUTE]; the rest are all other ops
  int64_t memory[PLAN_MEMORIES];   // of the stage with the highest peak
  int64_t peak, capacity, reserve;
  int64_t load;  // the peak by the bytes alive, no more than `peak`
  bool laid;     // the peak is the arena that the executable has (laid.h); false: it is the load
  int64_t over;  // bytes beyond the capacity (device, host or disk); 0: it fits
  const char *peak_at;
  plan_bytes bytes;  // over each axis those of the stage that sends most over it
  // Bytes that a rank of the critical stage moves in a step, [0] to the device and [1] from it:
  // between device and host, between host and disk.
  double moved[PLAN_CLASSES][2], moved_disk[PLAN_CLASSES][2];
  bool pressed;           // with more memory, stages would be cut otherwise
  bool slowed;            // with more memory, fewer layers would be computed again
  bool spans[PLAN_AXES];  // groups of this axis have members on networks that differ
  int64_t ring_inner;     // double ring: ring ranks of a node, where more nodes have some; else 0
  int nlayers;            // runs of layers
  plan_layers *layers;
  int ncuts;
  plan_cut *cut;
  // Collectives of one layer, forward and backward, over `tensor`: for explanations and tests.
  int64_t tensor_calls_layer[CL_COLLECTIVES];
  pipeline pipe;  // what pipe_simulate runs
} plan_candidate;

// An alternative of another kind: other sizes of an axis, another stage of ZeRO, other
// recomputation. It was looked for near the best plan and is shown, not proved: where pins ask for
// its kind (`--why zero=0`) the search may find a faster one.
typedef struct plan_rejected {
  plan_choice choice;
  const char *code;    // "does-not-fit", "slower", "indivisible", "entangled", ...
  const char *reason;  // "slower by 9.6 %: tensor traffic 2.5 s instead of 1.1 s"
  int64_t over;        // does-not-fit
  double step_s;       // slower; 0: not worked out
  int64_t peak;        // of a device; 0: not worked out
} plan_rejected;

typedef struct plan_fix {
  const char *change;  // "offload the optimizer to the host"
  const char *flags;   // "--pin offload=optimizer:host"
  int64_t peak;
  double step_s;
  double per_token;  // seconds: of a smaller batch a step takes less, which is no gain
} plan_fix;

// The speed of the link between unlike networks from which a reduction across them pays
// (crossing.h). Speeds are of one member of the level that joins them, as a text states them.
typedef struct plan_crossing {
  const char *level;
  double speed_now, most;     // most: what the cards behind it can use, as far as was looked
  double speed;               // 0: at all speeds it is as now
  bool across;                // the best plan has a reduction across, now
  double inside_s, across_s;  // steps of the best plans of both sorts, now
  plan_choice other;          // the best plan of the sort that lost
} plan_crossing;

typedef struct plan_model {
  const char *name;
  double parameters;  // logical
  double flops;       // of a step, model FLOPs (attention full)
  double tokens;      // of a step
  int64_t batch;
  int64_t layers;
  const char *precision;
} plan_model;

typedef struct plan_search_stats {
  int64_t points;      // of the space
  int64_t considered;  // points that were legal
  int64_t pruned;      // of these, by a bound, before their step was worked out
  int64_t fronts;      // block searches made
  int64_t evaluated;   // points that were worked out
  int64_t left_out;    // counted as pruned: their ops are too entangled to place exactly
  int64_t predicted_points, predicted_fronts;  // before the search
  double seconds;
  bool optimal;         // no point of the space is better within the model: all was searched, and
                        // none that was left out can be
                        // (stages are cut by a rule, stages.h: other cuts are no points of it)
  double gap, bound_s;  // how far from it the best may be when the search was stopped
} plan_search_stats;

typedef struct plan_assumption {
  const char *what, *value,
      *source;  // "matmul at 1e12 FLOPs", "0.78 of 312 TFLOP/s", "Narayanan 2021"
} plan_assumption;

typedef struct plan_setting {
  const char *name, *value;
} plan_setting;

typedef struct plan_result {
  arena *arena;
  const char *source;  // path of the text
  uint64_t source_digest;
  plan_model model;
  const cl_cluster *cluster;
  VEC(plan_setting) settings;
  VEC(plan_candidate *) candidates;  // best first, up to --top
  plan_candidate *best;              // candidates[0], or NULL: nothing fits
  plan_candidate *closest;           // when nothing fits: that which is least over
  VEC(plan_rejected) rejected;
  VEC(plan_fix) fixes;
  plan_crossing *crossing;  // NULL: no networks differ, or it was not looked for
  VEC(const char *) warnings;
  VEC(plan_assumption) assumptions;
  plan_search_stats search;
} plan_result;

// Short, for lists: "data 32 x pipeline 8 x tensor 4, interleave 6, zero 1, recompute none".
const char *plan_choice_text(arena *a, const plan_choice *c);
// The choice as flags: "--pin data=32,pipeline=8,tensor=4,micro_batch=1".
const char *plan_choice_flags(arena *a, const plan_choice *c);

// For a terminal; never wider than `columns` (at least 60, at most 100).
void plan_print_text(const plan_result *r, FILE *out, int columns, bool color);
// DESIGN section 6's object.
void plan_print_json(const plan_result *r, FILE *out);
// One self-contained HTML page.
void plan_print_html(const plan_result *r, FILE *out);
// A `plan` section that `--plan` reads back: what was chosen, each line editable.
void plan_print_file(const plan_result *r, const plan_candidate *c, FILE *out);

#endif
