// info: what this executable is, in words or as one JSON object.
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/drivers/driver.h"
#include "runtime/drivers/info_ranks.h"
#include "runtime/dtype.h"
#include "runtime/safetensors.h"

static const char *const class_name[] = {"weights", "optimizer", "copies", "cache"};  // ORDER STATE
static const char *const entry_kind[] = {"train", "eval", "prefill", "decode"};       // ORDER ENTRY

static json_t *io_json(const prog *p, uint32_t first, uint32_t n) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < n; i++) {
    const prog_io *io = &p->ios[first + i];
    json_t *dims = json_array();
    for (uint32_t k = 0; k < io->rank; k++) json_array_append_new(dims, json_integer(io->dims[k]));
    json_array_append_new(list, json_pack("{s:s, s:s, s:o}", "name", prog_text(p, io->name),
                                          "dtype", dtype_of(io->dtype)->name, "shape", dims));
  }
  return list;
}

static json_t *entries_json(const prog *p) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < p->nentries; i++) {
    const prog_entry *e = &p->entries[i];
    json_array_append_new(
        list, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:o, s:o}", "name",
                        prog_text(p, e->name), "kind", entry_kind[e->kind], "batch",
                        (json_int_t)e->batch, "micro_batch", (json_int_t)e->micro_batch, "tokens",
                        (json_int_t)e->tokens, "transient_bytes", (json_int_t)e->transient_bytes,
                        "flops", e->flops, "inputs", io_json(p, e->first_input, e->inputs),
                        "outputs", io_json(p, e->first_output, e->outputs)));
  }
  return list;
}

static json_t *kernels_json(const prog *p) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < p->nkernels; i++) {
    const prog_kernel *k = &p->kernels[i];
    json_array_append_new(list,
                          json_pack("{s:s, s:I, s:f, s:f}", "name", prog_text(p, k->name), "cells",
                                    (json_int_t)k->cells, "flops", k->flops, "bytes", k->bytes));
  }
  return list;
}

static json_t *functions_json(const prog *p) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < p->nfunctions; i++) {
    const prog_function *f = &p->functions[i];
    json_array_append_new(
        list,
        json_pack("{s:s, s:I, s:I, s:I, s:I}", "symbol", prog_text(p, f->symbol), "threads",
                  (json_int_t)f->threads, "shared_bytes", (json_int_t)f->shared_bytes, "registers",
                  (json_int_t)f->registers, "spill_bytes", (json_int_t)f->spill_bytes));
  }
  return list;
}

static json_t *modules_json(const prog *p) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < p->nmodules; i++) {
    const prog_module *m = &p->modules[i];
    json_array_append_new(
        list, json_pack("{s:s, s:s, s:I, s:I, s:I}", "target", prog_text(p, m->target), "kind",
                        m->kind == PROG_PTX ? "ptx" : "cubin", "first_function",
                        (json_int_t)m->first_function, "functions", (json_int_t)m->functions,
                        "bytes", (json_int_t)m->bytes));
  }
  return list;
}

static json_t *states_json(const prog *p) {
  json_t *list = json_array();
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    json_t *dims = json_array();
    for (uint32_t k = 0; k < s->rank; k++) json_array_append_new(dims, json_integer(s->dims[k]));
    json_array_append_new(
        list,
        json_pack("{s:s, s:s, s:s, s:o, s:I, s:I}", "name", prog_text(p, s->name), "class",
                  class_name[s->cls], "dtype", dtype_of(s->dtype)->name, "shape", dims, "layers",
                  (json_int_t)s->layers, "bytes", (json_int_t)(s->bytes * prog_state_slices(s))));
  }
  return list;
}

