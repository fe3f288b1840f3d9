// What a plan takes: time by the longest path of its pipeline, memory by what lies on each stage.
//
// A stage's work on a micro-batch is the sum of its layers' blocks. Around the pipeline stand, once
// a step, the reduction of gradients (hidden behind the last backward but for its last layer), the
// optimizer and, with ZeRO, the gather of updated parameters. With ZeRO 3 the parameters of a layer
// are gathered before each phase of each micro-batch, while the layer before computes.
//
// The parts: evaluate_layers.c, evaluate_stages.c, evaluate_memory.c; bounds.c says what is known
// before.
#include <math.h>
#include <string.h>

#include "passes/plan/evaluate_impl.h"

static void count_sent(plan_bytes *b, int axis, const bl_sent *s, double times) {
  plan_axis a = bl_axis_of(axis);
  for (int k = 0; k < CL_COLLECTIVES; k++) {
    for (int far = 0; far < 2; far++) b->bytes[a][k][far] += times * s->bytes[k][far];
    b->calls[a][k] += llround(times * s->calls[k]);
  }
}

// Sums over the axes inside a stage of gradients of its weights that are no layer's.
static void add_sums(const ev_point *p, int stage, double *time, double *busy, plan_bytes *b) {
  const bl_block *own = ev_at_stage(p, stage)->b;
  for (int w = 0; w < own->weight.n; w++) {
    const bl_weight *x = &own->weight.at[w];
    if (!ev_stage_has(p, stage, w)) continue;
    for (int a = 0; a < BL_INNER; a++) {
      plan_time t = bl_axis_of(a) == PLAN_TENSOR ? PLAN_T_TENSOR : PLAN_T_SEQUENCE;
      if (!x->once[a]) continue;
      time[t] += x->once[a]->seconds;
      busy[t] += x->once[a]->seconds;
      count_sent(b, a, x->once[a], 1);
    }
  }
}

static void inner_times(const ev_point *p, const stages_cut *cut, int stage, double *time,
                        double *busy, plan_candidate *x, bool counted) {
  hm_moves moves = {{{0}}, {{0}}}, *moved = &moves;
  int n = (int)p->c->size[PLAN_PIPELINE];
  for (int part = stage; part < p->parts; part += n) {
    int k = ev_recomputes(p), end = ev_end_piece(p, cut, part) * k;
    for (int run = ev_first_piece(p, cut, part) * k; run < end; run++) {
      int i = run / k, slow = run % k;
      double layers = ev_layers_of_kind(p, cut, part, i, slow);
      if (layers <= 0) continue;
      double times = layers * (double)p->c->micro_batches;
      const ev_rates *r = ev_of_layers(p, stage, slow);
      const bl_piece *piece = &r->b->piece[i];
      for (int a = 0; a < BL_INNER; a++) {
        plan_time t = bl_axis_of(a) == PLAN_TENSOR ? PLAN_T_TENSOR : PLAN_T_SEQUENCE;
        time[t] += layers * piece->once[a]->seconds;
        busy[t] += layers * piece->once[a]->seconds;
        count_sent(&x->stage[stage].bytes, a, piece->once[a], layers);
        for (int f = 0; f < 2; f++) {
          time[t] += times * piece->phase[f].sent[a];
          busy[t] += times * piece->phase[f].moves[a]->seconds;
          count_sent(&x->stage[stage].bytes, a, piece->phase[f].moves[a], times);
        }
      }
      for (int f = 0; f < 2; f++) {
        const bl_phase *q = &piece->phase[f];
        time[PLAN_T_COMPUTE] += times * q->compute;
        x->products_s += counted ? times * q->kind[PC_PRODUCT] : 0;
        x->attention_s += counted ? times * q->kind[PC_ATTENTION] : 0;
        double phase = f ? r->backward[i] : r->forward[i];
        double own = q->compute + ev_exposed(q);
        // What ZeRO moves, and what homes do, that is not hidden.
        time[PLAN_T_DATA] += times * (phase - own - r->linked[f][i]);
        busy[PLAN_T_DATA] += times * r->shared[f][i];
        time[PLAN_T_OFFLOAD] += times * r->linked[f][i];
        if (!hm_any_away(p->c)) continue;
        bl_state unit = ev_piece_state(p, r->b, i);
        hm_moves m = hm_phase(p->c, &unit, piece->kept, (pg_phase)f);
        busy[PLAN_T_OFFLOAD] += times * hm_seconds(&r->k.store, &m);
        if (counted) hm_add(moved, &m, times);
      }
    }
  }
  add_sums(p, stage, time, busy, &x->stage[stage].bytes);
  busy[PLAN_T_COMPUTE] = time[PLAN_T_COMPUTE];
  if (!counted || !hm_any_away(p->c)) return;
  bl_state state = ev_stage_state(p, cut, stage);
  hm_moves m = hm_once(p->c, &state);
  hm_add(moved, &m, 1);
  memcpy(x->moved, moved->link, sizeof x->moved);
  memcpy(x->moved_disk, moved->disk, sizeof x->moved_disk);
}

