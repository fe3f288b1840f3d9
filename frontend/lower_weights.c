// Paths, weights, states.
//
// A weight's name is the chain of paths around it: "h.#.attn.c_attn.weight", where `#` is the layer
// of the repeat it stands in. In a function body a weight is the result of a `state` op; in the
// body of a repeat it is an argument, and the state, stacked over the layers, is an operand of the
// repeat.
//
// When unlike bodies make several stacks of one name, the first keeps the name and the others get
// "@F" behind it, F being their first layer: "h.#.mlp.weight@1" with first 1, step 2. What follows
// `@` is not part of any checkpoint name.
#include <stdlib.h>
#include <string.h>

#include "frontend/sema_impl.h"

const char *path_join(arena *a, const char *chain, const char *path) {
  return *chain ? arena_printf(a, "%s.%s", chain, path) : path;
}

static frame *owner_frame(lowering *lw) {
  frame *f = lw->frame;
  while (f->kind != FRAME_FUNC && f->kind != FRAME_REPEAT) f = f->outer;
  return f;
}

static weight *find_weight(frame *f, const char *name) {
  for (; f; f = f->outer) {
    weight *w = map_get(&f->weight_by_name, name);
    if (w) return w;
  }
  return NULL;
}

static bool under(const char *name, const char *prefix) {
  size_t n = strlen(prefix);
  return strncmp(name, prefix, n) == 0 && (name[n] == 0 || name[n] == '.');
}

static bool any_under(const frame *f, const char *prefix) {
  for (; f; f = f->outer) {
    for (int i = 0; i < f->stacks.n; i++)
      if (under(f->stacks.keys[i], prefix)) return true;
    for (int i = 0; i < f->weight_by_name.n; i++)
      if (under(f->weight_by_name.keys[i], prefix)) return true;
  }
  return false;
}

// ---------------------------------------------------------------------------------------------
// `as` and `using`
// ---------------------------------------------------------------------------------------------

static void nothing_to_share(lowering *lw, const expr *call) {
  const char *path = call->call.path.text;
  diag *e = sema_error(lw, call->call.path.at, DIAG_NOTHING_TO_SHARE,
                       "no weights have been made at `%s`", path);
  // The paths that there are, less their last component.
  map seen = {.arena = lw->arena};
  for (const frame *f = lw->frame; f; f = f->outer)
    for (int i = 0; i < f->weight_by_name.n && seen.n < 200; i++) {
      const char *name = f->weight_by_name.keys[i], *dot = strrchr(name, '.');
      if (!dot) continue;
      const char *prefix = arena_strndup(lw->arena, name, (size_t)(dot - name));
      if (*lw->chain && under(prefix, lw->chain) && strlen(prefix) > strlen(lw->chain))
        prefix += strlen(lw->chain) + 1;
      map_set(&seen, prefix, "");
    }
  if (!seen.n) return;
  diag_did_you_mean(e, path, seen.keys, seen.n);
  diag_list(e, "made so far", seen.keys, seen.n < 20 ? seen.n : 20);
}

bool path_enter(lowering *lw, const expr *call, path_save *save) {
  *save = (path_save){lw->chain, lw->sharing, lw->shared_any, false};
  if (call->call.role == PATH_NONE) return true;
  const char *path = call->call.path.text;
  if (call->call.role == PATH_AS) {
    lw->chain = path_join(lw->arena, lw->chain, path);
    return true;
  }
  char *around = arena_strdup(lw->arena, lw->chain);
  for (;;) {
    const char *at = path_join(lw->arena, around, path);
    if (any_under(lw->frame, at)) {
      lw->chain = at;
      lw->sharing = true;
      lw->shared_any = false;
      return true;
    }
    if (!*around) break;
    char *dot = strrchr(around, '.');
    if (dot)
      *dot = 0;
    else
      *around = 0;
    around = arena_strdup(lw->arena, around);
  }
  nothing_to_share(lw, call);
  return false;
}

void path_leave(lowering *lw, const expr *call, const path_save *save) {
  (void)call;
  lw->chain = save->chain;
  lw->sharing = save->sharing;
  lw->shared_any = save->shared_any;
}

