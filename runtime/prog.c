// Validation comes first and is complete; the accessors below it trust what it let through.
//
// Arithmetic on numbers from the blob uses the checked builtins: a sum that overflows is refused
// like one that is too large.
#include "runtime/prog.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/str.h"
#include "runtime/dtype.h"
#include "runtime/prog_impl.h"

#define MAX_LAYERS ((int64_t)1 << 24)

static const struct {
  const char *name, *doc;
  int operands;
} opcodes[] = {
#define RTOP(name, operands, doc) {#name, doc, operands},
#include "runtime/rtops.def"
};

const char *prog_opcode_name(uint32_t op) { return opcodes[op].name; }

const char *prog_stream_name(uint32_t stream) {
  static const char *const name[PROG_STREAMS] = {"compute", "copies", "communication"};
  return name[stream];
}

const char *prog_machine_name(uint32_t machine) {
  static const char *const name[PROG_MACHINES] = {"host", "cuda"};
  return name[machine];
}

uint64_t prog_checksum(const void *blob, size_t n) {
  size_t from = offsetof(prog_header, checksum) + sizeof(uint64_t);
  return XXH3_64bits((const char *)blob + from, n - from);
}

static status *table(const unsigned char *blob, size_t n, const prog_table *t, size_t record,
                     const char *what, const void *out_at, uint32_t *out_n) {
  if (t->record_bytes != record)
    BAD("records of table %s have %u bytes, expected %zu", what, t->record_bytes, record);
  if (t->offset % 8 || t->offset < sizeof(prog_header) || t->offset > n ||
      t->count > (n - t->offset) / record)
    BAD("table %s (%u records at %llu) leaves the program", what, t->count,
        (unsigned long long)t->offset);
  const void *at = blob + t->offset;
  memcpy((void *)(uintptr_t)out_at, &at, sizeof at);
  *out_n = t->count;
  return NULL;
}

static bool text_ok(const prog *p, prog_str s) { return s < p->nstrings; }

static bool add(int64_t a, int64_t b, int64_t *out) { return !__builtin_add_overflow(a, b, out); }
static bool mul(int64_t a, int64_t b, int64_t *out) { return !__builtin_mul_overflow(a, b, out); }

// bytes of `dims`, or -1
static int64_t tensor_bytes(const int64_t *dims, uint32_t rank, uint32_t dtype) {
  int64_t n = dtype_of(dtype)->bytes;
  for (uint32_t i = 0; i < rank; i++)
    if (dims[i] < 1 || !mul(n, dims[i], &n) || n > PROG_MAX_BYTES) return -1;
  return n;
}

// Whether [base + k*stride, + bytes) lies in the arena for k = 0 and k = last.
static bool pieces_fit(const prog *p, int64_t base, int64_t stride, int64_t last, int64_t bytes) {
  int64_t limit = (int64_t)p->header->arena_bytes, end;
  if (bytes < 0 || base < 0 || !add(base, bytes, &end) || end > limit) return false;
  if (!mul(last, stride, &end) || !add(end, base, &end) || end < 0) return false;
  return add(end, bytes, &end) && end <= limit;
}

// A copy is rounded from its weight element by element, so they must agree in all but the type.
static status *check_copy(const prog *p, const prog_state *s) {
  const prog_state *w = prog_weight_of(p, s);
  if (!w) BAD("state %s is a copy of no weight", prog_text(p, s->name));
  uint32_t rank, wrank;
  const int64_t *dims = prog_state_dims(s, &rank), *wdims = prog_state_dims(w, &wrank);
  if (s->init_a < 0 || s->init_a > 1) BAD("state %s has a bad init", prog_text(p, s->name));
  if (s->dtype != PROG_BF16 || w->dtype != PROG_F32 || s->layers != w->layers ||
      s->first != w->first || s->step != w->step || rank != wrank ||
      memcmp(dims, wdims, rank * sizeof *dims) != 0)
    BAD("state %s is not the bf16 of weight %s", prog_text(p, s->name), prog_text(p, w->name));
  return NULL;
}

