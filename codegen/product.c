// From the spec of an einsum and the views of its operands to axes.
#include "codegen/product.h"

#include <ctype.h>
#include <string.h>

#include "ir/rule.h"

#define MAX_LETTERS 24

typedef struct spec {
  int n;
  const char *word[MAX_LETTERS];
  int length[MAX_LETTERS];
  int nin;
  int dims[3][IR_MAX_RANK], rank[3];  // word of each dimension; 2 is the result
} spec;

static int word_of(spec *s, const char *at, int length) {
  for (int i = 0; i < s->n; i++)
    if (s->length[i] == length && strncmp(s->word[i], at, (size_t)length) == 0) return i;
  IR_CHECK(s->n < MAX_LETTERS);
  s->word[s->n] = at;
  s->length[s->n] = length;
  return s->n++;
}

// "b s k, n k -> b s n"; the rule syntax with `;` is accepted too.
static spec parse_spec(const char *text) {
  spec s = {.nin = 1};
  int side = 0;
  for (const char *p = text; *p;) {
    if (*p == ',' || *p == ';') {
      side = 1;
      s.nin = 2;
      p++;
    } else if (p[0] == '-' && p[1] == '>') {
      side = 2;
      p += 2;
    } else if (isspace((unsigned char)*p)) {
      p++;
    } else {
      int n = 0;
      while (p[n] && !isspace((unsigned char)p[n]) && p[n] != ',' && p[n] != ';' &&
             !(p[n] == '-' && p[n + 1] == '>'))
        n++;
      IR_CHECK(s.rank[side] < IR_MAX_RANK);
      s.dims[side][s.rank[side]++] = word_of(&s, p, n);
      p += n;
    }
  }
  return s;
}

// The axes of one word in all tensors; a word twice in one operand walks its diagonal.
static bool word_axes(b_axes *to, const spec *s, int word, const ir_view *const *view,
                      const int *rank, int tensors) {
  b_axes x = {.tensors = tensors};
  b_part part[MAX_TENSORS] = {0};
  for (int i = 0; i < tensors; i++) {
    int side = i < O ? i : O;
    for (int d = 0; d < s->rank[side]; d++) {
      int own =
          d - (s->rank[side] - rank[i]);  // further operands are aligned at the last dimension
      if (s->dims[side][d] == word && view[i] && own >= 0)
        part[i] = (b_part){view[i], view[i]->dim_first[own], view[i]->dim_first[own + 1]};
    }
  }
  if (!b_align(&x, part, tensors)) return false;
  for (int i = 0; i < 3; i++) {
    bool first = true;
    for (int d = s->rank[i] - 1; d >= 0; d--) {
      if (s->dims[i][d] != word || !view[i]) continue;
      if (!first) {
        b_axes again = {.tensors = 1};
        b_part more = {view[i], view[i]->dim_first[d], view[i]->dim_first[d + 1]};
        if (!b_align(&again, &more, 1) || again.n != x.n) return false;
        for (int a = 0; a < x.n; a++) x.stride[i][a] += again.stride[0][a];
      }
      first = false;
    }
  }
  IR_CHECK(to->n + x.n <= B_MAX_AXES);
  for (int a = 0; a < x.n; a++) {
    for (int i = 0; i < tensors; i++) to->stride[i][to->n] = x.stride[i][a];
    to->size[to->n++] = x.size[a];
  }
  return true;
}

static bool in_side(const spec *s, int side, int word) {
  for (int d = 0; d < s->rank[side]; d++)
    if (s->dims[side][d] == word) return true;
  return false;
}

