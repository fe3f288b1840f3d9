// The ops of the interpreter that move, contract, reduce and normalise. One function per op, named
// by the `interp` column of ir/ops.def; attention and rope are in ir/interp_attention.c.
//
// Most ops work on "rows": a value seen as `outer` rows of the `n` elements of its last axis.
#include <math.h>
#include <string.h>

#include "ir/interp_impl.h"
#include "ir/rule.h"

static int64_t count_of(const ir_value *v) { return ir_elements(&v->type); }

static int64_t last_of(const ir_value *v) {
  return v->type.rank ? v->type.dim[v->type.rank - 1]->size : 1;
}

// ---- movement ----------------------------------------------------------------------------------

void interp_transpose(interp_frame *f, const ir_op *op) {
  const ir_attr *perm = ir_get_attr(op, "perm");
  interp_shape in = interp_shape_of(&op->in[0]->type), out = interp_shape_of(&op->out[0]->type);
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  for (int64_t e = 0; e < out.n; e++) {
    int64_t at = 0;
    for (int d = 0; d < out.rank; d++)
      at += e / out.stride[d] % out.size[d] * in.stride[perm->v[d]];
    y[e] = x[at];
  }
}

// expand, squeeze, unfold, fold: the same elements in the same order.
void interp_reshape(interp_frame *f, const ir_op *op) {
  memcpy(interp_out(f, op, 0), interp_in(f, op, 0), sizeof(double) * (size_t)count_of(op->in[0]));
}

void interp_broadcast(interp_frame *f, const ir_op *op) {
  const ir_attr *dims = ir_get_attr(op, "dims");
  interp_shape in = interp_shape_of(&op->in[0]->type), out = interp_shape_of(&op->out[0]->type);
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  for (int64_t e = 0; e < out.n; e++) {
    int64_t at = 0;
    for (int k = 0; k < in.rank; k++) {
      int64_t d = dims->v[k];
      if (in.size[k] > 1) at += e / out.stride[d] % out.size[d] * in.stride[k];
    }
    y[e] = x[at];
  }
}

// Copies `size` positions of one axis, from position `from` of x (axis length nx) to position `to`
// of y (axis length ny). outer and inner: the products of the other axes.
static void copy_range(double *y, int64_t ny, int64_t to, const double *x, int64_t nx, int64_t from,
                       int64_t size, int64_t outer, int64_t inner) {
  for (int64_t o = 0; o < outer; o++)
    memcpy(y + (o * ny + to) * inner, x + (o * nx + from) * inner,
           sizeof(double) * (size_t)(size * inner));
}

typedef struct axis {
  int64_t outer, n, inner;
} axis;

static axis axis_of(const ir_op *op, const ir_value *v) {
  int d = (int)ir_attr_int(op, "dim", 0);
  return (axis){interp_extent(&v->type, 0, d), v->type.dim[d]->size,
                interp_extent(&v->type, d + 1, v->type.rank)};
}

// With past=1 the range moves with the positions already decoded.
void interp_slice(interp_frame *f, const ir_op *op) {
  axis a = axis_of(op, op->in[0]);
  int64_t start = ir_attr_int(op, "start", 0), size = ir_attr_int(op, "size", 0);
  if (ir_attr_int(op, "past", 0)) start += f->x->past;
  if (start < 0 || start + size > a.n) {
    interp_fail(f, "slice: positions %lld to %lld of %lld", (long long)start,
                (long long)(start + size), (long long)a.n);
    return;
  }
  copy_range(interp_out(f, op, 0), size, 0, interp_in(f, op, 0), a.n, start, size, a.outer,
             a.inner);
}

void interp_pad(interp_frame *f, const ir_op *op) {
  axis a = axis_of(op, op->in[0]), b = axis_of(op, op->out[0]);
  copy_range(interp_out(f, op, 0), b.n, ir_attr_int(op, "before", 0), interp_in(f, op, 0), a.n, 0,
             a.n, a.outer, a.inner);
}

