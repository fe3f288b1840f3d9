// From `cluster` sections to trees: names, links, cards, devices.
//
// Keys and their units have been checked (frontend/keys.c). What is left is what one section says
// about another: that members exist and do not contain themselves, that what has several members
// has a link between them, and that a network without a speed of its own has cards to take it from.
#include <math.h>
#include <string.h>

#include "frontend/clusters_impl.h"

// More devices than anybody will name, and few enough that products of counts stay whole.
#define MOST_DEVICES ((int64_t)1 << 24)

// The sections around a name, innermost first.
typedef struct scope {
  const section *s;
  const struct scope *outer;
} scope;

typedef struct made {
  const section *s;
  const cl_level *level;  // NULL for a device, and after an error
  const cl_device *device;
  bool open;  // being made: to meet it again is a cycle
  ident by;   // the member that asked for it
} made;

typedef struct maker {
  arena *arena;
  diags *diags;
  const sema_program *files;
  VEC(made *) done;
  int depth;
} maker;

// ---- values -------------------------------------------------------------------------------------

static bool constant(const expr *e, double *out) {
  double x, y;
  switch (e->kind) {
    case EXPR_NUMBER: *out = e->number.value; return true;
    case EXPR_UNARY:
      if (e->unary.op != UNARY_NEG || !constant(e->unary.operand, &x)) return false;
      *out = -x;
      return true;
    case EXPR_BINARY:
      if (!constant(e->binary.left, &x) || !constant(e->binary.right, &y)) return false;
      switch (e->binary.op) {
        case BINARY_ADD: *out = x + y; return true;
        case BINARY_SUB: *out = x - y; return true;
        case BINARY_MUL: *out = x * y; return true;
        case BINARY_DIV: *out = x / y; return y != 0;
        default: return false;
      }
    default: return false;
  }
}

// A number that is at least `low`, or above 0 when `low` is 0 and `positive`.
static double number_of(maker *m, const char *key, const expr *e, bool positive) {
  double x;
  if (!constant(e, &x)) {
    diag_error(m->diags, e->at, DIAG_WRONG_VALUE, "`%s` takes a number", key);
    return 1;
  }
  if (x < 0 || (positive && x == 0) || x > 9e18) {
    diag_error(m->diags, e->at, DIAG_WRONG_VALUE, "`%s` cannot be %s", key,
               x > 9e18 ? "so large"
               : x < 0  ? "below 0"
                        : "0");
    return 1;
  }
  return x;
}

static double number_in(maker *m, const section *s, const char *key, double otherwise) {
  const entry *e = section_get(s, key);
  return e ? number_of(m, key, e->value, false) : otherwise;
}

static int64_t count_of(maker *m, const char *key, const expr *e) {
  double x = number_of(m, key, e, true);
  if (x == floor(x) && x <= (double)MOST_DEVICES) return (int64_t)x;
  diag_error(m->diags, e->at, DIAG_WRONG_VALUE, "`%s` takes a whole number up to %lld", key,
             (long long)MOST_DEVICES);
  return 1;
}

// Argument `place` of a call, or the one of that name; NULL: left out.
static const expr *argument(const expr *call, const char *name, int place) {
  if (call->kind != EXPR_CALL) return NULL;
  for (int i = 0; i < call->call.args.n; i++) {
    const arg *x = &call->call.args.at[i];
    if (x->name.text ? str_eq(x->name.text, name) : i == place) return x->value;
  }
  return NULL;
}

static double number_arg(maker *m, const expr *call, const char *name, int place, bool positive,
                         double otherwise) {
  const expr *e = argument(call, name, place);
  return e ? number_of(m, name, e, positive) : otherwise;
}

// ---- devices ------------------------------------------------------------------------------------

