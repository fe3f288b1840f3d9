// Products that a library does: from axes to the numbers of a gemm (runtime/program.h).
#include <string.h>

#include "codegen/product.h"
#include "ir/rule.h"

// One of m, n and k of a product that has a single such axis.
typedef struct line {
  int64_t size;
  const b_axes *x;  // its strides are those of axis 0
} line;

static int64_t step(const line *l, int tensor) { return l->x->n ? l->x->stride[tensor][0] : 0; }

// How far apart rows [rows, cols] of a tensor lie, when its columns lie side by side; 0: they do
// not. An axis of one element may have any stride.
static int64_t rows_apart(const line *rows, const line *cols, int tensor) {
  if (cols->size > 1 && step(cols, tensor) != 1) return 0;
  int64_t apart = rows->size > 1 ? step(rows, tensor) : cols->size;
  return apart >= cols->size && apart <= INT32_MAX ? apart : 0;
}

// Operand `tensor`, a matrix [rows, cols], as it is stored or turned.
static bool matrix(const line *rows, const line *cols, int tensor, prog_gemm *g) {
  g->ld[tensor] = rows_apart(rows, cols, tensor);
  if (g->ld[tensor]) return true;
  if (tensor == O) return false;
  g->ld[tensor] = rows_apart(cols, rows, tensor);
  g->turned |= 1u << tensor;
  return g->ld[tensor] != 0;
}

// Values that are f32 in storage whose place does not change as positions are decoded. *offset: of
// the first element.
static bool is_stored(ir_value *v, int64_t *offset) {
  ir_view view = ir_view_of(v);
  *offset = view.offset;
  bool number = view.root->def && view.root->def->code == IR_const;
  return v->type.dtype == DT_f32 && !number && view.past_stride == 0 && view.offset >= 0;
}

// Where the sums start. What they start from is copied into the result's place when it does not lie
// there: it must be laid out like it, as a whole.
static bool start_of(const product *p, const ir_op *op, prog_gemm *g) {
  g->start = ir_accumulates(op) ? PROG_GEMM_SUM : PROG_GEMM_SET;
  if (ir_base(op) < 0) return op->nin == 2;
  if (ir_accumulates(op) || p->tensors != O + 2) return false;
  g->start = PROG_GEMM_ADD;
  int64_t offset;
  ir_value *base = p->value[O + 1];
  if (!is_stored(base, &offset) || ir_view_of(base).root != base) return false;
  const b_axes *all[] = {&p->batch, &p->m, &p->n};
  for (int i = 0; i < 3; i++)
    for (int a = 0; a < all[i]->n; a++)
      if (all[i]->stride[O + 1][a] != all[i]->stride[O][a]) return false;
  return true;
}

bool product_gemm(const product *p, const ir_op *op, prog_gemm *out) {
  *out = (prog_gemm){.library = PROG_OPENBLAS};
  if (op->nregions || p->results != 1 || !p->value[B] || p->round != DT_f32) return false;
  for (int t = A; t <= O; t++)
    if (!is_stored(p->value[t], &out->offset[t])) return false;
  if (p->m.n > 1 || p->n.n > 1 || p->k.n > 1 || p->batch.n > PROG_GEMM_AXES) return false;
  const line m = {b_product(&p->m), &p->m}, n = {b_product(&p->n), &p->n},
             k = {b_product(&p->k), &p->k};
  if (m.size <= PRODUCT_FEW || m.size > INT32_MAX || n.size > INT32_MAX || k.size > INT32_MAX)
    return false;
  out->m = m.size, out->n = n.size, out->k = k.size;
  if (!matrix(&m, &k, A, out) || !matrix(&k, &n, B, out) || !matrix(&m, &n, O, out)) return false;
  out->axes = (uint32_t)p->batch.n;
  for (int a = 0; a < p->batch.n; a++) {
    out->size[a] = p->batch.size[a];
    for (int t = A; t <= O; t++) {
      out->stride[t][a] = p->batch.stride[t][a];
      if (out->stride[t][a] < 0) return false;
    }
  }
  return b_product(&p->batch) <= INT32_MAX && start_of(p, op, out);
}

bool cg_by_library(void *cg, const ir_op *op) {
  if (!cg_library_name(cg) || op->code != IR_einsum) return false;
  product p;
  prog_gemm g;
  return !product_of((ir_op *)(uintptr_t)op, &p) && product_gemm(&p, op, &g);
}

void product_build_gemm(bld *b, const product *p, const prog_gemm *g) {
  const char *how = (const char *[]){"nn", "tn", "nt", "tt"}[g->turned];
  cg_gemm x = {.name = arena_printf(b->arena, "%s_%s_%lldx%lldx%lld", cg_library_name(b->cg), how,
                                    (long long)g->m, (long long)g->n, (long long)g->k),
               .matrices = b_product(&p->batch),
               .flops = p->flops,
               .record = *g};
  memset(&b->launch, 0, sizeof b->launch);
  for (int t = 0; t < p->tensors; t++) {
    x.bytes += (double)ir_bytes(&p->value[t]->type);
    bool writes = t == O, reads = t != O || g->start == PROG_GEMM_SUM;
    b->launch.operand[b->launch.n++] = (cg_operand){ir_view_of(p->value[t]).root, 0, reads, writes};
  }
  b_gemm(b, &x);
}
