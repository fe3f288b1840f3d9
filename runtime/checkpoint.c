#include "runtime/checkpoint.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/base/str.h"
#include "runtime/base/vec.h"
#include "runtime/dtype.h"
#include "runtime/init.h"
#include "runtime/safetensors.h"

#define SCHEMA "dsm-checkpoint-1"
#define SEAL_KEY "\"manifest_xxh3\": \""
#define MAX_LISTED 8  // names a message lists before it says "and N more"

static const char *const part_name[] = {"weights.safetensors", "optimizer.safetensors"};
static const uint32_t part_class[] = {PROG_WEIGHT, PROG_OPTIMIZER};
enum { PARTS = 2 };

typedef VEC(st_tensor) tensor_list;

// The tensors of a class as a checkpoint names them; `data` is their place in the arena.
static status *list_tensors(arena *a, const checkpoint *c, uint32_t cls, tensor_list *out) {
  const prog *p = c->prog;
  map seen = {.arena = a};
  char name[4096];
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *s = &p->states[i];
    if (s->cls != cls) continue;
    for (int64_t k = 0; k < prog_state_slices(s); k++) {
      st_tensor t = {.name = arena_strdup(a, init_state_name(p, s, k, name, sizeof name)),
                     .type = dtype_of(s->dtype)->st,
                     .dtype = s->dtype,
                     .rank = s->rank,
                     .data = vm_at(c->vm, s->offset + (s->layers ? k * s->layer_stride : 0)),
                     .bytes = (uint64_t)s->bytes};
      memcpy(t.dims, s->dims, sizeof t.dims);
      if (map_find(&seen, t.name) >= 0) return status_error("two states are named %s", t.name);
      map_set(&seen, t.name, (void *)(uintptr_t)t.name);
      vec_push(a, out, t);
    }
  }
  return NULL;
}

// ---- names in the directory -------------------------------------------------------------------

static bool parse_step(const char *name, int64_t *step) {
  if (!str_starts(name, "step-")) return false;
  char *end;
  errno = 0;
  long long v = strtoll(name + 5, &end, 10);
  if (end == name + 5 || *end || v < 0 || errno || name[5] == '-' || name[5] == '+') return false;
  *step = v;
  return true;
}

typedef struct save {
  const char *path;
  int64_t step;
} save;

static int newest_first(const void *a, const void *b) {
  int64_t x = ((const save *)a)->step, y = ((const save *)b)->step;
  return x < y ? 1 : x > y ? -1 : 0;
}

typedef VEC(save) save_list;

static status *list_saves(arena *a, const char *dir, save_list *out) {
  file_names names;
  STATUS_DO(file_list(a, dir, &names));
  for (int i = 0; i < names.n; i++) {
    save s;
    if (!parse_step(names.at[i], &s.step)) continue;
    s.path = arena_printf(a, "%s/%s", dir, names.at[i]);
    if (file_kind(s.path) == FILE_DIR) vec_push(a, out, s);
  }
  if (out->n) qsort(out->at, (size_t)out->n, sizeof *out->at, newest_first);
  return NULL;
}

int64_t ck_newest_step(const char *dir) {
  arena a;
  arena_init(&a);
  save_list saves = {0};
  status *s = file_kind(dir) == FILE_DIR ? list_saves(&a, dir, &saves) : NULL;
  int64_t step = !s && saves.n ? saves.at[0].step : -1;
  status_free(s);
  arena_free(&a);
  return step;
}

// Removes what crashed saves and interrupted removals left.
static void clean_leftovers(arena *a, const checkpoint *c, const char *dir) {
  file_names names;
  status *s = file_list(a, dir, &names);
  for (int i = 0; !s && i < names.n; i++)
    if (str_starts(names.at[i], ".tmp-"))
      s = file_remove_dir(c->io, arena_printf(a, "%s/%s", dir, names.at[i]));
  status_free(s);  // they do no harm where they are
}

static bool has_manifest(arena *a, const char *path) {
  file_map m;
  status *s = file_map_open(arena_printf(a, "%s/manifest.json", path), &m);
  bool has = !s && m.n > 0;
  if (!s) file_map_close(&m);
  status_free(s);
  return has;
}

