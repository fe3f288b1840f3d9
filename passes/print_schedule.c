// The text of SCHEDULE: entries with their orders, tasks with their instructions and places.
//
// Comments say where values share bytes on purpose: results written over an operand, updates in
// place, and the frames in which gradients lie where activations of later layers lay.

#include "ir/schedule.h"
#include "ir/view.h"

static void put_place(sb *s, const sched_place *p) {
  sb_printf(s, "%lld", (long long)p->base);
  if (p->layer_stride) {
    if (p->layer_mod)
      sb_printf(s, " + ((layer%+lld) mod %lld)*%lld", (long long)p->layer_add,
                (long long)p->layer_mod, (long long)p->layer_stride);
    else if (p->layer_add)
      sb_printf(s, " + (layer%+lld)*%lld", (long long)p->layer_add, (long long)p->layer_stride);
    else
      sb_printf(s, " + layer*%lld", (long long)p->layer_stride);
  }
  if (p->micro_stride && p->micro_mod)
    sb_printf(s, " + (micro mod %lld)*%lld", (long long)p->micro_mod, (long long)p->micro_stride);
  else if (p->micro_stride)
    sb_printf(s, " + micro*%lld", (long long)p->micro_stride);
}

static void put_name(sb *s, const ir_value *root) {
  if (root->name)
    sb_printf(s, "%%%s", root->name);
  else
    sb_printf(s, "%%%d", root->id);
}

static void put_value(sb *s, const sched *sc, const ir_value *v) {
  const ir_value *root = ir_view_of((ir_value *)(uintptr_t)v).root;
  if (root->def && root->def->code == IR_const) {
    char buf[32];
    sb_puts(s, str_double(buf, ir_attr_float(root->def, "value", 0)));
    return;
  }
  put_name(s, root);
  if (root->def && root->def->code == IR_state)
    sb_printf(s, "(%s)", ir_attr_str(root->def, "name", ""));
  const sched_place *p = root->id < sc->nplaces ? &sc->place[root->id] : NULL;
  if (!p || !p->known) return;
  sb_puts(s, "@");
  put_place(s, p);
}

static bool same_place(const sched_place *a, const sched_place *b) {
  return a->known && b->known && a->base == b->base && a->layer_stride == b->layer_stride &&
         a->layer_add == b->layer_add && a->layer_mod == b->layer_mod &&
         a->micro_stride == b->micro_stride && a->micro_mod == b->micro_mod && a->bytes == b->bytes;
}

// Which results lie where an operand does.
static void put_shared(sb *s, const sched *sc, const ir_op *op) {
  for (int j = 0; sc->place && j < op->nout; j++)
    for (int k = 0; k < op->nin; k++) {
      const ir_value *v = ir_view_of(op->in[k]).root;
      bool updated = ir_updated(op) == k;
      if (!same_place(&sc->place[op->out[j]->id], &sc->place[v->id])) continue;
      if (!updated && !ir_may_overwrite(op, j, k)) continue;
      sb_puts(s, "  ; ");
      put_name(s, op->out[j]);
      sb_puts(s, updated ? " updates " : " over ");
      put_name(s, v);
      break;
    }
}

// Parts that are glued together, a line for each whole.
static void put_glued(sb *s, const sched *sc, int entry) {
  const sched_item *it = sc->items.at;
  for (int i = 0; i < sc->items.n; i++) {
    if (it[i].entry != entry || !it[i].glue) continue;
    bool first = true;
    for (int k = 0; k < i; k++) first &= it[k].entry != entry || it[k].glue != it[i].glue;
    if (!first) continue;
    sb_printf(s, "  ; frame %d:", it[i].glue);
    for (int k = i; k < sc->items.n; k++)
      if (it[k].entry == entry && it[k].glue == it[i].glue)
        sb_printf(s, "%s %s %lld bytes %+lld in %d..%d", k > i ? "," : "",
                  *it[k].name ? it[k].name : "gradient", (long long)it[k].bytes,
                  (long long)it[k].at, it[k].first, it[k].last);
    sb_put(s, '\n');
  }
}

static void put_other(sb *s, const sched *sc, const sched_instr *in) {
  static const char *const code[] = {"", "fetch", "evict", "record", "wait"};
  static const char *const stream[] = {"compute", "copies", "communication"};  // ORDER STREAM
  sb_printf(s, "    %-14s ", code[in->code]);
  if (in->code == SCHED_RECORD || in->code == SCHED_WAIT)
    sb_printf(s, "event %d", in->event);
  else if (in->moved)
    put_name(s, in->moved);
  else
    sb_puts(s, "the call and its arguments");
  if ((in->code == SCHED_FETCH || in->code == SCHED_EVICT) && sc->place) {
    int64_t base, bytes;
    sched_moved(sc, in, &base, &bytes);
    sb_printf(s, "@%lld, %lld bytes", (long long)base, (long long)bytes);
  }
  sb_printf(s, "  ; on %s\n", stream[in->stream]);
}