// Words in the order of the result, then those summed in the order of the first operand: the order
// in which neighbouring axes can merge.
static bool classify(product *p, const spec *s, const ir_view *const *view, const int *rank) {
  b_axes *all[] = {&p->batch, &p->m, &p->n, &p->k};
  for (int i = 0; i < 4; i++) all[i]->tensors = p->tensors;
  bool done[MAX_LETTERS] = {0};
  for (int turn = 0; turn < 3; turn++) {
    int side = turn == 0 ? 2 : turn - 1;
    for (int d = 0; d < s->rank[side]; d++) {
      int w = s->dims[side][d];
      if (done[w]) continue;
      done[w] = true;
      bool a = in_side(s, 0, w), b = s->nin > 1 && in_side(s, 1, w), o = in_side(s, 2, w);
      b_axes *to = !o ? &p->k : a && b ? &p->batch : a ? &p->m : &p->n;
      if (!word_axes(to, s, w, view, rank, p->tensors)) return false;
    }
  }
  for (int i = 0; i < 4; i++) b_collapse(all[i]);
  return true;
}

// The columns of the result should be the axis that is fine in its storage.
static void swap_operands(product *p) {
  int64_t best_m = INT64_MAX, best_n = INT64_MAX;
  for (int a = 0; a < p->m.n; a++)
    if (p->m.stride[O][a] < best_m) best_m = p->m.stride[O][a];
  for (int a = 0; a < p->n.n; a++)
    if (p->n.stride[O][a] < best_n) best_n = p->n.stride[O][a];
  if (best_n <= best_m) return;
  b_axes m = p->m;
  p->m = p->n;
  p->n = m;
  b_axes *all[] = {&p->batch, &p->m, &p->n, &p->k};
  for (int i = 0; i < 4; i++)
    for (int a = 0; a < all[i]->n; a++) {
      int64_t s = all[i]->stride[A][a];
      all[i]->stride[A][a] = all[i]->stride[B][a];
      all[i]->stride[B][a] = s;
    }
  ir_value *v = p->value[A];
  p->value[A] = p->value[B];
  p->value[B] = v;
}

b_axes product_axis(b_axes *x, int finest_of) {
  b_axes one = {.n = 1, .tensors = x->tensors, .size = {1}};
  int best = -1;
  for (int a = 0; a < x->n; a++) {
    bool better = best < 0;
    if (!better && finest_of >= 0) better = x->stride[finest_of][a] < x->stride[finest_of][best];
    if (!better && finest_of < 0) better = x->size[a] > x->size[best];
    if (better) best = a;
  }
  if (best < 0) return one;
  one.size[0] = x->size[best];
  for (int t = 0; t < x->tensors; t++) one.stride[t][0] = x->stride[t][best];
  b_drop(x, best);
  return one;
}

const char *product_of(ir_op *op, product *p) {
  spec s = parse_spec(ir_attr_str(op, "spec", ""));
  int further = op->nin > s.nin ? op->nin - s.nin : 0;
  *p = (product){.tensors = O + op->nout + further, .results = op->nout};
  if (s.nin > 2 || op->nin < s.nin || (further && !op->nregions && ir_base(op) < 0) ||
      p->tensors > MAX_TENSORS)
    return "einsum of too many operands";
  for (int i = 0; i < s.nin; i++) p->value[i] = op->in[i];
  for (int i = 0; i < op->nout; i++) p->value[O + i] = op->out[i];
  for (int i = 0; i < further; i++) p->value[O + op->nout + i] = op->in[s.nin + i];
  ir_view views[MAX_TENSORS];
  const ir_view *view[MAX_TENSORS];
  int rank[MAX_TENSORS];
  for (int t = 0; t < p->tensors; t++) {
    ir_value *v = p->value[t];
    view[t] = v ? &views[t] : NULL;
    rank[t] = v ? v->type.rank : 0;
    if (v) views[t] = ir_view_of(v);
  }
  if (!classify(p, &s, view, rank)) return "einsum: layouts do not nest";
  p->flops = 2.0 * (double)b_product(&p->batch) * (double)b_product(&p->m) *
             (double)b_product(&p->n) * (double)b_product(&p->k);
  p->round = strcmp(ir_attr_str(op, "round", ""), "bf16") == 0 ? DT_bf16 : DT_f32;
  if (s.nin == 2) swap_operands(p);
  return NULL;
}
