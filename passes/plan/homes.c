#include "passes/plan/homes.h"

static double least(double a, double b) { return a < b ? a : b; }
static double most(double a, double b) { return a > b ? a : b; }

// Of the node that holds a device, which begins at *first and has *count.
static hm_store store_at(const cl_cluster *c, int64_t number, int64_t *first, int64_t *count) {
  const cl_level *node = cl_node_of(c, number, first, count);
  double own = cl_device_at(c, number)->bandwidth;
  for (int64_t d = *first; !c->alike && d < *first + *count; d++)
    own = least(own, cl_device_at(c, d)->bandwidth);
  hm_store s = {0};
  if (!node || node->host.size <= 0 || node->host.bandwidth <= 0) return s;
  s.host = node->host.size / *count;
  s.host_rate = least(node->host.bandwidth, own);
  s.host_wait = node->host.latency;
  if (node->disk.size <= 0 || node->disk.bandwidth <= 0) return s;
  s.disk = node->disk.size / *count;
  s.disk_rate = least(node->disk.bandwidth, s.host_rate);
  s.disk_wait = node->disk.latency;
  return s;
}

// Over nodes, the worst or the best of everything.
static hm_store over_nodes(const cl_cluster *c, int64_t from, int64_t to, bool best) {
  int64_t first, count;
  hm_store all = store_at(c, from, &first, &count);
  while (!c->alike && first + count <= to) {
    hm_store s = store_at(c, first + count, &first, &count);
    all = (hm_store){
        .host = best == (s.host > all.host) ? s.host : all.host,
        .disk = best == (s.disk > all.disk) ? s.disk : all.disk,
        .host_rate = best ? most(s.host_rate, all.host_rate) : least(s.host_rate, all.host_rate),
        .disk_rate = best ? most(s.disk_rate, all.disk_rate) : least(s.disk_rate, all.disk_rate),
        .host_wait = best ? least(s.host_wait, all.host_wait) : most(s.host_wait, all.host_wait),
        .disk_wait = best ? least(s.disk_wait, all.disk_wait) : most(s.disk_wait, all.disk_wait)};
  }
  return all;
}

hm_store hm_store_in(const cl_cluster *c, int64_t first, int64_t last) {
  return over_nodes(c, first, last, false);
}
hm_store hm_store_of(const cl_cluster *c) { return over_nodes(c, 0, c->devices - 1, false); }
hm_store hm_store_best(const cl_cluster *c) { return over_nodes(c, 0, c->devices - 1, true); }

void hm_add(hm_moves *to, const hm_moves *m, double times) {
  for (int k = 0; k < PLAN_CLASSES; k++)
    for (int w = 0; w < HM_WAYS; w++) {
      to->link[k][w] += times * m->link[k][w];
      to->disk[k][w] += times * m->disk[k][w];
    }
}

bool hm_any_away(const plan_choice *c) {
  for (int k = 0; k < PLAN_CLASSES; k++)
    if (c->home[k] != PLAN_DEVICE) return true;
  return false;
}

// ---- what is kept -------------------------------------------------------------------------------

// Ranks that a class is cut over.
static double cut_of(const plan_choice *c, plan_class k) {
  int from = k == PLAN_OPTIMIZER ? 1 : k == PLAN_GRADIENTS ? 2 : 3;
  return c->zero >= from ? (double)c->zero_group : 1;
}

hm_kept hm_kept_of(const plan_choice *c, const bl_state *s) {
  hm_kept h = {{0}};
  h.bytes[PLAN_PARAMETERS] = s->parameter / cut_of(c, PLAN_PARAMETERS);
  h.bytes[PLAN_GRADIENTS] = s->gradient / cut_of(c, PLAN_GRADIENTS);
  h.bytes[PLAN_OPTIMIZER] = (s->optimizer + s->master) / cut_of(c, PLAN_OPTIMIZER);
  return h;
}

hm_held hm_held_by(const plan_choice *c, const bl_state *s) {
  hm_held h = {{0}, 0, 0};
  hm_kept kept = hm_kept_of(c, s);
  for (int k = 0; k < PLAN_CLASSES; k++) {
    if (c->home[k] == PLAN_DEVICE) h.device[k] = kept.bytes[k];
    if (c->home[k] == PLAN_HOST) h.host += kept.bytes[k];
    if (c->home[k] == PLAN_DISK) h.disk += kept.bytes[k];
  }
  if (c->home[PLAN_OPTIMIZER] != PLAN_DEVICE && c->home[PLAN_GRADIENTS] == PLAN_DEVICE)
    h.host += s->gradient / cut_of(c, PLAN_OPTIMIZER);
  return h;
}

// ---- what moves ---------------------------------------------------------------------------------

