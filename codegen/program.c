#include "codegen/program.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "codegen/cuda_emit.h"
#include "codegen/exchange.h"
#include "codegen/join.h"
#include "ir/cost.h"
#include "ir/place.h"
#include "runtime/program.h"

enum {
#define RTOP(name, operands, doc) RTOP_##name,
#include "runtime/rtops.def"
  RTOP_COUNT
};

_Static_assert(SCHED_CALL_BYTES == sizeof(prog_step), "schedules leave room for the call");

const char *cg_select(void *ctx, sched *s, skip_set skip) {
  cg_context *cg = ctx;
  cg_skip(cg, skip);
  arena *a = s->m->arena;
  for (int t = 0; t < s->tasks.n; t++)
    for (int i = 0; i < s->tasks.at[t].instrs.n; i++) {
      sched_instr *in = &s->tasks.at[t].instrs.at[i];
      if (in->code != SCHED_OP) continue;
      if (in->op->code == IR_set || in->op->code == IR_zeros) continue;  // opcodes of the VM
      if (ir_is_exchange(in->op->code)) {
        in->scratch_bytes = arena_new(a, int64_t, 1);
        in->scratch_bytes[0] = cg_exchange_by(s->m, in).scratch;
        in->nscratch = in->scratch_bytes[0] > 0;
        in->scratch_base = arena_new(a, int64_t, 1);
        continue;
      }
      cg_launches *l = arena_new(a, cg_launches, 1);
      const char *why = cg_build(cg, in->op, l);
      if (why) return why;
      in->launches = l;
      in->library = l->l.n && l->l.at[0].gemm ? cg_library_name(cg) : NULL;
      in->nscratch = l->scratch.n;
      in->scratch_bytes = l->scratch.at;
      in->scratch_base = arena_new(a, int64_t, l->scratch.n + 1);
    }
  if (cg_machine_of(cg) == CG_CUDA && !skips(skip, SKIP_joins)) cg_join(cg, s);
  return NULL;
}

// ---- tables -------------------------------------------------------------------------------------

typedef struct table {
  unsigned char *at;
  size_t n, cap;  // bytes
  uint32_t count, record;
} table;

typedef struct writer {
  arena *arena;
  cg_context *cg;
  const sched *s;
  table strings, states, args, ios, kernels, gemms, operands, instrs, tasks, runs, entries,
      settings, functions, numbers, modules, axes, exchanges;
  map interned;
} writer;

static uint32_t table_add(writer *w, table *t, const void *record, size_t bytes) {
  if (t->n + bytes > t->cap) {
    size_t cap = t->cap ? t->cap * 2 : 4096;
    while (cap < t->n + bytes) cap *= 2;
    unsigned char *p = arena_alloc(w->arena, cap);
    if (t->n) memcpy(p, t->at, t->n);
    t->at = p;
    t->cap = cap;
  }
  memcpy(t->at + t->n, record, bytes);
  t->n += bytes;
  t->record = (uint32_t)bytes;
  return t->count++;
}

static prog_str intern(writer *w, const char *text) {
  if (!text) text = "";
  int i = map_find(&w->interned, text);
  if (i >= 0) return (prog_str)(uintptr_t)w->interned.values[i];
  prog_str at = (prog_str)w->strings.n;
  size_t n = strlen(text) + 1;
  table_add(w, &w->strings, text, n);
  w->strings.record = 1;
  map_set(&w->interned, arena_strdup(w->arena, text), (void *)(uintptr_t)at);
  return at;
}

// The axes of a program are those of space; what bits of the mesh are there.
static uint32_t axes_of(const ir_module *m, unsigned axes) {
  uint32_t bits = 0;
  for (int i = 0, n = 0; i < m->mesh->naxes; i++) {
    if (m->mesh->axis[i].time) continue;
    bits |= (uint32_t)(axes >> i & 1) << n++;
  }
  return bits;
}

static void add_axes(writer *w) {
  const ir_mesh *mesh = w->s->m->mesh;
  int64_t stride = mesh ? mesh_devices(mesh) : 1;
  for (int i = 0; mesh && i < mesh->naxes; i++) {
    const ir_axis *x = &mesh->axis[i];
    if (x->time) continue;
    stride /= x->size;
    prog_axis r = {.name = intern(w, x->name), .size = x->size, .stride = stride};
    table_add(w, &w->axes, &r, sizeof r);
  }
}