// How many neighbours on `ring` lie in one node, where the ring goes through several: keys and
// values are gathered factor by factor (ir/cluster.h), each rank sends to other nodes only the
// chunks that those nodes lack.
static int64_t ring_in_node(const ev_point *p) {
  int64_t inner = 1, size = p->c->size[PLAN_RING];
  for (int t = 0; t < p->s->cluster->ntiers; t++) {
    const cl_tier *tier = &p->s->cluster->tier[t];
    if (tier->node && tier->unit > p->stride[PLAN_RING])
      inner = cl_gcd(tier->unit / p->stride[PLAN_RING], size);
  }
  return inner > 1 && inner < size ? inner : 0;
}

static void list_cuts(const ev_point *p, plan_candidate *x) {
  const pg_graph *g = p->g;
  const sh_result *r = p->kind[0].b->axis[0];
  if (!r->strategy) return;
  x->cut = arena_new(p->a, plan_cut, g->value.n + 1);
  for (int v = 0; v < g->value.n; v++)
    if (g->value.at[v].weight && r->code[v] >= SH_LEAF)
      x->cut[x->ncuts++] = (plan_cut){g->value.at[v].weight->name,
                                      sh_code_text(p->a, &g->value.at[v], r->code[v], "tensor")};
  for (int v = 0; v < g->value.n && !x->choice.sequence_parallel; v++)
    if (g->value.at[v].carried && r->code[v] >= SH_LEAF) x->choice.sequence_parallel = true;
  for (int i = 0; i < g->piece.n; i++)
    for (int f = 0; f < 2 && ev_is_layers(p, i); f++)
      for (int k = 0; k < CL_COLLECTIVES; k++)
        x->tensor_calls_layer[k] += llround(p->kind[0].b->piece[i].phase[f].moves[0]->calls[k]);
}

// Over each axis what the stage sends that sends most over it.
static void find_most_sent(plan_candidate *x) {
  for (int a = 0; a < PLAN_AXES; a++) {
    double most = -1;
    for (int i = 0; i < x->nstages; i++) {
      const plan_bytes *b = &x->stage[i].bytes;
      double sum = 0;
      for (int k = 0; k < CL_COLLECTIVES; k++) sum += b->bytes[a][k][0] + b->bytes[a][k][1];
      if (sum <= most) continue;
      most = sum;
      memcpy(x->bytes.bytes[a], b->bytes[a], sizeof b->bytes[a]);
      memcpy(x->bytes.calls[a], b->calls[a], sizeof b->calls[a]);
    }
  }
}

static void set_rates(const ev_point *p, plan_candidate *x) {
  const plan_job *j = p->s->job;
  double n = (double)p->s->cluster->devices, batch = (double)j->batch;
  ir_dtype t = DT_f32;
  if (!ir_dtype_parse(j->precision, &t)) t = DT_f32;
  double peak = p->s->cluster->alike ? cl_matmul_peak(cl_device_at(p->s->cluster, 0), t)
                                     : sk_peak(p->a, p->s->cluster, t) / n;
  x->tokens_per_s = j->tokens / x->step_s;
  x->tflops_per_device = p->g->flops * batch / x->step_s / n / 1e12;
  x->mfu = peak > 0 ? x->tflops_per_device * 1e12 / peak : 0;
  double run = p->g->hardware_flops;
  for (int i = 0; p->second && i < x->nlayers; i++)  // slow layers run more
    if (x->layers[i].recompute == p->c->also)
      run += (p->second->b->g->hardware_flops - p->g->hardware_flops) *
             (double)(x->layers[i].last + 1 - x->layers[i].first) / (double)p->layers;
  x->hfu = peak > 0 ? run * batch / x->step_s / n / peak : 0;
  // 80 % of a normal distribution with the residuals of the H100 fit, 4.6 % root mean square, lie
  // within 1.28 of that. docs/planner.md and bench/published.py have the coverage on other rows.
  const double spread = 1.28 * 0.046;
  x->step_low = x->step_s * (1 - spread);
  x->step_high = x->step_s * (1 + spread);
}

