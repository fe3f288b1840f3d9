// Writing one save: who writes what, the files, the manifest when all of them are there.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/checkpoint_impl.h"
#include "runtime/dtype.h"
#include "runtime/init.h"

static const uint32_t class_of[CK_CLASSES] = {PROG_WEIGHT, PROG_OPTIMIZER};

// ---- what a rank has ----------------------------------------------------------------------------

static ck_slice slice_of(arena *a, const checkpoint *c, const prog_state *s,
                         const prog_state *named, int64_t k) {
  char name[4096];
  return (ck_slice){.name = arena_strdup(a, init_state_name(c->prog, named, k, name, sizeof name)),
                    .state = s,
                    .part = part_of(c->prog, comm_rank(c->comm), s),
                    .data = vm_at(c->vm, s->offset + (s->layers ? k * s->layer_stride : 0))};
}

status *ck_list(arena *a, const checkpoint *c, int cls, ck_slices *out) {
  map seen = {.arena = a};
  for (uint32_t i = 0; i < c->prog->nstates; i++) {
    const prog_state *s = &c->prog->states[i];
    if (s->cls != class_of[cls]) continue;
    for (int64_t k = 0; k < prog_state_slices(s); k++) {
      vec_push(a, out, slice_of(a, c, s, s, k));
      const char *name = vec_last(out).name;
      if (map_find(&seen, name) >= 0) return status_error("two states are named %s", name);
      map_set(&seen, name, (void *)(uintptr_t)name);
    }
  }
  return NULL;
}

void ck_list_copies(arena *a, const checkpoint *c, ck_slices *out) {
  for (uint32_t i = 0; i < c->prog->nstates; i++) {
    const prog_state *s = &c->prog->states[i], *w;
    if (s->cls != PROG_COPY) continue;
    w = prog_weight_of(c->prog, s);
    if (part_cut_alike(c->prog, s, w)) continue;
    for (int64_t k = 0; k < prog_state_slices(s); k++) vec_push(a, out, slice_of(a, c, s, w, k));
  }
}

status *ck_agree(const checkpoint *c, status *mine) {
  int ranks = comm_ranks(c->comm);
  if (ranks == 1) return mine;
  int32_t me[2] = {mine != NULL, mine ? mine->exit_code : 0};
  int32_t(*all)[2] = comm_rank(c->comm) == 0 ? calloc((size_t)ranks, sizeof *all) : NULL;
  if (comm_rank(c->comm) == 0 && !all) return status_join(mine, status_error("out of memory"));
  status *s = comm_collect(c->comm, me, sizeof me, all, 0);
  // Who failed first, with what exit code, how long its message is, and how many failed.
  int64_t verdict[4] = {-1};
  for (int r = ranks - 1; all && !s && r >= 0; r--)
    if (all[r][0]) verdict[0] = r, verdict[1] = all[r][1], verdict[3]++;
  free(all);
  if (!s) s = comm_broadcast(c->comm, verdict, sizeof verdict, 0);
  if (s) return status_join(mine, s);
  int from = (int)verdict[0];
  if (from < 0) return NULL;
  if (mine) verdict[2] = (int64_t)strlen(mine->message) + 1;
  s = comm_broadcast(c->comm, &verdict[2], sizeof verdict[2], from);
  char *text = s ? NULL : calloc((size_t)verdict[2], 1);
  if (!s && !text) s = status_error("out of memory");
  if (!s && from == comm_rank(c->comm)) memcpy(text, mine->message, (size_t)verdict[2]);
  if (!s) s = comm_broadcast(c->comm, text, (size_t)verdict[2], from);
  if (!s) s = status_exit((int)verdict[1], "%s", text);
  if (text && verdict[3] < ranks) s = status_context(s, "rank %d", from);
  free(text);
  status_free(mine);
  return s;
}

// ---- who writes what ----------------------------------------------------------------------------

// A rank has a slice or a part. Ranks may have different programs (stages of a pipeline), so what
// is whose cannot be read off the mesh: all claim what they have, and the lowest rank gets it.
typedef struct claim {
  XXH128_hash_t key;  // of name and part
  uint32_t cls, some, cut, pad;
} claim;

static claim claim_of(arena *a, int cls, const ck_slice *t) {
  const char *key = arena_printf(a, "%s\n%s", t->name, part_text(a, &t->part));
  return (claim){.key = XXH3_128bits(key, strlen(key)),
                 .cls = (uint32_t)cls,
                 .some = part_elements(&t->part) > 0,
                 .cut = t->part.ncuts > 0};
}

