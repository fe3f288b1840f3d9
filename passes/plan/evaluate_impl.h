// Shared by the files that work a plan out: evaluate*.c and bounds.c. Nobody else includes it.
//
// A *point* is a choice with its blocks: per kind of stage the seconds of a layer of each piece.
// From it follow a cut (stages_cut: part k has layers first[k] .. first[k + 1] - 1; parts are
// stages, or chunks of stages), seconds and bytes of each stage, and what stands behind its last
// phase.
#ifndef DSM_PLAN_EVALUATE_IMPL_H
#define DSM_PLAN_EVALUATE_IMPL_H

#include "passes/plan/homes.h"
#include "passes/plan/mixed.h"
#include "passes/plan/search.h"
#include "passes/plan/stage_kind.h"
#include "passes/plan/stages.h"

// A kind of stage, and seconds of a layer of each piece on it.
typedef struct ev_rates {
  sk_kind k;
  const bl_block *b;
  double *forward, *backward, *weight;
  double *linked[2];  // of these, waited for from the host, by phase
  double *shared[2];  // of what ZeRO gathers and scatters for it by phase, hidden or not
} ev_rates;

typedef struct ev_point {
  arena *a;
  plan_space *s;
  const plan_choice *c;
  const pg_graph *g;
  int kinds;
  ev_rates *kind;
  const sk_places *places;  // NULL: one kind
  ev_rates *second;         // of layers recomputed as `also` says; NULL: there are none
  int64_t *slow;            // [parts] how many of its first layers are such
  int64_t stride[PLAN_AXES];
  int parts;  // stages * chunks
  int64_t layers;
  int *piece_of;      // of each layer
  int64_t *first_of;  // of each piece: its first layer
  bool *has;          // [stages][weights] of a cut: whether a stage has a piece that reads it
} ev_point;

// Seconds behind the last phase of a stage.
typedef struct ev_once {
  double reduce, hidden;  // of the gradients' reduction, and what of it is hidden
  double gather;          // updated parameters
  double tied, optimizer, offload;
  double inside;  // sums over the axes inside the stage
} ev_once;

// ---- evaluate_layers.c --------------------------------------------------------------------------

// The point of a choice, without and with the seconds of its layers. `a`: of what is made.
ev_point *ev_open_point(arena *a, plan_space *s, const plan_choice *c, const bl_block *b);
ev_point *ev_start_point(arena *a, plan_space *s, const plan_choice *c, const bl_block *b);
// Sets what a cut is read by: layers, piece_of, first_of.
void ev_find_layers(ev_point *p);
// Seconds of a phase of one layer of each piece, with what ZeRO and homes move and it does not
// hide.
void ev_layer_seconds(const ev_point *p, ev_rates *r);
const ev_rates *ev_at_stage(const ev_point *p, int stage);
// 1, or 2 with a second kind of recomputation; and the rates of either on a stage.
int ev_recomputes(const ev_point *p);
const ev_rates *ev_of_layers(const ev_point *p, int stage, int slow);
// Seconds of its collectives that are waited for.
static inline double ev_exposed(const bl_phase *f) {
  double s = 0;
  for (int x = 0; x < BL_INNER; x++) s += f->sent[x];
  return s;
}

// Ranks that hold the same weights; a collective over those that share a state, and the sum over
// such groups, where they are not all of them.
int64_t ev_replicas(const plan_choice *c);
bool ev_has_groups(const plan_choice *c);
cl_cost ev_over_group(const ev_point *p, const ev_rates *r, cl_collective k, double bytes);
// Bytes of gradients of which all ranks with the same weights have parts.
double ev_partial_bytes(const bl_state *s);
// Sums of gradients that ulysses (whole 1) or ring ranks (2) have whole, over the others; how many.
cl_cost ev_over_others(const ev_point *p, const ev_rates *r, int whole, double bytes,
                       int64_t *ranks, plan_axis *axis);
cl_cost ev_across_groups(const ev_point *p, const ev_rates *r, double gradient);
void ev_count(plan_bytes *b, plan_axis axis, cl_collective k, const cl_cost *cost, double times);

// What a part has of a piece: layers (of one kind of recomputation), or what stands between layers.
static inline bool ev_is_layers(const ev_point *p, int piece) {
  return p->g->piece.at[piece].name != NULL;
}
bool ev_part_has(const ev_point *p, const stages_cut *cut, int part, int piece);
double ev_layers_of_kind(const ev_point *p, const stages_cut *cut, int part, int piece, int slow);
// A part has nothing of pieces outside first .. end-1.
int ev_first_piece(const ev_point *p, const stages_cut *cut, int part);
int ev_end_piece(const ev_point *p, const stages_cut *cut, int part);
// States: of what one layer reads, or a piece between layers; of a stage, each weight once.
bl_state ev_piece_state(const ev_point *p, const bl_block *b, int piece);
bl_state ev_stage_state(const ev_point *p, const stages_cut *cut, int stage);
// Seconds and bytes of the sums of gradients of weights that lie on several stages, this one among
// them.
double ev_tied(const ev_point *p, int stage, plan_bytes *b);
// Sets which stages have which weights; asks it of weight `w` of the block's.
void ev_find_weights(ev_point *p, const stages_cut *cut);
bool ev_stage_has(const ev_point *p, int stage, int w);
double ev_once_inside(const ev_point *p, const stages_cut *cut, int stage, int axis);
// Bytes that stay on the device: of states, of what is saved, of gradients.
double ev_on_device(const plan_choice *c, const bl_state *s);
static inline double ev_saved_here(const plan_choice *c, double kept) {
  return c->home[PLAN_ACTIVATIONS] == PLAN_DEVICE ? kept : 0;
}
double ev_gradients_here(const plan_choice *c, const bl_state *s);

// ---- evaluate_stages.c --------------------------------------------------------------------------

// `*pressed`: with more memory it would be another cut.
stages_cut ev_cut_stages(ev_point *p, const pipeline *line, bool only_fitting, bool *pressed);
// Layers of a stage where that is known without a look at what they take: they are pinned, or those
// of stages that are alike and have chunks. Micro-batches that its emptiest chunk holds.
int64_t ev_known_layers(const ev_point *p, int stage);
int64_t ev_least_stash(const pipeline *line, int stage, int64_t *each);
// A layer's states and activations for a bound on what a stage holds.
bool ev_more_gradients(const ev_point *p);
void ev_bound_bytes(const plan_choice *c, const bl_state *s, double saved, bool gradients,
                    double *state, double *kept);
int64_t ev_device_of(const ev_point *p, int stage);  // its first one
void ev_fill_chunks(ev_point *p, const stages_cut *cut, pipe_chunk *chunk, plan_candidate *x);
double ev_optimizer_seconds(const ev_point *p, const ev_rates *r, const bl_state *s,
                            double *offload);
ev_once ev_once_of(const ev_point *p, const bl_state *s, const stages_cut *cut, int stage,
                   const pipe_chunk *chunk, plan_bytes *b);

// ---- evaluate_memory.c --------------------------------------------------------------------------

void ev_stage_memory(const ev_point *p, const stages_cut *cut, int stage, const pipeline *line,
                     const bl_state *s, plan_stage *out);
// How many layers of each stage are of the second kind: as few as let it fit.
void ev_find_slow(ev_point *p, const stages_cut *cut, const pipeline *line, int64_t capacity);
// Which layers a stage has, for people; and the layers of each kind of recomputation.
void ev_name_stage(const ev_point *p, const stages_cut *cut, int stage, plan_stage *out);
void ev_list_layers(const ev_point *p, const stages_cut *cut, plan_candidate *x);

#endif
