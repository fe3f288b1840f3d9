// What a plan says against the cluster, the model and the plan that was found.
#include <inttypes.h>
#include <string.h>

#include "frontend/clusters.h"
#include "frontend/sema_impl.h"
#include "frontend/verb_planfile.h"
#include "passes/plan/show.h"

static span key_at(const plan_given *g, const char *key) {
  const plan_said *s = plan_given_said(g, key);
  return s ? s->at : g->plan ? g->plan->head : span_none();
}

// The key that says a size.
static const plan_said *size_said(const plan_given *g, plan_axis x) {
  const plan_said *s = plan_given_said(g, plan_axis_name(x));
  return s ? s : plan_given_said(g, "mesh");
}

static bool any_axis_pinned(const plan_given *g) {
  for (int x = 0; x < PLAN_AXES; x++) {
    const plan_said *s = plan_given_said(g, plan_axis_name((plan_axis)x));
    if (s && s->pinned) return true;
  }
  return false;
}

static bool sizes_suit(cli *c, const plan_given *g, const cl_cluster *cluster, bool *unfit) {
  const plan_said *at = NULL;
  int64_t n = 1;
  bool all = true;
  for (int x = 0; x < PLAN_AXES; x++) {
    n *= g->planned_size[x] ? g->planned_size[x] : 1;
    all &= g->planned_size[x] > 0;
    if (g->planned_size[x] > 1 || (!at && g->planned_size[x])) at = size_said(g, (plan_axis)x);
  }
  if (!at || any_axis_pinned(g)) return true;
  if (all ? n == cluster->devices : cluster->devices % n == 0) return true;
  diag *d = diag_error(&c->diags, at->at, DIAG_CONFLICTING_KEYS,
                       all ? "the sizes multiply to %" PRId64 "; %s has %" PRId64 " devices"
                           : "the sizes multiply to %" PRId64 "; %s has %" PRId64
                             " devices, which they do not divide",
                       n, cluster->name, cluster->devices);
  const plan_said *own = plan_given_said(g, "cluster");
  if (cli_has(c, OPT_CLUSTER) && g->cluster) {
    diag_place_at(d, own->at, "the plan is for this cluster; --cluster asks for another");
    *unfit = true;
  } else if (own) {
    diag_place_at(d, own->at, "the cluster is named here");
  }
  return false;
}

static bool stages_suit(cli *c, const plan_given *g, int64_t layers) {
  if (!g->stages.n) return true;
  span at = key_at(g, "stages");
  int64_t sum = 0, p = g->pins.size[PLAN_PIPELINE];
  for (int i = 0; i < g->stages.n; i++) sum += g->stages.at[i];
  if (p && p != g->stages.n) {
    diag *d = diag_error(&c->diags, at, DIAG_CONFLICTING_KEYS,
                         "these are %d stages; pipeline is %" PRId64, g->stages.n, p);
    const plan_said *s = size_said(g, PLAN_PIPELINE);
    if (s) diag_place_at(d, s->at, "said here");
    return false;
  }
  if (sum == layers) return true;
  diag_error(&c->diags, at, DIAG_CONFLICTING_KEYS,
             "the stages have %" PRId64 " layers, the model has %" PRId64, sum, layers);
  return false;
}

// A cut names an axis that has ranks.
static bool cuts_suit(cli *c, const plan_given *g) {
  for (int i = 0; i < g->layers.n; i++)
    for (int k = 0; k < g->layers.at[i]->entries.n; k++) {
      const entry *e = g->layers.at[i]->entries.at[k];
      if (e->key_kind != WORD_STRING || e->value->kind != EXPR_STRING) continue;
      const char *slash = strrchr(e->value->text, '/');
      int x = 0;
      while (slash && x < PLAN_AXES && !str_eq(slash + 1, plan_axis_name((plan_axis)x))) x++;
      if (!slash || x == PLAN_AXES) {
        diag *d = diag_error(&c->diags, e->value->at, DIAG_WRONG_VALUE,
                             "a cut is INDEX/AXIS, such as \"heads/tensor\"");
        diag_note(d, "axes: data pipeline tensor ulysses ring expert");
        return false;
      }
      if (g->pins.size[x] != 1) continue;
      diag *d = diag_error(&c->diags, e->value->at, DIAG_CONFLICTING_KEYS,
                           "`%s` has one rank here and cuts nothing", slash + 1);
      const plan_said *s = size_said(g, (plan_axis)x);
      if (s) diag_place_at(d, s->at, "the sizes are here");
      return false;
    }
  return true;
}

bool plan_given_suits(cli *c, const plan_given *g, const cl_cluster *cluster, int64_t layers,
                      bool *unfit) {
  *unfit = false;
  if (g->recompute == RECOMPUTE_BYTES) {
    diag *d = diag_error(&c->diags, key_at(g, "recompute"), DIAG_PLANNED,
                         "a budget of bytes for recompute is planned for `dsmc plan`, not built");
    diag_note(d, "none, selective and full are");
    return false;
  }
  return sizes_suit(c, g, cluster, unfit) && stages_suit(c, g, layers) && cuts_suit(c, g);
}

// ---- against a plan found -----------------------------------------------------------------------

typedef struct difference {
  span at;
  const char *what;
} difference;

// The order of axes with more than one rank.
static bool same_order(const plan_given *g, const plan_choice *c) {
  int n = 0;
  for (int i = 0; i < PLAN_AXES; i++) {
    if (c->size[c->order[i]] == 1) continue;
    while (n < g->naxes && c->size[g->axis[n]] == 1) n++;
    if (n == g->naxes || g->axis[n++] != c->order[i]) return false;
  }
  return true;
}

