// `repeat`: bodies, rolled.
//
// A body is lowered into a region of its own. When the text does not name the index, one lowering
// serves all iterations. When it does, every iteration is lowered, equal bodies are recognised by
// their texts, and the sequence of bodies is cut into segments, each a repeat:
//
//   a b a b a b c c        (a b) x 3, c x 2
//
// A segment (first s, period p, times m) has a body of p iterations; the weights of its part q are
// stacked over layers s+q, s+q+p, ... The cut with the fewest bodies wins, then the one with the
// fewest repeats. It is made for the first function of a module and followed by the others, because
// states are stacked by it. A repeat inside a repeat is written out.
#include <limits.h>
#include <string.h>

#include "frontend/sema_impl.h"

enum { MAX_LAYERS = 1 << 20, MAX_BODIES = 4096, MAX_PERIOD = 64 };

typedef struct carried {
  const char *name;
  span at;         // where the name was bound before
  ir_value *init;  // in the frame around
} carried;
typedef VEC(carried) carried_list;

typedef struct body {
  frame *frame;
  scope *scope;
  const char *text;
  int class_;
} body;

// ---------------------------------------------------------------------------------------------
// Looking at the text of a body
// ---------------------------------------------------------------------------------------------

static bool mentions(const expr *e, const char *name);

static bool list_mentions(const expr_list *l, const char *name) {
  for (int i = 0; i < l->n; i++)
    if (mentions(l->at[i], name)) return true;
  return false;
}

static bool mentions(const expr *e, const char *name) {
  if (!e) return false;
  switch (e->kind) {
    case EXPR_NUMBER:
    case EXPR_STRING: return false;
    case EXPR_NAME: return str_eq(e->text, name);
    case EXPR_CALL:
      for (int i = 0; i < e->call.args.n; i++)
        if (mentions(e->call.args.at[i].value, name)) return true;
      return str_eq(e->call.name.text, name);
    case EXPR_INDEX:
      for (int i = 0; i < e->index.picks.n; i++) {
        const pick *p = &e->index.picks.at[i];
        if (mentions(p->at_expr, name) || mentions(p->from, name) || mentions(p->to, name))
          return true;
      }
      return mentions(e->index.base, name);
    case EXPR_LIST: return list_mentions(&e->items, name);
    case EXPR_UNARY: return mentions(e->unary.operand, name);
    case EXPR_BINARY: return mentions(e->binary.left, name) || mentions(e->binary.right, name);
    case EXPR_IF:
      return mentions(e->cond.test, name) || mentions(e->cond.yes, name) ||
             mentions(e->cond.no, name);
  }
  return false;
}

static bool type_mentions(const type *t, const char *name) {
  for (int i = 0; t && i < t->extents.n; i++)
    if (mentions(t->extents.at[i].size, name)) return true;
  return false;
}

static bool formals_mention(const formal_list *f, const char *name) {
  for (int i = 0; i < f->n; i++)
    if (mentions(f->at[i].value, name) || type_mentions(f->at[i].type, name)) return true;
  return false;
}

static bool body_mentions(const stmt_list *list, const char *name) {
  for (int i = 0; i < list->n; i++) {
    const stmt *s = list->at[i];
    if (mentions(s->value, name) || type_mentions(s->type, name) ||
        list_mentions(&s->values, name) || body_mentions(&s->body, name))
      return true;
    if (s->block &&
        (formals_mention(&s->block->formals, name) || body_mentions(&s->block->body, name)))
      return true;
    if (s->fn && (formals_mention(&s->fn->formals, name) || mentions(s->fn->body, name) ||
                  list_mentions(&s->fn->grads, name)))
      return true;
  }
  return false;
}

static void assigned_names(lowering *lw, const stmt_list *list, map *out) {
  for (int i = 0; i < list->n; i++) {
    const stmt *s = list->at[i];
    if (s->kind == STMT_ASSIGN)
      for (int k = 0; k < s->names.n; k++) map_set(out, s->names.at[k].text, "");
    if (s->kind == STMT_REPEAT) assigned_names(lw, &s->body, out);
  }
}

// ---------------------------------------------------------------------------------------------
// One body
// ---------------------------------------------------------------------------------------------