// What each of `ranks` times `n` claims is answered, and behind that for each class whether its
// files are those of ranks.
static void judge(arena *a, const claim *all, int ranks, int64_t n, unsigned char *yes) {
  unsigned char *numbered = yes + ranks * n;
  int64_t room = 16;
  while (room < 2 * ranks * n) room *= 2;
  const claim **table = arena_new(a, const claim *, room);
  for (int64_t i = 0; i < ranks * n; i++) {
    const claim *x = &all[i];
    if (!x->some) continue;
    int64_t at = (int64_t)(x->key.low64 & (uint64_t)(room - 1));
    while (table[at] && !XXH128_isEqual(table[at]->key, x->key)) at = (at + 1) & (room - 1);
    if (table[at]) continue;
    table[at] = x;
    yes[i] = 1;
    // One file as of one rank, when that has all of everything.
    if (x->cut || i >= n) numbered[x->cls] = 1;
  }
}

typedef struct shares {
  ck_slices slices[CK_CLASSES];
  const unsigned char *mine[CK_CLASSES];  // by slice: this rank writes it
  bool numbered[CK_CLASSES];
} shares;

static status *share_out(arena *a, const checkpoint *c, shares *out) {
  int ranks = comm_ranks(c->comm), rank = comm_rank(c->comm);
  bool first = rank == 0;
  status *s = NULL;
  for (int k = 0; k < CK_CLASSES && !s; k++) s = ck_list(a, c, k, &out->slices[k]);
  STATUS_DO(ck_agree(c, s));
  int64_t nweights = out->slices[0].n, own = nweights + out->slices[1].n, most = own;
  int64_t *counts = first ? arena_new(a, int64_t, ranks) : NULL;
  STATUS_DO(comm_collect(c->comm, &own, sizeof own, counts, 0));
  for (int r = 0; first && r < ranks; r++)
    if (counts[r] > most) most = counts[r];
  STATUS_DO(comm_broadcast(c->comm, &most, sizeof most, 0));

  claim *mine = arena_new(a, claim, most), *all = first ? arena_new(a, claim, ranks * most) : NULL;
  for (int64_t i = 0; i < own; i++) {
    int cls = i < nweights ? CK_WEIGHTS : CK_OPTIMIZER;
    mine[i] = claim_of(a, cls, &out->slices[cls].at[cls ? i - nweights : i]);
  }
  STATUS_DO(comm_collect(c->comm, mine, sizeof *mine * (size_t)most, all, 0));
  size_t n = (size_t)(ranks * most) + CK_CLASSES;
  unsigned char *yes = arena_new(a, unsigned char, n);
  if (first) judge(a, all, ranks, most, yes);
  STATUS_DO(comm_broadcast(c->comm, yes, n, 0));
  for (int k = 0; k < CK_CLASSES; k++) {
    out->mine[k] = yes + rank * most + (k ? nweights : 0);
    out->numbered[k] = yes[ranks * most + k];
  }
  return NULL;
}

// ---- files --------------------------------------------------------------------------------------

// What rank 0 must know of a rank's files; bytes 0: there is none.
typedef struct written {
  uint64_t bytes[CK_CLASSES], header[CK_CLASSES];
} written;

static st_tensor tensor_of(const ck_slice *t) {
  const prog_state *s = t->state;
  const dtype_info *d = dtype_of(s->dtype);
  int64_t n = part_elements(&t->part);
  st_tensor x = {.name = t->name,
                 .type = d->st,
                 .dtype = s->dtype,
                 .rank = s->rank,
                 .data = t->data,
                 .bytes = (uint64_t)(n * d->bytes)};
  memcpy(x.dims, s->dims, sizeof x.dims);
  // What has padding is a row of what it has without.
  if (n < t->part.held) memset(x.dims, 0, sizeof x.dims), x.rank = 1, x.dims[0] = n;
  return x;
}

typedef VEC(const char *) texts;

static const char *chunk_sums(arena *a, const st_tensor *t) {
  sb sums = {.arena = a};
  for (uint64_t at = 0; at < t->bytes; at += CK_CHUNK) {
    uint64_t n = t->bytes - at < CK_CHUNK ? t->bytes - at : CK_CHUNK;
    sb_printf(&sums, "%s%016" PRIx64, at ? " " : "",
              XXH3_64bits((const char *)t->data + at, (size_t)n));
  }
  return sb_str(&sums);
}

