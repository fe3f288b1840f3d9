// A function of a test, run in the float64 interpreter and by kernels, and compared.
//
//   fixture x;
//   begin(&x);
//   check(&x, build(&x, IR_exp, view(&x, size, 2), NULL, 0), 1e-6);  // a value, and how near
//   run(&x);
//   end(&x);
//
// Each kernel runs as one range of cells, then cell by cell from the last to the first, then so
// again for a CPU with narrow vectors: the bits must be equal.
#ifndef KERNEL_FIXTURE_H
#define KERNEL_FIXTURE_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "codegen/emit.h"
#include "ir/expr.h"
#include "ir/interp.h"
#include "ir/verify.h"
#include "runtime/base/random.h"
#include "runtime/program.h"

typedef struct mapping {
  unsigned char *at;
  size_t bytes;
} mapping;

typedef struct fixture {
  arena a;
  ir_module *m;
  ir_func *f;
  ir_builder b;
  ir_interp *x;
  uint64_t draw;
  int inputs;
  dsm_call call;
  VEC(ir_value *) checked;
  VEC(double) tolerance;
  unsigned char **memory;  // by value id: storage of roots
  cg_context *cg;
  VEC(mapping) maps;
  int overwritten[IR_OPCODE_COUNT];  // times a result of that op was written over an operand
} fixture;

static inline void begin(fixture *x) {
  uint64_t draw = x->draw;
  memset(x, 0, sizeof *x);
  x->draw = draw;
  arena_init(&x->a);
  x->m = ir_module_new(&x->a, "test");
  x->f = ir_func_new(x->m, "f", ENTRY_EVAL);
  x->b = (ir_builder){.m = x->m, .at = x->f->body};
  x->x = ir_interp_new(&x->a, x->m);
}

static inline void end(fixture *x) {
  for (int i = 0; i < x->maps.n; i++) munmap(x->maps.at[i].at, x->maps.at[i].bytes);
  arena_free(&x->a);
}

// Memory that ends where a page begins that nobody may touch: generated code is not instrumented,
// and this is how a read or write behind a buffer shows.
static inline unsigned char *guarded(fixture *x, size_t n) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (n + page - 1) / page * page;
  unsigned char *at = mmap(NULL, whole + page, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  assert_true(at != MAP_FAILED);
  assert_int_equal(mprotect(at + whole, page, PROT_NONE), 0);
  mapping m = {at, whole + page};
  vec_push(&x->a, &x->maps, m);
  return at + whole - n;
}

static inline double draw(fixture *x) {
  return (double)base_draw(1, 2, 3, 4, 5, x->draw++) / 2147483648.0 - 1;
}
static inline int64_t below(fixture *x, int64_t n) {
  return (int64_t)((draw(x) + 1) / 2 * (double)n);
}

// ---- values and memory -------------------------------------------------------------------------

static inline void put_element(ir_dtype t, unsigned char *p, int64_t i, double v) {
  float f = (float)v;
  uint32_t u;
  switch (t) {
    case DT_f32: memcpy(p + 4 * i, &f, 4); break;
    case DT_i32: ((int32_t *)(void *)p)[i] = (int32_t)v; break;
    case DT_i64: ((int64_t *)(void *)p)[i] = (int64_t)v; break;
    case DT_bool: p[i] = v != 0; break;
    case DT_bf16:
      memcpy(&u, &f, 4);
      ((uint16_t *)(void *)p)[i] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
      break;
    default: fail_msg("no test data of type %s", ir_dtype_name(t));
  }
}

static inline double element(ir_dtype t, const unsigned char *p, int64_t i) {
  float f;
  uint32_t u;
  switch (t) {
    case DT_f32: memcpy(&f, p + 4 * i, 4); return (double)f;
    case DT_i32: return ((const int32_t *)(const void *)p)[i];
    case DT_i64: return (double)((const int64_t *)(const void *)p)[i];
    case DT_bool: return p[i];
    case DT_bf16:
      u = (uint32_t)((const uint16_t *)(const void *)p)[i] << 16;
      memcpy(&f, &u, 4);
      return (double)f;
    default: fail_msg("no test data of type %s", ir_dtype_name(t)); return 0;
  }
}