static status *check_states(const prog *p) {
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (!text_ok(p, s->name) || !text_ok(p, s->of)) BAD("state %u has no name", i);
    const char *name = prog_text(p, s->name);
    if (s->cls > PROG_CACHE || s->dtype >= PROG_DTYPES || s->rank > PROG_MAX_RANK ||
        s->init > PROG_CONST || s->global_rank > PROG_MAX_RANK || s->ncuts > PROG_MAX_CUTS)
      BAD("state %s has an unknown class, type, rank or init", name);
    int64_t bytes = tensor_bytes(s->dims, s->rank, s->dtype), t;
    if (bytes < 0 || s->bytes != bytes)
      BAD("state %s says %lld bytes, its dims say %lld", name, (long long)s->bytes,
          (long long)bytes);
    if (s->layers < 0 || s->layers > MAX_LAYERS) BAD("state %s has a bad layer count", name);
    const char *hash = strchr(name, '#');
    if (s->layers > 0 ? !hash || strchr(hash + 1, '#') : hash != NULL)
      BAD("state %s: its name must hold one # exactly when it is stacked by layer", name);
    if (s->layers > 0 && (!mul(s->step, s->layers, &t) || !add(t, s->first, &t)))
      BAD("state %s has bad layer numbers", name);
    int unit = dtype_of(s->dtype)->bytes;
    int64_t last = s->layers > 0 ? s->layers - 1 : 0, stride = s->layers > 0 ? s->layer_stride : 0;
    if (s->offset % unit || stride % unit || (last > 0 && stride < bytes) ||
        !pieces_fit(p, s->offset, stride, last, bytes))
      BAD("state %s leaves the arena, overlaps itself or is not aligned", name);
    if (!isfinite(s->init_a)) BAD("state %s has a bad init", name);
  }
  for (uint32_t i = 0; i < p->nstates; i++)
    if (p->states[i].cls == PROG_COPY) STATUS_DO(check_copy(p, &p->states[i]));
  return NULL;
}

// The bytes that tensor t of a product reaches over, from its operand's address; -1: too many, or
// its numbers make no sense.
static int64_t gemm_bytes(const prog_gemm *g, int t) {
  const int64_t shape[3][2] = {{g->m, g->k}, {g->k, g->n}, {g->m, g->n}};
  bool turned = g->turned >> t & 1;
  int64_t rows = shape[t][turned], cols = shape[t][!turned], end, at;
  if (g->ld[t] < cols || g->ld[t] > INT32_MAX || g->offset[t] < 0) return -1;
  if (!mul(rows - 1, g->ld[t], &end) || !add(end, cols, &end) || !add(end, g->offset[t], &end))
    return -1;
  for (uint32_t a = 0; a < g->axes; a++)
    if (g->stride[t][a] < 0 || !mul(g->size[a] - 1, g->stride[t][a], &at) || !add(end, at, &end))
      return -1;
  return end > PROG_MAX_BYTES / 4 ? -1 : 4 * end;
}

static status *check_gemm(const prog_gemm *g, uint32_t index) {
  if (g->library >= PROG_LIBRARIES || g->start >= PROG_GEMM_STARTS || g->turned > 3 ||
      g->axes > PROG_GEMM_AXES)
    BAD("product %u has no meaning", index);
  if (g->m < 1 || g->n < 1 || g->k < 1 || g->m > INT32_MAX || g->n > INT32_MAX || g->k > INT32_MAX)
    BAD("product %u has a bad shape", index);
  int64_t matrices = 1;
  for (uint32_t a = 0; a < g->axes; a++)
    if (g->size[a] < 1 || !mul(matrices, g->size[a], &matrices) || matrices > INT32_MAX)
      BAD("product %u has a bad batch", index);
  for (int t = 0; t < 3; t++)
    if (gemm_bytes(g, t) < 0) BAD("product %u has bad strides", index);
  return NULL;
}

// Its matrices lie inside of what the operands may touch, C is written, and what it starts from is
// as large as C.
static status *check_gemm_operands(const prog *p, const prog_instr *in, uint32_t index) {
  const prog_gemm *g = &p->gemms[p->kernels[in->kernel].gemm - 1];
  const prog_operand *o = &p->operands[in->first_operand];
  bool adds = g->start == PROG_GEMM_ADD;
  if (in->operands != (adds ? 4u : 3u) || !(o[2].writes & 2) || (adds && o[3].bytes != o[2].bytes))
    BAD("instruction %u has not the operands of a product", index);
  for (int t = 0; t < 3; t++)
    if (gemm_bytes(g, t) > o[t].bytes || o[t].base % 4 || o[t].layer_stride % 4 ||
        o[t].micro_stride % 4)
      BAD("instruction %u: operand %d is no matrix of its product", index, t);
  return NULL;
}

