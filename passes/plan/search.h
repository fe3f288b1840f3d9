// The search: the plan with the least step time of the space in space.def.
//
// `exhaustive` works out every point. `fast` gives the same plan: outer points go in order of a
// lower bound (every op at its cheapest, spread over all devices, plus the pipeline's fill), and
// the first one whose bound exceeds the best plan ends the search; inner points are bounded by
// their block's work. Blocks are made once and shared. Ties go to less memory, then to fewer tensor
// ranks, then to the order of the space.
#ifndef DSM_PLAN_SEARCH_H
#define DSM_PLAN_SEARCH_H

#include "passes/plan/block.h"
#include "passes/plan/laid.h"
#include "passes/plan/plan.h"

// A job as the planner sees it.
typedef struct plan_job {
  const char *source;
  uint64_t digest;
  const char *model, *precision;
  int64_t batch;
  double tokens;                           // of a step
  const sh_rules *rules[PLAN_RECOMPUTES];  // one graph each; NULL: not to be had
  VEC(plan_setting) settings;
} plan_job;

// What is fixed. 0 (sizes) or -1: free.
typedef struct plan_pins {
  int64_t size[PLAN_AXES];
  int64_t micro_batch, interleave;
  int nstages;            // as many as size[PLAN_PIPELINE], or 0: stages are cut as is best
  const int64_t *stages;  // layers of each
  bool whole_stream;      // plan_choice
  int schedule;           // pipe_kind
  int zero, recompute;
  int also;  // plan_recompute
  int context_first;
  int64_t zero_group;   // ranks that share a state
  int64_t zero_factor;  // the same as the innermost factor of `data`
  int home[PLAN_CLASSES];
  int spans;  // 1: a reduction spans unlike networks, 0: none does
} plan_pins;
plan_pins plan_pins_none(void);

typedef struct plan_options {
  bool exhaustive;
  double limit;             // seconds; 0: none
  int top;                  // candidates to give, at least 1
  laid_maker *layouts;      // of one device's plans; NULL: their memory is a load too
  bool no_crossing;         // leave plan_result.crossing out
  const cl_cluster *whole;  // that the cluster is a part of, for `more devices`; NULL: unknown
  // The job with sequences of 1/divide of their length, and the flags that say so; NULL: not to be
  // had. For fixes; may be NULL.
  const plan_job *(*shorter)(void *ctx, int64_t divide, const char **flags);
  void *shorter_ctx;
  // Called a few times a second while it searches; best_s 0: no plan yet. May be NULL.
  void (*report)(void *ctx, const plan_search_stats *stats, double best_s);
  void *report_ctx;
} plan_options;

// Always a result. With `best` NULL nothing fits, or the pins leave no legal point: then `rejected`
// says why, `closest` is the plan that is least over (NULL when no point is legal), and `fixes` are
// the cheapest changes that make it fit, each worked out.
plan_result *plan_search(arena *a, const plan_job *job, const cl_cluster *cluster,
                         const plan_pins *pins, const plan_options *options);

// ---- parts, for tests ---------------------------------------------------------------------------

typedef struct plan_space {
  arena *a;  // of the result
  const plan_job *job;
  const cl_cluster *cluster;
  plan_pins pins;
  map *blocks;  // bl_key as text -> bl_block
  map *bounds;  // of plan_outer_bound
  map *places;  // of stage_kind.h
  int64_t layers;
  double saved[PLAN_RECOMPUTES];      // bytes of a sample that all layers save for backward
  double *saved_by[PLAN_RECOMPUTES];  // of these, what a layer of each piece of the graph stores
  int64_t fronts;                     // blocks made
} plan_space;

typedef enum plan_level { PLAN_OUTER, PLAN_INNER, PLAN_AWAY } plan_level;  // space.def
enum { PLAN_VALUES = 256 };
typedef struct plan_dim {
  const char *name, *doc;
  plan_level level;
  // Legal values for what `c` has so far; returns how many (0: `c` leads nowhere).
  int (*values)(const plan_space *s, const plan_choice *c, int64_t out[PLAN_VALUES]);
  void (*set)(const plan_space *s, plan_choice *c, int64_t value);
} plan_dim;
// Whether layers of a choice may be recomputed as `kind` where memory asks for it.
bool plan_may_mix(const plan_space *s, const plan_choice *c, int kind);
int plan_dims(const plan_dim **out);
// The best plan of a space: of those that fit, or else the one that is least over. One within
// `slack` (a share) of the best will do. With `near`, the best one of those that are cut inside a
// stage as one of these plans, or as one that is better by halving and doubling axes; all others
// are looked at only where none of them fits.
typedef struct plan_found {
  bool fits, any;
  plan_choice c;
  double step;
  int64_t peak;
} plan_found;
plan_found plan_find(plan_space *s, laid_maker *layouts, double slack, const plan_choice *near,
                     int nnear);