// An input of the given extents (ending with 0): reals in -1 .. 1, or whole numbers below `whole`.
static inline ir_value *input_of(fixture *x, ir_dtype t, double whole, const int64_t *size,
                                 int rank) {
  ir_type type = {.dtype = t, .rank = rank};
  for (int d = 0; d < rank; d++) type.dim[d] = ir_index_new(x->m, NULL, size[d]);
  ir_op *op = ir_op_raw(x->f->body, IR_input, NULL, 0, &type, 1);
  const char *name = arena_printf(&x->a, "in%d", x->inputs++);
  ir_set_attr(x->m, op, ir_attr_s("name", name));
  int64_t n = ir_elements(&type);
  double *data = arena_new(&x->a, double, n);
  unsigned char *round = arena_alloc(&x->a, 16);
  for (int64_t i = 0; i < n; i++) {
    put_element(t, round, 0, whole > 0 ? floor((draw(x) + 1) / 2 * whole) : draw(x));
    data[i] = element(t, round, 0);
  }
  ir_interp_give(x->x, name, data, n);
  return op->out[0];
}

static inline ir_value *build(fixture *x, ir_opcode code, ir_value *v, const ir_attr *a, int n,
                              int result) {
  ir_op *op = ir_build_full(&x->b, code, &v, 1, a, n, NULL, 0);
  if (!op) fail_msg("%s", x->b.error);
  return op->out[result];
}

// An f32 value of these extents that is some view of a larger or turned input.
static inline ir_value *view(fixture *x, const int64_t *size, int rank) {
  int64_t s[IR_MAX_RANK], perm[IR_MAX_RANK];
  memcpy(s, size, sizeof(int64_t) * (size_t)rank);
  int dim = rank ? (int)below(x, rank) : 0;
  switch (rank ? below(x, 5) : 0) {
    case 1: {  // transposed
      for (int d = 0; d < rank; d++) perm[d] = rank - 1 - d, s[d] = size[rank - 1 - d];
      ir_attr a = ir_attr_v("perm", perm, rank);
      return build(x, IR_transpose, input_of(x, DT_f32, 0, s, rank), &a, 1, 0);
    }
    case 2: {  // a slice
      s[dim] += 3;
      ir_attr a[] = {ir_attr_i("dim", dim), ir_attr_i("start", 2), ir_attr_i("size", size[dim])};
      return build(x, IR_slice, input_of(x, DT_f32, 0, s, rank), a, 3, 0);
    }
    case 3: {  // one of three parts
      s[dim] *= 3;
      ir_attr a[] = {ir_attr_i("dim", dim), ir_attr_i("parts", 3)};
      return build(x, IR_split, input_of(x, DT_f32, 0, s, rank), a, 2, 1);
    }
    default: return input_of(x, DT_f32, 0, s, rank);
  }
}

#define SIZES(...) \
  ((const int64_t[]){__VA_ARGS__}), (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t))
#define VIEW(x, ...) view(x, SIZES(__VA_ARGS__))
#define INPUT(x, t, whole, ...) input_of(x, t, whole, SIZES(__VA_ARGS__))

static inline ir_op *make(fixture *x, ir_opcode code, ir_value *const *in, int nin,
                          const ir_attr *a, int na, ir_region *const *r, int nr) {
  ir_op *op = ir_build_full(&x->b, code, in, nin, a, na, r, nr);
  if (!op) fail_msg("%s: %s", ir_info(code)->name, x->b.error);
  return op;
}

static inline void check(fixture *x, ir_value *v, double tolerance) {
  ir_attr a = ir_attr_s("name", arena_printf(&x->a, "out%d", x->checked.n));
  make(x, IR_output, &v, 1, &a, 1, NULL, 0);
  vec_push(&x->a, &x->checked, v);
  vec_push(&x->a, &x->tolerance, tolerance);
}

// ---- running -----------------------------------------------------------------------------------