static frame *new_frame(lowering *lw, const char *path, const char *again) {
  frame *f = arena_new(lw->arena, frame, 1);
  f->outer = lw->frame;
  f->kind = FRAME_REPEAT;
  f->region = ir_region_new(lw->m, NULL);
  f->weight_by_name.arena = f->path_uses.arena = f->stacks.arena = lw->arena;
  f->repeat = path;
  f->again = again;
  return f;
}

static body lower_body(lowering *lw, const stmt *s, const carried_list *carry, int64_t index,
                       const char *again) {
  const char *chain = lw->chain, *inside = arena_printf(lw->arena, "%s.#", s->path.text);
  body b = {.frame = new_frame(lw, path_join(lw->arena, chain, inside), again),
            .scope = scope_new(lw, lw->scope, INT_MAX)};
  ir_region_arg(b.frame->region, ir_scalar(DT_i32), "layer");
  for (int i = 0; i < carry->n; i++) {
    const carried *c = &carry->at[i];
    ir_value *in = ir_region_arg(b.frame->region, c->init->type, c->name);
    in->span = c->init->span;
    scope_bind(lw, b.scope, c->name, val_tensor(in), c->at);
  }
  if (s->index.text) scope_bind(lw, b.scope, s->index.text, val_whole(index), s->index.at);
  scope *outer = lw->scope;
  lw->frame = b.frame;
  lw->scope = b.scope;
  lw->chain = b.frame->repeat;
  lower_statements(lw, &s->body, false);
  lw->chain = chain;
  lw->scope = outer;
  lw->frame = b.frame->outer;
  return b;
}

static void carried_changes(lowering *lw, const stmt *s, const carried *c, const char *before,
                            const char *after) {
  span at = s->at;
  for (int i = 0; i < s->body.n; i++)
    for (int k = 0; s->body.at[i]->kind == STMT_ASSIGN && k < s->body.at[i]->names.n; k++)
      if (str_eq(s->body.at[i]->names.at[k].text, c->name)) at = s->body.at[i]->names.at[k].at;
  diag *e = sema_error(lw, at, DIAG_CARRIED_CHANGES,
                       "`%s` is %s before the repeat and %s after its "
                       "body",
                       c->name, before, after);
  diag_place_at(e, c->at, "`%s` exists before the repeat, so it is carried through it", c->name);
  diag_note(e,
            "a carried value keeps its shape and type; for a value of the body alone, use "
            "another name");
}

// Ends the region of a body: what the carried names stand for now is what it yields.
static bool finish_body(lowering *lw, const stmt *s, body *b, const carried_list *carry) {
  bool ok = true;
  for (int i = 0; i < carry->n; i++) {
    const carried *c = &carry->at[i];
    const ir_type *want = &c->init->type;
    val v = scope_find(b->scope, INT_MAX, c->name)->value;
    lw->frame = b->frame;
    ir_value *now = v.kind == VAL_TENSOR || v.kind == VAL_NUMBER || v.kind == VAL_BOOL
                        ? as_tensor(lw, s->at, &v, c->init, "a carried value")
                        : NULL;
    now = now ? import_value(lw, b->frame, now) : NULL;
    lw->frame = b->frame->outer;
    if (now && ir_type_same(&now->type, want)) {
      vec_push(lw->arena, &b->frame->region->yield, now);
      continue;
    }
    if (v.kind != VAL_ERROR)
      carried_changes(lw, s, c, ir_type_text(lw->arena, want),
                      now ? ir_type_text(lw->arena, &now->type) : val_what(&v));
    ok = false;
  }
  return ok;
}

// Names that exist before and are assigned inside. Tensors are carried. A number is, when the body
// makes a tensor of it (`aux = 0` before, `aux = aux + loss` inside): `tensors` holds their names.
// False when one of them stands for a mistake: then the body is looked at, but nothing is made of
// it.
static bool find_carried(lowering *lw, const stmt *s, const map *tensors, carried_list *out) {
  bool ok = true;
  map names = {.arena = lw->arena};
  assigned_names(lw, &s->body, &names);
  for (int i = 0; i < names.n; i++) {
    const binding *b = scope_find(lw->scope, INT_MAX, names.keys[i]);
    ok = ok && !(b && b->value.kind == VAL_ERROR);
    if (!b || b->value.kind == VAL_ERROR) continue;
    bool counts = map_find(tensors, b->name) >= 0;
    if (b->value.kind != VAL_TENSOR && !counts) continue;
    val v = b->value;
    ir_value *init =
        as_tensor(lw, b->at, &v, counts ? map_get(tensors, b->name) : NULL, "a carried value");
    init = init ? import_value(lw, lw->frame, init) : NULL;
    if (init) vec_push(lw->arena, out, (carried){b->name, b->at, init});
  }
  return ok;
}

