// What a search makes once and asks for often: blocks, and bounds of outer points.
#include <math.h>

#include "passes/plan/search.h"
#include "passes/plan/stage_kind.h"

// ---- blocks -------------------------------------------------------------------------------------

// Axes inside a stage lie innermost, tensor first: their strides follow from their sizes and the
// placement of the other two.
bl_key plan_key_of(const plan_choice *c) {
  bl_key k = {
      .recompute = c->recompute, .micro_batch = c->micro_batch, .whole_stream = c->whole_stream};
  int64_t stride = 1;
  for (int i = 0; i < BL_INNER; i++) {
    int x = c->context_first && i ? BL_INNER - i : i;
    k.size[x] = c->size[bl_axis_of(x)];
    k.stride[x] = stride;
    stride *= k.size[x];
  }
  return k;
}

static void write_name(char *name, const plan_choice *c) {
  bl_key k = plan_key_of(c);
  bl_key_text(name, &k);
}

const bl_block *plan_block_of(plan_space *s, const plan_choice *c) {
  if (!s->cluster->alike) {
    const bl_block *const *all;
    sk_blocks(s, c, &all);
    return all[0];
  }
  char name[BL_KEY_TEXT];
  write_name(name, c);
  bl_block *b = map_get(s->blocks, name);
  if (b) return b;
  // What happens once a step is a small share of any micro-batch; 8 stands for their number, so
  // that one block serves all.
  bl_key k = plan_key_of(c);
  b = bl_make(s->a, s->job->rules[k.recompute], &k, s->cluster, cl_device_at(s->cluster, 0));
  map_set(s->blocks, arena_strdup(s->a, name), b);
  s->fronts++;
  return b;
}

const bl_block *plan_second_block(plan_space *s, const plan_choice *c) {
  plan_choice slow = *c;
  slow.recompute = c->also;
  char name[BL_KEY_TEXT];
  write_name(name, &slow);
  return map_get(s->blocks, name);
}

// ---- bounds -------------------------------------------------------------------------------------

// Worked out once for what it depends on: recomputation, micro-batch, ranks of a stage.
double plan_outer_bound(plan_space *s, const plan_choice *c) {
  bl_key k = plan_key_of(c);
  int64_t ranks = k.size[0] * k.size[1] * k.size[2];
  char name[3 * STR_NAME + 1], *end = str_name(name, (uint64_t)k.recompute);
  end = str_name(end, (uint64_t)ranks);
  str_name(end, (uint64_t)k.micro_batch);
  double *work = map_get(s->bounds, name);
  if (!work) {
    work = arena_new(s->a, double, 1);
    const cl_device *const *device;
    int n = cl_device_kinds(s->a, s->cluster, &device);
    for (int i = 0; i < n; i++) {
      double own = bl_bound(s->job->rules[c->recompute]->g, &k, device[i]);
      if (!i || own < *work) *work = own;
    }
    map_set(s->bounds, arena_strdup(s->a, name), work);
  }
  return *work * (double)c->micro_batches / (double)c->size[PLAN_PIPELINE];
}