static inline unsigned char *map_code(const cg_image *image) {
  size_t n = (size_t)image->n + 1;
  unsigned char *code = mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  assert_ptr_not_equal(code, MAP_FAILED);
  memcpy(code, image->bytes, (size_t)image->n);
  assert_int_equal(mprotect(code, n, PROT_READ | PROT_EXEC), 0);
  return code;
}

static inline dsm_kernel *entry(unsigned char *code, int64_t offset) {
  dsm_kernel *f;
  unsigned char *p = code + offset;
  memcpy(&f, &p, sizeof f);
  return f;
}

typedef struct step {
  ir_op *op;
  cg_launches l;
} step;

static inline int kernel_number(fixture *x, const k_kernel *k) {
  k_kernel *const *all;
  int n = cg_kernels(x->cg, &all);
  for (int i = 0; i < n; i++)
    if (all[i] == k) return i;
  fail_msg("unknown kernel");
  return -1;
}

static inline unsigned char *storage(fixture *x, ir_value *root) {
  if (!x->memory[root->id]) {
    size_t n = (size_t)ir_bytes(&root->type);
    x->memory[root->id] = guarded(x, n);
    memset(x->memory[root->id], 0xff, n);  // what is never written shows as NaN
  }
  return x->memory[root->id];
}

static inline void execute(fixture *x, const step *s, int nsteps, const cg_image *image,
                           unsigned char *code, bool backwards) {
  for (int i = 0; i < nsteps; i++) {
    unsigned char **scratch = arena_new(&x->a, unsigned char *, s[i].l.scratch.n + 1);
    for (int j = 0; j < s[i].l.scratch.n; j++)
      scratch[j] = guarded(x, (size_t)s[i].l.scratch.at[j]);
    for (int j = 0; j < s[i].l.l.n; j++) {
      const cg_launch *l = &s[i].l.l.at[j];
      unsigned char *buf[CG_MAX_OPERANDS];
      for (int k = 0; k < l->n; k++)
        buf[k] =
            l->operand[k].root ? storage(x, l->operand[k].root) : scratch[l->operand[k].scratch];
      dsm_kernel *f = entry(code, image->offset[kernel_number(x, l->kernel)]);
      int64_t cells = k_cells(l->kernel);
      if (!backwards) f(buf, &x->call, 0, cells);
      for (int64_t c = cells - 1; backwards && c >= 0; c--) f(buf, &x->call, c, c + 1);
    }
  }
}

static inline double logical(fixture *x, const ir_view *w, ir_dtype t, int64_t e) {
  int64_t at = w->offset + w->past_stride * x->call.past;
  for (int i = w->nleaves - 1; i >= 0; i--) {
    at += e % w->size[i] * w->stride[i];
    e /= w->size[i];
  }
  return element(t, storage(x, w->root), at);
}

static inline void compare(fixture *x) {
  for (int i = 0; i < x->checked.n; i++) {
    ir_value *v = x->checked.at[i];
    ir_view w = ir_view_of(v);
    int64_t n;
    const double *want = ir_interp_output(x->x, arena_printf(&x->a, "out%d", i), &n);
    double scale = 1e-3;
    for (int64_t e = 0; e < n; e++)
      if (isfinite(want[e]) && fabs(want[e]) > scale) scale = fabs(want[e]);
    for (int64_t e = 0; e < n; e++) {
      double got = logical(x, &w, v->type.dtype, e);
      bool same = isnan(want[e])   ? isnan(got)
                  : isinf(want[e]) ? got == want[e]
                                   : fabs(got - want[e]) <= x->tolerance.at[i] * scale;
      if (!same)
        fail_msg("%s, output %d [%lld]: %.9g, not %.9g", ir_info(v->def->code)->name, i,
                 (long long)e, got, want[e]);
    }
  }
}