// What a file of a rank says of a tensor beside what the format has room for.
static void describe(arena *a, const ck_slice *t, const st_tensor *x, texts *pairs) {
  char dims[200];
  uint32_t rank;
  const int64_t *whole = prog_state_dims(t->state, &rank);
  if (t->part.ncuts) {
    vec_push(a, pairs, arena_printf(a, "part %s", t->name));
    vec_push(a, pairs,
             arena_printf(a, "%s %s", st_dims(whole, rank, dims), part_text(a, &t->part)));
  }
  vec_push(a, pairs, arena_printf(a, "xxh3 %s", t->name));
  vec_push(a, pairs, chunk_sums(a, x));
}

// Writes this rank's file of a class. `sums` gets the tensors' checksums when the file has no
// number.
static status *write_class(arena *a, const checkpoint *c, const char *dir, int cls,
                           const char *step_text, const shares *sh, written *w, json_t *sums) {
  bool numbered = sh->numbered[cls];
  VEC(st_tensor) tensors = {0};
  texts pairs = {0};
  const char *const about[] = {
      "format", "pt",      "model",   prog_text(c->prog, c->prog->header->model),
      "step",   step_text, "made_by", prog_text(c->prog, c->prog->header->compiler)};
  for (size_t i = 0; i < sizeof about / sizeof *about; i++) vec_push(a, &pairs, about[i]);
  for (int i = 0; i < sh->slices[cls].n; i++) {
    const ck_slice *t = &sh->slices[cls].at[i];
    if (!sh->mine[cls][i]) continue;
    vec_push(a, &tensors, tensor_of(t));
    if (numbered) describe(a, t, &vec_last(&tensors), &pairs);
  }
  // One rank's weights have a file even when there are none.
  bool always = !numbered && cls == CK_WEIGHTS && comm_rank(c->comm) == 0;
  if (tensors.n == 0 && !always) return NULL;
  const char *name = ck_file_name(a, cls, numbered ? comm_rank(c->comm) : -1);
  STATUS_DO(st_write(a, c->io, arena_printf(a, "%s/%s", dir, name), tensors.at, tensors.n, pairs.at,
                     pairs.n / 2, &w->bytes[cls], &w->header[cls]));
  for (int i = 0; !numbered && i < tensors.n; i++) {
    const st_tensor *t = &tensors.at[i];
    json_object_set_new(sums, t->name, ck_hex(XXH3_64bits(t->data, t->bytes)));
  }
  bool all = numbered || json_object_size(sums) == (size_t)tensors.n;
  return all ? NULL : status_error("a tensor's name is not UTF-8, or memory is out");
}

static json_t *list_files(arena *a, const written *all, int ranks, const shares *sh,
                          json_t *const *sums) {
  json_t *files = json_object();
  for (int k = 0; k < CK_CLASSES; k++)
    for (int r = 0; r < ranks; r++) {
      if (all[r].bytes[k] == 0) continue;
      json_t *file = json_object();
      json_object_set_new(file, "bytes", json_integer((json_int_t)all[r].bytes[k]));
      json_object_set_new(file, "header_xxh3", ck_hex(all[r].header[k]));
      if (!sh->numbered[k]) json_object_set(file, "xxh3", sums[k]);
      json_object_set_new(files, ck_file_name(a, k, sh->numbered[k] ? r : -1), file);
    }
  return files;
}

static status *write_files(arena *a, const checkpoint *c, const char *dir, const ck_state *st,
                           const char *const *settings, int nsettings, const shares *sh,
                           json_t *const *sums) {
  int ranks = comm_ranks(c->comm);
  bool first = comm_rank(c->comm) == 0;
  const char *step_text = arena_printf(a, "%" PRId64, st->step);
  written w = {0}, *all = first ? arena_new(a, written, ranks) : NULL;
  status *s = NULL;
  for (int k = 0; k < CK_CLASSES && !s; k++)
    s = write_class(a, c, dir, k, step_text, sh, &w, sums[k]);
  STATUS_DO(ck_agree(c, s));
  STATUS_DO(comm_collect(c->comm, &w, sizeof w, all, 0));
  if (first) {
    s = ck_write_manifest(a, c, dir, st, settings, nsettings, sh->numbered[0] || sh->numbered[1],
                          list_files(a, all, ranks, sh, sums));
    if (!s) s = file_sync_dir(c->io, dir);
  }
  return ck_agree(c, s);
}

status *ck_write(arena *a, const checkpoint *c, const char *dir, const ck_state *st,
                 const char *const *settings, int nsettings) {
  shares sh = {0};
  STATUS_DO(share_out(a, c, &sh));
  json_t *sums[CK_CLASSES];
  for (int k = 0; k < CK_CLASSES; k++) sums[k] = json_object();
  status *s = write_files(a, c, dir, st, settings, nsettings, &sh, sums);
  for (int k = 0; k < CK_CLASSES; k++) json_decref(sums[k]);
  return s;
}
