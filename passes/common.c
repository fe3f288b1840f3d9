// Common values: equal ops on equal operands become one.
//
// needs: nothing. keeps: types, order of the ops that stay. breaks: nothing.
// Random ops are never merged, although a dropout and its gradient draw alike: the draw belongs to
// the op's key, and two dropouts of a text have different keys. Regions compare by their text.

#include <string.h>

#include "ir/print.h"
#include "ir/rule.h"
#include "passes/pass.h"

static bool mergeable(const ir_op *op) {
  switch (op->code) {
    case IR_set:
    case IR_output:
    case IR_dropout:
    case IR_repeat:
    case IR_append:
    case IR_accumulate: return false;
    default: return ir_queries(op) < 0 || ir_attr_float(op, "drop", 0) <= 0;
  }
}

// A text equal for equal ops: code, operand identities, attributes, regions, result types.
static const char *key_of(arena *scratch, ir_op *op) {
  sb s = {.arena = scratch};
  sb_puts(&s, ir_info(op->code)->name);
  for (int i = 0; i < op->nin; i++) sb_printf(&s, " %d", op->in[i]->id);
  for (int i = 0; i < op->nattrs; i++) {
    const ir_attr *a = &op->attr[i];
    sb_printf(&s, " %s=", a->key);
    if (a->kind == ATTR_INT) sb_printf(&s, "%lld", (long long)a->i);
    if (a->kind == ATTR_FLOAT) sb_printf(&s, "%a", a->f);
    if (a->kind == ATTR_STR) sb_printf(&s, "'%s'", a->s);
    for (int k = 0; a->kind == ATTR_INTS && k < a->n; k++)
      sb_printf(&s, "%lld,", (long long)a->v[k]);
  }
  for (int i = 0; i < op->nout; i++) {
    sb_printf(&s, " :%d", op->out[i]->type.dtype);
    for (int d = 0; d < op->out[i]->type.rank; d++)
      sb_printf(&s, ",%lld", (long long)op->out[i]->type.dim[d]->size);
  }
  for (int i = 0; i < op->nregions; i++)
    sb_printf(&s, " {%s}", ir_print_region(op->region[i], scratch));
  return sb_str(&s);
}

static void merge(ir_module *m, ir_region *r) {
  arena scratch;
  arena_init(&scratch);
  scratch.oom = m->arena->oom;
  scratch.oom_ctx = m->arena->oom_ctx;
  map seen = {.arena = &scratch};
  int kept = 0;
  for (int i = 0; i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    for (int k = 0; k < op->nin; k++)
      if (op->in[k]->mapped) op->in[k] = op->in[k]->mapped;
    if (op->code == IR_repeat) merge(m, op->region[0]);
    if (mergeable(op)) {
      const char *key = key_of(&scratch, op);
      ir_op *first = map_get(&seen, key);
      if (first) {
        // The types agree in extents; the indices are the same thing seen twice.
        bool same = true;
        for (int k = 0; k < op->nout && same; k++)
          for (int d = 0; d < op->out[k]->type.rank && same; d++)
            same = ir_index_unify(m, first->out[k]->type.dim[d], op->out[k]->type.dim[d]);
        if (same) {
          for (int k = 0; k < op->nout; k++) op->out[k]->mapped = first->out[k];
          continue;
        }
      }
      map_set(&seen, key, op);
    }
    r->ops.at[kept++] = op;
  }
  r->ops.n = kept;
  for (int i = 0; i < r->yield.n; i++)
    if (r->yield.at[i]->mapped) r->yield.at[i] = r->yield.at[i]->mapped;
  arena_free(&scratch);
}

const char *pass_common(ir_module *m, const pass_options *o) {
  (void)o;
  for (int i = 0; i < m->funcs.n; i++) {
    pass_clear_mapped(m->funcs.at[i]->body);
    merge(m, m->funcs.at[i]->body);
  }
  return NULL;
}