// After the first body: names that were constants before and are something else after it. Adds to
// *tensors those that became tensors; true when there are new ones, so that the body has to be
// lowered again.
static bool constants_changed(lowering *lw, const stmt *s, const body *b, map *tensors) {
  bool again = false;
  map names = {.arena = lw->arena};
  assigned_names(lw, &s->body, &names);
  for (int i = 0; i < names.n; i++) {
    const binding *old = scope_find(lw->scope, INT_MAX, names.keys[i]);
    if (!old || !val_is_constant(&old->value) || map_find(tensors, old->name) >= 0) continue;
    val now = scope_find(b->scope, INT_MAX, old->name)->value;
    if (now.kind == VAL_ERROR || (val_is_constant(&now) && val_same(&now, &old->value))) continue;
    if (now.kind == VAL_TENSOR && old->value.kind == VAL_NUMBER && now.tensor->type.rank == 0) {
      map_set(tensors, old->name, now.tensor);
      again = true;
      continue;
    }
    carried c = {old->name, old->at, NULL};
    carried_changes(lw, s, &c,
                    arena_printf(lw->arena, "the constant %s", val_text(lw->arena, &old->value)),
                    val_is_constant(&now)    ? val_text(lw->arena, &now)
                    : now.kind == VAL_TENSOR ? ir_type_text(lw->arena, &now.tensor->type)
                                             : val_what(&now));
  }
  return again;
}

// ---------------------------------------------------------------------------------------------
// Bodies as texts
// ---------------------------------------------------------------------------------------------

static void put_type(sb *out, const ir_type *t) {
  sb_puts(out, ir_dtype_name(t->dtype));
  for (int i = 0; i < t->rank; i++) sb_printf(out, ",%lld", (long long)t->dim[i]->size);
  sb_put(out, ' ');
}

static void put_region(sb *out, const ir_region *r, int *next);

static void put_op(sb *out, const ir_op *op, int *next) {
  sb_printf(out, "%d(", (int)op->code);
  for (int i = 0; i < op->nin; i++) sb_printf(out, "%d ", op->in[i]->mark);
  for (int i = 0; i < op->nattrs; i++) {
    const ir_attr *a = &op->attr[i];
    sb_printf(out, "%s=", a->key);
    switch (a->kind) {
      case ATTR_INT: sb_printf(out, "%lld ", (long long)a->i); break;
      case ATTR_FLOAT: sb_printf(out, "%a ", a->f); break;
      case ATTR_STR: sb_printf(out, "\"%s\" ", a->s); break;
      case ATTR_INTS:
        for (int k = 0; k < a->n; k++) sb_printf(out, "%lld,", (long long)a->v[k]);
        break;
    }
  }
  for (int i = 0; i < op->nregions; i++) put_region(out, op->region[i], next);
  for (int i = 0; i < op->nout; i++) {
    op->out[i]->mark = ++*next;
    put_type(out, &op->out[i]->type);
  }
  sb_printf(out, ")%d@%s\n", op->mark, op->path ? op->path : "");
}

static void put_region(sb *out, const ir_region *r, int *next) {
  sb_put(out, '{');
  for (int i = 0; i < r->args.n; i++) {
    r->args.at[i]->mark = ++*next;
    put_type(out, &r->args.at[i]->type);
  }
  for (int i = 0; i < r->ops.n; i++) put_op(out, r->ops.at[i], next);
  for (int i = 0; i < r->yield.n; i++) sb_printf(out, "%d ", r->yield.at[i]->mark);
  sb_put(out, '}');
}

