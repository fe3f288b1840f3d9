// Which builder makes an op's kernels, and the kernels' buffers and sharing.
#include "codegen/build.h"

#include <string.h>

#include "codegen/build_impl.h"

struct cg_context {
  arena *arena;
  ir_module *m;
  skip_set skip, lowering;  // choices left out; those of them that the lowering heeds
  map by_text;              // text of a kernel -> the kernel
  VEC(k_kernel *) kernels;  // in order of first use
  cg_machine machine;
  bool *looped;  // by value id: a loop's operand or result; made when first asked for
  int nlooped;
  cg_library library;
  VEC(const cg_gemm *) gemms;  // in order of first use
};

cg_context *cg_context_new(arena *a, ir_module *m) {
  cg_context *cg = arena_new(a, cg_context, 1);
  cg->arena = a;
  cg->m = m;
  cg->by_text.arena = a;
  cg->library = CG_BUILTIN;
  return cg;
}

arena *cg_arena(cg_context *cg) { return cg->arena; }

void cg_skip(cg_context *cg, skip_set skip) {
  cg->skip = skip;
  cg->lowering = skip & skip_of("lowering");
}

int cg_kernels(cg_context *cg, k_kernel *const **out) {
  *out = cg->kernels.at;
  return cg->kernels.n;
}

int cg_gemms(cg_context *cg, const cg_gemm *const **out) {
  *out = cg->gemms.at;
  return cg->gemms.n;
}

void cg_use_machine(cg_context *cg, cg_machine m) { cg->machine = m; }

cg_machine cg_machine_of(const cg_context *cg) { return cg->machine; }

void cg_use_library(cg_context *cg, cg_library l) { cg->library = l; }

const char *cg_library_name(const cg_context *cg) {
  static const char *const name[] = {[CG_OPENBLAS] = "openblas", [CG_BUILTIN] = NULL};
  return name[cg->library];
}

void b_fail(bld *b, const char *fmt, ...) {
  if (b->why) return;
  va_list ap;
  va_start(ap, fmt);
  b->why = arena_vprintf(b->arena, fmt, ap);
  va_end(ap);
}

// ---- one kernel --------------------------------------------------------------------------------

void b_begin(bld *b, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  b->k = k_new(b->arena, arena_vprintf(b->arena, fmt, ap));
  va_end(ap);
  b->k->skip = b->cg->lowering;
  b->k->op = b->op;
  memset(&b->launch, 0, sizeof b->launch);
}

k_kernel *cg_shared(cg_context *cg, k_kernel *k) {
  sb text = {.arena = cg->arena};
  k_print(&text, k);
  const char *key = sb_str(&text);
  k_kernel *same = map_get(&cg->by_text, key);
  if (same) return same;
  map_set(&cg->by_text, arena_strdup(cg->arena, key), k);
  vec_push(cg->arena, &cg->kernels, k);
  return k;
}

void cg_forget_kernels(cg_context *cg) {
  cg->by_text = (map){.arena = cg->arena};
  cg->kernels.n = 0;
}

void b_end(bld *b) {
  if (b->why) return;
  b->k->op = b->op;
  k_finish(b->k);
  b->launch.kernel = cg_shared(b->cg, b->k);
  vec_push(b->arena, &b->out->l, b->launch);
}

void b_gemm(bld *b, const cg_gemm *g) {
  const cg_gemm *same = NULL;
  for (int i = 0; i < b->cg->gemms.n && !same; i++)
    if (memcmp(&b->cg->gemms.at[i]->record, &g->record, sizeof g->record) == 0)
      same = b->cg->gemms.at[i];
  if (!same) {
    cg_gemm *copy = arena_new(b->arena, cg_gemm, 1);
    *copy = *g;
    vec_push(b->arena, &b->cg->gemms, copy);
    same = copy;
  }
  b->launch.gemm = same;
  vec_push(b->arena, &b->out->l, b->launch);
}

static void mark_loops(const ir_region *r, bool *looped) {
  for (int i = 0; i < r->ops.n; i++) {
    const ir_op *op = r->ops.at[i];
    if (op->code != IR_repeat) continue;
    for (int k = 0; k < op->nin; k++) looped[ir_view_of(op->in[k]).root->id] = true;
    for (int k = 0; k < op->nout; k++) looped[op->out[k]->id] = true;
    mark_loops(op->region[0], looped);
  }
}

// Does a loop have to do with v's storage?
static bool in_a_loop(cg_context *cg, const ir_value *v) {
  const ir_region *of = v->def ? v->def->parent : v->region;
  if (of && of->owner) return true;
  if (!cg->looped) {
    cg->looped = arena_new(cg->arena, bool, cg->m->next_value + 1);
    cg->nlooped = cg->m->next_value;
    for (int i = 0; i < cg->m->funcs.n; i++) mark_loops(cg->m->funcs.at[i]->body, cg->looped);
  }
  return v->id >= cg->nlooped || cg->looped[v->id];
}

// The buffer for a root or scratch; one that the kernel has already gets the further use.
static int buffer_of(bld *b, ir_value *root, int scratch, ir_dtype t, k_use use) {
  cg_launch *l = &b->launch;
  for (int i = 0; i < l->n; i++) {
    if (l->operand[i].root != root || (!root && l->operand[i].scratch != scratch)) continue;
    b->k->buffer[i].use |= use;
    l->operand[i].read |= (use & K_READ) != 0;
    l->operand[i].write |= (use & K_WRITE) != 0;
    return i;
  }
  IR_CHECK(l->n < CG_MAX_OPERANDS);
  l->operand[l->n] = (cg_operand){root, scratch, (use & K_READ) != 0, (use & K_WRITE) != 0};
  l->n++;
  int i = k_buffer(b->k, arena_printf(b->arena, "%s%d", root ? "b" : "s", l->n - 1), t, use);
  // What loops read, carry and write may be slices of a stack, side by side: only the first one's
  // address is a multiple of more than their size. The host's vectors may lie anywhere.
  int64_t bytes = b->limit->powers && root && in_a_loop(b->cg, root) ? ir_bytes(&root->type) : 0;
  if (bytes % 16) b->k->buffer[i].align = (int)(bytes & -bytes);
  return i;
}