static status *print_json(const rt *r) {
  const prog *p = r->prog;
  const prog_header *h = p->header;
  char digest[20];
  snprintf(digest, sizeof digest, "%016" PRIx64, h->source_digest);
  json_t *memory = json_pack(
      "{s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "arena", (json_int_t)h->arena_bytes, "states",
      (json_int_t)h->states_bytes, "weights", (json_int_t)prog_class_bytes(p, PROG_WEIGHT),
      "optimizer", (json_int_t)prog_class_bytes(p, PROG_OPTIMIZER), "copies",
      (json_int_t)prog_class_bytes(p, PROG_COPY), "cache",
      (json_int_t)prog_class_bytes(p, PROG_CACHE), "code", (json_int_t)h->code_bytes);
  json_t *ranks;
  status *s = info_ranks_json(r, &ranks);
  if (s) {
    json_decref(memory);
    return s;
  }
  json_t *set = json_object();
  for (uint32_t i = 0; i < p->nsettings; i++)
    json_object_set_new(set, prog_text(p, p->settings[i].name),
                        json_string(prog_text(p, p->settings[i].value)));
  json_t *root = json_pack(
      "{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:o, s:o, s:o, s:o, s:o}", "schema", "dsm-info-1",
      "model", prog_text(p, h->model), "compiler", prog_text(p, h->compiler), "source_digest",
      digest, "cpu", prog_text(p, h->cpu), "parameters", (json_int_t)prog_parameters(p), "plan",
      prog_text(p, h->plan), "memory_bytes", memory, "settings", set, "entries", entries_json(p),
      "states", states_json(p), "kernels", kernels_json(p));
  if (!root) return status_error("the program's texts are not UTF-8");
  if (ranks) json_object_set_new(root, "ranks", ranks);
  json_object_set_new(root, "machine", json_string(prog_machine_name(h->machine)));
  if (h->machine != PROG_HOST) {
    json_object_set_new(root, "targets", json_string(prog_text(p, h->targets)));
    json_object_set_new(root, "functions", functions_json(p));
    json_object_set_new(root, "modules", modules_json(p));
  }
  json_dumpf(root, r->env->out, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
  fputc('\n', r->env->out);
  json_decref(root);
  return NULL;
}

static void print_memory(const rt *r) {
  const prog *p = r->prog;
  const prog_header *h = p->header;
  FILE *out = r->env->out;
  char a[32];
  fprintf(out, "\nMEMORY  %10s  one arena%s\n", rt_bytes((double)h->arena_bytes, a),
          h->machine == PROG_HOST ? "" : ", on the device");
  for (uint32_t cls = PROG_WEIGHT; cls < PROG_COPY; cls++)
    fprintf(out, "        %10s  %s\n", rt_bytes((double)prog_class_bytes(p, cls), a),
            class_name[cls]);
  if (prog_class_bytes(p, PROG_COPY))
    fprintf(out, "        %10s  %s of weights in bf16, for products\n",
            rt_bytes((double)prog_class_bytes(p, PROG_COPY), a), class_name[PROG_COPY]);
  fprintf(out, "        %10s  work: the largest entry\n",
          rt_bytes((double)(h->arena_bytes - h->states_bytes), a));
  // Caches are part of the work of the entries that generate.
  if (prog_class_bytes(p, PROG_CACHE))
    fprintf(out, "        %10s  %s, in prefill and decode\n",
            rt_bytes((double)prog_class_bytes(p, PROG_CACHE), a), class_name[PROG_CACHE]);
  fprintf(out, "        %10s  code\n", rt_bytes((double)h->code_bytes, a));
}

static void print_entries(const rt *r) {
  const prog *p = r->prog;
  FILE *out = r->env->out;
  char a[32], b[32], dims[200];
  fprintf(out, "\nENTRIES\n");
  for (uint32_t i = 0; i < p->nentries; i++) {
    const prog_entry *e = &p->entries[i];
    fprintf(out, "  %-11s batch %" PRId64 " = %" PRId64 " x %" PRId64 ", %s of work, %sFLOP\n",
            prog_text(p, e->name), e->batch, e->batch / e->micro_batch, e->micro_batch,
            rt_bytes((double)e->transient_bytes, a), rt_count(e->flops, b));
    for (uint32_t k = 0; k < e->inputs + e->outputs; k++) {
      bool input = k < e->inputs;
      const prog_io *io = &p->ios[input ? e->first_input + k : e->first_output + k - e->inputs];
      fprintf(out, "    %s %-12s %s%s\n", input ? "in " : "out", prog_text(p, io->name),
              dtype_of(io->dtype)->name, io->rank ? st_dims(io->dims, io->rank, dims) : "");
    }
  }
}

static void print_functions(const rt *r) {
  const prog *p = r->prog;
  FILE *out = r->env->out;
  char a[32];
  if (p->header->machine == PROG_HOST) return;
  fprintf(out, "\nFUNCTIONS  %u\n", p->nfunctions);
  for (uint32_t i = 0; i < p->nfunctions && (r->opt.verbose || i < 40); i++) {
    const prog_function *f = &p->functions[i];
    fprintf(out, "  %-40s %5u threads  %4u registers  %10s shared", prog_text(p, f->symbol),
            f->threads, f->registers, rt_bytes((double)f->shared_bytes, a));
    if (f->spill_bytes) fprintf(out, "  %u bytes spilled", f->spill_bytes);
    fputc('\n', out);
  }
  if (p->nfunctions > 40 && !r->opt.verbose)
    fprintf(out, "  and %u more; -v lists all\n", p->nfunctions - 40);
  fprintf(out, "\nMODULES\n");
  for (uint32_t i = 0; i < p->nmodules; i++)
    fprintf(out, "  %-12s %-6s %5u functions  %10s\n", prog_text(p, p->modules[i].target),
            p->modules[i].kind == PROG_PTX ? "PTX" : "binary", p->modules[i].functions,
            rt_bytes((double)p->modules[i].bytes, a));
}

static status *print_text(const rt *r) {
  const prog *p = r->prog;
  const prog_header *h = p->header;
  FILE *out = r->env->out;
  char a[32], b[32];
  fprintf(out, "%s, %s parameters (%" PRId64 ")\n", prog_text(p, h->model),
          rt_count((double)prog_parameters(p), a), prog_parameters(p));
  fprintf(out, "made by %s from source %016" PRIx64 ", for %s\n", prog_text(p, h->compiler),
          h->source_digest, prog_text(p, h->machine == PROG_HOST ? h->cpu : h->targets));
  if (h->machine == PROG_CUDA) fprintf(out, "runs on one NVIDIA GPU\n");
  fprintf(out, "\nSETTINGS\n");
  for (uint32_t i = 0; i < p->nsettings; i++)
    fprintf(out, "  %-28s %s\n", prog_text(p, p->settings[i].name),
            prog_text(p, p->settings[i].value));
  print_memory(r);
  STATUS_DO(info_ranks_print(r));
  print_entries(r);
  fprintf(out, "\nKERNELS  %u\n", p->nkernels);
  for (uint32_t i = 0; i < p->nkernels && (r->opt.verbose || i < 40); i++)
    fprintf(out, "  %-40s %8" PRId64 " cells  %8sFLOP  %10s\n", prog_text(p, p->kernels[i].name),
            p->kernels[i].cells, rt_count(p->kernels[i].flops, a),
            rt_bytes(p->kernels[i].bytes, b));
  if (p->nkernels > 40 && !r->opt.verbose)
    fprintf(out, "  and %u more; -v lists all\n", p->nkernels - 40);
  print_functions(r);
  const char *plan = prog_text(p, h->plan);
  if (*plan) fprintf(out, "\nPLAN\n%s%s", plan, str_ends(plan, "\n") ? "" : "\n");
  return NULL;
}

status *drive_info(rt *r) { return r->opt.json ? print_json(r) : print_text(r); }