static void put_instr(sb *s, const sched *sc, const sched_instr *in) {
  const ir_op *op = in->op;
  if (in->code != SCHED_OP) {
    put_other(s, sc, in);
    return;
  }
  sb_printf(s, "    %-14s", in->library ? "gemm" : ir_info(op->code)->name);
  if (op->code == IR_set) sb_printf(s, " %s", ir_attr_str(op, "name", ""));
  for (int n = 0; n < sched_ops(in); n++)
    for (int k = 0; k < sched_op(in, n)->nout; k++) {
      sb_puts(s, k + n ? ", " : " ");
      put_value(s, sc, sched_op(in, n)->out[k]);
    }
  for (int n = 0; n < sched_ops(in); n++)
    for (int k = 0; k < sched_op(in, n)->nin; k++) {
      sb_puts(s, k + n ? ", " : " <- ");
      put_value(s, sc, sched_op(in, n)->in[k]);
    }
  for (int k = 0; k < in->nscratch; k++) {
    sb_printf(s, "%s %lld bytes", k ? "," : "  scratch", (long long)in->scratch_bytes[k]);
    if (sc->place) sb_printf(s, "@%lld", (long long)in->scratch_base[k]);
  }
  bool first = true;
  if (in->library) sb_printf(s, "  ; %s", in->library), first = false;
  if (sched_beside(in)) sb_printf(s, "%s on communication", first ? "  ;" : ","), first = false;
  if (in->last) sb_printf(s, "%s last micro-batch", first ? "  ;" : ","), first = false;
  if (op->recompute) sb_printf(s, "%s recompute", first ? "  ;" : ","), first = false;
  if (op->span.line) sb_printf(s, "%s line %d", first ? "  ;" : ",", op->span.line);
  put_shared(s, sc, op);
  sb_put(s, '\n');
}

const char *sched_print(const sched *sc, arena *a) {
  sb s = {.arena = a};
  bool placed = sc->place != NULL;
  if (sc->device) sb_puts(&s, "; for a device; the host has a mirror of its arena\n");
  if (!placed) sb_puts(&s, "; before `layout`: nothing has a place yet\n");
  if (placed)
    sb_printf(&s,
              "; arena %lld bytes: states %lld, then what the entries overlay, %lld of caches\n",
              (long long)sc->arena_bytes, (long long)sc->states_bytes, (long long)sc->cache_bytes);
  for (int i = 0; placed && i < sc->m->states.n; i++) {
    const ir_state *st = sc->m->states.at[i];
    sb_printf(&s, "state %s at %lld, %lld bytes\n", st->name, (long long)sc->state_place[i].base,
              (long long)sc->state_place[i].bytes);
  }
  if (placed && sc->device)
    sb_printf(&s, "call at %lld, %d bytes\n", (long long)sc->call_base, SCHED_CALL_BYTES);
  for (int i = 0; placed && i < sc->args.n; i++)
    sb_printf(&s, "arg %s at %lld\n", sc->args.at[i], (long long)sc->arg_place[i].base);
  for (int i = 0; i < sc->entries.n; i++) {
    const sched_entry *e = &sc->entries.at[i];
    sb_printf(&s, "\nentry %s  ; batch %lld = %lld micro-batches of %lld", e->func->name,
              (long long)e->batch, (long long)(e->batch / e->micro_batch),
              (long long)e->micro_batch);
    if (placed)
      sb_printf(&s, ", %lld bytes beyond the states, %lld alive at once",
                (long long)e->transient_bytes, (long long)e->live_bytes);
    if (e->in_flight > 1) sb_printf(&s, ", %lld of them on their way", (long long)e->in_flight);
    if (e->recompute_flops > 0)
      sb_printf(&s, ", recompute %.1f %% more FLOPs", 100 * e->recompute_flops / e->flops);
    sb_put(&s, '\n');
    if (placed) put_glued(&s, sc, i);
    int inside = 0;
    for (int k = 0; k < e->runs.n; k++) {
      const sched_run *r = &e->runs.at[k];
      if (r->kind == SCHED_LOOP) {
        sb_printf(&s, "  for micro in %lld..%lld\n", (long long)r->micro_first,
                  (long long)(r->micro_first + r->micros - 1));
        inside = r->task;
        continue;
      }
      sb_printf(&s, "  %srun %s", inside > 0 ? "  " : "", sc->tasks.at[r->task].name);
      inside--;
      if (sc->tasks.at[r->task].loop)
        sb_printf(&s, "  layers %lld..%lld", (long long)r->first,
                  (long long)(r->first + r->dir * (r->layers - 1)));
      if (r->micro_add) sb_printf(&s, "  micro%+lld", (long long)r->micro_add);
      sb_put(&s, '\n');
    }
  }
  for (int i = 0; i < sc->tasks.n; i++) {
    const sched_task *t = &sc->tasks.at[i];
    sb_printf(&s, "\ntask %s  ; %s%s\n", t->name, t->phase,
              !t->loop                            ? ""
              : ir_attr_int(t->loop, "stream", 0) ? ", once per chunk"
                                                  : ", once per layer");
    for (int k = 0; k < t->instrs.n; k++) put_instr(&s, sc, &t->instrs.at[k]);
  }
  return sb_str(&s);
}