static void add_shares(const ir_module *m, const ir_state *st, prog_state *r) {
  _Static_assert(IR_MAX_SHARES == PROG_MAX_CUTS, "as many in programs");
  int skip = st->stacked ? 1 : 0;
  r->ncuts = (uint32_t)st->nshares;
  r->global_rank = (uint32_t)(st->whole.rank - skip);
  for (int d = skip; d < st->whole.rank; d++) r->global[d - skip] = st->whole.dim[d]->size;
  for (int i = 0; i < st->nshares; i++)
    r->cut[i] = (prog_cut){.axes = axes_of(m, st->share[i].axes),
                           .block = st->share[i].block,
                           .whole = st->share[i].whole};
}

static void add_states(writer *w, const cg_image *image) {
  ir_module *m = w->s->m;
  for (int i = 0; i < m->states.n; i++) {
    const ir_state *st = m->states.at[i];
    const sched_place *p = &w->s->state_place[i];
    const ir_state *of = st->of ? ir_state_find(m, st->of) : NULL;
    prog_state r = {.name = intern(w, st->range_of ? st->range_of : st->name),
                    .of = intern(w, of && of->range_of ? of->range_of : st->of),
                    .cls = (uint32_t)st->cls,
                    .dtype = (uint32_t)st->type.dtype,
                    .init = (uint32_t)st->init,
                    .offset = p->base,
                    .bytes = p->bytes,
                    .init_a = st->init_a};
    if (st->cls == STATE_COPY) r.init_a = image->flushes ? 0x1p-126 : 0;
    int skip = st->stacked ? 1 : 0;
    r.rank = (uint32_t)(st->type.rank - skip);
    for (int d = skip; d < st->type.rank; d++) r.dims[d - skip] = st->type.dim[d]->size;
    if (st->stacked) {
      r.layers = st->type.dim[0]->size;
      r.first = st->first;
      r.step = st->step;
      r.bytes = p->bytes / r.layers;
      r.layer_stride = r.bytes;
    }
    if (st->nshares) add_shares(m, st, &r);
    table_add(w, &w->states, &r, sizeof r);
  }
}

static void add_io(writer *w, const sched_entry *e, const char *name, const ir_value *v,
                   bool input) {
  const sched_place *p = sched_place_of(w->s, v);
  if (!p) IR_BUG("no place for %s", name);
  ir_module *m = w->s->m;
  prog_io r = {.name = intern(w, name),
               .dtype = (uint32_t)v->type.dtype,
               .rank = (uint32_t)v->type.rank,
               .offset = p->base,
               .bytes = ir_bytes(&v->type),
               .micro_stride = p->micro_stride};
  for (int d = 0; d < v->type.rank; d++) r.dims[d] = v->type.dim[d]->size;
  bool train = e->func->kind == ENTRY_TRAIN || e->func->kind == ENTRY_EVAL;
  r.sampled = input && train && m->batch && v->type.rank > 0 &&
              ir_root(v->type.dim[0]) == ir_root(m->batch);
  table_add(w, &w->ios, &r, sizeof r);
}

static uint32_t add_operand(writer *w, const sched_place *p, bool read, bool write) {
  prog_operand r = {.base = p->base,
                    .layer_stride = p->layer_stride,
                    .layer_add = p->layer_add,
                    .layer_mod = p->layer_mod,
                    .micro_stride = p->micro_stride,
                    .micro_mod = p->micro_mod,
                    .bytes = p->bytes,
                    .writes = (uint32_t)read | (uint32_t)write << 1};
  return table_add(w, &w->operands, &r, sizeof r);
}

static void add_note(sb *s, const ir_op *op) {
  sb_puts(s, ir_info(op->code)->name);
  for (int k = 0; k < op->nout; k++)
    if (op->out[k]->name) sb_printf(s, "%s%s", k ? "," : " %", op->out[k]->name);
  if (op->span.line) sb_printf(s, " line %d", op->span.line);
}