static void curve_of(maker *m, const entry *e, cl_curve *out) {
  const expr_list *points = &e->value->items;
  if (points->n > CL_CURVE) {
    diag_error(m->diags, e->value->at, DIAG_WRONG_VALUE, "`%s` takes at most %d points",
               e->key.text, CL_CURVE);
    return;
  }
  for (int i = 0; i < points->n; i++) {
    const expr *x = points->at[i]->items.at[0], *share = points->at[i]->items.at[1];
    out->x[i] = number_of(m, e->key.text, x, true);
    out->share[i] = number_of(m, e->key.text, share, true);
    if (out->share[i] > 1)
      diag_error(m->diags, share->at, DIAG_WRONG_VALUE, "a share of the peak is at most 1");
    if (i && out->x[i] <= out->x[i - 1])
      diag_error(m->diags, x->at, DIAG_WRONG_VALUE, "the points of `%s` go upwards", e->key.text);
  }
  out->n = points->n;
}

static const cl_device *make_device(maker *m, const section *s) {
  cl_device *d = arena_new(m->arena, cl_device, 1);
  d->name = s->label.text;
  d->memory = (int64_t)number_in(m, s, "memory", 0);
  d->reserve = (int64_t)number_in(m, s, "reserve", 0);
  d->bandwidth = number_in(m, s, "bandwidth", 0);
  d->launch = number_in(m, s, "launch", 0);
  d->units = (int)fmin(number_in(m, s, "units", 0), 1e9);
  d->cache = (int64_t)number_in(m, s, "cache", 0);
  d->threads = (int)fmin(number_in(m, s, "threads", 0), 1e9);
  d->power = number_in(m, s, "power", 0);
  d->price = number_in(m, s, "price", 0);
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    const char *key = e->key.text, *dot = strchr(key, '.');
    if (!e->value) continue;
    if (str_eq(key, "arch") && e->value->kind == EXPR_NAME) d->arch = e->value->text;
    if (!dot) continue;
    ir_dtype t;
    if (str_eq(key, "matmul.tf32")) d->matmul_tf32 = number_of(m, key, e->value, true);
    if (str_starts(key, "matmul.") && ir_dtype_parse(dot + 1, &t))
      d->matmul[t] = number_of(m, key, e->value, true);
    if (str_starts(key, "vector.") && ir_dtype_parse(dot + 1, &t))
      d->vector[t] = number_of(m, key, e->value, true);
    if (str_eq(key, "efficiency.matmul")) curve_of(m, e, &d->matmul_share);
    if (str_eq(key, "efficiency.attention")) curve_of(m, e, &d->attention_share);
    if (str_eq(key, "efficiency.vector")) curve_of(m, e, &d->vector_share);
    if (str_eq(key, "efficiency.memory")) curve_of(m, e, &d->memory_share);
  }
  const entry *memory = section_get(s, "memory"), *bandwidth = section_get(s, "bandwidth");
  if (memory && d->reserve >= d->memory)
    diag_error(m->diags,
               section_get(s, "reserve") ? section_get(s, "reserve")->value->at : memory->value->at,
               DIAG_WRONG_VALUE, "device %s has no memory beside its reserve", d->name);
  if (bandwidth && d->bandwidth == 0)
    diag_error(m->diags, bandwidth->value->at, DIAG_WRONG_VALUE, "`bandwidth` cannot be 0");
  // Elementwise work is done in f32 where nothing else is said, and its speed is seldom what
  // counts: products in f32 are as fast where no unit of their own makes them, others 16 times as
  // fast.
  if (d->vector[DT_f32] == 0) d->vector[DT_f32] = d->matmul[DT_f32];
  if (d->vector[DT_f32] == 0)
    for (int t = 0; t < DT_COUNT; t++)
      d->vector[DT_f32] = fmax(d->vector[DT_f32], fmax(d->matmul[t], d->matmul_tf32) / 16);
  for (int t = 0; t < DT_COUNT; t++)
    if (d->vector[t] == 0) d->vector[t] = d->vector[DT_f32];
  return d;
}

// ---- names --------------------------------------------------------------------------------------

static bool is_part(const section *s) {
  return str_eq(s->kind.text, "device") || str_eq(s->kind.text, "node") ||
         str_eq(s->kind.text, "group");
}

