// schedule: prints the program as the VM will step through it.
//
//   entry train_step: batch 8 = 2 x 4
//     loop micro 0 .. 1
//       layers 0 .. 11 x h.forward
//
//   task h.forward [forward]
//     launch  ln.1  r 0x400+layer*0x80  w 0x9000+micro*0x200      ; h.ln_1, line 14
//
// Of a program for a device, instructions on another stream than the first say so, and operands
// that are on the host have an `h` in front of their address. --json has all numbers of the program
// that say what a call does: what a device is told can be checked against it.
#include <inttypes.h>
#include <jansson.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"

static void print_operand(FILE *out, const prog_operand *o) {
  static const char *const access[] = {"-", "r", "w", "rw"};
  const char *home = o->home == PROG_HOST_HOME ? "h:" : "";
  fprintf(out, "  %s %s0x%" PRIx64, access[o->writes], home, (uint64_t)o->base);
  if (o->layer_stride) {
    fprintf(out, "+");
    if (o->layer_add || o->layer_mod) fprintf(out, "(");
    fprintf(out, "layer");
    if (o->layer_add) fprintf(out, "%+" PRId64, o->layer_add);
    if (o->layer_mod) fprintf(out, " mod %" PRId64, o->layer_mod);
    if (o->layer_add || o->layer_mod) fprintf(out, ")");
    fprintf(out, "*0x%" PRIx64, (uint64_t)o->layer_stride);
  }
  if (o->micro_stride && o->micro_mod)
    fprintf(out, "+(micro%%%" PRId64 ")*0x%" PRIx64, o->micro_mod, (uint64_t)o->micro_stride);
  else if (o->micro_stride)
    fprintf(out, "+micro*0x%" PRIx64, (uint64_t)o->micro_stride);
  fprintf(out, "[%" PRId64 "]", o->bytes);
}

static void print_run(FILE *out, const prog *p, const prog_run *r, int indent) {
  const char *name = prog_text(p, p->tasks[r->task].name);
  fprintf(out, "%*s", indent, "");
  if (r->micro_add) fprintf(out, "micro %+" PRId64 "  ", r->micro_add);
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

// "exchange all_gather of wte.weight over data"
static void print_exchange(FILE *out, const prog *p, const prog_instr *in) {
  const prog_exchange *x = &p->exchanges[in->kernel];
  fprintf(out, " %s of %s over", exchange_name(x->kind), prog_text(p, x->name));
  for (uint32_t i = 0; i < p->naxes; i++)
    if (x->axes >> i & 1) fprintf(out, " %s", prog_text(p, p->axes[i].name));
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
    if (in->op == RTOP_exchange) print_exchange(out, p, in);
    for (uint32_t o = 0; o < in->operands; o++)
      print_operand(out, &p->operands[in->first_operand + o]);
    if (in->op == RTOP_record || in->op == RTOP_wait) fprintf(out, " event %u", in->event);
    if (in->stream != PROG_COMPUTE || in->op == RTOP_record || in->op == RTOP_wait)
      fprintf(out, "  on %s", prog_stream_name(in->stream));
    const char *note = prog_text(p, in->note);
    const char *again = in->flags & PROG_RECOMPUTE ? " recompute" : "";
    fprintf(out, "%s%s%s\n", *note || *again ? "  ; " : "", note, again);
  }
  fputc('\n', out);
}

// ---- as JSON ------------------------------------------------------------------------------------

static json_t *whole(int64_t n) { return json_integer((json_int_t)n); }

static json_t *operand_json(const prog_operand *o) {
  return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:b, s:s}", "base", (json_int_t)o->base,
                   "bytes", (json_int_t)o->bytes, "layer_stride", (json_int_t)o->layer_stride,
                   "layer_add", (json_int_t)o->layer_add, "layer_mod", (json_int_t)o->layer_mod,
                   "micro_stride", (json_int_t)o->micro_stride, "reads", (int)(o->writes & 1),
                   "writes", (int)(o->writes >> 1), "home",
                   o->home == PROG_HOST_HOME ? "host" : "device");
}

static json_t *instr_json(const prog *p, const prog_instr *in) {
  json_t *operands = json_array();
  for (uint32_t k = 0; k < in->operands; k++)
    json_array_append_new(operands, operand_json(&p->operands[in->first_operand + k]));
  json_t *j =
      json_pack("{s:s, s:s, s:s, s:o}", "op", prog_opcode_name(in->op), "stream",
                prog_stream_name(in->stream), "note", prog_text(p, in->note), "operands", operands);
  if (prog_kernel_of(p, in)) json_object_set_new(j, "kernel", whole(in->kernel));
  if (in->op == RTOP_exchange) json_object_set_new(j, "exchange", whole(in->kernel));
  if (in->flags & PROG_LAST) json_object_set_new(j, "last", json_true());
  if (in->op == RTOP_record || in->op == RTOP_wait)
    json_object_set_new(j, "event", whole(in->event));
  return j;
}

static json_t *task_json(const prog *p, const prog_task *t) {
  json_t *instrs = json_array();
  for (uint32_t i = 0; i < t->instrs; i++)
    json_array_append_new(instrs, instr_json(p, &p->instrs[t->first_instr + i]));
  return json_pack("{s:s, s:s, s:o}", "name", prog_text(p, t->name), "phase",
                   prog_text(p, t->phase), "instrs", instrs);
}