static prog_str note_of(writer *w, const ir_op *op, const cg_launch *l) {
  sb s = {.arena = w->arena};
  add_note(&s, op);
  for (int i = 0; l && i < l->nalso; i++) {
    sb_puts(&s, "; ");
    add_note(&s, l->also[i]);
  }
  return intern(w, sb_str(&s));
}

static void add_instr(writer *w, uint32_t opcode, uint32_t kernel, uint32_t first, uint32_t n,
                      const ir_op *op, const cg_launch *l) {
  prog_instr r = {.op = opcode,
                  .kernel = kernel,
                  .first_operand = first,
                  .operands = n,
                  .note = note_of(w, op, l),
                  .flags = op->recompute ? PROG_RECOMPUTE : 0};
  table_add(w, &w->instrs, &r, sizeof r);
}

// A move between homes, or an event. The bytes of a move have the same place in both.
static void add_other(writer *w, const sched_instr *in) {
  static const uint32_t opcode[] = {
      [SCHED_FETCH] = RTOP_fetch,
      [SCHED_EVICT] = RTOP_evict,
      [SCHED_RECORD] = RTOP_record,
      [SCHED_WAIT] = RTOP_wait,
  };
  bool moves = in->code == SCHED_FETCH || in->code == SCHED_EVICT;
  const char *note = "";
  if (moves) note = "the call and its arguments";
  if (in->moved) note = in->moved->name ? arena_printf(w->arena, "%%%s", in->moved->name) : "";
  prog_instr r = {.op = opcode[in->code],
                  .first_operand = w->operands.count,
                  .operands = moves ? 2 : 0,
                  .note = intern(w, note),
                  .stream = (uint32_t)in->stream,
                  .event = (uint32_t)in->event};
  for (uint32_t k = 0; k < r.operands; k++) {
    bool host = (k == 0) == (in->code == SCHED_EVICT);
    prog_operand o = {.writes = k ? 1 : 2, .home = host ? PROG_HOST_HOME : PROG_DEVICE_HOME};
    sched_moved(w->s, in, &o.base, &o.bytes);
    table_add(w, &w->operands, &o, sizeof o);
  }
  table_add(w, &w->instrs, &r, sizeof r);
}

static bool same_place(const sched_place *a, const sched_place *b) {
  return a->base == b->base && a->layer_stride == b->layer_stride && a->layer_mod == b->layer_mod &&
         a->micro_stride == b->micro_stride && a->micro_mod == b->micro_mod;
}

static void add_set(writer *w, const ir_op *op) {
  const sched_place *from = sched_place_of(w->s, op->in[0]);
  const char *name = ir_attr_str(op, "name", "");
  for (int i = 0; i < w->s->m->states.n; i++) {
    if (!str_eq(w->s->m->states.at[i]->name, name)) continue;
    const sched_place *to = &w->s->state_place[i];
    if (same_place(from, to)) return;
    uint32_t first = add_operand(w, to, false, true);
    add_operand(w, from, true, false);
    add_instr(w, RTOP_copy, 0, first, 2, op, NULL);
    return;
  }
  IR_BUG("set: no state %s", name);
}

// The number of a launch's record: kernels of ours come first, then products of the library.
static uint32_t number_of(const writer *w, const cg_launch *l) {
  k_kernel *const *kernels;
  const cg_gemm *const *gemms;
  int nk = cg_kernels(w->cg, &kernels), ng = cg_gemms(w->cg, &gemms);
  for (int i = 0; i < nk && !l->gemm; i++)
    if (kernels[i] == l->kernel) return (uint32_t)i;
  for (int i = 0; i < ng; i++)
    if (gemms[i] == l->gemm) return (uint32_t)(nk + i);
  IR_BUG("a launch of an unknown kernel");
}

// Which function kernel `i` is on a GPU, and its numbers.
static void add_function_of(writer *w, const cuda_unit *u, int i, prog_kernel *r) {
  const cuda_kernel *c = &u->kernel[i];
  IR_CHECK(u->function_of[i] >= 0);
  r->function = (uint32_t)u->function_of[i];
  r->cells = c->blocks;
  r->first_number = w->numbers.count;
  r->numbers = (uint32_t)c->nnumbers;
  for (int k = 0; k < c->nnumbers; k++)
    table_add(w, &w->numbers, &c->number[k], sizeof c->number[k]);
}