// The section that `name` means inside `at`; *where: the scope it stands in.
static const section *look_up(const maker *m, const scope *at, const char *name,
                              const scope **where) {
  for (; at; at = at->outer)
    for (int i = 0; i < at->s->entries.n; i++) {
      const section *s = at->s->entries.at[i]->section;
      if (!s || !is_part(s) || !str_eq(s->label.text, name)) continue;
      *where = at;
      return s;
    }
  *where = NULL;
  for (int k = 0; m->files && k < 2; k++) {
    const section *s = sema_section(m->files, k ? "cluster" : "device", name);
    if (s) return s;
  }
  return builtin_device(m->arena, name);
}

// What contains the place cannot be a member there.
static bool is_around(const maker *m, const section *s) {
  for (int i = 0; i < m->done.n; i++)
    if (m->done.at[i]->s == s) return m->done.at[i]->open;
  return false;
}

static void unknown_member(const maker *m, const scope *at, const ident *name) {
  enum { MOST = 256 };
  const char *names[MOST];
  int n = 0, own;
  for (; at; at = at->outer)
    for (int i = 0; i < at->s->entries.n && n < MOST; i++) {
      const section *s = at->s->entries.at[i]->section;
      if (s && is_part(s) && s->label.text && !is_around(m, s)) names[n++] = s->label.text;
    }
  for (int i = 0; m->files && i < m->files->sections.n && n < MOST; i++) {
    const section *s = m->files->sections.at[i];
    bool part = str_eq(s->kind.text, "device") || str_eq(s->kind.text, "cluster");
    if (s->label.text && part && !is_around(m, s)) names[n++] = s->label.text;
  }
  own = n;
  n += builtin_device_names(m->arena, names + n, MOST - n);
  diag *e = diag_error(m->diags, name->at, DIAG_UNKNOWN_MEMBER,
                       "`%s` is no device, node or group that stands here", name->text);
  diag_did_you_mean(e, name->text, names, n);
  if (own) diag_list(e, "defined", names, own);
  diag_list(e, "built-in devices", names + own, n - own);
}

// ---- levels -------------------------------------------------------------------------------------

static const made *make_section(maker *m, const scope *at, const ident *by);

typedef VEC(cl_member) member_list;

static void add_member(maker *m, const scope *at, member_list *out, int64_t count,
                       const ident *name) {
  const scope *where;
  const section *s = look_up(m, at, name->text, &where);
  if (!s) {
    unknown_member(m, at, name);
    return;
  }
  scope inner = {s, where};
  const made *x = make_section(m, &inner, name);
  if (x && (x->level || x->device))
    vec_push(m->arena, out, (cl_member){count, x->level, x->device});
}

static void add_members(maker *m, const scope *at, member_list *out, const expr *e) {
  int64_t count = 1;
  if (e->kind == EXPR_BINARY && e->binary.op == BINARY_ADD) {
    add_members(m, at, out, e->binary.left);
    add_members(m, at, out, e->binary.right);
    return;
  }
  if (e->kind == EXPR_BINARY) {
    bool swapped = e->binary.left->kind == EXPR_NAME;
    const expr *times = swapped ? e->binary.right : e->binary.left;
    e = swapped ? e->binary.left : e->binary.right;
    count = count_of(m, "members", times);
  }
  if (e->kind != EXPR_NAME) return;  // keys.c has said so
  ident name = {e->text, e->at};
  add_member(m, at, out, count, &name);
}

static bool names_it(const expr *e, const char *name) {
  if (e->kind == EXPR_BINARY)
    return names_it(e->binary.left, name) || names_it(e->binary.right, name);
  return expr_is_name(e, name);
}

// Whether a `members` of a section inside `s` names `name`.
static bool is_used(const section *s, const char *name) {
  for (int i = 0; i < s->entries.n; i++) {
    const entry *e = s->entries.at[i];
    if (e->section ? is_used(e->section, name)
                   : str_eq(e->key.text, "members") && names_it(e->value, name))
      return true;
  }
  return false;
}

