// `dsmc plan --json`: one object, a contract (DESIGN section 6). Fields may be added; those there
// are stay, with their units: seconds, bytes as whole numbers, shares as fractions.
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "passes/plan/show.h"
#include "runtime/base/str.h"
#include "runtime/base/version.h"

#define SCHEMA 1

// jansson returns NULL when memory runs out; nothing that could be done about it prints the plan.
static json_t *made(json_t *j) {
  IR_CHECK(j);
  return j;
}

static void set(json_t *object, const char *key, json_t *value) {
  IR_CHECK(json_object_set_new(object, key, made(value)) == 0);
}

static void add(json_t *array, json_t *value) {
  IR_CHECK(json_array_append_new(array, made(value)) == 0);
}

static json_t *object(void) { return made(json_object()); }
static json_t *array(void) { return made(json_array()); }
static json_t *whole(int64_t n) { return json_integer(n); }
static json_t *bytes(double n) { return json_integer(llround(n)); }
// JSON has no infinity.
static json_t *real(double x) { return isfinite(x) ? json_real(x) : json_null(); }
static json_t *text(arena *a, const char *s) {
  return s ? json_string(show_clean(a, s)) : json_null();
}
static json_t *digest(uint64_t d) {
  char hex[17];
  snprintf(hex, sizeof hex, "%016" PRIx64, d);
  return json_string(hex);
}

// A setting as what it is: `512`, `0.1` and `true` are no strings. What would not read back as the
// same text ("007", 20 digits) stays a string.
static json_t *setting(arena *a, const char *value) {
  if (!value) return json_null();
  if (str_eq(value, "true") || str_eq(value, "false")) return json_boolean(*value == 't');
  char *end, buffer[32];
  long long n = strtoll(value, &end, 10);
  if (end != value && !*end) {
    snprintf(buffer, sizeof buffer, "%lld", n);
    if (str_eq(buffer, value)) return json_integer(n);
  }
  if (strspn(value, "0123456789+-.eE") == strlen(value)) {
    double x = strtod(value, &end);
    if (end != value && !*end && isfinite(x) && strpbrk(value, ".eE")) return json_real(x);
  }
  return text(a, value);
}

static json_t *times(const double *t) {
  json_t *o = object();
  for (int i = 0; i < PLAN_TIMES; i++) set(o, plan_time_name((plan_time)i), real(t[i]));
  return o;
}

static json_t *choice_mesh(const plan_choice *c) {
  json_t *o = object(), *order = array();
  for (int x = 0; x < PLAN_AXES; x++) set(o, plan_axis_name((plan_axis)x), whole(c->size[x]));
  for (int i = 0; i < PLAN_AXES; i++) add(order, json_string(plan_axis_name(c->order[i])));
  set(o, "order", order);
  return o;
}

// What is chosen, into the object of a candidate.
static void put_choice(json_t *o, arena *a, const plan_candidate *x) {
  const plan_choice *c = &x->choice;
  set(o, "mesh", choice_mesh(c));
  set(o, "micro_batch", whole(c->micro_batch));
  set(o, "micro_batches", whole(c->micro_batches));
  set(o, "pipeline_order", json_string(pipe_kind_name(c->pipe)));
  set(o, "interleave", whole(c->interleave));
  set(o, "placement", json_string(c->context_first ? "context_first" : "head_first"));
  set(o, "ring_inner", whole(x->ring_inner));
  json_t *zero = object();
  set(zero, "stage", whole(c->zero));
  set(zero, "group", whole(c->zero_group));
  set(o, "zero", zero);
  json_t *recompute = object(), *blocks = array();
  set(recompute, "summary", text(a, plan_recompute_words(a, c)));
  for (int i = 0; i < x->nlayers; i++) {
    json_t *block = object();
    set(block, "first_layer", whole(x->layers[i].first));
    set(block, "last_layer", whole(x->layers[i].last));
    set(block, "recompute", json_string(plan_recompute_name(x->layers[i].recompute)));
    add(blocks, block);
  }
  set(recompute, "blocks", blocks);
  set(o, "recompute", recompute);
  json_t *offload = object();
  for (int k = 0; k < PLAN_CLASSES; k++)
    set(offload, plan_class_name((plan_class)k), json_string(plan_home_name(c->home[k])));
  set(o, "offload", offload);
  set(o, "sequence_parallel", json_boolean(c->sequence_parallel));
}