static void add_kernels(writer *w, const cg_image *image) {
  k_kernel *const *kernels;
  const cg_gemm *const *gemms;
  int nk = cg_kernels(w->cg, &kernels), ng = cg_gemms(w->cg, &gemms);
  for (int i = 0; i < nk; i++) {
    prog_kernel r = {.name = intern(w, kernels[i]->name),
                     .nbufs = (uint32_t)kernels[i]->nbuffers,
                     .cells = k_cells(kernels[i]),
                     .flops = kernels[i]->flops,
                     .bytes = kernels[i]->bytes};
    if (image->cuda)
      add_function_of(w, image->cuda, i, &r);
    else
      r.code_offset = image->offset[i];
    table_add(w, &w->kernels, &r, sizeof r);
  }
  for (int i = 0; i < ng; i++) {
    const cg_gemm *g = gemms[i];
    prog_kernel r = {.name = intern(w, g->name),
                     .nbufs = g->record.start == PROG_GEMM_ADD ? 4 : 3,
                     .gemm = (uint32_t)i + 1,
                     .cells = g->matrices,
                     .flops = g->flops,
                     .bytes = g->bytes};
    table_add(w, &w->kernels, &r, sizeof r);
    table_add(w, &w->gemms, &g->record, sizeof g->record);
  }
}

static void add_modules(writer *w, const cuda_unit *u, prog_header *h) {
  int first = u->nmodules ? gpu_find(u->module[0].target) : -1;
  for (int i = 0; i < u->nfunctions; i++) {
    const cuda_function *f = &u->function[i];
    const nvrtc_usage *used = first >= 0 ? &f->usage[first] : &(nvrtc_usage){0};
    prog_function r = {.symbol = intern(w, f->symbol),
                       .threads = (uint32_t)f->threads,
                       .shared_bytes = (uint32_t)f->shared_bytes,
                       .registers = (uint32_t)used->registers,
                       .spill_bytes = (uint32_t)(used->spill_stores + used->spill_loads)};
    table_add(w, &w->functions, &r, sizeof r);
  }
  sb names = {.arena = w->arena};
  for (int i = 0; i < u->nmodules; i++) {
    const cuda_module *m = &u->module[i];
    prog_module r = {.target = intern(w, m->target),
                     .kind = m->ptx ? PROG_PTX : PROG_CUBIN,
                     .first_function = (uint32_t)m->function,
                     .functions = (uint32_t)m->functions,
                     .offset = m->offset,
                     .bytes = m->bytes};
    table_add(w, &w->modules, &r, sizeof r);
    if (m->ptx || m->function != 0) continue;
    sb_printf(&names, "%s%s", names.n ? " " : "", m->target);
  }
  h->machine = PROG_CUDA;
  h->targets = intern(w, sb_str(&names));
}

static void add_launches(writer *w, const sched_instr *in) {
  const cg_launches *l = in->launches;
  for (int i = 0; i < l->l.n; i++) {
    const cg_launch *one = &l->l.at[i];
    uint32_t first = w->operands.count;
    for (int k = 0; k < one->n; k++) {
      const cg_operand *o = &one->operand[k];
      sched_place p;
      if (o->root) {
        const sched_place *known = sched_place_of(w->s, o->root);
        if (!known) IR_BUG("%s: operand %d has no place", ir_info(in->op->code)->name, k);
        p = *known;
      } else {
        p = (sched_place){.base = in->scratch_base[o->scratch],
                          .bytes = in->scratch_bytes[o->scratch]};
      }
      add_operand(w, &p, o->read, o->write);
    }
    add_instr(w, one->gemm ? RTOP_gemm : RTOP_launch, number_of(w, one), first, (uint32_t)one->n,
              in->op, one);
  }
}

static prog_str note_of_exchange(writer *w, const sched_instr *in) {
  sb s = {.arena = w->arena};
  for (int k = 0; k < sched_ops(in); k++) {
    if (k) sb_puts(&s, "; ");
    add_note(&s, sched_op(in, k));
  }
  return intern(w, sb_str(&s));
}