// All that a plan takes, with the memory of its layout where there is one.
plan_candidate *plan_work_out(plan_space *s, laid_maker *layouts, const plan_choice *c);
// Sets s->saved and s->saved_by.
void plan_note_saved(plan_space *s);

// Into r->crossing, or a warning that so many seconds were not enough for it.
void plan_add_crossing(plan_result *r, plan_space *s, const plan_pins *pins, double seconds);
// A warning that another cut of its stages may be faster, where that is more than a detail.
void plan_note_cut(plan_result *r, const plan_pins *pins);
// Into r->rejected and r->fixes (alternatives.c). "does not fit by 3.1 GiB (weights ..., ...)".
void plan_add_alternatives(plan_result *r, const plan_space *s, const plan_pins *pins,
                           laid_maker *layouts);
void plan_add_fixes(plan_result *r, const plan_space *s, const plan_pins *pins,
                    const plan_options *options);
const char *plan_why_over(arena *a, const plan_candidate *x);

// Why the space has no point: which pin cannot be met, in words, and the diagnostic's code.
const char *plan_why_illegal(arena *a, const plan_space *s, const char **code);
// A choice before the first dimension.
plan_choice plan_choice_start(const plan_space *s);

// What a block is made for.
bl_key plan_key_of(const plan_choice *c);
// The block of a choice whose outer dimensions are set. On a cluster of unlike parts it is one of
// several (stage_kind.h).
const bl_block *plan_block_of(plan_space *s, const plan_choice *c);
// The block of the layers that are recomputed as `also` says; NULL: it is not made yet.
const bl_block *plan_second_block(plan_space *s, const plan_choice *c);
// A lower bound on the step of every plan with these outer dimensions.
double plan_outer_bound(plan_space *s, const plan_choice *c);
// False when no plan with these outer dimensions fits: the load of saved activations alone, were
// all of them cut by all axes of a stage, is too much.
bool plan_outer_fits(const plan_space *s, const plan_choice *c);
// For one that does not: a lower bound on its step when what is saved goes to the host; INFINITY
// when it cannot, or does not fit there either.
double plan_outer_away(const plan_space *s, const plan_choice *c);
// Seconds of a sample, over all stages, that it takes at least to recompute as many layers as
// `kind` as it takes for what all layers save to fit; INFINITY when all of them are not enough.
// fast, slow: seconds of a sample for a layer of each piece of the graph, as c and as `kind`
// recompute.
double plan_outer_more(const plan_space *s, const plan_choice *c, plan_recompute kind,
                       const double *fast, const double *slow);

// The best plan of a space under other pins, when it is found in so many seconds (*stopped: it was
// not). False when nothing fits.
bool plan_best_of(const plan_space *s, const plan_pins *pins, double seconds, plan_choice *c,
                  double *step, bool *stopped);

// What can be said of a choice, all of it set, without cutting stages. `scratch` is used.
typedef struct plan_quick {
  double bound;     // no less is its step
  double mean;      // nor than this, from sums over stages, and `more`
  double work;      // of a micro-batch on all stages, at least
  bool fits;        // false: it does not fit, by the load of layers alone
  double over;      // then about how many bytes a device lacks: for the order of what does not fit
  double layers;    // seconds of all layers in a step, over the stages
  double phase[2];  // the same forward and backward, where layers are of one kind
  bool mixes;       // some of them may be of another
  double gather;    // of updated parameters, on the mean stage
  double share;  // of the layers must at least be of the second kind, where there is one; of unlike
                 // ones none
  bool second;   // whether the block of that kind is made
  double more;   // then: seconds beside `mean` that it takes at least
} plan_quick;
// `open`: homes are still to be chosen, `c` has the first ones. The bound is of all of them, and is
// worked out where `c` does not fit, too; else it stays 0 then.
plan_quick plan_quickly(arena *scratch, plan_space *s, const plan_choice *c, const bl_block *b,
                        bool open);
// No more than plan_quickly's bound for a choice that differs from that of `first` by its homes
// only, which has none: from sums alone, before it is asked.
double plan_with_homes(arena *scratch, plan_space *s, const plan_choice *c, const bl_block *b,
                       const plan_quick *first);
// All that a plan takes, into `a`. NULL with a code and a reason when the choice is not legal, or
// its step is found to be more than `limit` (INFINITY: none) before all is worked out.
plan_candidate *plan_evaluate(arena *a, plan_space *s, const plan_choice *c, const bl_block *b,
                              double limit, const char **code, const char **why);

#endif