static status *check_tables(const prog *p) {
  for (uint32_t i = 0; i < p->nargs; i++) {
    const prog_arg *a = &p->args[i];
    if (!text_ok(p, a->name) || a->offset % 4 || !pieces_fit(p, a->offset, 0, 0, 4))
      BAD("argument %u has a bad name or place", i);
  }
  for (uint32_t i = 0; i < p->nios; i++) {
    const prog_io *io = &p->ios[i];
    if (!text_ok(p, io->name) || io->dtype >= PROG_DTYPES || io->rank > PROG_MAX_RANK ||
        io->sampled > 1 || (io->sampled && io->rank == 0))
      BAD("input or output %u has a bad name, type or rank", i);
    int64_t bytes = tensor_bytes(io->dims, io->rank, io->dtype);
    int unit = dtype_of(io->dtype)->bytes;
    if (bytes < 0 || io->bytes != bytes || io->offset % unit || io->micro_stride % unit ||
        io->micro_stride < 0 || !pieces_fit(p, io->offset, 0, 0, bytes))
      BAD("input or output %s has a bad size or place", prog_text(p, io->name));
  }
  for (uint32_t i = 0; i < p->nkernels; i++) {
    const prog_kernel *k = &p->kernels[i];
    if (!text_ok(p, k->name) || k->nbufs > PROG_MAX_OPERANDS || k->cells < 0)
      BAD("kernel %u has no name or a bad shape", i);
    if (k->gemm > p->ngemms) BAD("kernel %u is an unknown product", i);
    if (!(k->flops >= 0) || !(k->bytes >= 0)) BAD("kernel %u has bad counts", i);
  }
  for (uint32_t i = 0; i < p->ngemms; i++) STATUS_DO(check_gemm(&p->gemms[i], i));
  for (uint32_t i = 0; i < p->nsettings; i++)
    if (!text_ok(p, p->settings[i].name) || !text_ok(p, p->settings[i].value))
      BAD("setting %u has no name or value", i);
  for (uint32_t i = 0; i < p->noperands; i++) {
    const prog_operand *o = &p->operands[i];
    if (o->bytes < 0 || o->bytes > PROG_MAX_BYTES || o->layer_mod < 0 ||
        o->layer_mod > MAX_LAYERS || o->writes > 3)
      BAD("operand %u has bad sizes", i);
  }
  for (uint32_t i = 0; i < p->ninstrs; i++) {
    const prog_instr *in = &p->instrs[i];
    if (in->op >= RTOP_COUNT || !text_ok(p, in->note) ||
        (in->flags & ~(uint32_t)(PROG_RECOMPUTE | PROG_LAST)))
      BAD("instruction %u has no meaning", i);
    if (in->operands > p->noperands || in->first_operand > p->noperands - in->operands)
      BAD("instruction %u has operands outside the table", i);
    int want = opcodes[in->op].operands;
    if (in->op == RTOP_exchange) {
      if (in->kernel >= p->nexchanges) BAD("instruction %u is an unknown exchange", i);
      want = (int)in->operands;
    } else if (want < 0) {
      if (in->kernel >= p->nkernels) BAD("instruction %u launches an unknown kernel", i);
      want = (int)p->kernels[in->kernel].nbufs;
      if ((in->op == RTOP_gemm) != (p->kernels[in->kernel].gemm > 0))
        BAD("instruction %u is not what its kernel is", i);
    }
    if ((int)in->operands != want)
      BAD("instruction %u has %u operands, expected %d", i, in->operands, want);
    const prog_operand *o = &p->operands[in->first_operand];
    if (in->op == RTOP_gemm) STATUS_DO(check_gemm_operands(p, in, i));
    bool copies = in->op != RTOP_launch && in->op != RTOP_gemm && in->op != RTOP_exchange;
    if (want == 2 && copies && o[0].bytes != o[1].bytes)
      BAD("instruction %u copies between different sizes", i);
  }
  for (uint32_t i = 0; i < p->ntasks; i++) {
    const prog_task *t = &p->tasks[i];
    if (!text_ok(p, t->name) || !text_ok(p, t->phase) || t->instrs > p->ninstrs ||
        t->first_instr > p->ninstrs - t->instrs)
      BAD("task %u has instructions outside the table", i);
  }
  return NULL;
}