// Operands: the result, what is moved (of a bucket, those of each value in turn), and bytes for
// what is on its way.
static void add_exchange(writer *w, const sched_instr *in) {
  const ir_op *op = in->op;
  prog_exchange e = cg_exchange_by(w->s->m, in);
  e.axes = axes_of(w->s->m, ir_exchange_axes(w->s->m, op));
  const ir_value *v = op->nout ? op->out[0] : op->in[0];
  e.name = intern(w, v->name ? v->name : op->path);
  uint32_t first = w->operands.count, n = 0;
  for (int k = 0; k < sched_ops(in); k++) {
    const ir_op *one = sched_op(in, k);
    if (one->nout) add_operand(w, sched_place_of(w->s, one->out[0]), false, true), n++;
    if (one->nin) add_operand(w, sched_place_of(w->s, one->in[0]), true, false), n++;
  }
  e.first_operand = first;
  sched_place scratch = {.base = in->scratch_base[0], .bytes = in->scratch_bytes[0]};
  if (e.scratch) add_operand(w, &scratch, true, true), n++;
  prog_instr r = {.op = RTOP_exchange,
                  .kernel = table_add(w, &w->exchanges, &e, sizeof e),
                  .first_operand = first,
                  .operands = n,
                  .note = note_of_exchange(w, in),
                  .flags = (op->recompute ? PROG_RECOMPUTE : 0u) | (in->last ? PROG_LAST : 0u),
                  .stream = (uint32_t)in->stream};
  table_add(w, &w->instrs, &r, sizeof r);
}

static void add_task(writer *w, const sched_task *t) {
  prog_task r = {
      .name = intern(w, t->name), .phase = intern(w, t->phase), .first_instr = w->instrs.count};
  for (int i = 0; i < t->instrs.n; i++) {
    const sched_instr *in = &t->instrs.at[i];
    if (in->code != SCHED_OP) {
      add_other(w, in);
      continue;
    }
    r.flops += ir_op_flops(in->op);
    for (int k = 0; k < sched_ops(in); k++) r.bytes += ir_op_bytes(sched_op(in, k));
    if (in->op->code == IR_set) {
      add_set(w, in->op);
    } else if (ir_is_exchange(in->op->code)) {
      add_exchange(w, in);
    } else if (in->op->code == IR_zeros) {
      const sched_place *p = sched_place_of(w->s, in->op->out[0]);
      add_instr(w, RTOP_zero, 0, add_operand(w, p, false, true), 1, in->op, NULL);
    } else {
      add_launches(w, in);
    }
  }
  r.instrs = w->instrs.count - r.first_instr;
  table_add(w, &w->tasks, &r, sizeof r);
}

static void add_entry(writer *w, const sched_entry *e) {
  prog_entry r = {.name = intern(w, e->func->name),
                  .kind = (uint32_t)e->func->kind,
                  .first_run = w->runs.count,
                  .batch = e->batch,
                  .micro_batch = e->micro_batch,
                  .transient_bytes = e->transient_bytes,
                  .flops = e->flops};
  unsigned data = mesh_axes_of(w->s->m->mesh, "data");
  bool batched = e->func->kind == ENTRY_TRAIN || e->func->kind == ENTRY_EVAL;
  if (data && batched) r.batch_axes = axes_of(w->s->m, data);
  for (int i = 0; i < e->runs.n; i++) {
    const sched_run *run = &e->runs.at[i];
    prog_run p = {.kind = run->kind == SCHED_RUN ? PROG_RUN : PROG_LOOP,
                  .task = (uint32_t)run->task,
                  .layer_first = run->first,
                  .layer_count = run->layers,
                  .layer_dir = run->dir,
                  .number_first = run->number_first,
                  .number_step = run->number_step,
                  .micro_first = run->micro_first,
                  .micro_count = run->micros,
                  .micro_add = run->micro_add};
    table_add(w, &w->runs, &p, sizeof p);
  }
  r.runs = w->runs.count - r.first_run;
  const ir_region *body = e->func->body;
  r.first_input = w->ios.count;
  for (int i = 0; i < body->ops.n; i++) {
    const ir_op *op = body->ops.at[i];
    if (op->code != IR_input) continue;
    add_io(w, e, ir_attr_str(op, "name", ""), op->out[0], true);
    if (op->out[0]->type.rank >= 2 && op->out[0]->type.dim[1]->size > r.tokens)
      r.tokens = op->out[0]->type.dim[1]->size;
  }
  r.inputs = w->ios.count - r.first_input;
  r.first_output = w->ios.count;
  for (int i = 0; i < body->ops.n; i++) {
    const ir_op *op = body->ops.at[i];
    if (op->code == IR_output) add_io(w, e, ir_attr_str(op, "name", ""), op->in[0], false);
  }
  r.outputs = w->ios.count - r.first_output;
  table_add(w, &w->entries, &r, sizeof r);
}