static json_t *memory(const int64_t *m) {
  json_t *o = object();
  for (int i = 0; i < PLAN_MEMORIES; i++) set(o, plan_memory_name((plan_memory)i), whole(m[i]));
  return o;
}

// `ranks`: whose mean it is, for their sum: of pieces that are rounded up a mean is no whole
// number; 0: of no stage.
static json_t *sent_bytes(const plan_bytes *b, int64_t ranks) {
  json_t *o = object();
  for (int x = 0; x < PLAN_AXES; x++) {
    json_t *axis = object();
    for (int k = 0; k < CL_COLLECTIVES; k++) {
      json_t *one = object();
      const double *sent = b->bytes[x][k];
      set(one, "intra", bytes(sent[0]));
      set(one, "inter", bytes(sent[1]));
      if (ranks) set(one, "all_ranks", bytes((sent[0] + sent[1]) * (double)ranks));
      set(one, "calls", whole(b->calls[x][k]));
      set(axis, cl_collective_name((cl_collective)k), one);
    }
    set(o, plan_axis_name((plan_axis)x), axis);
  }
  return o;
}

static json_t *stage_of(arena *a, const plan_stage *s, int64_t ranks) {
  json_t *o = object(), *extra = array();
  set(o, "first_layer", whole(s->first_layer));
  set(o, "last_layer", whole(s->last_layer));
  set(o, "layers", whole(plan_stage_layers(s)));
  for (const char *p = s->extra; p && *p;) {  // "embed+head"
    size_t n = strcspn(p, "+");
    if (n) add(extra, text(a, arena_strndup(a, p, n)));
    p += n + (p[n] == '+');
  }
  set(o, "extra", extra);
  if (s->device) {  // on an unlike cluster
    set(o, "device", text(a, s->device));
    set(o, "group", text(a, s->group));
    set(o, "capacity", whole(s->capacity));
  }
  set(o, "parameters", bytes(s->parameters));
  json_t *m = memory(s->memory);
  set(m, "peak", whole(s->peak));
  set(m, "host", whole(s->host));
  set(m, "disk", whole(s->disk));
  set(o, "memory_bytes", m);
  set(o, "time_s", times(s->time));
  set(o, "forward_s", real(s->forward_s));
  set(o, "backward_s", real(s->backward_s));
  set(o, "bytes", sent_bytes(&s->bytes, ranks));
  set(o, "micro_batches_in_flight", whole(s->stash));
  set(o, "peak_at", text(a, s->peak_at));
  return o;
}

static json_t *elsewhere(int64_t most) {
  json_t *o = object();
  set(o, "peak", whole(most));
  return o;
}

static json_t *candidate_memory(arena *a, const plan_candidate *c) {
  json_t *m = memory(c->memory);
  set(m, "reserve", whole(c->reserve));
  set(m, "peak", whole(c->peak));
  set(m, "capacity", whole(c->capacity));
  set(m, "load", whole(c->load));
  set(m, "exact", json_boolean(c->laid));
  int64_t host = 0, disk = 0;
  for (int i = 0; i < c->nstages; i++) {
    if (c->stage[i].host > host) host = c->stage[i].host;
    if (c->stage[i].disk > disk) disk = c->stage[i].disk;
  }
  set(m, "host", elsewhere(host));
  set(m, "disk", elsewhere(disk));
  json_t *at = object();
  set(at, "stage", whole(plan_highest(c)));
  set(at, "where", text(a, c->peak_at));
  set(m, "peak_at", at);
  return m;
}