// ---------------------------------------------------------------------------------------------
// The same path twice
// ---------------------------------------------------------------------------------------------

// The names one statement makes: the form with `#` and the layers it stands for.
struct made_name {
  int64_t first, step, count;
  bool concrete;  // a form of a name that was written without `#`
  span at;
  struct made_name *next;
};
typedef struct made_name made_name;

static bool overlap(const made_name *a, const made_name *b) {
  for (int64_t i = 0; i < a->count; i++) {
    int64_t k = a->first + i * a->step - b->first;
    if (k >= 0 && k % b->step == 0 && k / b->step < b->count) return true;
  }
  return false;
}

static const made_name *clash(const map *forms, const char *form, const made_name *now) {
  for (const made_name *m = map_get(forms, form); m; m = m->next)
    if (!(m->concrete && now->concrete) && overlap(now, m)) return m;
  return NULL;
}

static void remember_name(lowering *lw, const char *form, made_name m) {
  made_name *kept = arena_new(lw->arena, made_name, 1);
  *kept = m;
  kept->next = map_get(&lw->shared->made_names, form);
  map_set(&lw->shared->made_names, form, kept);
}

// Every form of a name: the name itself and, for each number in it, the name with `#` there.
static bool register_name(lowering *lw, const char *name, span at, int first, int step, int count) {
  const map *forms = &lw->shared->made_names;
  made_name self = {first, step, count ? count : 1, false, at, NULL};
  if (!count) self.first = 0, self.step = 1;
  const made_name *old = clash(forms, name, &self);
  if (!count)
    for (const char *p = name; *p && !old;) {
      size_t n = strcspn(p, ".");
      if (n && n < 10 && strspn(p, "0123456789") == n) {
        const char *form = arena_printf(lw->arena, "%.*s#%s", (int)(p - name), name, p + n);
        made_name part = {atoll(p), 1, 1, true, at, NULL};
        old = clash(forms, form, &part);
        if (!old) remember_name(lw, form, part);
      }
      p += n + (p[n] == '.');
    }
  if (!old) {
    remember_name(lw, name, self);
    return true;
  }
  diag *e = sema_error(lw, at, DIAG_DUPLICATE_PATH, "there are two weights `%s`", name);
  diag_place_at(e, old->at, "the first is made here");
  diag_note(e, "to share the first one's weights: `... using PATH`");
  return false;
}

// ---------------------------------------------------------------------------------------------
// Weights and states
// ---------------------------------------------------------------------------------------------

bool want_init(lowering *lw, span at, const val *v, weight_init *out) {
  if (v->kind == VAL_ERROR) return false;
  if (v->kind == VAL_INIT) {
    *out = v->init;
    return true;
  }
  if (v->kind == VAL_NUMBER && v->unit <= UNIT_COUNT) {
    *out = (weight_init){v->number == 0   ? INIT_ZEROS
                         : v->number == 1 ? INIT_ONES
                                          : INIT_CONST,
                         v->number};
    return true;
  }
  diag *e =
      sema_error(lw, at, DIAG_WRONG_KIND, "an initial value is needed; this is %s", val_what(v));
  diag_note(e, "initial values: normal(std) uniform(bound) zeros ones, or a number");
  return false;
}

ir_state *make_state(lowering *lw, const weight *w, ir_type whole, int first, int step, int count) {
  bool stacked = count > 0;
  const char *name = w->name;
  ir_state *old = ir_state_find(lw->m, name);
  if (old && stacked && (old->first != first || old->step != step)) {
    name = arena_printf(lw->arena, "%s@%d", name, first);
    old = ir_state_find(lw->m, name);
  }
  bool again = map_get(&lw->states_used, name) != NULL;
  if (!lw->follow && !register_name(lw, w->name, w->at, first, step, count)) return NULL;
  map_set(&lw->states_used, name, "");
  if (old) {
    if (!again && old->stacked == stacked && ir_type_same(&old->type, &whole)) return old;
    diag *e = sema_error(
        lw, w->at, again ? DIAG_DUPLICATE_PATH : DIAG_CANNOT_DECODE,
        again ? "there are two weights `%s`" : "the weight `%s` has another shape when generating",
        w->name);
    if (!again)
      diag_note(e, "it is %s in training and %s here: it must not depend on a dim",
                ir_type_text(lw->arena, &old->type), ir_type_text(lw->arena, &whole));
    return NULL;
  }
  ir_state s = {.name = name,
                .type = whole,
                .stacked = stacked,
                .first = first,
                .step = step,
                .cls = STATE_WEIGHT,
                .init = w->init.kind,
                .init_a = w->init.a,
                .trained = true,
                .lr_scale = 1,
                .span = ir_span_of(w->at)};
  if (!stacked) s.step = 1;
  // A multiplier of the job's: decay is for weights of two or more axes, and the layers of a stack
  // are no axis of the weight.
  s.weight_decay = whole.rank - (stacked ? 1 : 0) >= 2;
  return ir_state_add(lw->m, s);
}