// Equal texts: the bodies do the same, with weights of the same names, shapes and initial values
// and the same values from outside.
static const char *body_text(lowering *lw, const body *b) {
  sb out = {.arena = lw->arena};
  int next = 0;
  put_region(&out, b->frame->region, &next);
  for (int i = 0; i < b->frame->imports.n; i++)
    sb_printf(&out, "v%d=%d ", b->frame->imports.at[i].outer->id,
              b->frame->imports.at[i].arg->mark);
  for (int i = 0; i < b->frame->weights.n; i++) {
    const weight *w = b->frame->weights.at[i];
    sb_printf(&out, "%s=%d %d %a\n", w->name, w->value->mark, (int)w->init.kind, w->init.a);
  }
  return sb_str(&out);
}

// ---------------------------------------------------------------------------------------------
// Segments
// ---------------------------------------------------------------------------------------------

static void classify(lowering *lw, body *b, int n) {
  map classes = {.arena = lw->arena};
  for (int i = 0; i < n; i++) {
    int k = map_find(&classes, b[i].text);
    if (k < 0) {
      k = classes.n;
      map_set(&classes, b[i].text, "");
    }
    b[i].class_ = k;
  }
}

// The cut of the sequence with the fewest bodies, then the fewest repeats: a shortest path over
// positions.
static void cut(lowering *lw, const body *b, int n, rolling *out) {
  typedef struct best {
    int bodies, repeats;
    segment last;
  } best;
  best *at = arena_new(lw->arena, best, n + 1);
  int *equal = arena_new(lw->arena, int, n + 1);  // how long b[i..] equals b[i+p..]
  for (int i = 1; i <= n; i++) at[i].bodies = INT_MAX;
  int periods = n / 2 < MAX_PERIOD ? n / 2 : MAX_PERIOD;
  int **run = arena_new(lw->arena, int *, periods + 2);
  for (int p = 1; p <= periods; p++) {
    equal[n - p] = 0;
    for (int i = n - p - 1; i >= 0; i--)
      equal[i] = b[i].class_ == b[i + p].class_ ? equal[i + 1] + 1 : 0;
    run[p] = arena_new(lw->arena, int, n + 1);
    for (int i = 0; i + p <= n; i++) run[p][i] = equal[i] / p + 1;
  }
  for (int s = 0; s < n; s++)
    for (int p = 1; p <= (periods ? periods : 1) && s + p <= n; p++) {
      int most = periods ? run[p][s] : 1;
      for (int m = p == 1 ? 1 : 2; m <= most && s + m * p <= n; m++) {
        best now = {at[s].bodies + p, at[s].repeats + 1, {s, p, m}}, *old = &at[s + m * p];
        if (now.bodies < old->bodies || (now.bodies == old->bodies && now.repeats <= old->repeats))
          *old = now;
      }
    }
  int count = 0;
  for (int e = n; e > 0; e = at[e].last.first) count++;
  segment *list = arena_new(lw->arena, segment, count);
  for (int e = n; e > 0; e = at[e].last.first) list[--count] = at[e].last;
  for (int e = 0, i = 0; e < n; i++) {
    vec_push(lw->arena, &out->segments, list[i]);
    e += list[i].period * list[i].times;
  }
}

static const rolling *rolling_of(lowering *lw, const stmt *s, const body *b, int n) {
  lowering_shared *sh = lw->shared;
  if (!lw->follow) {
    rolling *r = arena_new(lw->arena, rolling, 1);
    r->path = b[0].frame->repeat;
    cut(lw, b, n, r);
    vec_push(lw->arena, &sh->rollings, r);
    return r;
  }
  const rolling *r = lw->next_rolling < sh->rollings.n ? sh->rollings.at[lw->next_rolling++] : NULL;
  bool fits = r && str_eq(r->path, b[0].frame->repeat);
  int covered = 0;
  for (int i = 0; fits && i < r->segments.n; i++) {
    segment g = r->segments.at[i];
    fits = g.first == covered && g.first + g.period * g.times <= n;
    for (int k = g.period; fits && k < g.period * g.times; k++)
      fits = b[g.first + k].class_ == b[g.first + k - g.period].class_;
    covered += g.period * g.times;
  }
  if (fits && covered == n) return r;
  sema_error(lw, s->at, DIAG_CANNOT_DECODE,
             "the layers of this repeat are alike in other ways in training than here");
  return NULL;
}

// ---------------------------------------------------------------------------------------------
// Making the op
// ---------------------------------------------------------------------------------------------