static json_t *moved_bytes(const plan_candidate *c) {
  json_t *o = object();
  for (int k = 0; k < PLAN_CLASSES; k++) {
    json_t *one = object();
    set(one, "in", bytes(c->moved[k][0]));
    set(one, "out", bytes(c->moved[k][1]));
    set(one, "disk_in", bytes(c->moved_disk[k][0]));
    set(one, "disk_out", bytes(c->moved_disk[k][1]));
    set(o, plan_class_name((plan_class)k), one);
  }
  return o;
}

static json_t *candidate_of(arena *a, const plan_candidate *c) {
  json_t *o = object();
  set(o, "plan", text(a, plan_choice_text(a, &c->choice)));
  set(o, "flags", text(a, plan_choice_flags(a, &c->choice)));
  put_choice(o, a, c);
  json_t *stages = array(), *cuts = array(), *calls = object();
  int64_t ranks = 1;  // of a stage
  for (int x = 0; x < PLAN_AXES; x++) ranks *= x == PLAN_PIPELINE ? 1 : c->choice.size[x];
  for (int i = 0; i < c->nstages; i++) add(stages, stage_of(a, &c->stage[i], ranks));
  set(o, "stages", stages);
  set(o, "critical_stage", whole(c->critical));
  set(o, "step_s", real(c->step_s));
  set(o, "step_s_low", real(c->step_low));
  set(o, "step_s_high", real(c->step_high));
  set(o, "tokens_per_s", real(c->tokens_per_s));
  set(o, "tflops_per_device", real(c->tflops_per_device));
  set(o, "mfu", real(c->mfu));
  set(o, "hfu", real(c->hfu));
  set(o, "over_bytes", whole(c->over));
  set(o, "memory_bytes", candidate_memory(a, c));
  set(o, "time_s", times(c->time));
  json_t *ops = object();  // of time_s.compute
  set(ops, "products", real(c->products_s));
  set(ops, "attention", real(c->attention_s));
  set(ops, "others", real(c->time[PLAN_T_COMPUTE] - c->products_s - c->attention_s));
  set(o, "compute_s", ops);
  set(o, "busy_s", times(c->busy));
  set(o, "bytes", sent_bytes(&c->bytes, 0));
  set(o, "offload_bytes", moved_bytes(c));
  json_t *spans = array();
  for (int x = 0; x < PLAN_AXES; x++)
    if (c->spans[x]) add(spans, json_string(plan_axis_name((plan_axis)x)));
  set(o, "spans_unlike", spans);
  for (int i = 0; i < c->ncuts; i++) {
    json_t *cut = object();
    set(cut, "name", text(a, c->cut[i].name));
    set(cut, "cut", text(a, c->cut[i].cut));
    add(cuts, cut);
  }
  set(o, "cuts", cuts);
  for (int k = 0; k < CL_COLLECTIVES; k++)
    set(calls, cl_collective_name((cl_collective)k), whole(c->tensor_calls_layer[k]));
  set(o, "tensor_calls_layer", calls);
  return o;
}

static json_t *search_of(const plan_search_stats *s) {
  json_t *o = object();
  set(o, "points", whole(s->points));
  set(o, "considered", whole(s->considered));
  set(o, "pruned", whole(s->pruned));
  set(o, "fronts", whole(s->fronts));
  set(o, "evaluated", whole(s->evaluated));
  set(o, "left_out", whole(s->left_out));
  set(o, "predicted_points", whole(s->predicted_points));
  set(o, "predicted_fronts", whole(s->predicted_fronts));
  set(o, "seconds", real(s->seconds));
  set(o, "optimal", json_boolean(s->optimal));
  set(o, "gap", real(s->gap));
  set(o, "bound_s", real(s->bound_s));
  return o;
}

static json_t *rejected_of(arena *a, const plan_result *r, const plan_rejected *x) {
  json_t *o = object();
  set(o, "plan", text(a, plan_choice_text(a, &x->choice)));
  set(o, "flags", text(a, plan_choice_flags(a, &x->choice)));
  set(o, "code", text(a, x->code));
  set(o, "reason", text(a, x->reason));
  set(o, "over_bytes", whole(x->over));
  bool timed = x->step_s > 0;
  set(o, "slower", timed && r->best ? real(x->step_s / r->best->step_s - 1) : json_null());
  set(o, "step_s", timed ? real(x->step_s) : json_null());
  set(o, "peak", x->peak > 0 ? whole(x->peak) : json_null());
  return o;
}

