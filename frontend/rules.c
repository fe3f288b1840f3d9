// Patterns over weight names: `weights "PATTERN" { ... }` and `names` maps.
//
// `*` stands for one or more whole components, `{a,b}` for alternatives, which may hold dots. A
// pattern is first written out into its alternatives, each a list of components.
#include <string.h>

#include "frontend/sema_impl.h"

enum { MAX_ALTERNATIVES = 1024, MAX_LAYERS_MATCHED = 1 << 16 };

static void alternatives(arena *a, const char *pattern, name_list *out) {
  const char *open = strchr(pattern, '{'), *close = open ? strchr(open, '}') : NULL;
  if (!close) {
    if (out->n < MAX_ALTERNATIVES) vec_push(a, out, pattern);
    return;
  }
  for (const char *p = open + 1; p <= close; p++) {
    size_t n = strcspn(p, ",}");
    alternatives(
        a, arena_printf(a, "%.*s%.*s%s", (int)(open - pattern), pattern, (int)n, p, close + 1),
        out);
    if (out->n >= MAX_ALTERNATIVES) return;
    p += n;
  }
}

// Components are separated by dots; a `*` takes at least one.
static bool match(const char *pattern, const char *name) {
  const char *star = NULL, *resume = NULL;
  while (*name) {
    size_t np = strcspn(pattern, "."), nn = strcspn(name, ".");
    if (np == 1 && *pattern == '*') {
      // Takes one component now, and more when the rest does not fit.
      star = pattern + 1 + (pattern[1] == '.');
      name += nn + (name[nn] == '.');
      resume = name;
      if (!pattern[1]) return true;  // a `*` at the end takes all that is left
      pattern = star;
      continue;
    }
    bool same = np == nn && np && strncmp(pattern, name, np) == 0;
    if (same) {
      pattern += np + (pattern[np] == '.');
      name += nn + (name[nn] == '.');
      if (*pattern || !*name) continue;
    }
    if (!star || !*resume) return false;
    size_t n = strcspn(resume, ".");
    resume += n + (resume[n] == '.');
    name = resume;
    pattern = star;
  }
  return !*pattern;
}

bool pattern_match(arena *a, const char *pattern, const char *name) {
  name_list all = {0};
  alternatives(a, pattern, &all);
  for (int i = 0; i < all.n; i++)
    if (match(all.at[i], name)) return true;
  return false;
}

// The name of layer k of a state, without what stands behind `@`.
static const char *layer_name(arena *a, const ir_state *s, int64_t k) {
  const char *mark = strchr(s->name, '#');
  size_t n = strcspn(s->name, "@");
  if (!s->stacked || !mark) return arena_strndup(a, s->name, n);
  return arena_printf(a, "%.*s%lld%.*s", (int)(mark - s->name), s->name,
                      (long long)(s->first + k * s->step), (int)((size_t)(s->name + n - mark) - 1),
                      mark + 1);
}

// How many of the state's layers match, out of *of.
static int64_t layers_matched(arena *a, const name_list *all, const ir_state *s, int64_t *of) {
  *of = s->stacked ? s->type.dim[0]->size : 1;
  if (*of > MAX_LAYERS_MATCHED) *of = MAX_LAYERS_MATCHED;
  int64_t n = 0;
  for (int64_t k = 0; k < *of; k++) {
    const char *name = layer_name(a, s, k);
    bool yes = false;
    for (int i = 0; i < all->n && !yes; i++) yes = match(all->at[i], name);
    n += yes;
  }
  return n;
}

static void unmatched(lowering *lw, span at, const char *pattern, const ir_module *m) {
  diag *e = sema_error(lw, at, DIAG_UNMATCHED_PATTERN, "`%s` matches no weight", pattern);
  name_list names = {0};
  for (int i = 0; i < m->states.n && i < 400; i++)
    if (m->states.at[i]->cls == STATE_WEIGHT)
      vec_push(lw->arena, &names, layer_name(lw->arena, m->states.at[i], 0));
  if (!strpbrk(pattern, "*{")) diag_did_you_mean(e, pattern, names.at, names.n);
  diag_list(e, "weights are", names.at, names.n < 12 ? names.n : 12);
  diag_note(e, "`*` stands for one or more components between dots, {a,b} for alternatives");
}

// A state's decay is a multiplier of the optimizer's, which may still change when the program runs.
static void apply_rule(ir_state *s, const weight_rule *r, double decay) {
  if (r->has_train) s->trained = r->train;
  if (r->has_weight_decay) s->weight_decay = r->weight_decay == 0 ? 0 : r->weight_decay / decay;
  if (r->has_lr_scale) s->lr_scale = r->lr_scale;
  if (r->has_init) {
    s->init = r->init.kind;
    s->init_a = r->init.a;
  }
}

void apply_weight_rules(lowering *lw, const job *j, ir_module *m) {
  for (int i = 0; i < j->weight_rules.n; i++) {
    const weight_rule *r = &j->weight_rules.at[i];
    name_list all = {0};
    alternatives(lw->arena, r->pattern, &all);
    bool any = false;
    if (r->has_weight_decay && r->weight_decay != 0 && j->optimizer.weight_decay == 0) {
      diag *e = sema_error(lw, r->at, DIAG_WRONG_VALUE,
                           "these weights decay, but the optimizer's "
                           "`weight_decay` is 0");
      diag_note(e, "set it in the call of the optimizer; what a rule says is kept in proportion");
      continue;
    }
    for (int k = 0; k < m->states.n; k++) {
      ir_state *s = m->states.at[k];
      int64_t of, n = layers_matched(lw->arena, &all, s, &of);
      if (!n) continue;
      any = true;
      if (n < of) {
        diag *e = sema_error(lw, r->at, DIAG_PLANNED,
                             "telling the layers of one repeat apart is planned, not built");
        diag_note(e, "`%s` matches %lld of the %lld layers of %s", r->pattern, (long long)n,
                  (long long)of, s->name);
        break;
      }
      apply_rule(s, r, j->optimizer.weight_decay);
    }
    if (!any) unmatched(lw, r->at, r->pattern, m);
  }
}

void check_name_maps(lowering *lw, const job *j, ir_module *m) {
  for (int i = 0; i < j->name_maps.n; i++)
    for (int k = 0; k < j->name_maps.at[i].rules.n; k++) {
      const name_rule *r = &j->name_maps.at[i].rules.at[k];
      name_list all = {0};
      alternatives(lw->arena, r->pattern, &all);
      bool any = false;
      for (int s = 0; s < m->states.n && !any; s++) {
        int64_t of;
        any = layers_matched(lw->arena, &all, m->states.at[s], &of) > 0;
      }
      if (!any) unmatched(lw, r->at, r->pattern, m);
    }
}