// Whether a weight's name is what an entry of `layers "PATTERN"` means.
static bool cut_means(arena *a, const char *pattern, const char *key, const char *name) {
  if (!str_eq(pattern, "*") && !pattern_match(a, pattern, name)) return false;
  const char *tries[2] = {key, arena_printf(a, "%s.weight", key)};
  for (int i = 0; i < 2; i++) {
    size_t n = strlen(name), k = strlen(tries[i]);
    if (n >= k && str_eq(name + n - k, tries[i]) && (n == k || name[n - k - 1] == '.')) return true;
  }
  return false;
}

static bool cuts_agree(arena *a, const plan_given *g, const plan_candidate *x, difference *d) {
  for (int i = 0; i < g->layers.n; i++) {
    const section *s = g->layers.at[i];
    for (int k = 0; k < s->entries.n; k++) {
      const entry *e = s->entries.at[k];
      if (e->key_kind != WORD_STRING || e->value->kind != EXPR_STRING) continue;
      const char *other = "not at all";
      bool same = false;
      for (int w = 0; w < x->ncuts && !same; w++) {
        if (!cut_means(a, s->label.text, e->key.text, x->cut[w].name)) continue;
        same = str_eq(x->cut[w].cut, e->value->text);
        other = arena_printf(a, "as %s", x->cut[w].cut);
      }
      if (same) continue;
      d->at = e->value->at;
      d->what =
          arena_printf(a, "`%s` cut otherwise than the planner does, %s,", e->key.text, other);
      return false;
    }
  }
  return true;
}

static bool agrees(arena *a, const plan_given *g, const plan_candidate *x, difference *d) {
  if (g->naxes && !same_order(g, &x->choice)) {
    *d = (difference){key_at(g, "mesh"), "this order of the mesh"};
    return false;
  }
  return cuts_agree(a, g, x, d);
}

int plan_given_top(const plan_given *g, int top) {
  bool more = g->naxes || g->layers.n;
  return more && top < 8 ? 8 : top;
}

bool plan_given_choose(cli *c, const plan_given *g, plan_result *r, int top) {
  if (!r->best) return true;
  difference first = {0};
  for (int i = 0; i < r->candidates.n; i++) {
    difference d;
    plan_candidate *x = r->candidates.at[i];
    if (!agrees(c->arena, g, x, &d)) {
      if (!i) first = d;
      continue;
    }
    for (int k = i; k > 0; k--) r->candidates.at[k] = r->candidates.at[k - 1];
    r->candidates.at[0] = r->best = x;
    if (r->candidates.n > top) r->candidates.n = top;
    return true;
  }
  diag *d = diag_error(&c->diags, first.at, DIAG_PLANNED, "%s is planned, not built", first.what);
  diag_note(
      d, "leave the line out, and the planner chooses; its best plan with the other lines is\n%s",
      plan_choice_text(c->arena, &r->best->choice));
  return false;
}

// ---- one device ---------------------------------------------------------------------------------

// What is fixed that one device cannot do: its key, or NULL.
static const plan_said *beyond_one(const plan_given *g) {
  if (g->stages.n > 1) return plan_given_said(g, "stages");
  for (int x = 0; x < PLAN_AXES; x++)
    if (g->pins.size[x] > 1) return size_said(g, (plan_axis)x);
  if (g->pins.zero > 0) return plan_given_said(g, "zero");
  if (g->pins.interleave > 1 || g->pins.schedule >= 0) {
    const plan_said *s = plan_given_said(g, "order");
    return s ? s : plan_given_said(g, "interleave");
  }
  if (g->pins.also > PLAN_KEEP) return plan_given_said(g, "recompute");
  for (int k = 0; k < PLAN_CLASSES; k++) {
    if (g->pins.home[k] <= PLAN_DEVICE) continue;
    const plan_said *s = plan_given_said(g, "offload");
    return s ? s : plan_given_said(g, plan_class_name((plan_class)k));
  }
  return NULL;
}

static bool refuse(cli *c, const plan_said *s) {
  diag *d = diag_error(&c->diags, s->at, DIAG_PLANNED,
                       "an executable for more than one device, or with homes beside it, "
                       "is planned, not built: this plan says %s = %s",
                       s->key, s->value);
  diag_note(d, "`dsmc plan` and `dsmc simulate` take it");
  return false;
}

bool plan_given_one_device(cli *c, const sema_program *program, const plan_given *g, bool *unfit) {
  const plan_said *s = beyond_one(g);
  *unfit = s && s->pinned;
  if (*unfit) {
    bool size =
        str_eq(s->key, "zero") || str_eq(s->key, "interleave") || str_eq(s->key, "recompute");
    for (int x = 0; x < PLAN_AXES; x++) size |= str_eq(s->key, plan_axis_name((plan_axis)x));
    fprintf(stderr, "dsmc: this-host:1 has one device: %s=%s cannot be met there%s\n", s->key,
            s->value, size ? "" : " (only none is built so far)");
    return false;
  }
  if (s) return refuse(c, s);
  if (!g->cluster || str_starts(g->cluster, "this-host")) {
    bool one = !g->cluster || str_eq(g->cluster, "this-host") || str_eq(g->cluster, "this-host:1");
    return one || refuse(c, plan_given_said(g, "cluster"));
  }
  const cl_cluster *cluster = cluster_find(c->arena, &c->diags, program, g->cluster, NULL);
  if (cluster && cluster->devices > 1) return refuse(c, plan_given_said(g, "cluster"));
  return cluster && cuts_suit(c, g);
}