static json_t *run_json(const prog_run *r) {
  if (r->kind == PROG_LOOP)
    return json_pack("{s:I, s:I, s:I}", "loop", (json_int_t)r->task, "micro_first",
                     (json_int_t)r->micro_first, "micro_count", (json_int_t)r->micro_count);
  return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "task", (json_int_t)r->task,
                   "layer_first", (json_int_t)r->layer_first, "layer_count",
                   (json_int_t)r->layer_count, "layer_dir", (json_int_t)r->layer_dir,
                   "number_first", (json_int_t)r->number_first, "number_step",
                   (json_int_t)r->number_step, "micro_add", (json_int_t)r->micro_add);
}

static json_t *entry_json(const prog *p, const prog_entry *e) {
  json_t *runs = json_array();
  for (uint32_t i = 0; i < e->runs; i++)
    json_array_append_new(runs, run_json(&p->runs[e->first_run + i]));
  return json_pack("{s:s, s:I, s:I, s:o}", "name", prog_text(p, e->name), "batch",
                   (json_int_t)e->batch, "micro_batch", (json_int_t)e->micro_batch, "runs", runs);
}

static json_t *kernel_json(const prog *p, const prog_kernel *k) {
  json_t *j = json_pack("{s:s, s:I}", "name", prog_text(p, k->name), "cells", (json_int_t)k->cells);
  if (p->header->machine == PROG_HOST) return j;
  const prog_function *f = &p->functions[k->function];
  json_t *numbers = json_array();
  for (uint32_t i = 0; i < k->numbers; i++)
    json_array_append_new(numbers, whole(p->numbers[k->first_number + i]));
  json_object_set_new(j, "function", json_string(prog_text(p, f->symbol)));
  json_object_set_new(j, "threads", whole(f->threads));
  json_object_set_new(j, "shared_bytes", whole(f->shared_bytes));
  json_object_set_new(j, "numbers", numbers);
  return j;
}

static json_t *axes_json(const prog *p) {
  json_t *axes = json_array();
  for (uint32_t i = 0; i < p->naxes; i++)
    json_array_append_new(
        axes, json_pack("{s:s, s:I, s:I}", "name", prog_text(p, p->axes[i].name), "size",
                        (json_int_t)p->axes[i].size, "stride", (json_int_t)p->axes[i].stride));
  return axes;
}

static json_t *exchanges_json(const prog *p) {
  json_t *all = json_array();
  for (uint32_t i = 0; i < p->nexchanges; i++) {
    const prog_exchange *x = &p->exchanges[i];
    json_t *names = json_array();
    for (uint32_t k = 0; k < p->naxes; k++)
      if (x->axes >> k & 1)
        json_array_append_new(names, json_string(prog_text(p, p->axes[k].name)));
    int64_t ranks = comm_group_size(p, x->axes);
    json_array_append_new(
        all, json_pack("{s:s, s:s, s:o, s:I, s:I, s:I}", "kind", exchange_name(x->kind), "name",
                       prog_text(p, x->name), "axes", names, "step", (json_int_t)x->step, "scratch",
                       (json_int_t)x->scratch, "sent_bytes",
                       (json_int_t)exchange_sent_bytes(x, ranks, 0)));
  }
  return all;
}

static status *print_json(const rt *r) {
  const prog *p = r->prog;
  const prog_header *h = p->header;
  json_t *kernels = json_array(), *tasks = json_array(), *entries = json_array();
  for (uint32_t i = 0; i < p->nkernels; i++)
    json_array_append_new(kernels, kernel_json(p, &p->kernels[i]));
  for (uint32_t i = 0; i < p->ntasks; i++) json_array_append_new(tasks, task_json(p, &p->tasks[i]));
  for (uint32_t i = 0; i < p->nentries; i++)
    json_array_append_new(entries, entry_json(p, &p->entries[i]));
  json_t *root =
      json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:o, s:o, s:o}", "schema", "dsm-schedule-1",
                "model", prog_text(p, h->model), "machine", prog_machine_name(h->machine),
                "arena_bytes", (json_int_t)h->arena_bytes, "states_bytes",
                (json_int_t)h->states_bytes, "step_offset", (json_int_t)h->step_offset, "events",
                (json_int_t)h->events, "entries", entries, "tasks", tasks, "kernels", kernels);
  if (!root) return status_error("the program's texts are not UTF-8");
  if (p->naxes) {
    json_object_set_new(root, "axes", axes_json(p));
    json_object_set_new(root, "exchanges", exchanges_json(p));
  }
  json_dumpf(root, r->env->out, JSON_INDENT(1));
  fputc('\n', r->env->out);
  json_decref(root);
  return NULL;
}

status *drive_schedule(rt *r) {
  const prog *p = r->prog;
  FILE *out = r->env->out;
  if (r->opt.json) return print_json(r);
  for (uint32_t i = 0; i < p->nentries; i++) print_entry(out, p, &p->entries[i]);
  for (uint32_t i = 0; i < p->ntasks; i++) print_task(out, p, &p->tasks[i]);
  return NULL;
}