// A section without `members` is made of the one level in it that no other level has for a member.
static void implied_member(maker *m, const scope *at, member_list *out) {
  const section *found = NULL;
  diag *many = NULL;
  for (int i = 0; i < at->s->entries.n; i++) {
    const section *s = at->s->entries.at[i]->section;
    if (!s || !is_part(s) || str_eq(s->kind.text, "device") || is_used(at->s, s->label.text))
      continue;
    if (found && !many)
      many = diag_error(m->diags, at->s->head, DIAG_MISSING_KEY,
                        "%s %s does not say which of its levels are its `members`",
                        at->s->kind.text, at->s->label.text);
    if (many && many->notes.n == 0)
      diag_note(many, "such as members = %s + %s", found->label.text, s->label.text);
    found = s;
  }
  if (found && !many)
    add_member(m, at, out, 1, &found->label);
  else if (!many && !diags_within(m->diags, at->s->at))
    diag_error(m->diags, at->s->head, DIAG_MISSING_KEY, "%s %s has no `members`", at->s->kind.text,
               at->s->label.text);
}

// The node below a level whose devices have no cards, by its name; NULL: all have.
static const char *without_cards(const cl_level *l) {
  if (l->node) return l->share > 0 ? NULL : l->name;
  for (int i = 0; i < l->nmembers; i++) {
    const char *name = l->member[i].level ? without_cards(l->member[i].level) : NULL;
    if (name) return name;
  }
  return NULL;
}

static void read_link(maker *m, const section *s, cl_level *l, bool several) {
  const entry *e = section_get(s, "link");
  l->link.taper = 1;
  if (!e) {
    if (!several) return;
    diag *g = diag_error(m->diags, s->head, DIAG_NO_LINK, "%s %s has several members and no `link`",
                         s->kind.text, s->label.text);
    diag_note(g,
              "such as link = switch(300GB/s, 3us) inside a node, link = fat_tree() between nodes");
    l->link.bandwidth = 1;
    return;
  }
  const expr *v = e->value;
  const char *name = v->kind == EXPR_CALL ? v->call.name.text : v->text;
  l->link.kind = str_eq(name, "switch")     ? CL_SWITCH
                 : str_eq(name, "ethernet") ? CL_ETHERNET
                                            : CL_FAT_TREE;
  l->link.bandwidth = number_arg(m, v, "bandwidth", 0, true, 0);
  l->link.latency = number_arg(m, v, "latency", 1, false, 0);
  l->link.taper = number_arg(m, v, "taper", 2, true, 1);
  if (l->link.taper > 1)
    diag_error(m->diags, argument(v, "taper", 2)->at, DIAG_WRONG_VALUE,
               "`taper` is a share of the full bandwidth, at most 1");
  if (l->link.bandwidth > 0 || !several) return;
  const char *node = NULL;
  bool devices = false;
  for (int i = 0; i < l->nmembers; i++) {
    devices |= l->member[i].device != NULL;
    if (!node && l->member[i].level) node = without_cards(l->member[i].level);
  }
  if (!devices && !l->node && !node) return;
  diag *g = diag_error(m->diags, v->at, DIAG_NO_NICS,
                       "this network has the speed of network cards, and %s has none",
                       node ? node : l->name);
  if (node)
    diag_note(g, "node %s needs them, such as nics = 8 * nic(25GB/s, 5us)", node);
  else
    diag_note(g, "between the devices of a node is a link of its own: switch(300GB/s, 3us)");
  diag_note(g, "or say a speed here: %s(BANDWIDTH, LATENCY)", name);
  l->link.bandwidth = 1;
}

static cl_store read_store(maker *m, const section *s, const char *key) {
  const entry *e = section_get(s, key);
  if (!e) return (cl_store){0};
  return (cl_store){(int64_t)number_arg(m, e->value, "size", 0, true, 0),
                    number_arg(m, e->value, "bandwidth", 1, true, 0),
                    number_arg(m, e->value, "latency", 2, false, 0)};
}

static void read_cards(maker *m, const section *s, cl_level *l) {
  const entry *e = section_get(s, "nics");
  if (!e) return;
  const expr *v = e->value;
  int64_t count = 1;
  if (v->kind == EXPR_BINARY) {
    bool swapped = v->binary.left->kind == EXPR_CALL;
    count = count_of(m, "nics", swapped ? v->binary.right : v->binary.left);
    v = swapped ? v->binary.left : v->binary.right;
  }
  l->nic_bandwidth = (double)count * number_arg(m, v, "bandwidth", 0, true, 0);
  l->nic_latency = number_arg(m, v, "latency", 1, false, 0);
}