static cg_tensor tensor_of(bld *b, ir_value *v, k_use use) {
  cg_tensor t = {.dtype = v->type.dtype, .view = ir_view_of(v)};
  ir_op *def = t.view.root->def;
  if (def && def->code == IR_const) {
    t.is_const = true;
    t.number = ir_attr_float(def, "value", 0);
    return t;
  }
  t.buffer = buffer_of(b, t.view.root, 0, v->type.dtype, use);
  t.base = b_number(b, t.view.offset);
  if (t.view.past_stride)
    t.base = k_add(b->k, t.base, k_muli(b->k, k_call(b->k, K_PAST), t.view.past_stride));
  return t;
}

cg_tensor b_read(bld *b, ir_value *v) { return tensor_of(b, v, K_READ); }
cg_tensor b_write(bld *b, ir_value *v) { return tensor_of(b, v, K_WRITE); }
cg_tensor b_update(bld *b, ir_value *v) { return tensor_of(b, v, K_BOTH); }

int b_new_scratch(bld *b, ir_dtype t, int64_t elements) {
  vec_push(b->arena, &b->out->scratch, elements * ir_dtype_bytes(t));
  return b->out->scratch.n - 1;
}

cg_tensor b_scratch(bld *b, int scratch, ir_dtype t, int64_t elements, k_use use) {
  cg_tensor x = {.dtype = t, .buffer = buffer_of(b, NULL, scratch, t, use), .base = b_number(b, 0)};
  x.view.nleaves = 1;
  x.view.size[0] = elements;
  x.view.stride[0] = 1;
  return x;
}

static cg_tensor summand_at(bld *b, int operand, ir_value *v, k_value *base) {
  cg_launch *l = &b->launch;
  IR_CHECK(operand < l->n && l->n < CG_MAX_OPERANDS);
  cg_tensor t = {.dtype = v->type.dtype, .view = ir_view_of(v), .base = base};
  t.buffer = k_buffer(b->k, arena_printf(b->arena, "b%d", l->n), t.dtype, K_READ);
  l->operand[l->n] = l->operand[operand];
  l->operand[l->n].read = true;
  l->operand[l->n++].write = false;
  return t;
}

cg_tensor b_absent(bld *b, ir_value *v) { return summand_at(b, 0, v, b_number(b, 0)); }

cg_tensor b_old(bld *b, const cg_tensor *y, ir_value *v) {
  return summand_at(b, y->buffer, v, b_number(b, y->view.offset));
}

k_value *b_present(bld *b, b_summand s) {
  k_kernel *k = b->k;
  k_value *later = k_mul(k, k_call(k, K_MICRO), b_number(b, s == B_OLD));
  return k_min(k, k_add(k, later, b_number(b, s == B_PRESENT)), k_int(k, 1));
}

double b_no_summand(const bld *b) { return b->limit->powers ? -0.0 : 0; }

k_value *b_load(bld *b, const cg_tensor *t, int rows, int cols, k_access x) {
  if (t->is_const && t->dtype == DT_f32) return b_real(b, t->number);
  if (t->is_const) return k_const(b->k, k_type_of(t->dtype), t->number);
  x.buffer = t->buffer;
  x.base = x.base ? k_add(b->k, t->base, x.base) : t->base;
  // What repeats along an axis is loaded once.
  if (x.row_stride == 0 && !x.offset && !x.mask) rows = 1, x.row_limit = NULL;
  if (x.col_stride == 0 && !x.offset && !x.mask) cols = 1, x.col_limit = NULL;
  return k_load(b->k, rows, cols, x);
}

void b_store(bld *b, const cg_tensor *t, k_value *v, k_access x) {
  x.buffer = t->buffer;
  x.base = x.base ? k_add(b->k, t->base, x.base) : t->base;
  // A store rounds by itself.
  const k_stmt *d = v->def;
  if (d && d->code == K_CAST && d->storage == t->dtype && d->in[0]->type == v->type) v = d->in[0];
  k_store(b->k, v, x);
}

// ---- the table ---------------------------------------------------------------------------------

// The `view` and `none` words of the build column: such ops are never asked for.
void cg_build_view(bld *b) { b_fail(b, "%s makes only a view", ir_info(b->op->code)->name); }
void cg_build_none(bld *b) { b_fail(b, "%s has no kernel", ir_info(b->op->code)->name); }

typedef void build_fn(bld *b);

static build_fn *const builders[] = {
#define SCALAR(name, arity, kinds, expr, d0, d1, d2, flops, doc) cg_build_map,
#define DEFINED(name, params, text, flops, doc) cg_build_map,
#define OP(name, nin, nout, rule, kinds, attrs, dtype, grad, interp, build, doc) cg_build_##build,
#include "ir/ops.def"
};

const char *cg_build(cg_context *cg, ir_op *op, cg_launches *out) {
  memset(out, 0, sizeof *out);
  static const cg_limits limits[] = CG_LIMITS;
  bld b = {.cg = cg, .arena = cg->arena, .op = op, .skip = cg->skip, .out = out};
  b.limit = &limits[cg->machine];
  builders[op->code](&b);
  return b.why;
}

ir_module *cg_module(cg_context *cg) { return cg->m; }
