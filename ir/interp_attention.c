// Attention, its gradients and rotary positions in the interpreter.
//
// Scores are visited one by one: for sample row b, query head h, query i and key j,
//   score = scale * q·k + bias(b, h, i, j)     where mask(b, h, i, j), else no score
// and everything else is sums over visible keys. Dropout multiplies a probability with its factor,
// 1/(1-drop) or 0 (1 without dropout). Sizes: B rows of the flattened batch, S queries,
// T keys, H query heads = KV * rep, D the width of a head of q and k, V that of v.
#include <math.h>
#include <string.h>

#include "ir/interp_impl.h"
#include "ir/rule.h"
#include "ir/scalar_grad.h"

typedef struct scores {
  interp_frame *f;
  const ir_op *op;
  const double *q, *k, *v;
  int64_t B, S, T, H, KV, D, V;
  int64_t past, keys;  // keys 0 .. keys-1 exist
  double scale, drop;
  const ir_region *mask, *bias;  // or NULL
  ir_type batch;                 // q's type without its last two dimensions
} scores;

// `first` is the operand that holds q; k, v and the captures follow.
static scores scores_of(interp_frame *f, const ir_op *op, int first) {
  const ir_type *q = &op->in[first]->type, *k = &op->in[first + 1]->type;
  const ir_type *v = &op->in[first + 2]->type;
  scores s = {.f = f,
              .op = op,
              .q = interp_in(f, op, first),
              .k = interp_in(f, op, first + 1),
              .v = interp_in(f, op, first + 2),
              .B = interp_extent(q, 0, q->rank - 2),
              .S = q->dim[q->rank - 2]->size,
              .T = k->dim[k->rank - 2]->size,
              .KV = ir_attr_int(op, "kv_heads", 1),
              .scale = ir_attr_float(op, "scale", 1),
              .drop = ir_attr_float(op, "drop", 0)};
  if (s.drop > 0 && ir_get_attr(op, "draws"))
    interp_fail(f, "attention: draws of a part of a value");
  s.batch = *q;
  s.batch.rank -= 2;
  s.H = s.KV * ir_attr_int(op, "rep", 1);
  s.D = q->dim[q->rank - 1]->size / s.H;
  s.V = v->dim[v->rank - 1]->size / s.KV;
  bool cached = ir_attr_int(op, "past", 0) != 0;
  s.past = cached ? f->x->past : 0;
  s.keys = cached ? s.past + s.S : s.T;
  if (s.keys > s.T)
    interp_fail(f, "attention: %lld keys in a cache of %lld", (long long)s.keys, (long long)s.T);
  // The regions' captured arguments, mask's first.
  int r = 0, at = first + 3, nmask = (int)ir_attr_int(op, "ncap_mask", 0);
  if (ir_attr_int(op, "has_mask", 0)) {
    s.mask = op->region[r++];
    for (int i = 0; i < nmask; i++, at++)
      interp_capture(f, s.mask->args.at[4 + i], interp_in(f, op, at));
  }
  if (ir_attr_int(op, "has_bias", 0)) {
    s.bias = op->region[r];
    for (int i = 0; at < op->nin; i++, at++)
      interp_capture(f, s.bias->args.at[4 + i], interp_in(f, op, at));
  }
  return s;
}

// Heads are the outer part of the last axis; query head h reads key head h / rep.
static const double *q_at(const scores *s, int64_t b, int64_t h, int64_t i) {
  return s->q + ((b * s->S + i) * s->H + h) * s->D;
}

static const double *k_at(const scores *s, int64_t b, int64_t h, int64_t j) {
  return s->k + ((b * s->T + j) * s->KV + h / (s->H / s->KV)) * s->D;
}

static const double *v_at(const scores *s, int64_t b, int64_t h, int64_t j) {
  return s->v + ((b * s->T + j) * s->KV + h / (s->H / s->KV)) * s->V;
}