// The slots an operand takes over the layers first, first+dir, ...: their least and greatest.
static bool slots_of(const prog_operand *o, const prog_run *r, int64_t *low, int64_t *high) {
  int64_t last = r->layer_first + (r->layer_count - 1) * r->layer_dir;
  int64_t a = r->layer_dir > 0 ? r->layer_first : last;
  int64_t b = r->layer_dir > 0 ? last : r->layer_first;
  if (!add(a, o->layer_add, &a) || !add(b, o->layer_add, &b)) return false;
  if (o->layer_mod) {
    if (a < 0) return false;
    bool wraps = b - a + 1 >= o->layer_mod || a / o->layer_mod != b / o->layer_mod;
    a = wraps ? 0 : a % o->layer_mod;
    b = wraps ? o->layer_mod - 1 : b % o->layer_mod;
  }
  *low = a;
  *high = b;
  return true;
}

// The least and the most place that micro-batches low .. high have; false: there is none.
static bool micros_of(const prog_operand *o, int64_t low, int64_t high, int64_t micro[2]) {
  int64_t mod = o->micro_mod;
  if (mod < 0 || low < 0) return false;
  bool wraps = mod && (high - low + 1 >= mod || low / mod != high / mod);
  micro[0] = wraps ? 0 : mod ? low % mod : low;
  micro[1] = wraps ? mod - 1 : mod ? high % mod : high;
  return true;
}

static bool operand_fits(const prog *p, const prog_operand *o, const prog_run *r, int64_t micro_low,
                         int64_t micro_high) {
  int64_t slot[2], micro[2];
  if (!slots_of(o, r, &slot[0], &slot[1]) || !micros_of(o, micro_low, micro_high, micro))
    return false;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) {
      int64_t at, m;
      if (!mul(slot[i], o->layer_stride, &at) || !mul(micro[j], o->micro_stride, &m) ||
          !add(at, m, &at) || !add(at, o->base, &at) || !pieces_fit(p, at, 0, 0, o->bytes))
        return false;
    }
  return true;
}

static status *check_run(const prog *p, const prog_run *r, uint32_t index, int64_t micro_low,
                         int64_t micro_high) {
  int64_t t;
  if (r->task >= p->ntasks) BAD("run %u executes an unknown task", index);
  if (r->layer_count < 0 || r->layer_count > MAX_LAYERS || r->layer_first < -MAX_LAYERS ||
      r->layer_first > MAX_LAYERS ||
      (r->layer_dir != 1 && r->layer_dir != -1 && r->layer_count > 1))
    BAD("run %u has a bad range of layers", index);
  if (!mul(r->number_step, 2 * MAX_LAYERS, &t) || !add(t, r->number_first, &t) ||
      !mul(r->number_step, -2 * MAX_LAYERS, &t) || !add(t, r->number_first, &t))
    BAD("run %u has bad layer numbers", index);
  if (r->layer_count == 0 || micro_low > micro_high) return NULL;
  const prog_task *task = &p->tasks[r->task];
  for (uint32_t i = 0; i < task->instrs; i++) {
    const prog_instr *in = &p->instrs[task->first_instr + i];
    for (uint32_t k = 0; k < in->operands; k++)
      if (!operand_fits(p, &p->operands[in->first_operand + k], r, micro_low, micro_high))
        BAD("operand %u of instruction %u leaves the arena in run %u", k, task->first_instr + i,
            index);
  }
  return NULL;
}

