#include "runtime/drivers/info_ranks.h"

#include <inttypes.h>
#include <stdlib.h>

#include "runtime/base/str.h"
#include "runtime/ledger.h"

// What all ranks of a stage have in common, and the sum of what they send.
static json_t *stage_json(const prog *p, int64_t stage, ledger *all) {
  ledger *own = ledger_new(p);
  json_t *ranks = json_array();
  for (int r = 0; own && r < comm_program_ranks(p); r++) {
    if (prog_stage(p, r) != stage) continue;
    json_array_append_new(ranks, json_integer(r));
    ledger_planned(p, r, own);
  }
  const prog_header *h = p->header;
  json_t *o = NULL;
  if (own) {
    ledger_add(all, own, 1);
    o = json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:o}", "ranks", ranks, "arena",
                  (json_int_t)h->arena_bytes, "states", (json_int_t)h->states_bytes, "weights",
                  (json_int_t)prog_class_bytes(p, PROG_WEIGHT), "optimizer",
                  (json_int_t)prog_class_bytes(p, PROG_OPTIMIZER), "copies",
                  (json_int_t)prog_class_bytes(p, PROG_COPY), "sent", ledger_json(p, own));
  }
  free(own);
  return o;
}

static status *add_stage(const rt *r, int64_t stage, json_t *stages, ledger *all) {
  const prog *p = r->prog;
  int rank = 0;
  while (prog_stage(p, rank) != stage) rank++;
  if (prog_stages(p) == 1) {
    json_array_append_new(stages, stage_json(p, 0, all));
    return NULL;
  }
  image img;
  STATUS_DO(image_open("/proc/self/exe", r->opt.exe, rank, &img));
  json_array_append_new(stages, stage_json(&img.prog, stage, all));
  image_close(&img);
  return NULL;
}

status *info_ranks_json(const rt *r, json_t **out) {
  const prog *p = r->prog;
  *out = NULL;
  if (!p->naxes) return NULL;
  ledger *all = ledger_new(p);
  if (!all) return status_error("out of memory");
  json_t *mesh = json_array(), *stages = json_array();
  for (uint32_t i = 0; i < p->naxes; i++)
    json_array_append_new(mesh, json_pack("{s:s, s:I}", "axis", prog_text(p, p->axes[i].name),
                                          "size", (json_int_t)p->axes[i].size));
  status *s = NULL;
  for (int64_t k = 0; !s && k < prog_stages(p); k++) s = add_stage(r, k, stages, all);
  if (!s)
    *out = json_pack("{s:I, s:O, s:o, s:O}", "count", (json_int_t)comm_program_ranks(p), "mesh",
                     mesh, "sent", ledger_json(p, all), "stages", stages);
  if (!s && !*out) s = status_error("the program's texts are not UTF-8");
  json_decref(mesh);
  json_decref(stages);
  free(all);
  return s;
}

status *info_ranks_print(const rt *r) {
  json_t *o, *at;
  const char *name;
  FILE *out = r->env->out;
  size_t i;
  char a[32];
  STATUS_DO(info_ranks_json(r, &o));
  if (!o) return NULL;
  fprintf(out, "\nRANKS  %" JSON_INTEGER_FORMAT "  ",
          json_integer_value(json_object_get(o, "count")));
  json_array_foreach(json_object_get(o, "mesh"), i, at) {
    fprintf(out, "%s%s %" JSON_INTEGER_FORMAT, i ? " x " : "",
            json_string_value(json_object_get(at, "axis")),
            json_integer_value(json_object_get(at, "size")));
  }
  fputc('\n', out);
  json_t *stages = json_object_get(o, "stages");
  json_array_foreach(stages, i, at) {
    if (json_array_size(stages) == 1) break;
    fprintf(out, "  stage %zu: arena %s on each of %zu ranks\n", i,
            rt_bytes((double)json_integer_value(json_object_get(at, "arena")), a),
            json_array_size(json_object_get(at, "ranks")));
  }
  fprintf(out, "  sent in a step, by all ranks\n");
  json_object_foreach(json_object_get(o, "sent"), name, at) {
    fprintf(out,
            "    %-36s %12" JSON_INTEGER_FORMAT " bytes  %8" JSON_INTEGER_FORMAT " exchanges\n",
            name, json_integer_value(json_object_get(at, "bytes")),
            json_integer_value(json_object_get(at, "exchanges")));
  }
  json_decref(o);
  return NULL;
}