static double dot(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

// The score, or -inf where the mask hides the key.
static double score(const scores *s, int64_t b, int64_t h, int64_t i, int64_t j) {
  double at[4] = {(double)b, (double)h, (double)(i + s->past), (double)j}, seen = 1, bias = 0;
  if (s->mask) interp_scalars(s->f, s->mask, at, 4, &seen);
  if (seen == 0) return -INFINITY;
  if (s->bias) interp_scalars(s->f, s->bias, at, 4, &bias);
  return s->scale * dot(q_at(s, b, h, i), k_at(s, b, h, j), s->D) + bias;
}

// What dropout multiplies the probability with: 1/(1-drop), 0, or 1 without dropout.
static double factor(const scores *s, int64_t b, int64_t h, int64_t i, int64_t j) {
  uint64_t sample, row;
  if (s->drop <= 0) return 1;
  interp_position(s->f, &s->batch, b, &sample, &row);
  row = (row * (uint64_t)s->H + (uint64_t)h) * (uint64_t)s->S + (uint64_t)(i + s->past);
  return interp_dropout_factor(s->f, s->op, s->drop, sample, row * (uint64_t)s->T + (uint64_t)j);
}

// o = sum_j factor_j exp(score_j - lse) v_j,  lse = log(sum_j exp(score_j)). attention_next: what
// comes in stands for one more key, of score `lse` and value `o`.
void interp_attention(interp_frame *f, const ir_op *op) {
  bool next = op->code == IR_attention_next;
  scores s = scores_of(f, op, ir_queries(op));
  const double *before = next ? interp_in(f, op, 0) : NULL,
               *had = next ? interp_in(f, op, 1) : NULL;
  double *o = interp_out(f, op, 0), *lse = interp_out(f, op, 1);
  double *x = arena_new(f->arena, double, s.T);
  for (int64_t e = 0; e < s.B * s.H * s.S && !f->error; e++) {
    int64_t b = e / (s.H * s.S), h = e / s.S % s.H, i = e % s.S;
    int64_t at = ((b * s.S + i) * s.H + h) * s.V;
    double top = next ? had[e] : -INFINITY, sum = 0, *row = o + at;
    for (int64_t j = 0; j < s.keys; j++) {
      x[j] = score(&s, b, h, i, j);
      top = x[j] > top ? x[j] : top;
    }
    lse[e] = top;
    if (isinf(top)) continue;  // no key is seen: zeros and -inf
    for (int64_t j = 0; j < s.keys; j++) sum += exp(x[j] - top);
    if (next) sum += exp(had[e] - top);
    lse[e] = top + log(sum);
    for (int64_t d = 0; next && d < s.V; d++) row[d] = exp(had[e] - lse[e]) * before[at + d];
    for (int64_t j = 0; j < s.keys; j++) {
      double p = exp(x[j] - lse[e]) * factor(&s, b, h, i, j);
      for (int64_t d = 0; d < s.V; d++) row[d] += p * v_at(&s, b, h, j)[d];
    }
  }
}

// ---- gradients ---------------------------------------------------------------------------------

typedef struct backward {
  scores s;
  const double *go, *o, *lse;
} backward;

static backward backward_of(interp_frame *f, const ir_op *op) {
  return (backward){scores_of(f, op, 3), interp_in(f, op, 0), interp_in(f, op, 1),
                    interp_in(f, op, 2)};
}

// What key j's value is weighed with, and the gradient of its score:
//   p = exp(score - lse),  weight = p * factor,  ds = p * (do·v * factor - do·o)
static double weight(const backward *t, int64_t b, int64_t h, int64_t i, int64_t j, double *ds) {
  const scores *s = &t->s;
  const double *go = t->go + ((b * s->S + i) * s->H + h) * s->V;
  const double *o = t->o + ((b * s->S + i) * s->H + h) * s->V;
  double lse = t->lse[(b * s->H + h) * s->S + i], x = score(s, b, h, i, j);
  double p = isinf(x) ? 0 : exp(x - lse), by = factor(s, b, h, i, j);
  *ds = p * (dot(go, v_at(s, b, h, j), s->V) * by - dot(go, o, s->V));
  return p * by;
}

// dq = scale * sum_j ds k_j;  dk_j = scale * sum_i ds q_i;  dv_j = sum_i weight do_i. Query heads
// that share a key head add up.
void interp_attention_grad(interp_frame *f, const ir_op *op) {
  backward t = backward_of(f, op);
  const scores *s = &t.s;
  double *dq = interp_out(f, op, 0), *dk = interp_out(f, op, 1), *dv = interp_out(f, op, 2);
  for (int64_t e = 0; e < s->B * s->H * s->S; e++) {
    int64_t b = e / (s->H * s->S), h = e / s->S % s->H, i = e % s->S;
    const double *go = t.go + ((b * s->S + i) * s->H + h) * s->V;
    for (int64_t j = 0; j < s->keys; j++) {
      double ds, p = weight(&t, b, h, i, j, &ds);
      double *dqi = dq + (q_at(s, b, h, i) - s->q), *dkj = dk + (k_at(s, b, h, j) - s->k);
      double *dvj = dv + (v_at(s, b, h, j) - s->v);
      for (int64_t d = 0; d < s->D; d++) {
        dqi[d] += s->scale * ds * k_at(s, b, h, j)[d];
        dkj[d] += s->scale * ds * q_at(s, b, h, i)[d];
      }
      for (int64_t d = 0; d < s->V; d++) dvj[d] += p * go[d];
    }
  }
}

// The regions that say where the gradient of a score goes in one captured tensor.
typedef struct capture_grad {
  int nat;
  ir_region *at[16];  // per `at` op: yields gradient, positions
  ir_region *whole;   // a captured scalar used as it is; NULL for tensors
} capture_grad;

static capture_grad capture_grad_of(interp_frame *f, ir_region *bias, int arg) {
  ir_module *m = f->x->m;
  capture_grad c = {0};
  int at[16];
  c.nat = ir_scalar_ats(bias, arg, at, 16);
  if (c.nat > 16) {
    interp_fail(f, "attention_grad_bias: a bias reads one tensor in %d places", c.nat);
    c.nat = 0;
  }
  if (!bias->args.at[arg]->type.rank) {
    // Reads by `at` without positions are part of the derivative by the argument.
    bool *want = arena_new(f->arena, bool, bias->args.n);
    want[arg] = true;
    c.nat = 0;
    c.whole = ir_scalar_grad(m, bias, want);
  }
  for (int i = 0; i < c.nat; i++) c.at[i] = ir_scalar_grad_at(m, bias, at[i]);
  interp_grow(f);
  return c;
}

// Gives a gradient region the captured arguments of the bias it was made from.
static void copy_captures(interp_frame *f, const ir_region *from, const ir_region *to) {
  for (int i = 4; i < from->args.n; i++)
    interp_capture(f, to->args.at[i], f->data[from->args.at[i]->id]);
}

// Adds one score's share to the elements its bias read.
static void add_capture(interp_frame *f, const scores *s, const capture_grad *c, const double *at,
                        double ds, const ir_type *type, double *y) {
  interp_shape shape = interp_shape_of(type);
  double out[IR_MAX_RANK + 1];
  for (int n = 0; n < c->nat + (c->whole != NULL); n++) {
    const ir_region *r = c->whole ? c->whole : c->at[n];
    f->scalar[r->args.at[s->bias->args.n]->id] = ds;  // the last argument: the gradient
    interp_scalars(f, r, at, 4, out);
    int64_t to = 0;
    bool inside = true;
    for (int d = 0; d < shape.rank; d++) {
      double p = trunc(out[d + 1]);
      inside = inside && p >= 0 && p < (double)shape.size[d];
      if (inside) to += (int64_t)p * shape.stride[d];
    }
    if (inside) y[to] += out[0];
  }
}

void interp_attention_grad_bias(interp_frame *f, const ir_op *op) {
  backward t = backward_of(f, op);
  const scores *s = &t.s;
  double *y = interp_out(f, op, 0);
  int arg = 4 + (int)(ir_attr_int(op, "capture", 0) - ir_attr_int(op, "ncap_mask", 0));
  if (arg < 4 || !s->bias) return;  // a mask passes no gradient
  capture_grad c = capture_grad_of(f, op->region[op->nregions - 1], arg);
  for (int i = 0; i < c.nat; i++) copy_captures(f, s->bias, c.at[i]);
  if (c.whole) copy_captures(f, s->bias, c.whole);
  for (int64_t e = 0; e < s->B * s->H * s->S; e++) {
    int64_t b = e / (s->H * s->S), h = e / s->S % s->H, i = e % s->S;
    for (int64_t j = 0; j < s->keys; j++) {
      double ds, at[4] = {(double)b, (double)h, (double)(i + s->past), (double)j};
      weight(&t, b, h, i, j, &ds);
      if (ds != 0) add_capture(f, s, &c, at, ds, &op->out[0]->type, y);
    }
  }
}

// ---- rotary positions --------------------------------------------------------------------------

// The halves of a head are the parts of complex numbers, turned by position * theta^(-2i/n).
void interp_rope(interp_frame *f, const ir_op *op) {
  if (ir_get_attr(op, "begins")) interp_fail(f, "rope: of a rank's part of the positions");
  const ir_type *t = &op->in[0]->type;
  int64_t heads = ir_attr_int(op, "heads", 1), n = t->dim[t->rank - 1]->size / heads, half = n / 2;
  int64_t seq = t->dim[t->rank - 2]->size, rows = ir_elements(t) / n;
  double theta = ir_attr_float(op, "theta", 1e4), turn = ir_attr_int(op, "inverse", 0) ? -1 : 1;
  int64_t past = ir_attr_int(op, "past", 0) ? f->x->past : 0;
  const double *x = interp_in(f, op, 0);
  double *y = interp_out(f, op, 0);
  for (int64_t r = 0; r < rows; r++, x += n, y += n) {
    double position = (double)(r / heads % seq + past);
    for (int64_t i = 0; i < half; i++) {
      double angle = turn * position * pow(theta, -2 * (double)i / (double)n);
      y[i] = x[i] * cos(angle) - x[i + half] * sin(angle);
      y[i + half] = x[i + half] * cos(angle) + x[i] * sin(angle);
    }
  }
}