static status *check_entry(const prog *p, const prog_entry *e, uint32_t index) {
  if (!text_ok(p, e->name) || e->kind > PROG_DECODE) BAD("entry %u has no meaning", index);
  const char *name = prog_text(p, e->name);
  if (e->runs > p->nruns || e->first_run > p->nruns - e->runs || e->inputs > p->nios ||
      e->first_input > p->nios - e->inputs || e->outputs > p->nios ||
      e->first_output > p->nios - e->outputs)
    BAD("entry %s refers to records outside the tables", name);
  if (e->batch < 1 || e->batch > PROG_MAX_BYTES || e->micro_batch < 1 ||
      e->batch % e->micro_batch || e->tokens < 0 || e->tokens > PROG_MAX_BYTES ||
      !(e->flops >= 0) || e->transient_bytes < 0)
    BAD("entry %s has a bad batch", name);
  int64_t micros = e->batch / e->micro_batch;
  for (uint32_t i = 0; i < e->inputs + e->outputs; i++) {
    bool input = i < e->inputs;
    const prog_io *io = &p->ios[input ? e->first_input + i : e->first_output + i - e->inputs];
    if (!pieces_fit(p, io->offset, io->micro_stride, micros - 1, io->bytes))
      BAD("%s of entry %s leaves the arena", prog_text(p, io->name), name);
    if (input && io->sampled && io->dims[0] != e->micro_batch)
      BAD("input %s of entry %s has %lld samples, its micro-batch %lld", prog_text(p, io->name),
          name, (long long)io->dims[0], (long long)e->micro_batch);
  }
  for (uint32_t i = 0; i < e->runs; i++) {
    const prog_run *r = &p->runs[e->first_run + i];
    if (r->kind == PROG_RUN) {
      STATUS_DO(check_run(p, r, e->first_run + i, 0, 0));
      continue;
    }
    if (r->kind != PROG_LOOP || r->task > e->runs - i - 1 || r->micro_first < 0 ||
        r->micro_count < 0 || r->micro_first > micros || r->micro_count > micros - r->micro_first)
      BAD("run %u of entry %s has no meaning", i, name);
    for (uint32_t k = 1; k <= r->task; k++) {
      const prog_run *in = r + k;
      if (in->kind != PROG_RUN) BAD("run %u of entry %s nests a loop", i + k, name);
      int64_t first = r->micro_first, more = in->micro_add;
      if (more < -micros || more > micros || first + more < 0 ||
          first + more > micros - r->micro_count)
        BAD("run %u of entry %s has no such micro-batch", i + k, name);
      STATUS_DO(
          check_run(p, in, e->first_run + i + k, first + more, first + more + r->micro_count - 1));
    }
    i += r->task;
  }
  return NULL;
}