// A save leaves in two steps: under its new name nobody takes it for complete any more.
static status *remove_save(arena *a, const checkpoint *c, const char *dir, const save *s) {
  const char *gone = arena_printf(a, "%s/.tmp-gone-%08" PRId64, dir, s->step);
  STATUS_DO(file_remove_dir(c->io, gone));
  if (c->io->rename(c->io->ctx, s->path, gone) < 0)
    return status_errno("cannot remove the old checkpoint %s", s->path);
  return file_remove_dir(c->io, gone);
}

static status *prune(arena *a, const checkpoint *c, const char *dir, int keep) {
  save_list saves = {0};
  STATUS_DO(list_saves(a, dir, &saves));
  int complete = 0;
  status *s = NULL;
  for (int i = 0; i < saves.n; i++) {
    if (complete < keep && has_manifest(a, saves.at[i].path)) {
      complete++;
      continue;
    }
    s = status_join(s, remove_save(a, c, dir, &saves.at[i]));
  }
  return s;
}

// ---- saving -----------------------------------------------------------------------------------

static json_t *hex64(uint64_t v) {
  char text[20];
  snprintf(text, sizeof text, "%016" PRIx64, v);
  return json_string(text);
}

static uint64_t text_digest(const char *text, size_t n) { return XXH3_64bits(text, n); }

static status *save_part(arena *a, const checkpoint *c, const char *tmp, int part,
                         const char *step_text, json_t *files) {
  tensor_list tensors = {0};
  STATUS_DO(list_tensors(a, c, part_class[part], &tensors));
  if (part_class[part] == PROG_OPTIMIZER && tensors.n == 0) return NULL;
  const char *pairs[] = {
      "format", "pt",      "model",   prog_text(c->prog, c->prog->header->model),
      "step",   step_text, "made_by", prog_text(c->prog, c->prog->header->compiler)};
  uint64_t bytes, header;
  STATUS_DO(st_write(a, c->io, arena_printf(a, "%s/%s", tmp, part_name[part]), tensors.at,
                     tensors.n, pairs, 4, &bytes, &header));
  json_t *file = json_object(), *sums = json_object();
  json_object_set_new(file, "bytes", json_integer((json_int_t)bytes));
  json_object_set_new(file, "header_xxh3", hex64(header));
  for (int i = 0; i < tensors.n; i++)
    json_object_set_new(sums, tensors.at[i].name,
                        hex64(XXH3_64bits(tensors.at[i].data, tensors.at[i].bytes)));
  bool all = json_object_size(sums) == (size_t)tensors.n;
  json_object_set_new(file, "xxh3", sums);
  json_object_set_new(files, part_name[part], file);
  return all ? NULL : status_error("a tensor's name is not UTF-8, or memory is out");
}

// The manifest carries its own checksum, computed with zeros in its place.
static status *write_manifest(arena *a, const checkpoint *c, const char *tmp, json_t *root) {
  json_object_set_new(root, "manifest_xxh3", json_string("0000000000000000"));
  char *text = json_dumps(root, JSON_INDENT(1));
  if (!text) return status_error("cannot write the manifest: its names are not UTF-8");
  size_t n = strlen(text);
  char *seal = strstr(text, SEAL_KEY "0000000000000000\"");
  char digits[20];
  snprintf(digits, sizeof digits, "%016" PRIx64, text_digest(text, n));
  if (seal) memcpy(seal + strlen(SEAL_KEY), digits, 16);
  file_out f;
  status *s = file_create(c->io, arena_printf(a, "%s/manifest.json", tmp), &f);
  if (!s) {
    s = file_write(&f, text, n);
    if (!s) s = file_sync(&f);
    s = status_join(s, file_close(&f));
  }
  free(text);
  return s;
}