// ---- the blob -----------------------------------------------------------------------------------

static prog_table lay_table(unsigned char *blob, size_t *at, const table *t) {
  *at = (*at + 7) & ~(size_t)7;
  prog_table r = {.offset = *at,
                  .count = t->record == 1 ? (uint32_t)t->n : t->count,
                  .record_bytes = t->record};
  if (blob && t->n) memcpy(blob + *at, t->at, t->n);
  *at += t->n;
  return r;
}

static size_t lay_all(unsigned char *blob, prog_header *h, writer *w) {
  size_t at = sizeof *h;
  h->strings = lay_table(blob, &at, &w->strings);
  h->states = lay_table(blob, &at, &w->states);
  h->args = lay_table(blob, &at, &w->args);
  h->ios = lay_table(blob, &at, &w->ios);
  h->kernels = lay_table(blob, &at, &w->kernels);
  h->gemms = lay_table(blob, &at, &w->gemms);
  h->operands = lay_table(blob, &at, &w->operands);
  h->instrs = lay_table(blob, &at, &w->instrs);
  h->tasks = lay_table(blob, &at, &w->tasks);
  h->runs = lay_table(blob, &at, &w->runs);
  h->entries = lay_table(blob, &at, &w->entries);
  h->settings = lay_table(blob, &at, &w->settings);
  h->functions = lay_table(blob, &at, &w->functions);
  h->numbers = lay_table(blob, &at, &w->numbers);
  h->modules = lay_table(blob, &at, &w->modules);
  h->axes = lay_table(blob, &at, &w->axes);
  h->exchanges = lay_table(blob, &at, &w->exchanges);
  return (at + 7) & ~(size_t)7;
}

program_bytes program_write(cg_context *cg, const sched *s, const cg_image *image,
                            const program_info *info) {
  writer w = {.arena = s->m->arena, .cg = cg, .s = s};
  w.interned.arena = w.arena;
  intern(&w, "");
  // Record sizes also of tables that stay empty.
  w.states.record = sizeof(prog_state), w.args.record = sizeof(prog_arg);
  w.ios.record = sizeof(prog_io), w.kernels.record = sizeof(prog_kernel);
  w.gemms.record = sizeof(prog_gemm);
  w.operands.record = sizeof(prog_operand), w.instrs.record = sizeof(prog_instr);
  w.tasks.record = sizeof(prog_task), w.runs.record = sizeof(prog_run);
  w.entries.record = sizeof(prog_entry), w.settings.record = sizeof(prog_setting);
  w.functions.record = sizeof(prog_function), w.numbers.record = sizeof(int64_t);
  w.modules.record = sizeof(prog_module);
  w.axes.record = sizeof(prog_axis), w.exchanges.record = sizeof(prog_exchange);

  prog_header h = {.version = PROG_VERSION, .header_bytes = sizeof h};
  memcpy(h.magic, PROG_MAGIC, sizeof h.magic);
  h.compiler = intern(&w, info->compiler);
  h.model = intern(&w, info->model);
  h.cpu = intern(&w, info->cpu);
  h.plan = intern(&w, info->plan);
  h.source_digest = info->source_digest;
  h.parameters = (uint64_t)info->parameters;
  h.arena_bytes = (uint64_t)s->arena_bytes;
  h.states_bytes = (uint64_t)s->states_bytes;
  h.stack_bytes = (uint64_t)image->stack;
  h.events = (uint32_t)s->events;
  h.step_offset = s->device ? (uint64_t)s->call_base : 0;
  IR_CHECK(h.stack_bytes <= PROG_MAX_STACK);
  h.code_bytes = (uint64_t)image->n;

  add_axes(&w);
  add_states(&w, image);
  for (int i = 0; i < s->args.n; i++) {
    prog_arg r = {.name = intern(&w, s->args.at[i]), .offset = s->arg_place[i].base};
    for (int k = 0; k < info->nargs; k++)
      if (str_eq(info->args[k].name, s->args.at[i])) r.value = strtod(info->args[k].value, NULL);
    table_add(&w, &w.args, &r, sizeof r);
  }
  add_kernels(&w, image);
  if (image->cuda) add_modules(&w, image->cuda, &h);
  for (int i = 0; i < s->tasks.n; i++) add_task(&w, &s->tasks.at[i]);
  for (int i = 0; i < s->entries.n; i++) add_entry(&w, &s->entries.at[i]);
  for (int i = 0; i < info->nsettings; i++) {
    prog_setting r = {intern(&w, info->settings[i].name), intern(&w, info->settings[i].value)};
    table_add(&w, &w.settings, &r, sizeof r);
  }

  program_bytes b = {.n = lay_all(NULL, &h, &w)};
  b.at = arena_alloc(w.arena, b.n);
  h.total_bytes = b.n;
  lay_all(b.at, &h, &w);
  memcpy(b.at, &h, sizeof h);
  size_t from = offsetof(prog_header, checksum) + sizeof h.checksum;
  h.checksum = XXH3_64bits(b.at + from, b.n - from);
  memcpy(b.at, &h, sizeof h);
  return b;
}