status *prog_open(const void *blob, size_t n, uint64_t code_bytes, prog *p) {
  memset(p, 0, sizeof *p);
  const prog_header *h = blob;
  if (n < sizeof *h || memcmp(h->magic, PROG_MAGIC, sizeof h->magic) != 0)
    return status_error("this is not a dsm program (its first bytes are wrong)");
  if (h->version != PROG_VERSION)
    return status_error("the program has format %u, this runtime reads format %u: rebuild it",
                        h->version, PROG_VERSION);
  if (h->header_bytes != sizeof *h) BAD("its header has %u bytes", h->header_bytes);
  if (h->total_bytes != n)
    BAD("it should have %llu bytes and has %zu", (unsigned long long)h->total_bytes, n);
  if (h->checksum != prog_checksum(blob, n)) BAD("its checksum is wrong");
  p->identity = h->checksum;
  if (h->arena_bytes > (uint64_t)PROG_MAX_BYTES || h->states_bytes > h->arena_bytes)
    BAD("it asks for %llu bytes of memory", (unsigned long long)h->arena_bytes);
  if (h->stack_bytes > PROG_MAX_STACK)
    BAD("its kernels ask for %llu bytes of stack", (unsigned long long)h->stack_bytes);
  if (h->code_bytes != code_bytes)
    BAD("it belongs to %llu bytes of code, there are %llu", (unsigned long long)h->code_bytes,
        (unsigned long long)code_bytes);
  p->header = h;
  const unsigned char *b = blob;
#define TABLE(name, T) \
  STATUS_DO(table(b, n, &h->name, sizeof(T), #name, (const void *)&p->name, &p->n##name))
  TABLE(strings, char);
  TABLE(states, prog_state);
  TABLE(args, prog_arg);
  TABLE(ios, prog_io);
  TABLE(kernels, prog_kernel);
  TABLE(gemms, prog_gemm);
  TABLE(operands, prog_operand);
  TABLE(instrs, prog_instr);
  TABLE(tasks, prog_task);
  TABLE(runs, prog_run);
  TABLE(entries, prog_entry);
  TABLE(settings, prog_setting);
  TABLE(functions, prog_function);
  TABLE(numbers, int64_t);
  TABLE(modules, prog_module);
  TABLE(axes, prog_axis);
  TABLE(exchanges, prog_exchange);
#undef TABLE
  if (p->nstrings == 0 || p->strings[p->nstrings - 1] != 0) BAD("its last string has no end");
  if (!text_ok(p, h->compiler) || !text_ok(p, h->model) || !text_ok(p, h->cpu) ||
      !text_ok(p, h->plan))
    BAD("its header has strings outside the pool");
  STATUS_DO(check_states(p));
  STATUS_DO(check_tables(p));
  STATUS_DO(prog_check_machine(p, code_bytes));
  STATUS_DO(prog_check_ranks(p));
  for (uint32_t i = 0; i < p->nentries; i++) STATUS_DO(check_entry(p, &p->entries[i], i));
  for (uint32_t i = 0; i < p->ninstrs; i++)
    if (p->instrs[i].operands > p->max_operands) p->max_operands = p->instrs[i].operands;
  return NULL;
}

// ---- accessors ---------------------------------------------------------------------------------

const char *prog_text(const prog *p, prog_str s) { return p->strings + s; }

const prog_kernel *prog_kernel_of(const prog *p, const prog_instr *in) {
  bool kernel = opcodes[in->op].operands < 0 && in->op != RTOP_exchange;
  return kernel ? &p->kernels[in->kernel] : NULL;
}

const prog_entry *prog_entry_of(const prog *p, uint32_t kind) {
  for (uint32_t i = 0; i < p->nentries; i++)
    if (p->entries[i].kind == kind) return &p->entries[i];
  return NULL;
}

const prog_arg *prog_arg_find(const prog *p, const char *name) {
  for (uint32_t i = 0; i < p->nargs; i++)
    if (str_eq(prog_text(p, p->args[i].name), name)) return &p->args[i];
  return NULL;
}

static const prog_io *find_io(const prog *p, uint32_t first, uint32_t n, const char *name) {
  for (uint32_t i = 0; i < n; i++)
    if (str_eq(prog_text(p, p->ios[first + i].name), name)) return &p->ios[first + i];
  return NULL;
}

const prog_io *prog_input(const prog *p, const prog_entry *e, const char *name) {
  return find_io(p, e->first_input, e->inputs, name);
}

const prog_io *prog_output(const prog *p, const prog_entry *e, const char *name) {
  return find_io(p, e->first_output, e->outputs, name);
}

const char *prog_setting_text(const prog *p, const char *name) {
  for (uint32_t i = 0; i < p->nsettings; i++)
    if (str_eq(prog_text(p, p->settings[i].name), name)) return prog_text(p, p->settings[i].value);
  return NULL;
}

static bool task_writes(const prog *p, const prog_run *r, int64_t micro_low, int64_t micro_high,
                        int64_t low, int64_t high) {
  const prog_task *t = &p->tasks[r->task];
  int64_t slot[2];
  if (r->layer_count == 0 || micro_low > micro_high) return false;
  for (uint32_t i = 0; i < t->instrs; i++) {
    const prog_instr *in = &p->instrs[t->first_instr + i];
    for (uint32_t k = 0; k < in->operands; k++) {
      const prog_operand *o = &p->operands[in->first_operand + k];
      if (!(o->writes & 2) || !slots_of(o, r, &slot[0], &slot[1])) continue;
      int64_t a = slot[0] * o->layer_stride, b = slot[1] * o->layer_stride;
      int64_t micro[2];
      if (!micros_of(o, micro_low, micro_high, micro)) continue;
      int64_t c = micro[0] * o->micro_stride, d = micro[1] * o->micro_stride;
      int64_t from = o->base + (a < b ? a : b) + (c < d ? c : d);
      int64_t to = o->base + (a < b ? b : a) + (c < d ? d : c) + o->bytes;
      if (from < high && low < to) return true;
    }
  }
  return false;
}

bool prog_run_writes(const prog *p, const prog_entry *e, uint32_t run, int64_t low, int64_t high) {
  const prog_run *r = &p->runs[e->first_run + run];
  if (r->kind == PROG_RUN) return task_writes(p, r, 0, 0, low, high);
  for (uint32_t k = 1; k <= r->task; k++)
    if (task_writes(p, r + k, r->micro_first + r[k].micro_add,
                    r->micro_first + r[k].micro_add + r->micro_count - 1, low, high))
      return true;
  return false;
}

bool prog_run_writes_states(const prog *p, const prog_entry *e, uint32_t run) {
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (s->cls == PROG_CACHE) continue;
    int64_t last = (prog_state_slices(s) - 1) * (s->layers ? s->layer_stride : 0);
    if (prog_run_writes(p, e, run, s->offset, s->offset + last + s->bytes)) return true;
  }
  return false;
}

int64_t prog_argument_bytes(const prog_kernel *k) {
  return 8 * ((int64_t)k->nbufs + 4 + (k->numbers ? (int64_t)k->numbers : 1));
}

int64_t prog_io_elements(const prog_io *io) { return io->bytes / dtype_of(io->dtype)->bytes; }

int64_t prog_state_elements(const prog_state *s) { return s->bytes / dtype_of(s->dtype)->bytes; }

int64_t prog_state_slices(const prog_state *s) { return s->layers > 0 ? s->layers : 1; }

const prog_state *prog_weight_of(const prog *p, const prog_state *s) {
  for (uint32_t i = 0; i < p->nstates; i++)
    if (p->states[i].cls == PROG_WEIGHT && p->states[i].first == s->first &&
        p->states[i].layers == s->layers &&
        str_eq(prog_text(p, p->states[i].name), prog_text(p, s->of)))
      return &p->states[i];
  return NULL;
}

const int64_t *prog_state_dims(const prog_state *s, uint32_t *rank) {
  *rank = s->ncuts ? s->global_rank : s->rank;
  return s->ncuts ? s->global : s->dims;
}

int64_t prog_parameters(const prog *p) {
  int64_t n = (int64_t)(p->header->parameters & INT64_MAX);
  if (n) return n;
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    uint32_t rank;
    const int64_t *dims = prog_state_dims(s, &rank);
    int64_t slice = 1;
    for (uint32_t d = 0; d < rank; d++) slice *= dims[d];
    if (s->cls == PROG_WEIGHT) n += slice * prog_state_slices(s);
  }
  return n;
}