static status *save_into(arena *a, const checkpoint *c, const char *tmp, const ck_state *st,
                         const char *const *settings, int nsettings) {
  if (c->io->mkdir(c->io->ctx, tmp, 0777) < 0) return status_errno("cannot make directory %s", tmp);
  json_t *root = json_object(), *files = json_object(), *set = json_object();
  const prog_header *h = c->prog->header;
  json_object_set_new(root, "schema", json_string(SCHEMA));
  json_object_set_new(root, "model", json_string(prog_text(c->prog, h->model)));
  json_object_set_new(root, "compiler", json_string(prog_text(c->prog, h->compiler)));
  json_object_set_new(root, "source_digest", hex64(h->source_digest));
  json_object_set_new(root, "step", json_integer(st->step));
  json_object_set_new(root, "samples", json_integer(st->samples));
  json_object_set_new(root, "seed", hex64(st->seed));
  for (int i = 0; i < nsettings; i++)
    json_object_set_new(set, settings[2 * i], json_string(settings[2 * i + 1]));
  json_object_set_new(root, "settings", set);
  json_object_set_new(root, "files", files);
  const char *step_text = arena_printf(a, "%" PRId64, st->step);
  status *s = NULL;
  for (int part = 0; part < PARTS && !s; part++) s = save_part(a, c, tmp, part, step_text, files);
  if (!s) s = write_manifest(a, c, tmp, root);
  if (!s) s = file_sync_dir(c->io, tmp);
  json_decref(root);
  return s;
}

// Gives the finished save its name. One of the same step, if any, steps aside first.
static status *publish(arena *a, const checkpoint *c, const char *dir, const char *tmp,
                       const char *final, int64_t step) {
  const char *aside = NULL;
  if (file_kind(final) != FILE_NONE) {
    aside = arena_printf(a, "%s/.tmp-replaced-%08" PRId64, dir, step);
    STATUS_DO(file_remove_dir(c->io, aside));
    if (c->io->rename(c->io->ctx, final, aside) < 0)
      return status_errno("cannot move %s out of the way", final);
  }
  if (c->io->rename(c->io->ctx, tmp, final) < 0) {
    status *s = status_errno("cannot rename %s to %s", tmp, final);
    if (aside && c->io->rename(c->io->ctx, aside, final) < 0)
      s = status_join(s, status_errno("cannot put %s back", final));
    return s;
  }
  return file_sync_dir(c->io, dir);
}

status *ck_save(const checkpoint *c, const char *dir, int keep, const ck_state *st,
                const char *const *settings, int nsettings, char *out_path) {
  arena a;
  arena_init(&a);
  const char *final = arena_printf(&a, "%s/step-%08" PRId64, dir, st->step);
  const char *tmp =
      arena_printf(&a, "%s/.tmp-step-%08" PRId64 "-%ld", dir, st->step, (long)getpid());
  status *s = file_make_dirs(c->io, dir);
  if (!s) {
    clean_leftovers(&a, c, dir);
    s = save_into(&a, c, tmp, st, settings, nsettings);
    if (!s) s = publish(&a, c, dir, tmp, final, st->step);
    if (s) status_free(file_remove_dir(c->io, tmp));
  }
  s = status_context(s, "while saving checkpoint %s", final);
  if (!s) {
    s = status_context(prune(&a, c, dir, keep), "after saving checkpoint %s", final);
    clean_leftovers(&a, c, dir);
  }
  if (!s && out_path) snprintf(out_path, 4096, "%s", final);
  arena_free(&a);
  return s;
}

// ---- verifying --------------------------------------------------------------------------------

static status *verify_seal(const char *path, const file_map *m, json_t *root) {
  const char *given = json_string_value(json_object_get(root, "manifest_xxh3"));
  char *text = malloc(m->n + 1);
  if (!text) return status_error("out of memory");
  memcpy(text, m->bytes, m->n);
  text[m->n] = 0;
  char *seal = strstr(text, SEAL_KEY);
  status *s = NULL;
  if (!given || !seal || strlen(given) != 16 || strlen(seal) < strlen(SEAL_KEY) + 16) {
    s = status_error("%s has no checksum of its own", path);
  } else {
    memset(seal + strlen(SEAL_KEY), '0', 16);
    char digits[20];
    snprintf(digits, sizeof digits, "%016" PRIx64, text_digest(text, m->n));
    if (!str_eq(digits, given))
      s = status_error("%s is damaged: its checksum is %s, it says %s", path, digits, given);
  }
  free(text);
  return s;
}