// A weight of an earlier repeat, seen from another repeat as long: its stack is an operand of both.
static weight *share_stack(lowering *lw, span at, const char *name) {
  frame *f = owner_frame(lw);
  ir_value *all = f->kind == FRAME_REPEAT ? map_get(&f->outer->stacks, name) : NULL;
  if (!all || strchr(name, '#') == NULL) return NULL;
  weight *w = arena_new(lw->arena, weight, 1);
  *w = (weight){.name = name, .type = all->type, .at = at, .shared_stack = all};
  w->type.rank--;
  memmove(w->type.dim, w->type.dim + 1, sizeof *w->type.dim * (size_t)w->type.rank);
  w->value = ir_region_arg(f->region, w->type, NULL);
  vec_push(lw->arena, &f->weights, w);
  map_set(&f->weight_by_name, name, w);
  return w;
}

static ir_value *use_shared(lowering *lw, span at, const char *name, const ir_type *slice) {
  weight *w = find_weight(lw->frame, name);
  if (!w) w = share_stack(lw, at, name);
  if (!w) {
    sema_error(lw, at, DIAG_NOTHING_TO_SHARE, "there is no weight `%s` to share", name);
    return NULL;
  }
  lw->shared_any = true;
  if (!ir_type_same(&w->type, slice)) {
    diag *e = sema_error(lw, at, DIAG_WRONG_SHAPE, "the shared weight `%s` is %s, but %s is needed",
                         name, ir_type_text(lw->arena, &w->type), ir_type_text(lw->arena, slice));
    diag_place_at(e, w->at, "it is made here");
    return NULL;
  }
  return w->value;
}

ir_value *make_weight(lowering *lw, span at, const char *path, ir_type slice, weight_init init) {
  const char *name = path_join(lw->arena, lw->chain, path);
  if (!tensor_sizes_ok(&slice)) {
    sema_error(lw, at, DIAG_TOO_LARGE, "the weight `%s` is too large", name);
    return NULL;
  }
  if (lw->sharing) return use_shared(lw, at, name, &slice);
  frame *f = owner_frame(lw);
  weight *old = find_weight(f, name);
  if (old) {
    diag *e = sema_error(lw, at, DIAG_DUPLICATE_PATH, "there are two weights `%s`", name);
    diag_place_at(e, old->at, "the first is made here");
    diag_note(e, "to share the first one's weights: `... using PATH`");
    return NULL;
  }
  if (lw->ops-- <= 0 || lw->spent) return NULL;
  weight *w = arena_new(lw->arena, weight, 1);
  *w = (weight){.name = name, .type = slice, .init = init, .at = at};
  if (f->kind == FRAME_REPEAT) {
    const char *last = strrchr(name, '.');
    w->value = ir_region_arg(f->region, slice, last ? last + 1 : name);
    w->value->span = ir_span_of(at);
    vec_push(lw->arena, &f->weights, w);
  } else {
    const ir_state *s = make_state(lw, w, slice, 0, 1, 0);
    if (!s) return NULL;
    ir_attr attr = ir_attr_s("name", s->name);
    ir_op *op = emit(lw, at, IR_state, NULL, 0, &attr, 1, NULL, 0);
    if (!op) return NULL;
    w->value = op->out[0];
  }
  map_set(&f->weight_by_name, name, w);
  return w->value;
}