// concat, and join: the part is the outer index of the joined axis, so parts lie one after another.
void interp_concat(interp_frame *f, const ir_op *op) {
  axis b = axis_of(op, op->out[0]);
  double *y = interp_out(f, op, 0);
  for (int64_t k = 0, to = 0; k < op->nin; k++) {
    axis a = axis_of(op, op->in[k]);
    copy_range(y, b.n, to, interp_in(f, op, (int)k), a.n, 0, a.n, a.outer, a.inner);
    to += a.n;
  }
}

void interp_split(interp_frame *f, const ir_op *op) {
  axis a = axis_of(op, op->in[0]);
  for (int k = 0; k < op->nout; k++) {
    int64_t size = axis_of(op, op->out[k]).n;
    copy_range(interp_out(f, op, k), size, 0, interp_in(f, op, 0), a.n, k * size, size, a.outer,
               a.inner);
  }
}

// The interpreter copies where an executable writes in place: the old cache stays readable.
void interp_append(interp_frame *f, const ir_op *op) {
  axis a = axis_of(op, op->in[0]), b = axis_of(op, op->in[1]);
  if (f->x->past < 0 || f->x->past + b.n > a.n) {
    interp_fail(f, "append: position %lld of %lld", (long long)f->x->past, (long long)a.n);
    return;
  }
  double *y = interp_out(f, op, 0);
  memcpy(y, interp_in(f, op, 0), sizeof(double) * (size_t)count_of(op->in[0]));
  copy_range(y, a.n, f->x->past, interp_in(f, op, 1), b.n, 0, b.n, a.outer, a.inner);
}

// LOCAL: the interpreter sees the whole batch as one micro-batch.
void interp_accumulate(interp_frame *f, const ir_op *op) { interp_reshape(f, op); }

// The interpreter is one rank: what others have it does not know.
void interp_exchange(interp_frame *f, const ir_op *op) {
  if (f->x->exchange)
    f->x->exchange(f->x->exchange_ctx, op, op->nin ? interp_in(f, op, 0) : NULL,
                   op->nout ? interp_out(f, op, 0) : NULL);
  else
    interp_fail(f, "%s: only ranks can do this, and the interpreter is one",
                ir_info(op->code)->name);
}

// ---- tables ------------------------------------------------------------------------------------

// The row of a table an id means, or -1 after a message.
static int64_t row_of(interp_frame *f, const ir_op *op, double id, int64_t rows) {
  if (id >= 0 && id < (double)rows) return (int64_t)id;
  interp_fail(f, "%s: %g is not a row of a table of %lld", ir_info(op->code)->name, id,
              (long long)rows);
  return -1;
}

// Row ids[i] of the table becomes row i.
void interp_gather(interp_frame *f, const ir_op *op) {
  const double *table = interp_in(f, op, 0), *ids = interp_in(f, op, 1);
  double *y = interp_out(f, op, 0);
  int64_t rows = op->in[0]->type.dim[0]->size, n = count_of(op->in[0]) / rows;
  for (int64_t i = 0; i < count_of(op->in[1]); i++) {
    int64_t r = row_of(f, op, ids[i], rows);
    if (r >= 0) memcpy(y + i * n, table + r * n, sizeof *y * (size_t)n);
  }
}

// Row i of g is added to row ids[i] of the base, or of zeros.
void interp_scatter_add(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *ids = interp_in(f, op, 1);
  double *y = interp_out(f, op, 0);
  int64_t rows = op->out[0]->type.dim[0]->size, n = count_of(op->out[0]) / rows;
  if (op->nin > 2) memcpy(y, interp_in(f, op, 2), sizeof *y * (size_t)count_of(op->out[0]));
  for (int64_t i = 0; i < count_of(op->in[1]); i++) {
    int64_t r = row_of(f, op, ids[i], rows);
    for (int64_t k = 0; k < n && r >= 0; k++) y[r * n + k] += g[i * n + k];
  }
}