static status *read_manifest(arena *a, const char *dir, json_t **out) {
  *out = NULL;
  const char *path = arena_printf(a, "%s/manifest.json", dir);
  file_map m;
  STATUS_DO(file_map_open(path, &m));
  json_error_t e;
  status *s = NULL;
  json_t *root = json_loadb((const char *)m.bytes, m.n, JSON_REJECT_DUPLICATES, &e);
  if (!root)
    s = status_error("%s is damaged: %s at byte %d", path, e.text, e.position);
  else if (!str_eq(json_string_value(json_object_get(root, "schema")), SCHEMA))
    s = status_error("%s is not a manifest this runtime reads (schema %s)", path, SCHEMA);
  else
    s = verify_seal(path, &m, root);
  file_map_close(&m);
  if (s) {
    json_decref(root);
    return s;
  }
  *out = root;
  return NULL;
}

static bool hex_value(const json_t *j, uint64_t *out) {
  const char *text = json_string_value(j);
  if (!text || strlen(text) != 16) return false;
  char *end;
  *out = strtoull(text, &end, 16);
  return *end == 0;
}

static status *verify_sums(const st_file *f, const json_t *sums) {
  for (int i = 0; i < f->n; i++) {
    const st_tensor *t = &f->tensors[i];
    uint64_t want, got = XXH3_64bits(t->data, t->bytes);
    if (!hex_value(json_object_get(sums, t->name), &want))
      return status_error("%s: tensor %s is not in the manifest", f->path, t->name);
    if (want != got)
      return status_error("%s: tensor %s is damaged: its checksum is %016" PRIx64
                          ", the manifest says %016" PRIx64,
                          f->path, t->name, got, want);
  }
  if (json_object_size(sums) != (size_t)f->n)
    return status_error("%s has %d tensors, the manifest lists %zu", f->path, f->n,
                        json_object_size(sums));
  return NULL;
}

// Opens one file of a save and compares it with the manifest, every byte.
static status *open_part(arena *a, const char *dir, const char *name, const json_t *root,
                         st_file *out) {
  const char *path = arena_printf(a, "%s/%s", dir, name);
  const json_t *entry = json_object_get(json_object_get(root, "files"), name);
  memset(out, 0, sizeof *out);
  if (!entry) return status_error("%s is not in the manifest", path);
  file_map m;
  STATUS_DO(file_map_open(path, &m));
  json_int_t want = json_integer_value(json_object_get(entry, "bytes"));
  size_t have = m.n;
  uint64_t got = have < 8 ? 0 : st_header_xxh3(m.bytes, have), header;
  file_map_close(&m);
  if ((json_int_t)have != want)
    return status_error("%s is damaged: it has %zu bytes, the manifest says %lld", path, have,
                        (long long)want);
  if (!hex_value(json_object_get(entry, "header_xxh3"), &header) || header != got)
    return status_error("%s is damaged: the checksum of its header is wrong", path);
  STATUS_DO(st_open(a, path, out));
  status *s = verify_sums(out, json_object_get(entry, "xxh3"));
  if (s) st_close(out);
  return s;
}

// ---- comparing with the program ---------------------------------------------------------------

typedef struct complaints {
  sb text;
  int n;
} complaints;