plan_candidate *plan_evaluate(arena *a, plan_space *s, const plan_choice *c, const bl_block *b,
                              double limit, const char **code, const char **why) {
  ev_point *p = ev_start_point(a, s, c, b);
  int n = (int)c->size[PLAN_PIPELINE], v = (int)c->interleave;
  p->parts = n * v;
  ev_find_layers(p);
  if (c->also) {
    plan_choice slow = *c;
    slow.recompute = c->also;
    const bl_block *other = plan_block_of(s, &slow);
    *code = "infeasible";
    *why = other->why ? other->why : mixed_why_not(b, other);
    if (*why) return NULL;
    p->second = arena_new(a, ev_rates, 1);
    *p->second = (ev_rates){.k = p->kind[0].k, .b = other};
    p->slow = arena_new(a, int64_t, p->parts);
    ev_layer_seconds(p, p->second);
  }
  pipe_chunk *chunk = arena_new(a, pipe_chunk, p->parts);
  double *after = arena_new(a, double, n);
  plan_candidate *x = arena_new(a, plan_candidate, 1);
  x->choice = *c;
  x->pipe = (pipeline){.kind = c->pipe,
                       .stages = n,
                       .chunks = v,
                       .micro = c->micro_batches,
                       .chunk = chunk,
                       .after = after};
  const char *wrong = pipe_check(a, &x->pipe);
  if (wrong) {
    *code = "infeasible";
    *why = wrong;
    return NULL;
  }
  stages_cut cut = ev_cut_stages(p, &x->pipe, isfinite(limit), &x->pressed);
  if (!cut.fits && isfinite(limit)) {  // a plan that fits is known
    *code = "does-not-fit";
    *why = "no cut of its layers fits";
    return NULL;
  }
  ev_find_weights(p, &cut);
  x->nstages = n;
  x->stage = arena_new(a, plan_stage, n);
  ev_fill_chunks(p, &cut, chunk, x);
  if (p->second) {
    ev_find_slow(p, &cut, &x->pipe, p->kind[0].k.capacity);
    for (int i = 0; i < p->parts; i++) x->slowed |= p->slow[i] > 0;
    memset(chunk, 0, sizeof *chunk * (size_t)p->parts);
    ev_fill_chunks(p, &cut, chunk, x);
  }
  ev_list_layers(p, &cut, x);
  ev_once *once_at = arena_new(a, ev_once, n);
  for (int i = 0; i < n; i++) {
    bl_state state = ev_stage_state(p, &cut, i);
    once_at[i] = ev_once_of(p, &state, &cut, i, chunk, &x->stage[i].bytes);
    const ev_once *o = &once_at[i];
    after[i] = o->reduce - o->hidden + o->gather + o->tied + o->inside + o->optimizer + o->offload;
    plan_stage *q = &x->stage[i];
    ev_name_stage(p, &cut, i, q);
    ev_stage_memory(p, &cut, i, &x->pipe, &state, q);
    for (int j = 0; j < v; j++) {
      q->forward_s += chunk[i * v + j].forward;
      q->backward_s += chunk[i * v + j].backward;
    }
    const sk_kind *k = &ev_at_stage(p, i)->k;
    q->capacity = k->capacity;
    q->device = k->device;
    q->group = k->group;
    int64_t over = q->peak - k->capacity;
    if (q->host - k->store.host > over) over = q->host - k->store.host;
    if (q->disk - k->store.disk > over) over = q->disk - k->store.disk;
    if (over > x->over) x->over = over;
    if (i && q->peak <= x->peak) continue;
    x->peak = q->peak;
    x->capacity = k->capacity;
    x->reserve = k->reserve;
    x->peak_at = q->peak_at;
    memcpy(x->memory, q->memory, sizeof x->memory);
  }
  x->load = x->peak;
  if (pipe_bound(&x->pipe) > limit) {
    bool pressed = x->peak > x->capacity || x->pressed || x->slowed;
    *code = pressed ? "does-not-fit" : "slower";  // more room may help
    *why = "a bound of its step says so";
    return NULL;
  }
  pipe_result r = pipe_longest(a, &x->pipe);
  x->step_s = r.step;
  x->critical = r.critical;
  for (int i = 0; i < n; i++) {
    double *t = x->stage[i].time, busy[PLAN_TIMES] = {0};
    const ev_once *o = &once_at[i];
    inner_times(p, &cut, i, t, busy, x, i == r.critical);
    t[PLAN_T_DATA] += o->reduce - o->hidden + o->gather;
    t[PLAN_T_OPTIMIZER] = o->optimizer;
    t[PLAN_T_OFFLOAD] += o->offload;
    t[PLAN_T_PIPELINE] = (i == r.critical ? r.exposed_send : 0) + o->tied;
    double sum = 0;
    for (int k = 0; k < PLAN_TIMES; k++) sum += t[k];
    t[PLAN_T_BUBBLE] = x->step_s - sum > 1e-12 * sum ? x->step_s - sum : 0;
    if (i != r.critical) continue;
    memcpy(x->time, t, sizeof x->time);
    memcpy(x->busy, busy, sizeof x->busy);
    x->busy[PLAN_T_DATA] += o->reduce + o->gather;
    x->busy[PLAN_T_OPTIMIZER] = o->optimizer;
    x->busy[PLAN_T_OFFLOAD] += o->offload;
    x->busy[PLAN_T_BUBBLE] = t[PLAN_T_BUBBLE];
  }
  if (p->places) memcpy(x->spans, p->places->spans, sizeof x->spans);
  find_most_sent(x);
  list_cuts(p, x);
  x->ring_inner = ring_in_node(p);
  set_rates(p, x);
  return x;
}