typedef struct stack {
  const weight *weight;
  int first;
  ir_value *value;  // in the frame around
} stack;

static ir_value *stack_value(lowering *lw, const stmt *s, const weight *w, int first, int step,
                             int count, ir_index *layers) {
  if (w->shared_stack) return w->shared_stack;
  if (w->type.rank == IR_MAX_RANK) {
    sema_error(lw, w->at, DIAG_BAD_EXTENT, "a weight inside a repeat has at most %d axes",
               IR_MAX_RANK - 1);
    return NULL;
  }
  ir_type t = {.dtype = w->type.dtype, .rank = w->type.rank + 1};
  t.dim[0] = layers;
  for (int i = 0; i < w->type.rank; i++) t.dim[i + 1] = w->type.dim[i];
  if (!tensor_sizes_ok(&t)) {
    sema_error(lw, w->at, DIAG_TOO_LARGE, "the weights `%s` are too large together", w->name);
    return NULL;
  }
  const ir_state *st = make_state(lw, w, t, first, step, count);
  if (!st) return NULL;
  ir_attr attr = ir_attr_s("name", st->name);
  ir_op *op = emit(lw, s->path.at, IR_state, NULL, 0, &attr, 1, NULL, 0);
  if (!op) return NULL;
  map_set(&lw->frame->stacks, w->name, op->out[0]);
  return op->out[0];
}

static void add_arg(lowering *lw, ir_region *r, ir_value *v) {
  v->pos = r->args.n;
  v->region = r;
  vec_push(lw->arena, &r->args, v);
}

// Random draws of the parts of a period differ: part q > 0 has "+q" on its paths.
static void mark_part(lowering *lw, ir_region *r, int from, int q) {
  for (int i = from; q && i < r->ops.n; i++) {
    ir_op *op = r->ops.at[i];
    if (op->code != IR_dropout && op->code != IR_attention) continue;
    op->path = arena_printf(lw->arena, "%s+%d", op->path, q);
    if (ir_get_attr(op, "key")) ir_set_attr(lw->m, op, ir_attr_i("key", path_key(op->path)));
  }
}

// Puts the arguments of a body in the order of the op: layer, carried, weights, invariants.
static bool emit_repeat(lowering *lw, const stmt *s, ir_region *r, carried_list *carry,
                        const stack *stacks, int nstacks, ir_value *const *args,
                        const import *imports, int nimports, segment g) {
  int nc = carry->n, nin = nc + nstacks + nimports;
  if (!nin) return true;  // a body without effect
  ir_value **in = arena_new(lw->arena, ir_value *, nin);
  ir_region old = *r;
  r->args.n = 0;
  r->args.cap = 0;
  for (int i = 0; i <= nc; i++) add_arg(lw, r, old.args.at[i]);
  for (int i = 0; i < nc; i++) in[i] = carry->at[i].init;
  for (int i = 0; i < nstacks; i++) {
    add_arg(lw, r, args[i]);
    in[nc + i] = stacks[i].value;
  }
  for (int i = 0; i < nimports; i++) {
    add_arg(lw, r, imports[i].arg);
    in[nc + nstacks + i] = imports[i].outer;
  }
  // An optional attribute stands last: `first` and `step` only where they say something.
  ir_attr attr[7] = {ir_attr_i("count", g.times), ir_attr_i("carried", nc),
                     ir_attr_i("stacked", nstacks), ir_attr_i("reverse", 0),
                     ir_attr_s("name", path_here(lw, s->path.text))};
  int nattrs = 5;
  if (g.first) attr[nattrs++] = ir_attr_i("first", g.first);
  if (g.period != 1) attr[nattrs++] = ir_attr_i("step", g.period);
  ir_op *op = emit(lw, s->path.at, IR_repeat, in, nin, attr, nattrs, &r, 1);
  if (op) op->path = path_here(lw, s->path.text);
  for (int i = 0; i < nc && op; i++) {
    carry->at[i].init = op->out[i];
    op->out[i]->name = carry->at[i].name;
  }
  return op != NULL;
}

static void copy_marks(ir_op *to, const ir_op *from) {
  to->mark = from->mark;
  for (int i = 0; i < from->nregions; i++)
    for (int k = 0; k < from->region[i]->ops.n; k++)
      copy_marks(to->region[i]->ops.at[k], from->region[i]->ops.at[k]);
}

