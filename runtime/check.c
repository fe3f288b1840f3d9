#include "runtime/check.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/dtype.h"
#include "runtime/init.h"
#include "runtime/safetensors.h"

uint32_t check_split(const prog *p, const prog_entry *e, const prog_io *const *watched, int n) {
  uint32_t split = 0;
  while (split < e->runs && !prog_run_writes_states(p, e, split)) {
    const prog_run *r = &p->runs[e->first_run + split];
    split += r->kind == PROG_LOOP ? r->task + 1 : 1;
  }
  for (uint32_t i = split; i < e->runs; i++)
    for (int k = 0; k < n; k++)
      if (prog_run_writes(p, e, i, watched[k]->offset, watched[k]->offset + watched[k]->bytes))
        return e->runs;
  return split;
}

// ---- what instructions write --------------------------------------------------------------------

#define F32_INFINITY 0x7f800000u
#define F32_NAN 0x7fc00000u  // with either sign: what arithmetic on numbers makes

// Looks for one pattern, whatever the sign.
static void scan(check_hit *h, uint32_t pattern, const unsigned char *at, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, at + 4 * i, 4);
    if ((bits & 0x7fffffffu) != pattern) continue;
    if (h->count++) continue;
    h->found = true;
    h->element = i;
    memcpy(&h->value, &bits, 4);
  }
}

static void look(void *ctx, vm_moment when, const vm_where *at) {
  check_values *c = ctx;
  if (when != VM_INSTR_END || c->nan.found) return;
  const prog_instr *in = &c->prog->instrs[at->instr];
  const prog_operand *o = &c->prog->operands[in->first_operand];
  for (uint32_t k = 0; k < in->operands; k++) {
    if (!(o[k].writes & 2)) continue;
    check_hit fresh = {.layered = at->run->layer_count > 1,
                       .loop = at->loop,
                       .task = at->task,
                       .instr = at->instr,
                       .operand = k,
                       .layer = at->call->layer,
                       .micro = at->call->micro,
                       .sample0 = at->call->sample0,
                       .elements = o[k].bytes / 4};
    check_hit infinite = fresh;
    scan(&fresh, F32_NAN, at->buf[k], fresh.elements);
    if (fresh.found && !c->nan.found) c->nan = fresh;
    if (c->infinite.found) continue;
    scan(&infinite, F32_INFINITY, at->buf[k], infinite.elements);
    if (infinite.found) c->infinite = infinite;
  }
}

status *check_clear(const prog *p, vm *m) {
  int64_t from = (int64_t)p->header->states_bytes, to = (int64_t)p->header->arena_bytes;
  return vm_zero(m, from, to - from);
}

status *check_again(check_values *c, const prog *p, vm *m, const prog_entry *e, const vm_step *s,
                    uint32_t split) {
  *c = (check_values){.prog = p};
  vm_observer o = {look, c};
  vm_observe_writes(m, &o);
  status *failed = vm_call_part(m, e, s, 0, split);
  vm_observe(m, NULL);
  return failed;
}

static void print_hit(sb *out, const check_values *c, const check_hit *h, const prog_entry *e) {
  const prog *p = c->prog;
  const prog_task *t = &p->tasks[h->task];
  const char *note = prog_text(p, p->instrs[h->instr].note);
  char word[32];
  sb_printf(out, "\n  the first %s is made by `%s` in task %s", check_word(h->value, word), note,
            prog_text(p, t->name));
  if (h->layered) sb_printf(out, ", layer %" PRId64, h->layer);
  int64_t samples = h->loop ? e->micro_batch : e->batch;
  if (h->loop) sb_printf(out, ", micro-batch %" PRId64, h->micro);
  sb_printf(out, " (samples %" PRId64 " .. %" PRId64 "): element %" PRId64 " of %" PRId64,
            h->sample0, h->sample0 + samples - 1, h->element, h->elements);
  if (h->count > 1) sb_printf(out, ", and %" PRId64 " more", h->count - 1);
}

void check_print(sb *out, const check_values *c, const prog_entry *e) {
  const check_hit *a = &c->infinite, *b = &c->nan;
  if (a->found) print_hit(out, c, a, e);
  if (b->found) print_hit(out, c, b, e);
}

// ---- states -------------------------------------------------------------------------------------

// The first element that is not finite, or -1. Types that are not floats are finite.
static int64_t first_bad(const unsigned char *at, uint32_t dtype, int64_t n, double *value) {
  double block[256];
  const dtype_info *d = dtype_of(dtype);
  if (d->kind != 'F' || !dtype_convertible(PROG_F64, dtype)) return -1;
  for (int64_t i = 0; i < n;) {
    if (dtype == PROG_F32) {  // the usual case, quickly
      uint32_t bits;
      memcpy(&bits, at + 4 * i, 4);
      if ((bits & F32_INFINITY) != F32_INFINITY) {
        i++;
        continue;
      }
    }
    int64_t k = n - i < 256 ? n - i : 256;
    dtype_convert(block, PROG_F64, at + i * d->bytes, dtype, k);
    for (int64_t j = 0; j < k; j++)
      if (!isfinite(block[j])) {
        *value = block[j];
        return i + j;
      }
    i += k;
  }
  return -1;
}

check_state check_states(const prog *p, const vm *m) {
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (s->cls == PROG_COPY || s->cls == PROG_CACHE) continue;
    for (int64_t k = 0; k < prog_state_slices(s); k++) {
      check_state c = {.state = s, .slice = k};
      const unsigned char *at = vm_at(m, s->offset + (s->layers ? k * s->layer_stride : 0));
      c.element = first_bad(at, s->dtype, prog_state_elements(s), &c.value);
      if (c.element >= 0) return c;
    }
  }
  return (check_state){0};
}

void check_print_state(sb *out, const prog *p, const check_state *c) {
  char name[4096], dims[200], word[32];
  const prog_state *s = c->state;
  sb_printf(
      out, "%s %s is %s at element %" PRId64, s->cls == PROG_WEIGHT ? "weight" : "optimizer state",
      init_state_name(p, s, c->slice, name, sizeof name), check_word(c->value, word), c->element);
  if (s->rank) sb_printf(out, " of %s", st_dims(s->dims, s->rank, dims));
}

const char *check_word(double v, char buf[32]) {
  if (isfinite(v))
    snprintf(buf, 32, "%g", v);
  else
    snprintf(buf, 32, "%s", isnan(v) ? "NaN" : v > 0 ? "+Inf" : "-Inf");
  return buf;
}