int64_t prog_class_bytes(const prog *p, uint32_t cls) {
  int64_t n = 0;
  for (uint32_t i = 0; i < p->nstates; i++)
    if (p->states[i].cls == cls) n += p->states[i].bytes * prog_state_slices(&p->states[i]);
  return n;
}

static const prog_axis *pipeline_of(const prog *p) {
  for (uint32_t i = 0; i < p->naxes; i++)
    if (str_eq(prog_text(p, p->axes[i].name), "pipeline")) return &p->axes[i];
  return NULL;
}

int64_t prog_stages(const prog *p) {
  const prog_axis *a = pipeline_of(p);
  return a ? a->size : 1;
}

int64_t prog_stage(const prog *p, int rank) {
  const prog_axis *a = pipeline_of(p);
  return a ? rank / a->stride % a->size : 0;
}

int64_t prog_vocab(const prog *p) {
  for (uint32_t i = 0; i < p->nsettings; i++) {
    const char *name = prog_text(p, p->settings[i].name);
    if (str_eq(name, "vocab") || str_ends(name, ".vocab")) {
      char *end;
      long long v = strtoll(prog_text(p, p->settings[i].value), &end, 10);
      if (*end == 0 && v > 0) return v;
    }
  }
  for (uint32_t i = 0; i < p->nentries; i++) {
    const prog_io *io = prog_output(p, &p->entries[i], "logits");
    if (io && io->rank > 0) return io->dims[io->rank - 1];
  }
  return 0;
}