static void complain(complaints *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void complain(complaints *c, const char *fmt, ...) {
  if (c->n++ >= MAX_LISTED) return;
  sb_puts(&c->text, "\n  ");
  va_list ap;
  va_start(ap, fmt);
  sb_vprintf(&c->text, fmt, ap);
  va_end(ap);
}

static const char *complaint_text(complaints *c) {
  if (c->n > MAX_LISTED) sb_printf(&c->text, "\n  and %d more", c->n - MAX_LISTED);
  return sb_str(&c->text);
}

static bool same_shape(const st_tensor *a, const st_tensor *b) {
  if (a->rank != b->rank) return false;
  for (uint32_t i = 0; i < a->rank; i++)
    if (a->dims[i] != b->dims[i]) return false;
  return true;
}

// Finds each wanted tensor in the files; fills from[i]. Problems are listed together.
static status *match(arena *a, const tensor_list *want, const st_file *files, int nfiles,
                     bool exact, const st_tensor **from, FILE *notes) {
  complaints bad = {.text = {.arena = a}}, extra = {.text = {.arena = a}};
  map wanted = {.arena = a};
  char d0[200], d1[200];
  for (int i = 0; i < want->n; i++) {
    const st_tensor *w = &want->at[i], *t = NULL;
    const char *first = NULL;
    map_set(&wanted, w->name, (void *)(uintptr_t)w);
    for (int k = 0; k < nfiles; k++) {
      const st_tensor *hit = st_find(&files[k], w->name);
      if (hit && t)
        complain(&bad, "%s is in %s and again in %s", w->name, first, files[k].path);
      else if (hit)
        t = hit, first = files[k].path;
    }
    from[i] = t;
    if (!t)
      complain(&bad, "%s %s %s is missing", w->name, w->type, st_shape(w, d0));
    else if (!same_shape(w, t))
      complain(&bad, "%s is %s, the program needs %s", w->name, st_shape(t, d1), st_shape(w, d0));
    else if (exact ? t->dtype != w->dtype
                   : t->dtype == ST_FOREIGN || !dtype_convertible(w->dtype, t->dtype))
      complain(&bad, "%s has type %s, the program needs %s", w->name, t->type, w->type);
  }
  for (int k = 0; k < nfiles; k++)
    for (int i = 0; i < files[k].n; i++)
      if (map_find(&wanted, files[k].tensors[i].name) < 0)
        complain(&extra, "%s %s", files[k].tensors[i].name, st_shape(&files[k].tensors[i], d0));
  if (exact && extra.n)
    complain(&bad, "tensors the program does not have:%s", complaint_text(&extra));
  const char *where = nfiles == 1 ? files[0].path : "the files";
  if (bad.n) {
    // When weights are missing, what is there under other names is the best hint.
    const char *others =
        !exact && extra.n ? arena_printf(a, "\n  there, but not wanted:%s", complaint_text(&extra))
                          : "";
    return status_error("%s and the program do not agree:%s%s", where, complaint_text(&bad),
                        others);
  }
  if (extra.n && notes)
    fprintf(notes, "note: %s: %d tensors are not used:%s\n", where, extra.n,
            complaint_text(&extra));
  return NULL;
}

static status *copy_in(const tensor_list *want, const st_tensor *const *from) {
  for (int i = 0; i < want->n; i++) {
    const st_tensor *w = &want->at[i];
    int64_t n = (int64_t)(w->bytes / (uint64_t)dtype_of(w->dtype)->bytes);
    if (dtype_convert((void *)(uintptr_t)w->data, w->dtype, from[i]->data, from[i]->dtype, n) != n)
      return status_error("tensor %s has numbers that do not fit in %s", w->name,
                          dtype_of(w->dtype)->name);
  }
  return NULL;
}

// ---- loading ----------------------------------------------------------------------------------

// Verifies a complete save; `parts` of its files are opened into f.
static status *open_save(arena *a, const char *dir, int parts, json_t *root, st_file *f, int *n) {
  json_t *files = json_object_get(root, "files");
  *n = 0;
  for (int k = 0; k < parts; k++) {
    if (k > 0 && !json_object_get(files, part_name[k])) continue;
    status *s = open_part(a, dir, part_name[k], root, &f[k]);
    if (s) {
      for (int i = 0; i < k; i++) st_close(&f[i]);
      return s;
    }
    *n = k + 1;
  }
  return NULL;
}

static status *read_state(const char *dir, json_t *root, ck_state *out) {
  json_t *step = json_object_get(root, "step"), *samples = json_object_get(root, "samples");
  if (!json_is_integer(step) || !json_is_integer(samples) || json_integer_value(step) < 0 ||
      json_integer_value(samples) < 0 || !hex_value(json_object_get(root, "seed"), &out->seed))
    return status_error("%s/manifest.json has no step, samples or seed", dir);
  out->step = json_integer_value(step);
  out->samples = json_integer_value(samples);
  return NULL;
}

static status *load_save(arena *a, const checkpoint *c, const char *dir, bool weights_only,
                         ck_state *out) {
  json_t *root;
  STATUS_DO(read_manifest(a, dir, &root));
  st_file f[PARTS] = {0};
  int n = 0;
  status *s = read_state(dir, root, out);
  if (!s) s = open_save(a, dir, weights_only ? 1 : PARTS, root, f, &n);
  const st_tensor **from[PARTS] = {0};
  tensor_list want[PARTS] = {0};
  for (int k = 0; !s && k < (weights_only ? 1 : PARTS); k++) {
    s = list_tensors(a, c, part_class[k], &want[k]);
    if (s || (k > 0 && want[k].n == 0 && n <= k)) continue;
    if (n <= k) {
      s = status_error("%s has no %s, so training cannot go on from it; `--load` takes its weights",
                       dir, part_name[k]);
      continue;
    }
    from[k] = arena_new(a, const st_tensor *, want[k].n);
    s = match(a, &want[k], &f[k], 1, !weights_only, from[k], c->notes);
  }
  for (int k = 0; !s && k < PARTS; k++)
    if (from[k]) s = copy_in(&want[k], from[k]);
  uint64_t digest;
  if (!s && !weights_only && c->notes &&
      hex_value(json_object_get(root, "source_digest"), &digest) &&
      digest != c->prog->header->source_digest)
    fprintf(c->notes, "note: %s was written by another build: later bits may differ from its run\n",
            dir);
  for (int k = 0; k < n; k++) st_close(&f[k]);
  json_decref(root);
  return s;
}

// The newest complete save of a directory, or NULL. Incomplete ones are told.
static status *newest(arena *a, const checkpoint *c, const char *dir, const char **out) {
  *out = NULL;
  if (file_kind(arena_printf(a, "%s/manifest.json", dir)) == FILE_REGULAR) {
    *out = dir;
    return NULL;
  }
  save_list saves = {0};
  STATUS_DO(list_saves(a, dir, &saves));
  for (int i = 0; i < saves.n; i++) {
    if (has_manifest(a, saves.at[i].path)) {
      *out = saves.at[i].path;
      return NULL;
    }
    if (c->notes)
      fprintf(c->notes, "note: %s has no manifest: it is half-written and skipped\n",
              saves.at[i].path);
  }
  return NULL;
}

status *ck_resume(const checkpoint *c, const char *dir, ck_state *out, bool *found) {
  *found = false;
  file_type kind = file_kind(dir);
  if (kind == FILE_NONE) return NULL;
  if (kind != FILE_DIR) return status_error("--resume takes a directory, %s is a file", dir);
  arena a;
  arena_init(&a);
  const char *path;
  status *s = newest(&a, c, dir, &path);
  if (!s && path) {
    s = status_context(load_save(&a, c, path, false, out), "checkpoint %s cannot be loaded", path);
    *found = !s;
    if (!s) vm_make_copies(c->vm);
  }
  arena_free(&a);
  return s;
}

static status *load_files(arena *a, const checkpoint *c, const file_names *paths) {
  st_file *f = arena_new(a, st_file, paths->n);
  tensor_list want = {0};
  int n = 0;
  status *s = list_tensors(a, c, PROG_WEIGHT, &want);
  while (!s && n < paths->n) {
    s = st_open(a, paths->at[n], &f[n]);
    n++;
  }
  const st_tensor **from = arena_new(a, const st_tensor *, want.n);
  if (!s) s = match(a, &want, f, n, false, from, c->notes);
  if (!s) s = copy_in(&want, from);
  for (int i = 0; i < n; i++) st_close(&f[i]);
  return s;
}

static status *load_weights(arena *a, const checkpoint *c, const char *path) {
  file_names files = {&path, 1};
  switch (file_kind(path)) {
    case FILE_NONE: return status_error("there is no %s", path);
    case FILE_REGULAR: return load_files(a, c, &files);
    default: break;
  }
  const char *save_path;
  STATUS_DO(newest(a, c, path, &save_path));
  ck_state ignored;
  if (save_path)
    return status_context(load_save(a, c, save_path, true, &ignored),
                          "checkpoint %s cannot be loaded", save_path);
  STATUS_DO(file_glob(a, arena_printf(a, "%s/*.safetensors", path), &files));
  if (files.n == 0)
    return status_error("%s holds neither a checkpoint nor safetensors files", path);
  return load_files(a, c, &files);
}

status *ck_load_weights(const checkpoint *c, const char *path) {
  arena a;
  arena_init(&a);
  status *s = load_weights(&a, c, path);
  if (!s) vm_make_copies(c->vm);
  arena_free(&a);
  return s;
}