// ---- contraction and reduction -----------------------------------------------------------------

// x rounded to the eight significant bits of bf16, halves to even. Its range is that of f32.
static double to_bf16(double x) {
  int e;
  double m = frexp(x, &e);
  return isfinite(x) ? ldexp(nearbyint(ldexp(m, 8)), e - 8) : x;
}

static const double *rounded(interp_frame *f, const double *x, int64_t n) {
  double *y = arena_new(f->arena, double, n);
  for (int64_t i = 0; i < n; i++) y[i] = to_bf16(x[i]);
  return y;
}

// Every word of the spec is a loop: those of the result outside, summed ones inside.
void interp_einsum(interp_frame *f, const ir_op *op) {
  ir_rule rule;
  ir_rule_of(f->x->m, op, &rule);
  int64_t size[RULE_MAX_WORDS] = {0}, stride[2][RULE_MAX_WORDS] = {{0}}, at[RULE_MAX_WORDS] = {0};
  int order[RULE_MAX_WORDS], n = 0;
  const double *x[2] = {interp_in(f, op, 0), op->nin > 1 ? interp_in(f, op, 1) : NULL};
  for (int k = 0; k < rule.nin; k++) {
    interp_shape s = interp_shape_of(&op->in[k]->type);
    for (int d = 0; d < s.rank; d++) {
      size[rule.in[k].dim[d].word[0]] = s.size[d];
      stride[k][rule.in[k].dim[d].word[0]] = s.stride[d];
    }
  }
  for (int d = 0; d < rule.out[0].n; d++) order[n++] = rule.out[0].dim[d].word[0];
  int nout = n;
  for (int w = 0; w < rule.nwords; w++)
    if (rule.kind[w] == KIND_SUM) order[n++] = w;
  for (int k = 0; k < rule.nin && ir_get_attr(op, "round"); k++)
    x[k] = rounded(f, x[k], count_of(op->in[k]));
  double *y = interp_out(f, op, 0);
  int64_t out = count_of(op->out[0]), a = 0, b = 0, inner = 1;
  for (int i = nout; i < n; i++) inner *= size[order[i]];
  for (int64_t e = 0; e < out; e++) {
    double sum = ir_base(op) < 0 ? 0 : interp_in(f, op, ir_base(op))[e];
    for (int64_t s = 0; s < inner; s++) {
      sum += op->nin > 1 ? x[0][a] * x[1][b] : x[0][a];
      // Step the summed words like an odometer; after the last they are all 0 again.
      for (int i = n - 1; i >= nout; i--) {
        int w = order[i];
        a += stride[0][w], b += stride[1][w];
        if (++at[w] < size[w]) break;
        a -= at[w] * stride[0][w], b -= at[w] * stride[1][w];
        at[w] = 0;
      }
    }
    y[e] = sum;
    for (int i = nout - 1; i >= 0; i--) {
      int w = order[i];
      a += stride[0][w], b += stride[1][w];
      if (++at[w] < size[w]) break;
      a -= at[w] * stride[0][w], b -= at[w] * stride[1][w];
      at[w] = 0;
    }
  }
  interp_epilogue(f, op);
}

// Where element e of a value lies after its axes in `gone` are dropped.
static int64_t without(const interp_shape *in, const bool *gone, int64_t e) {
  int64_t at = 0, stride = 1;
  for (int d = in->rank - 1; d >= 0; d--) {
    if (gone[d]) continue;
    at += e / in->stride[d] % in->size[d] * stride;
    stride *= in->size[d];
  }
  return at;
}

