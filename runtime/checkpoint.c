// The directory of saves: finding, publishing and removing them.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/checkpoint_impl.h"

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

// What rank 0 does before and after all write.
static status *begin(arena *a, const checkpoint *c, const char *dir, const char *tmp) {
  STATUS_DO(file_make_dirs(c->io, dir));
  clean_leftovers(a, c, dir);
  if (c->io->mkdir(c->io->ctx, tmp, 0777) < 0) return status_errno("cannot make directory %s", tmp);
  return NULL;
}

// Rank 0: all of its call returns NULL or the failure. The others go by what it says.
static status *save_all(arena *a, const checkpoint *c, const char *dir, const char *final,
                        const ck_state *st, const char *const *settings, int nsettings) {
  bool first = comm_rank(c->comm) == 0;
  int64_t pid = getpid();
  STATUS_DO(comm_broadcast(c->comm, &pid, sizeof pid, 0));
  const char *tmp = arena_printf(a, "%s/.tmp-step-%08" PRId64 "-%" PRId64, dir, st->step, pid);
  status *s = ck_agree(c, first ? begin(a, c, dir, tmp) : NULL);
  if (!s) s = ck_write(a, c, tmp, st, settings, nsettings);
  if (!s) s = ck_agree(c, first ? publish(a, c, dir, tmp, final, st->step) : NULL);
  if (s && first) status_free(file_remove_dir(c->io, tmp));
  return s;
}

status *ck_save(const checkpoint *c, const char *dir, int keep, const ck_state *st,
                const char *const *settings, int nsettings, char *out_path) {
  arena a;
  arena_init(&a);
  bool first = comm_rank(c->comm) == 0;
  const char *final = arena_printf(&a, "%s/step-%08" PRId64, dir, st->step);
  status *s = status_context(save_all(&a, c, dir, final, st, settings, nsettings),
                             "while saving checkpoint %s", final);
  if (!s) {
    s = status_context(ck_agree(c, first ? prune(&a, c, dir, keep) : NULL),
                       "after saving checkpoint %s", final);
    if (first) clean_leftovers(&a, c, dir);
  }
  if (!s && out_path) snprintf(out_path, 4096, "%s", final);
  arena_free(&a);
  return s;
}

// ---- loading ----------------------------------------------------------------------------------

// What there is to load.
typedef struct found {
  enum { NOTHING, SAVE, FILES } kind;
  file_names paths;  // of the save, or of the files
} found;

// The newest complete save of a directory, if any. Incomplete ones are told.
static status *newest(arena *a, const checkpoint *c, const char *dir, found *out) {
  const char *path = NULL;
  save_list saves = {0};
  if (file_kind(arena_printf(a, "%s/manifest.json", dir)) == FILE_REGULAR)
    path = dir;
  else
    STATUS_DO(list_saves(a, dir, &saves));
  for (int i = 0; !path && i < saves.n; i++) {
    if (has_manifest(a, saves.at[i].path))
      path = saves.at[i].path;
    else if (c->notes)
      fprintf(c->notes, "note: %s has no manifest: it is half-written and skipped\n",
              saves.at[i].path);
  }
  if (!path) return NULL;
  out->kind = SAVE;
  out->paths.n = 1;
  out->paths.at = arena_new(a, const char *, 1);
  out->paths.at[0] = path;
  return NULL;
}

static status *find_save(arena *a, const checkpoint *c, const char *dir, found *out) {
  file_type kind = file_kind(dir);
  if (kind == FILE_NONE) return NULL;
  if (kind != FILE_DIR) return status_error("--resume takes a directory, %s is a file", dir);
  return newest(a, c, dir, out);
}

static status *find_weights(arena *a, const checkpoint *c, const char *path, found *out) {
  file_type kind = file_kind(path);
  if (kind == FILE_NONE) return status_error("there is no %s", path);
  if (kind == FILE_REGULAR) {
    out->paths.at = arena_new(a, const char *, 1);
    out->paths.at[out->paths.n++] = path;
  } else {
    STATUS_DO(newest(a, c, path, out));
    if (out->kind == SAVE) return NULL;
    STATUS_DO(file_glob(a, arena_printf(a, "%s/*.safetensors", path), &out->paths));
    if (out->paths.n == 0)
      return status_error("%s holds neither a checkpoint nor safetensors files", path);
  }
  out->kind = FILES;
  return NULL;
}

typedef status *find_fn(arena *a, const checkpoint *c, const char *path, found *out);

// All ranks. Rank 0 looks, and the others load what it found.
static status *look(arena *a, const checkpoint *c, const char *path, find_fn *find, found *out) {
  bool first = comm_rank(c->comm) == 0;
  *out = (found){0};
  STATUS_DO(ck_agree(c, first ? find(a, c, path, out) : NULL));
  sb text = {.arena = a};
  for (int i = 0; i < out->paths.n; i++) {
    sb_puts(&text, out->paths.at[i]);
    sb_put(&text, 0);
  }
  int64_t say[3] = {out->kind, out->paths.n, text.n};
  STATUS_DO(comm_broadcast(c->comm, say, sizeof say, 0));
  char *at = arena_alloc(a, (size_t)say[2]);
  if (first && text.n) memcpy(at, text.at, (size_t)text.n);
  STATUS_DO(comm_broadcast(c->comm, at, (size_t)say[2], 0));
  out->kind = say[0] == SAVE ? SAVE : say[0] == FILES ? FILES : NOTHING;
  out->paths = (file_names){arena_new(a, const char *, say[1]), (int)say[1]};
  for (int i = 0; i < out->paths.n; i++, at += strlen(at) + 1) out->paths.at[i] = at;
  return NULL;
}

static status *load_save(arena *a, const checkpoint *c, const char *dir, bool weights_only,
                         ck_state *out) {
  return status_context(ck_read_save(a, c, dir, weights_only, out),
                        "checkpoint %s cannot be loaded", dir);
}

status *ck_resume(const checkpoint *c, const char *dir, ck_state *out, bool *was_found) {
  *was_found = false;
  arena a;
  arena_init(&a);
  found f;
  status *s = look(&a, c, dir, find_save, &f);
  if (!s && f.kind == SAVE) {
    s = load_save(&a, c, f.paths.at[0], false, out);
    *was_found = !s;
    if (!s) vm_make_copies(c->vm);
  }
  arena_free(&a);
  return s;
}

status *ck_load_weights(const checkpoint *c, const char *path) {
  arena a;
  arena_init(&a);
  found f;
  ck_state ignored;
  status *s = look(&a, c, path, find_weights, &f);
  if (!s)
    s = f.kind == SAVE ? load_save(&a, c, f.paths.at[0], true, &ignored)
                       : ck_read_files(&a, c, &f.paths);
  if (!s) vm_make_copies(c->vm);
  arena_free(&a);
  return s;
}
