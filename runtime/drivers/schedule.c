// schedule: prints the program as the VM will step through it.
//
//   entry train_step: batch 8 = 2 x 4
//     loop micro 0 .. 1
//       layers 0 .. 11 x h.forward
//
//   task h.forward [forward]
//     launch  ln.1  r 0x400+layer*0x80  w 0x9000+micro*0x200      ; h.ln_1, line 14
#include <inttypes.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"

static void print_operand(FILE *out, const prog_operand *o) {
  static const char *const access[] = {"-", "r", "w", "rw"};
  fprintf(out, "  %s 0x%" PRIx64, access[o->writes], (uint64_t)o->base);
  if (o->layer_stride) {
    fprintf(out, "+");
    if (o->layer_add || o->layer_mod) fprintf(out, "(");
    fprintf(out, "layer");
    if (o->layer_add) fprintf(out, "%+" PRId64, o->layer_add);
    if (o->layer_mod) fprintf(out, " mod %" PRId64, o->layer_mod);
    if (o->layer_add || o->layer_mod) fprintf(out, ")");
    fprintf(out, "*0x%" PRIx64, (uint64_t)o->layer_stride);
  }
  if (o->micro_stride) fprintf(out, "+micro*0x%" PRIx64, (uint64_t)o->micro_stride);
  fprintf(out, "[%" PRId64 "]", o->bytes);
}

static void print_run(FILE *out, const prog *p, const prog_run *r, int indent) {
  const char *name = prog_text(p, p->tasks[r->task].name);
  fprintf(out, "%*s", indent, "");
  if (r->layer_count == 1) {
    fprintf(out, "layer %" PRId64 "  %s\n", r->layer_first, name);
    return;
  }
  int64_t last = r->layer_first + (r->layer_count - 1) * r->layer_dir;
  fprintf(out, "layers %" PRId64 " .. %" PRId64 "  %s", r->layer_first, last, name);
  if (r->number_first || r->number_step != 1)
    fprintf(out, "  (layer l is number %" PRId64 "%+" PRId64 "*l)", r->number_first,
            r->number_step);
  fputc('\n', out);
}

static void print_entry(FILE *out, const prog *p, const prog_entry *e) {
  fprintf(out, "entry %s: batch %" PRId64 " = %" PRId64 " x %" PRId64 "\n", prog_text(p, e->name),
          e->batch, e->batch / e->micro_batch, e->micro_batch);
  for (uint32_t i = 0; i < e->runs; i++) {
    const prog_run *r = &p->runs[e->first_run + i];
    if (r->kind == PROG_RUN) {
      print_run(out, p, r, 2);
      continue;
    }
    fprintf(out, "  loop micro %" PRId64 " .. %" PRId64 "\n", r->micro_first,
            r->micro_first + r->micro_count - 1);
    for (uint32_t k = 1; k <= r->task; k++) print_run(out, p, r + k, 4);
    i += r->task;
  }
  fputc('\n', out);
}

static void print_task(FILE *out, const prog *p, const prog_task *t) {
  char a[32], b[32];
  fprintf(out, "task %s [%s]  %sFLOP, %s\n", prog_text(p, t->name), prog_text(p, t->phase),
          rt_count(t->flops, a), rt_bytes(t->bytes, b));
  for (uint32_t i = 0; i < t->instrs; i++) {
    const prog_instr *in = &p->instrs[t->first_instr + i];
    fprintf(out, "  %-7s", prog_opcode_name(in->op));
    const prog_kernel *k = prog_kernel_of(p, in);
    if (k) fprintf(out, " %s x%" PRId64, prog_text(p, k->name), k->cells);
    for (uint32_t o = 0; o < in->operands; o++)
      print_operand(out, &p->operands[in->first_operand + o]);
    const char *note = prog_text(p, in->note);
    const char *again = in->flags & PROG_RECOMPUTE ? " recompute" : "";
    fprintf(out, "%s%s%s\n", *note || *again ? "  ; " : "", note, again);
  }
  fputc('\n', out);
}

status *drive_schedule(rt *r) {
  const prog *p = r->prog;
  FILE *out = r->env->out;
  for (uint32_t i = 0; i < p->nentries; i++) print_entry(out, p, &p->entries[i]);
  for (uint32_t i = 0; i < p->ntasks; i++) print_task(out, p, &p->tasks[i]);
  return NULL;
}