static void move(hm_moves *m, const plan_choice *c, plan_class k, int way, double bytes) {
  m->link[k][way] += bytes;
  if (c->home[k] == PLAN_DISK) m->disk[k][way] += bytes;
}

hm_moves hm_phase(const plan_choice *c, const bl_state *own, double saved, pg_phase phase) {
  hm_moves m = {{{0}}, {{0}}};
  hm_kept kept = hm_kept_of(c, own);
  bool back = phase == PG_BACKWARD;
  if (c->home[PLAN_PARAMETERS] != PLAN_DEVICE)
    move(&m, c, PLAN_PARAMETERS, HM_IN, kept.bytes[PLAN_PARAMETERS]);
  if (c->home[PLAN_ACTIVATIONS] != PLAN_DEVICE)
    move(&m, c, PLAN_ACTIVATIONS, back ? HM_IN : HM_OUT, saved);
  if (back && c->home[PLAN_GRADIENTS] != PLAN_DEVICE) {
    double gradient = kept.bytes[PLAN_GRADIENTS], n = (double)c->micro_batches;
    move(&m, c, PLAN_GRADIENTS, HM_OUT, gradient);
    move(&m, c, PLAN_GRADIENTS, HM_IN, gradient * (n - 1) / n);  // the first has nothing to add to
  }
  return m;
}

hm_moves hm_once(const plan_choice *c, const bl_state *s) {
  hm_moves m = {{{0}}, {{0}}};
  bool weights_away = c->home[PLAN_PARAMETERS] != PLAN_DEVICE;
  bool gradients_away = c->home[PLAN_GRADIENTS] != PLAN_DEVICE;
  double part = cut_of(c, PLAN_OPTIMIZER), all = s->parameter / cut_of(c, PLAN_PARAMETERS);
  double own = s->parameter / part;  // what a rank updates of the weights, before ranks share it
  bool masters = s->master > 0;      // else the update reads the weights themselves
  if (c->home[PLAN_OPTIMIZER] == PLAN_DEVICE) {
    if (gradients_away) move(&m, c, PLAN_GRADIENTS, HM_IN, s->gradient / part);
    if (weights_away && !masters) move(&m, c, PLAN_PARAMETERS, HM_IN, own);
    if (weights_away) move(&m, c, PLAN_PARAMETERS, HM_OUT, all);
    return m;
  }
  if (!gradients_away) m.link[PLAN_GRADIENTS][HM_OUT] += s->gradient / part;
  if (!weights_away) {
    if (!masters) m.link[PLAN_PARAMETERS][HM_OUT] += own;
    m.link[PLAN_PARAMETERS][HM_IN] += own;
  } else if (own < all) {  // parts are shared by the devices
    m.link[PLAN_PARAMETERS][HM_IN] += own;
    m.link[PLAN_PARAMETERS][HM_OUT] += all;
  }
  if (c->home[PLAN_PARAMETERS] == PLAN_DISK) {
    if (!masters) m.disk[PLAN_PARAMETERS][HM_IN] += own;
    m.disk[PLAN_PARAMETERS][HM_OUT] += all;
  }
  if (c->home[PLAN_OPTIMIZER] == PLAN_DISK)
    for (int w = 0; w < HM_WAYS; w++)
      m.disk[PLAN_OPTIMIZER][w] += (s->optimizer + s->master) / part;
  return m;
}

// ---- seconds ------------------------------------------------------------------------------------

static double sum(const double bytes[PLAN_CLASSES][HM_WAYS], int way) {
  double s = 0;
  for (int k = 0; k < PLAN_CLASSES; k++) s += bytes[k][way];
  return s;
}

static double on_way(double bytes, double rate, double wait) {
  return bytes > 0 ? bytes / rate + wait : 0;
}

double hm_seconds(const hm_store *st, const hm_moves *m) {
  double s = 0;
  for (int w = 0; w < HM_WAYS; w++) {
    s = most(s, on_way(sum(m->link, w), st->host_rate, st->host_wait));
    s = most(s, on_way(sum(m->disk, w), st->disk_rate, st->disk_wait));
  }
  return s;
}

double hm_seconds_in_turn(const hm_store *st, const hm_moves *m) {
  double s = 0;
  for (int w = 0; w < HM_WAYS; w++) {
    double disk = m->disk[PLAN_PARAMETERS][w] + m->disk[PLAN_GRADIENTS][w];
    s += most(on_way(sum(m->link, w), st->host_rate, st->host_wait),
              on_way(disk, st->disk_rate, st->disk_wait));
  }
  return s;
}

double hm_update_seconds(const hm_store *st, const hm_moves *once, double bytes) {
  double s = bytes / st->host_rate;
  for (int w = 0; w < HM_WAYS; w++)
    s = most(s, on_way(once->disk[PLAN_OPTIMIZER][w], st->disk_rate, st->disk_wait));
  return s;
}