static bool emit_segment(lowering *lw, const stmt *s, const body *b, segment g,
                         carried_list *carry) {
  ir_index *layers = ir_index_new(lw->m, "layer", g.times);
  ir_region *r = ir_region_new(lw->m, NULL);
  ir_value *layer = ir_region_arg(r, ir_scalar(DT_i32), "layer");
  ir_value **now = arena_new(lw->arena, ir_value *, carry->n);
  for (int i = 0; i < carry->n; i++)
    now[i] = ir_region_arg(r, carry->at[i].init->type, carry->at[i].name);
  VEC(stack) stacks = {0};
  VEC(ir_value *) args = {0};
  VEC(import) imports = {0};
  for (int q = 0; q < g.period; q++) {
    const frame *f = b[g.first + q].frame;
    const ir_region *from = f->region;
    from->args.at[0]->mapped = layer;
    for (int i = 0; i < carry->n; i++) from->args.at[i + 1]->mapped = now[i];
    for (int i = 0; i < f->weights.n; i++) {
      const weight *w = f->weights.at[i];
      ir_value *v = stack_value(lw, s, w, g.first + q, g.period, g.times, layers);
      if (!v) return false;
      ir_value *made = ir_region_arg(r, w->value->type, w->value->name);
      made->span = w->value->span;
      w->value->mapped = made;
      vec_push(lw->arena, &stacks, (stack){w, g.first + q, v});
      vec_push(lw->arena, &args, made);
    }
    for (int i = 0; i < f->imports.n; i++) {
import m = f->imports.at[i];
      ir_value *made = NULL;
      for (int k = 0; k < imports.n && !made; k++)
        if (imports.at[k].outer == m.outer) made = imports.at[k].arg;
      if (!made) {
        made = ir_region_arg(r, m.arg->type, m.arg->name);
        made->span = m.arg->span;
        vec_push(lw->arena, &imports, (import){m.outer, made});
      }
      m.arg->mapped = made;
    }
    int before = r->ops.n;
    for (int i = 0; i < from->ops.n; i++) {
      if (lw->ops-- <= 0) return false;
      copy_marks(ir_clone_op(r, from->ops.at[i]), from->ops.at[i]);
    }
    mark_part(lw, r, before, q);
    for (int i = 0; i < carry->n; i++) {
      ir_value *y = from->yield.at[i];
      now[i] = y->mapped ? y->mapped : y;
      // The next part was lowered with the carried value's own indices.
      const ir_type *t = &carry->at[i].init->type;
      for (int k = 0; k < t->rank; k++)
        if (!ir_index_unify(lw->m, t->dim[k], now[i]->type.dim[k])) {
          sema_error(lw, s->path.at, DIAG_WRONG_SHAPE,
                     "`%s` is divided in another way after the body than before it",
                     carry->at[i].name);
          return false;
        }
    }
  }
  for (int i = 0; i < carry->n; i++) vec_push(lw->arena, &r->yield, now[i]);
  return emit_repeat(lw, s, r, carry, stacks.at, stacks.n, args.at, imports.at, imports.n, g);
}

// ---------------------------------------------------------------------------------------------
// The statement
// ---------------------------------------------------------------------------------------------

static void rebind(lowering *lw, const carried_list *carry) {
  for (int i = 0; i < carry->n; i++)
    scope_bind(lw, lw->scope, carry->at[i].name, val_tensor(carry->at[i].init), carry->at[i].at);
}

// Mistakes inside were reported: the names assigned stand for nothing now.
static void poison(lowering *lw, const stmt *s) {
  map names = {.arena = lw->arena};
  assigned_names(lw, &s->body, &names);
  for (int i = 0; i < names.n; i++) {
    const binding *b = scope_find(lw->scope, INT_MAX, names.keys[i]);
    if (b) scope_bind(lw, lw->scope, names.keys[i], val_error(), b->at);
  }
}