static void reduce(interp_frame *f, const ir_op *op, bool maximum) {
  const ir_attr *axes = ir_get_attr(op, "axes");
  bool gone[IR_MAX_RANK] = {0};
  for (int i = 0; i < axes->n; i++) gone[axes->v[i]] = true;
  interp_shape in = interp_shape_of(&op->in[0]->type);
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  for (int64_t e = 0; maximum && e < count_of(op->out[0]); e++) y[e] = -INFINITY;
  for (int64_t e = 0; e < in.n; e++) {
    double *to = &y[without(&in, gone, e)], v = x[e];
    if (op->nregions) interp_scalars(f, op->region[0], &x[e], 1, &v);
    *to = !maximum ? *to + v : v > *to ? v : *to;
  }
}

void interp_sum(interp_frame *f, const ir_op *op) { reduce(f, op, false); }

void interp_reduce_max(interp_frame *f, const ir_op *op) { reduce(f, op, true); }

// log(sum(exp(x))), safe from overflow; -inf for a row of -inf.
static double log_sum_exp(const double *x, int64_t n) {
  double top = -INFINITY, sum = 0;
  for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
  if (isinf(top)) return top;
  for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
  return top + log(sum);
}

void interp_lse(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  int64_t n = last_of(op->in[0]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++) y[r] = log_sum_exp(x + r * n, n);
}

void interp_softmax(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  int64_t n = last_of(op->in[0]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++) {
    double lse = log_sum_exp(x + r * n, n);
    for (int64_t i = 0; i < n; i++) y[r * n + i] = exp(x[r * n + i] - lse);
  }
}

// dx = y * (g - sum(g * y)), y being the softmax.
void interp_softmax_grad(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *y = interp_in(f, op, 1);
  double *dx = interp_out(f, op, 0);
  int64_t n = last_of(op->in[0]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++, g += n, y += n, dx += n) {
    double dot = 0;
    for (int64_t i = 0; i < n; i++) dot += g[i] * y[i];
    for (int64_t i = 0; i < n; i++) dx[i] = y[i] * (g[i] - dot);
  }
}

// ---- norms -------------------------------------------------------------------------------------

// The variance is that of the row, not an estimate: divided by n.
void interp_layernorm(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0), *w = interp_in(f, op, 1), *b = interp_in(f, op, 2);
  double *y = interp_out(f, op, 0), *mean = interp_out(f, op, 1), *rstd = interp_out(f, op, 2);
  int64_t n = last_of(op->in[0]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    double sum = 0, square = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    mean[r] = sum / (double)n;
    for (int64_t i = 0; i < n; i++) square += (x[i] - mean[r]) * (x[i] - mean[r]);
    rstd[r] = 1 / sqrt(square / (double)n + ir_attr_float(op, "eps", 0));
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean[r]) * rstd[r] * w[i] + b[i];
  }
}

// With u = g * w and z the normalised x: dx = rstd * (u - mean(u) - z * mean(u * z)).
void interp_layernorm_grad(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *x = interp_in(f, op, 1), *w = interp_in(f, op, 2);
  const double *mean = interp_in(f, op, 3), *rstd = interp_in(f, op, 4);
  double *dx = interp_out(f, op, 0);
  int64_t n = last_of(op->in[1]), rows = count_of(op->in[1]) / n;
  for (int64_t r = 0; r < rows; r++, g += n, x += n, dx += n) {
    double u = 0, uz = 0;
    for (int64_t i = 0; i < n; i++) {
      u += g[i] * w[i] / (double)n;
      uz += g[i] * w[i] * (x[i] - mean[r]) * rstd[r] / (double)n;
    }
    for (int64_t i = 0; i < n; i++)
      dx[i] = rstd[r] * (g[i] * w[i] - u - (x[i] - mean[r]) * rstd[r] * uz);
  }
  interp_epilogue(f, op);
}

// dweight = sum of g * z over rows, dbias = sum of g.
void interp_layernorm_grad_w(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *x = interp_in(f, op, 1);
  const double *mean = interp_in(f, op, 2), *rstd = interp_in(f, op, 3);
  double *dw = interp_out(f, op, 0), *db = interp_out(f, op, 1);
  int64_t n = last_of(op->in[1]), rows = count_of(op->in[1]) / n;
  for (int64_t r = 0; r < rows; r++, g += n, x += n)
    for (int64_t i = 0; i < n; i++) {
      dw[i] += g[i] * (x[i] - mean[r]) * rstd[r];
      db[i] += g[i];
    }
}