static json_t *crossing_of(arena *a, const plan_crossing *x) {
  json_t *o = object();
  set(o, "level", text(a, x->level));
  set(o, "speed_now", real(x->speed_now));
  set(o, "speed_most", real(x->most));
  set(o, "spans_from", x->speed > 0 ? real(x->speed) : json_null());
  set(o, "spans_now", json_boolean(x->across));
  set(o, "inside_s", real(x->inside_s));
  set(o, "across_s", real(x->across_s));
  set(o, "other", text(a, plan_choice_text(a, &x->other)));
  return o;
}

void plan_print_json(const plan_result *r, FILE *out) {
  arena a;
  arena_init(&a);
  json_t *o = object(), *source = object(), *settings = object(), *model = object(),
         *cluster = object(), *candidates = array(), *rejected = array(), *fixes = array(),
         *warnings = array(), *assumptions = array();
  set(o, "schema", whole(SCHEMA));
  set(o, "dsmc", json_string(DSMC_VERSION));
  set(source, "path", text(&a, r->source));
  set(source, "digest", digest(r->source_digest));
  set(o, "source", source);
  for (int i = 0; i < r->settings.n; i++)
    set(settings, show_clean(&a, r->settings.at[i].name), setting(&a, r->settings.at[i].value));
  set(o, "settings", settings);
  set(model, "name", text(&a, r->model.name));
  set(model, "parameters", bytes(r->model.parameters));
  set(model, "flops_per_step", real(r->model.flops));
  set(model, "tokens_per_step", real(r->model.tokens));
  set(model, "batch", whole(r->model.batch));
  set(model, "layers", whole(r->model.layers));
  set(model, "precision", text(&a, r->model.precision));
  set(o, "model", model);
  set(cluster, "name", text(&a, r->cluster->name));
  set(cluster, "devices", whole(r->cluster->devices));
  set(cluster, "digest", digest(r->cluster->digest));
  set(o, "cluster", cluster);
  set(o, "best", r->best ? candidate_of(&a, r->best) : json_null());
  for (int i = 0; i < r->candidates.n; i++) add(candidates, candidate_of(&a, r->candidates.at[i]));
  set(o, "candidates", candidates);
  if (!r->best) set(o, "closest", r->closest ? candidate_of(&a, r->closest) : json_null());
  set(o, "search", search_of(&r->search));
  for (int i = 0; i < r->rejected.n; i++) add(rejected, rejected_of(&a, r, &r->rejected.at[i]));
  set(o, "rejected", rejected);
  for (int i = 0; i < r->fixes.n; i++) {
    const plan_fix *f = &r->fixes.at[i];
    json_t *fix = object();
    set(fix, "change", text(&a, f->change));
    set(fix, "flags", text(&a, f->flags));
    set(fix, "peak", whole(f->peak));
    set(fix, "step_s", real(f->step_s));
    set(fix, "seconds_per_token", real(f->per_token));
    add(fixes, fix);
  }
  set(o, "fixes", fixes);
  if (r->crossing) set(o, "link_crossing", crossing_of(&a, r->crossing));
  for (int i = 0; i < r->warnings.n; i++) add(warnings, text(&a, r->warnings.at[i]));
  set(o, "warnings", warnings);
  for (int i = 0; i < r->assumptions.n; i++) {
    json_t *one = object();
    set(one, "what", text(&a, r->assumptions.at[i].what));
    set(one, "value", text(&a, r->assumptions.at[i].value));
    set(one, "source", text(&a, r->assumptions.at[i].source));
    add(assumptions, one);
  }
  set(o, "assumptions", assumptions);
  char *dump = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
  IR_CHECK(dump);
  fprintf(out, "%s\n", dump);
  free(dump);
  json_decref(o);
  arena_free(&a);
}