static void unroll(lowering *lw, const stmt *s, int64_t count) {
  map names = {.arena = lw->arena};
  assigned_names(lw, &s->body, &names);
  scope *outer = lw->scope;
  const char *chain = lw->chain;
  for (int64_t i = 0; i < count && !lw->spent; i++) {
    if ((lw->fuel -= 16) <= 0) break;  // a scope and a path
    int errors = diags_errors(lw->diags);
    scope *inner = scope_new(lw, outer, INT_MAX);
    if (s->index.text) scope_bind(lw, inner, s->index.text, val_whole(i), s->index.at);
    lw->scope = inner;
    lw->chain =
        path_join(lw->arena, chain, arena_printf(lw->arena, "%s.%lld", s->path.text, (long long)i));
    lower_statements(lw, &s->body, false);
    lw->scope = outer;
    lw->chain = chain;
    for (int k = 0; k < names.n; k++) {
      const binding *old = scope_find(outer, INT_MAX, names.keys[k]);
      if (!old) continue;
      const binding *now = scope_find(inner, INT_MAX, names.keys[k]);
      val v = now->value;
      if (old->value.kind == VAL_TENSOR && v.kind == VAL_TENSOR &&
          !ir_type_same(&old->value.tensor->type, &v.tensor->type)) {
        carried c = {old->name, old->at, NULL};
        carried_changes(lw, s, &c, ir_type_text(lw->arena, &old->value.tensor->type),
                        ir_type_text(lw->arena, &v.tensor->type));
        v = val_error();
      }
      scope_bind(lw, outer, names.keys[k], v, old->at);
    }
    if (diags_errors(lw->diags) != errors) return;
  }
}

void lower_repeat(lowering *lw, const stmt *s) {
  val v = eval(lw, s->value);
  int64_t count = 0;
  if (!want_whole(lw, s->value->at, &v, "the count of a repeat", 0, MAX_LAYERS, &count)) {
    poison(lw, s);
    return;
  }
  if (count == 0) return;
  if (lw->frame->kind == FRAME_REPEAT) {
    unroll(lw, s, count);
    return;
  }
  bool indexed = s->index.text && body_mentions(&s->body, s->index.text);
  int n = indexed ? (int)count : 1;
  if (n > MAX_BODIES) {
    sema_error(lw, s->value->at, DIAG_TOO_LARGE,
               "a repeat whose body names its index runs at most %d times", MAX_BODIES);
    poison(lw, s);
    return;
  }
  // A path that is taken again (weights shared by `using`) draws other random numbers.
  const char *path = path_join(lw->arena, path_here(lw, s->path.text), "#");
  const char *again = path_unique(lw, path) + strlen(path);
  int errors = diags_errors(lw->diags);
  body *b = arena_new(lw->arena, body, n);
  map tensors = {.arena = lw->arena};
  carried_list carry = {0};
  bool ok = true, whole = true;
  for (int i = 0; i < n && ok; i++) {
    if (i == 0)
      for (int pass = 0; pass < 64; pass++) {
        carry = (carried_list){0};
        whole = find_carried(lw, s, &tensors, &carry);
        b[0] = lower_body(lw, s, &carry, 0, again);
        if (diags_errors(lw->diags) != errors || !constants_changed(lw, s, &b[0], &tensors)) break;
      }
    else
      b[i] = lower_body(lw, s, &carry, i, again);
    ok = whole && diags_errors(lw->diags) == errors && !lw->spent &&
         finish_body(lw, s, &b[i], &carry) && diags_errors(lw->diags) == errors;
    if (ok && n > 1) {
      b[i].text = body_text(lw, &b[i]);
      for (int k = 0; k < b[i].frame->weights.n; k++)
        if (b[i].frame->weights.at[k]->shared_stack) {
          sema_error(lw, s->at, DIAG_PLANNED,
                     "sharing weights inside a repeat whose body names "
                     "its index is planned, not built");
          ok = false;
        }
    }
  }
  if (!ok) {
    poison(lw, s);
    return;
  }
  if (n == 1) {
    ok = emit_segment(lw, s, b, (segment){0, 1, (int)count}, &carry);
  } else {
    classify(lw, b, n);
    const rolling *r = rolling_of(lw, s, b, n);
    ok = r != NULL;
    for (int i = 0; ok && i < r->segments.n; i++)
      ok = emit_segment(lw, s, b, r->segments.at[i], &carry);
  }
  if (ok)
    rebind(lw, &carry);
  else
    poison(lw, s);
}
