#include "frontend/verb_ranks.h"

#include <stdio.h>
#include <string.h>

#include "frontend/verb_plan.h"
#include "ir/place.h"
#include "passes/distribute.h"
#include "passes/plan/show.h"

// The devices that a cluster's name ends in: "this-host:4" has 4, "this-host" one, others are more.
bool ranks_wanted(cli *c, const plan_given *given) {
  const char *name = cli_get(c, OPT_CLUSTER);
  if (!name) name = given->cluster;
  return name && !str_eq(name, "this-host") && !str_eq(name, "this-host:1");
}

// What of a plan no executable does yet, in the words of a pin; NULL: nothing.
static const char *not_built(arena *a, const plan_choice *x) {
  static const plan_axis missing[] = {PLAN_EXPERT};
  for (size_t i = 0; i < sizeof missing / sizeof *missing; i++)
    if (x->size[missing[i]] > 1)
      return arena_printf(a, "%s=%lld", plan_axis_name(missing[i]), (long long)x->size[missing[i]]);
  if (x->also != PLAN_KEEP) return "recompute of some layers alone";
  for (int i = 0; i < PLAN_CLASSES; i++)
    if (x->home[i] != PLAN_DEVICE)
      return arena_printf(a, "offload=%s:%s", plan_class_name((plan_class)i),
                          plan_home_name(x->home[i]));
  return NULL;
}

// Data ranks that share a state: all, or neighbours.
static int64_t sharing_data(const plan_choice *x) {
  return x->zero ? x->zero_group / (x->size[PLAN_ULYSSES] * x->size[PLAN_RING])
                 : x->size[PLAN_DATA];
}

static void add_axis(ir_mesh *m, const char *name, int64_t size) {
  if (size > 1) m->axis[m->naxes++] = (ir_axis){.name = name, .size = size};
}

// Factors are of the data ranks that do not share a state and that do, of the ring's nodes and of
// what is inside one.
static const ir_mesh *mesh_of(arena *a, const plan_candidate *p) {
  const plan_choice *x = &p->choice;
  ir_mesh *m = arena_new(a, ir_mesh, 1);
  for (int i = 0; i < PLAN_AXES; i++) {
    plan_axis axis = x->order[i];
    const char *name = plan_axis_name(axis);
    int64_t size = x->size[axis], inner = size;
    if (axis == PLAN_DATA) inner = sharing_data(x);
    if (axis == PLAN_RING && p->ring_inner) inner = p->ring_inner;
    if (inner < size) add_axis(m, arena_printf(a, "%s.0", name), size / inner);
    add_axis(m, inner < size ? arena_printf(a, "%s.1", name) : name, inner);
  }
  return m;
}

// The axes inside a stage; NULL when none has more than one rank.
static const distribution *distribution_of(arena *a, const cl_cluster *cluster,
                                           const plan_choice *x, const ir_mesh *mesh) {
  distribution *d = arena_new(a, distribution, 1);
  bool any = false;
  *d = (distribution){.cluster = cluster, .key = plan_key_of(x)};
  for (int i = 0; i < BL_INNER; i++) {
    d->axes[i] = mesh_axes_of(mesh, plan_axis_name(bl_axis_of(i)));
    any |= d->axes[i] != 0;
  }
  return any ? d : NULL;
}

bool ranks_take(arena *a, compiled *k, const cl_cluster *cluster, const plan_candidate *x,
                plan_given *given) {
  static const recompute_mode mode[PLAN_RECOMPUTES] = {RECOMPUTE_NONE, RECOMPUTE_SELECTIVE,
                                                       RECOMPUTE_FULL};
  const char *cpu = cl_device_at(cluster, 0)->arch;
  if (!cpu || !str_eq(cpu, "cpu") || not_built(a, &x->choice)) return false;
  k->plan = x;
  k->mesh = mesh_of(a, x);
  if (!k->mesh->naxes) k->mesh = NULL;
  k->distribution = distribution_of(a, cluster, &x->choice, k->mesh);
  given->pins.micro_batch = x->choice.micro_batch;
  given->recompute = mode[x->choice.recompute];
  given->recompute_text = plan_recompute_name(x->choice.recompute);
  return true;
}

bool ranks_plan(cli *c, compiled *k, plan_given *given) {
  planning p;
  if (!plan_make(c, &p)) {
    k->exit_code = p.compiled.exit_code;
    return false;
  }
  const char *cpu = cl_device_at(p.cluster, 0)->arch;
  if (!cpu || !str_eq(cpu, "cpu")) {
    fprintf(stderr, "dsmc: cluster `%s`: planned, not built; ranks run on this-host:N so far\n",
            p.cluster->name);
    k->exit_code = EXIT_INPUT;
    return false;
  }
  const plan_candidate *best = p.result->best;
  if (!best) {
    plan_print_text(p.result, stderr, 100, false);
    k->exit_code = EXIT_UNFIT;
    return false;
  }
  const char *missing = not_built(c->arena, &best->choice);
  if (missing) {
    fprintf(stderr,
            "dsmc: %s: planned, not built; pin what is, such as --pin data=%lld,zero=0 "
            "(`dsmc help` and the README's table say what runs)\n",
            missing, (long long)p.cluster->devices);
    k->exit_code = EXIT_INPUT;
    return false;
  }
  ranks_take(c->arena, k, p.cluster, best, given);
  return true;
}

void ranks_options(const compiled *k, pass_options *o) {
  if (!k->plan || !k->mesh) return;
  o->zero = k->plan->choice.zero;
  o->pipe = &k->plan->pipe;
  o->distribution = k->distribution;
  if (o->distribution) o->stream = 0;  // nothing in chunks
  // All that have the same weights, of `data` only the inner factor.
  int data = mesh_axis(k->mesh, "data.0");
  o->zero_axes = mesh_axes_of(k->mesh, "data") | mesh_axes_of(k->mesh, "ulysses") |
                 mesh_axes_of(k->mesh, "ring");
  if (data >= 0) o->zero_axes &= ~(1u << data);
}

unsigned ranks_entries(const compiled *k) {
  if (k->distribution) return SEMA_TRAIN | SEMA_EVAL;
  // Generating is one rank's work, and no rank has all weights.
  bool cut = k->plan && k->plan->choice.zero == 3;
  return SEMA_TRAIN | SEMA_EVAL | (cut ? 0 : SEMA_TRY_DECODE);
}