// Two parts of one name: the second could not be meant.
static void check_names(maker *m, const section *s) {
  for (int i = 0; i < s->entries.n; i++)
    for (int k = 0; k < i; k++) {
      const section *x = s->entries.at[i]->section, *y = s->entries.at[k]->section;
      if (!x || !y || !is_part(x) || !is_part(y) || !str_eq(x->label.text, y->label.text)) continue;
      diag *e = diag_error(m->diags, x->label.at, DIAG_DUPLICATE_NAME, "`%s` is defined twice",
                           x->label.text);
      diag_place_at(e, y->label.at, "`%s` is first defined here", x->label.text);
      break;
    }
}

static const cl_level *make_level(maker *m, const scope *at) {
  const section *s = at->s;
  int before = diags_errors(m->diags);
  check_names(m, s);
  member_list members = {0};
  const entry *e = section_get(s, "members");
  if (e)
    add_members(m, at, &members, e->value);
  else
    implied_member(m, at, &members);
  if (diags_errors(m->diags) != before) return NULL;
  if (!e && str_eq(s->kind.text, "cluster") && !section_get(s, "link"))
    return members.at[0].level;  // it is that level, and says nothing beside
  cl_level l = {.name = s->label.text, .node = str_eq(s->kind.text, "node")};
  l.member = members.at;
  l.nmembers = members.n;
  int64_t devices = 0, all = 0;
  for (int i = 0; i < l.nmembers; i++) {
    const cl_member *x = &members.at[i];
    all += x->count;
    devices += x->count * (x->level ? x->level->devices : 1);
    if (x->level && x->level->height >= CL_TIERS) {
      diag_error(m->diags, e ? e->value->at : s->head, DIAG_TOO_DEEP,
                 "a cluster has at most %d levels", CL_TIERS);
      return NULL;
    }
    if (devices <= MOST_DEVICES) continue;
    diag_error(m->diags, e ? e->value->at : s->head, DIAG_WRONG_VALUE,
               "a cluster has at most %lld devices", (long long)MOST_DEVICES);
    return NULL;
  }
  read_cards(m, s, &l);
  read_link(m, s, &l, all > 1);
  l.host = read_store(m, s, "host");
  l.disk = read_store(m, s, "disk");
  l.price = number_in(m, s, "price", 0);
  return diags_errors(m->diags) == before ? cl_level_make(m->arena, &l) : NULL;
}

// What a section is, made once. NULL after an error.
static const made *make_section(maker *m, const scope *at, const ident *by) {
  for (int i = 0; i < m->done.n; i++) {
    const made *x = m->done.at[i];
    if (x->s != at->s) continue;
    if (!x->open) return x;
    diag *e = diag_error(m->diags, by->at, DIAG_MEMBER_CYCLE, "%s %s has itself for a member",
                         at->s->kind.text, at->s->label.text);
    for (int k = i + 1; k < m->done.n; k++)
      if (m->done.at[k]->open)
        diag_note(e, "by way of %s %s", m->done.at[k]->s->kind.text, m->done.at[k]->s->label.text);
    return NULL;
  }
  if (m->depth >= CL_TIERS && !str_eq(at->s->kind.text, "device")) {
    diag_error(m->diags, by->at, DIAG_TOO_DEEP, "a cluster has at most %d levels", CL_TIERS);
    return NULL;
  }
  made *x = arena_new(m->arena, made, 1);
  *x = (made){.s = at->s, .open = true};
  vec_push(m->arena, &m->done, x);
  m->depth++;
  if (str_eq(at->s->kind.text, "device"))
    x->device = make_device(m, at->s);
  else
    x->level = make_level(m, at);
  m->depth--;
  x->open = false;
  return x;
}

const cl_cluster *cluster_make(arena *a, diags *d, const sema_program *files, const section *s,
                               const char *name) {
  maker m = {.arena = a, .diags = d, .files = files};
  int before = diags_errors(d);
  scope at = {s, NULL};
  const made *x = make_section(&m, &at, &s->label);
  if (!x || !x->level || diags_errors(d) != before) return NULL;
  return cl_cluster_make(a, name, x->level);
}