// A row of rmsnorm is one head; the rows of x are batch rows times heads, which is also the order
// of the 1/rms values.
void interp_rmsnorm(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0), *w = interp_in(f, op, 1);
  double *y = interp_out(f, op, 0), *rrms = interp_out(f, op, 1);
  int64_t n = last_of(op->in[1]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    double square = 0;
    for (int64_t i = 0; i < n; i++) square += x[i] * x[i];
    rrms[r] = 1 / sqrt(square / (double)n + ir_attr_float(op, "eps", 0));
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * rrms[r] * w[i];
  }
}

// With u = g * w and z = x * rrms: dx = rrms * (u - z * mean(u * z)).
void interp_rmsnorm_grad(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *x = interp_in(f, op, 1), *w = interp_in(f, op, 2);
  const double *rrms = interp_in(f, op, 3);
  double *dx = interp_out(f, op, 0);
  int64_t n = last_of(op->in[2]), rows = count_of(op->in[1]) / n;
  for (int64_t r = 0; r < rows; r++, g += n, x += n, dx += n) {
    double uz = 0;
    for (int64_t i = 0; i < n; i++) uz += g[i] * w[i] * x[i] * rrms[r] / (double)n;
    for (int64_t i = 0; i < n; i++) dx[i] = rrms[r] * (g[i] * w[i] - x[i] * rrms[r] * uz);
  }
  interp_epilogue(f, op);
}

// dweight = sum of g * z over rows and heads.
void interp_rmsnorm_grad_w(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *x = interp_in(f, op, 1), *rrms = interp_in(f, op, 2);
  double *dw = interp_out(f, op, 0);
  int64_t n = last_of(op->out[0]), rows = count_of(op->in[1]) / n;
  for (int64_t r = 0; r < rows; r++, g += n, x += n)
    for (int64_t i = 0; i < n; i++) dw[i] += g[i] * x[i] * rrms[r];
}

// ---- loss --------------------------------------------------------------------------------------

// A target that does not count: padding, or a position that is not predicted.
static bool ignored(const ir_op *op, double target) {
  return ir_attr_int(op, "has_ignore", 0) && target == (double)ir_attr_int(op, "ignore", 0);
}

// -log softmax(x)[target] = lse - x[target].
void interp_nll(interp_frame *f, const ir_op *op) {
  const double *x = interp_in(f, op, 0), *target = interp_in(f, op, 1);
  double *y = interp_out(f, op, 0), *lse = interp_out(f, op, 1);
  int64_t n = last_of(op->in[0]), rows = count_of(op->in[0]) / n;
  for (int64_t r = 0; r < rows; r++) {
    lse[r] = log_sum_exp(x + r * n, n);
    if (ignored(op, target[r])) continue;
    int64_t t = row_of(f, op, target[r], n);
    if (t >= 0) y[r] = lse[r] - x[r * n + t];
  }
}

// dlogits = g * (softmax - one-hot target), 0 where ignored.
void interp_nll_grad(interp_frame *f, const ir_op *op) {
  const double *g = interp_in(f, op, 0), *x = interp_in(f, op, 1);
  const double *target = interp_in(f, op, 2), *lse = interp_in(f, op, 3);
  double *dx = interp_out(f, op, 0);
  int64_t n = last_of(op->in[1]), rows = count_of(op->in[1]) / n;
  for (int64_t r = 0; r < rows; r++) {
    if (ignored(op, target[r])) continue;
    for (int64_t i = 0; i < n; i++) dx[r * n + i] = g[r] * exp(x[r * n + i] - lse[r]);
    int64_t t = row_of(f, op, target[r], n);
    if (t >= 0) dx[r * n + t] -= g[r];
  }
}