// Does each step again with a result over an operand, wherever ir_may_overwrite says that the
// layout may do so: the bits are the same.
static inline void overwrite(fixture *x, const step *s, int nsteps, const cg_image *image,
                             unsigned char *code, bool backwards) {
  for (int i = 0; i < nsteps; i++)
    for (int j = 0; j < s[i].op->nout; j++)
      for (int k = 0; k < s[i].op->nin; k++) {
        ir_value *v = s[i].op->in[k], *y = s[i].op->out[j];
        if (!ir_may_overwrite(s[i].op, j, k) || (v->def && v->def->code == IR_const)) continue;
        size_t n = (size_t)ir_bytes(&y->type);
        unsigned char *result = x->memory[y->id], *operand = storage(x, v);
        unsigned char *kept = arena_alloc(&x->a, n);
        memcpy(kept, operand, n);
        x->memory[y->id] = operand;
        execute(x, &s[i], 1, image, code, backwards);
        if (memcmp(operand, result, n))
          fail_msg("%s over operand %d: other bits", ir_info(s[i].op->code)->name, k);
        x->memory[y->id] = result;
        memcpy(operand, kept, n);
        x->overwritten[s[i].op->code]++;
      }
}

// Runs the function in the interpreter and by kernels, and compares what was checked.
static inline void run(fixture *x) {
  const char *bad = ir_verify(x->m);
  if (bad) fail_msg("%s", bad);
  x->x->past = x->call.past;
  x->x->seed = x->call.seed;
  x->x->step = (uint64_t)x->call.step;
  bad = ir_interp_run(x->x, "f");
  if (bad) fail_msg("%s", bad);
  x->cg = cg_context_new(&x->a, x->m);
  VEC(step) steps = {0};
  for (int i = 0; i < x->f->body->ops.n; i++) {
    ir_op *op = x->f->body->ops.at[i];
    if (ir_is_view(op) || op->code == IR_input || op->code == IR_output || op->code == IR_const)
      continue;
    step s = {.op = op};
    const char *why = cg_build(x->cg, op, &s.l);
    if (why) fail_msg("%s: %s", ir_info(op->code)->name, why);
    vec_push(&x->a, &steps, s);
  }
  static const cg_target narrow = {.cpu = "x86-64-v3"};
  unsigned char **first = NULL;
  cg_image image;
  for (int turn = 0; turn < 3; turn++) {
    if (turn != 1) {
      bad = cg_compile(x->cg, turn ? &narrow : NULL, &image);
      if (bad) fail_msg("%s", bad);
      assert_true(image.stack < 512 * 1024);
    }
    unsigned char *code = map_code(&image);
    x->memory = arena_new(&x->a, unsigned char *, x->m->next_value + 1);
    for (int i = 0; i < x->f->body->ops.n; i++) {
      ir_op *op = x->f->body->ops.at[i];
      if (op->code == IR_append) {
        // The result is the cache itself.
        ir_view w = ir_view_of(op->in[0]);
        x->memory[op->out[0]->id] = storage(x, w.root);
      }
      if (op->code != IR_input) continue;
      struct {
        double *data;
        int64_t n;
      } *given = map_get(&x->x->given, ir_attr_str(op, "name", ""));
      unsigned char *p = storage(x, op->out[0]);
      for (int64_t e = 0; e < given->n; e++)
        put_element(op->out[0]->type.dtype, p, e, given->data[e]);
    }
    execute(x, steps.at, steps.n, &image, code, turn != 0);
    compare(x);
    overwrite(x, steps.at, steps.n, &image, code, turn != 0);
    for (int id = 0; turn && id < x->m->next_value; id++) {
      if (!x->memory[id] || !first[id]) continue;
      for (int i = 0; i < steps.n; i++)
        for (int k = 0; k < steps.at[i].op->nout; k++)
          // The bits of bf16 products belong to one kind of CPU.
          if (steps.at[i].op->out[k]->id == id &&
              (turn == 1 || !*ir_attr_str(steps.at[i].op, "round", "")))
            assert_memory_equal(x->memory[id], first[id],
                                (size_t)ir_bytes(&steps.at[i].op->out[k]->type));
    }
    if (!turn) first = x->memory;
    munmap(code, (size_t)image.n + 1);
  }
}

#endif