// ---- the file -----------------------------------------------------------------------------------

static bool put(int fd, const void *at, size_t n) {
  const unsigned char *p = at;
  while (n) {
    ssize_t k = write(fd, p, n);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return false;
    p += k;
    n -= (size_t)k;
  }
  return true;
}

static bool put_zeros(int fd, size_t n) {
  static const unsigned char zeros[4096] = {0};
  while (n) {
    size_t k = n < sizeof zeros ? n : sizeof zeros;
    if (!put(fd, zeros, k)) return false;
    n -= k;
  }
  return true;
}

static uint64_t page_after(uint64_t at) { return (at + 4095) & ~(uint64_t)4095; }

const char *exe_write(arena *a, const char *path, const unsigned char *runtime, size_t nruntime,
                      const cg_image *const *image, const program_bytes *const *program, int n) {
  const char *tmp = arena_printf(a, "%s.tmp%ld", path, (long)getpid());
  int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0755);
  if (fd < 0) return arena_printf(a, "cannot write %s: %s", tmp, strerror(errno));
  prog_trailer t = {.parts = n > 1 ? (uint64_t)n : 0};
  memcpy(t.magic, PROG_TRAILER_MAGIC, sizeof t.magic);
  prog_part *part = arena_new(a, prog_part, n);
  bool ok = put(fd, runtime, nruntime);
  uint64_t at = nruntime;
  for (int i = 0; i < n; i++) {
    uint64_t code = page_after(at), code_bytes = (uint64_t)image[i]->n;
    part[i] = (prog_part){.code_offset = code,
                          .code_bytes = code_bytes,
                          .code_checksum = XXH3_64bits(image[i]->bytes, code_bytes),
                          .program_offset = page_after(code + code_bytes),
                          .program_bytes = program[i]->n};
    ok = ok && put_zeros(fd, code - at) && put(fd, image[i]->bytes, code_bytes) &&
         put_zeros(fd, part[i].program_offset - code - code_bytes) &&
         put(fd, program[i]->at, program[i]->n);
    at = part[i].program_offset + program[i]->n;
  }
  t.first = part[0];
  if (n > 1) {
    t.parts_offset = (at + 7) & ~(uint64_t)7;
    ok = ok && put_zeros(fd, t.parts_offset - at) && put(fd, part, sizeof *part * (size_t)n);
  }
  ok = ok && put(fd, &t, sizeof t);
  int saved = errno;
  ok = close(fd) == 0 && ok;
  if (ok && rename(tmp, path) == 0) return NULL;
  if (ok) saved = errno;
  unlink(tmp);
  return arena_printf(a, "cannot write %s: %s", path, strerror(saved));
}
