// Reading: files are opened and put in order by tensor, compared with what the program wants, and
// only then read: what a rank needs of each, checksums first.
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/checkpoint_impl.h"
#include "runtime/dtype.h"

#define MAX_LISTED 8  // names a message lists before it says "and N more"

// Where a tensor, or a part of one, lies in a file.
typedef struct piece {
  const st_tensor *t;
  const char *path;
  part part;
  uint64_t chunk;     // bytes that a checksum is of; 0: there are none
  const char *sums;   // the checksums in digits, or
  uint64_t sum;       // the only one
  unsigned char *ok;  // by chunk: its checksum was found right
} piece;

typedef struct source {
  const char *name;
  uint32_t rank;
  int64_t dims[PROG_MAX_RANK];
  int64_t whole, there;  // elements it has, those of all pieces
  VEC(piece) pieces;
} source;

// Files of one class, and what is in them.
typedef struct fileset {
  const char *where;  // for messages
  st_file *f;
  int n;
  map sources;  // name -> source, in the order of the files
} fileset;

static void close_files(fileset *set) {
  for (int i = 0; i < set->n; i++) st_close(&set->f[i]);
  set->n = 0;
}

// ---- opening ------------------------------------------------------------------------------------

// "[768, 3072] 3/8x384"
static bool parse_part(const char *text, source *src, part *out) {
  src->rank = 0;
  src->whole = 1;
  if (*text++ != '[') return false;
  while (*text && *text != ']') {
    char *end;
    if (*text < '0' || *text > '9' || src->rank == PROG_MAX_RANK) return false;
    int64_t d = strtoll(text, &end, 10);
    src->dims[src->rank++] = d;
    if (d < 1 || __builtin_mul_overflow(src->whole, d, &src->whole)) return false;
    text = end;
    if (*text == ',' && text[1] == ' ') text += 2;
  }
  return *text == ']' && text[1] == ' ' && part_parse(text + 2, src->whole, out);
}

static int64_t elements(const st_tensor *t) {
  int64_t n = 1;
  for (uint32_t i = 0; i < t->rank; i++) n *= t->dims[i];
  return n;
}

static const char *metadata(arena *a, const st_file *f, const char *key, const char *name) {
  return map_get(&f->metadata, arena_printf(a, "%s %s", key, name));
}

static status *read_sums(arena *a, const st_file *f, const json_t *sums, piece *x) {
  const st_tensor *t = x->t;
  x->sums = metadata(a, f, "xxh3", t->name);
  if (sums) {
    if (!ck_hex_value(json_object_get(sums, t->name), &x->sum))
      return status_error("%s: tensor %s is not in the manifest", f->path, t->name);
    x->sums = NULL;
    x->chunk = t->bytes;
  } else if (x->sums) {
    x->chunk = CK_CHUNK;
    uint64_t n = (t->bytes + CK_CHUNK - 1) / CK_CHUNK;
    if (strlen(x->sums) != (n ? 17 * n - 1 : 0))
      return status_error("%s: tensor %s has not the checksums its %" PRIu64 " bytes need", f->path,
                          t->name, t->bytes);
  }
  if (x->chunk) x->ok = arena_new(a, unsigned char, t->bytes / x->chunk + 1);
  return NULL;
}

// Adds a tensor of a file to what is known of that name.
static status *add_tensor(arena *a, fileset *set, const st_file *f, const st_tensor *t,
                          const json_t *sums) {
  source is = {.name = t->name, .rank = t->rank, .whole = elements(t)};
  piece x = {.t = t, .path = f->path, .part = part_all(is.whole)};
  memcpy(is.dims, t->dims, sizeof is.dims);
  const char *text = metadata(a, f, "part", t->name);
  if (text && (!parse_part(text, &is, &x.part) || part_elements(&x.part) != elements(t)))
    return status_error("%s: tensor %s is not the part `%s`", f->path, t->name, text);
  STATUS_DO(read_sums(a, f, sums, &x));
  source *src = map_get(&set->sources, t->name);
  if (!src) {
    src = arena_new(a, source, 1);
    *src = is;
    map_set(&set->sources, t->name, src);
  } else {
    const piece *first = &src->pieces.at[0];
    char d0[200], d1[200];
    if (src->rank != is.rank || memcmp(src->dims, is.dims, is.rank * sizeof *is.dims) != 0)
      return status_error("%s is of %s in %s and of %s in %s", t->name,
                          st_dims(src->dims, src->rank, d0), first->path,
                          st_dims(is.dims, is.rank, d1), f->path);
    if (first->t->dtype != t->dtype)
      return status_error("%s has type %s in %s and %s in %s", t->name, first->t->type, first->path,
                          t->type, f->path);
  }
  src->there += part_elements(&x.part);
  vec_push(a, &src->pieces, x);
  return NULL;
}

static status *add_file(arena *a, fileset *set, const char *path, const json_t *sums) {
  st_file *f = &set->f[set->n];
  STATUS_DO(st_open(a, path, f));
  set->n++;
  for (int i = 0; i < f->n; i++) STATUS_DO(add_tensor(a, set, f, &f->tensors[i], sums));
  if (sums && json_object_size(sums) != (size_t)f->n)
    return status_error("%s has %d tensors, the manifest lists %zu", f->path, f->n,
                        json_object_size(sums));
  return NULL;
}

// Compares a file's size and header with the manifest.
static status *check_file(const char *path, const json_t *entry) {
  file_map m;
  STATUS_DO(file_map_open(path, &m));
  json_int_t want = json_integer_value(json_object_get(entry, "bytes"));
  size_t have = m.n;
  uint64_t got = have < 8 ? 0 : st_header_xxh3(m.bytes, have), header;
  file_map_close(&m);
  if ((json_int_t)have != want)
    return status_error("%s is damaged: it has %zu bytes, the manifest says %lld", path, have,
                        (long long)want);
  if (!ck_hex_value(json_object_get(entry, "header_xxh3"), &header) || header != got)
    return status_error("%s is damaged: the checksum of its header is wrong", path);
  return NULL;
}

// The files of a class that the manifest lists.
static status *open_class(arena *a, const char *dir, int cls, json_t *root, fileset *set) {
  json_t *files = json_object_get(root, "files"), *entry;
  const char *name;
  *set = (fileset){.where = dir, .sources = {.arena = a}};
  set->f = arena_new(a, st_file, json_object_size(files) + 1);
  json_object_foreach(files, name, entry) {
    if (ck_file_class(name) != cls) continue;
    const char *path = arena_printf(a, "%s/%s", dir, name);
    STATUS_DO(check_file(path, entry));
    json_t *sums = json_object_get(entry, "xxh3");
    STATUS_DO(add_file(a, set, path, sums));
    // Without its checksums nothing of a save is believed.
    const st_file *f = &set->f[set->n - 1];
    for (int i = 0; !sums && i < f->n; i++)
      if (!metadata(a, f, "xxh3", f->tensors[i].name))
        return status_error("%s: tensor %s has no checksums", path, f->tensors[i].name);
  }
  if (set->n == 1) set->where = set->f[0].path;
  if (set->n == 0 && cls == CK_WEIGHTS)
    return status_error("%s/%s is not in the manifest", dir, ck_file_name(a, cls, -1));
  return NULL;
}

// ---- comparing with the program -----------------------------------------------------------------

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

// By source: whether some rank wants it. All ranks.
static status *who_wants(arena *a, const checkpoint *c, const fileset *set, const ck_slices *want,
                         unsigned char **out) {
  int n = set->sources.n, ranks = comm_ranks(c->comm);
  bool first = comm_rank(c->comm) == 0;
  int64_t seen[2] = {n, n};
  STATUS_DO(comm_broadcast(c->comm, &seen[0], sizeof *seen, 0));
  STATUS_DO(ck_agree(
      c, seen[0] == seen[1] ? NULL : status_error("%s is not the same for all ranks", set->where)));
  unsigned char *mine = arena_new(a, unsigned char, n);
  unsigned char *all = first ? arena_new(a, unsigned char, (int64_t)n *ranks) : NULL;
  for (int i = 0; i < want->n; i++) {
    int at = map_find(&set->sources, want->at[i].name);
    if (at >= 0) mine[at] = 1;
  }
  STATUS_DO(comm_collect(c->comm, mine, (size_t)n, all, 0));
  for (int r = 0; first && r < ranks; r++)
    for (int i = 0; i < n; i++) mine[i] |= all[(int64_t)r * n + i];
  STATUS_DO(comm_broadcast(c->comm, mine, (size_t)n, 0));
  *out = mine;
  return NULL;
}

static void compare_one(const ck_slice *w, const source *src, bool exact, complaints *bad) {
  char d0[200], d1[200];
  uint32_t rank;
  const int64_t *dims = prog_state_dims(w->state, &rank);
  const dtype_info *type = dtype_of(w->state->dtype);
  if (!src) {
    complain(bad, "%s %s %s is missing", w->name, type->st, st_dims(dims, rank, d0));
    return;
  }
  const st_tensor *t = src->pieces.at[0].t;
  if (src->there > src->whole)
    complain(bad, "%s is in %s and again in %s", w->name, src->pieces.at[0].path,
             vec_last(&src->pieces).path);
  else if (src->rank != rank || memcmp(src->dims, dims, rank * sizeof *dims) != 0)
    complain(bad, "%s is %s, the program needs %s", w->name, st_dims(src->dims, src->rank, d1),
             st_dims(dims, rank, d0));
  else if (exact ? t->dtype != w->state->dtype
                 : t->dtype == ST_FOREIGN || !dtype_convertible(w->state->dtype, t->dtype))
    complain(bad, "%s has type %s, the program needs %s", w->name, t->type, type->st);
  else if (src->there < src->whole)
    complain(bad, "%s has %" PRId64 " elements, of which %" PRId64 " are in %s", w->name,
             src->whole, src->there, src->pieces.n == 1 ? src->pieces.at[0].path : "the files");
}

// All ranks. Compares what is wanted with what is there; problems are listed together.
static status *compare(arena *a, const checkpoint *c, const fileset *set, const ck_slices *want,
                       bool exact) {
  complaints bad = {.text = {.arena = a}}, extra = {.text = {.arena = a}};
  unsigned char *wanted;
  char d[200];
  STATUS_DO(who_wants(a, c, set, want, &wanted));
  for (int i = 0; i < want->n; i++)
    if (want->at[i].state->cls != PROG_COPY)  // its weight says it
      compare_one(&want->at[i], map_get(&set->sources, want->at[i].name), exact, &bad);
  for (int i = 0; i < set->sources.n; i++) {
    const source *src = set->sources.values[i];
    if (!wanted[i]) complain(&extra, "%s %s", src->name, st_dims(src->dims, src->rank, d));
  }
  if (exact && extra.n)
    complain(&bad, "tensors the program does not have:%s", complaint_text(&extra));
  status *s = NULL;
  if (bad.n) {
    // When weights are missing, what is there under other names is the best hint.
    const char *others =
        !exact && extra.n ? arena_printf(a, "\n  there, but not wanted:%s", complaint_text(&extra))
                          : "";
    s = status_error("%s and the program do not agree:%s%s", set->where, complaint_text(&bad),
                     others);
  }
  s = ck_agree(c, s);
  if (!s && extra.n && c->notes && comm_rank(c->comm) == 0)
    fprintf(c->notes, "note: %s: %d tensors are not used:%s\n", set->where, extra.n,
            complaint_text(&extra));
  return s;
}

// ---- reading ------------------------------------------------------------------------------------

// Checks what checksums cover bytes low .. high-1 of a piece.
static status *verify(piece *x, uint64_t low, uint64_t high) {
  const st_tensor *t = x->t;
  if (!x->chunk) return NULL;
  for (uint64_t k = low / x->chunk; k * x->chunk < high; k++) {
    uint64_t at = k * x->chunk, n = t->bytes - at < x->chunk ? t->bytes - at : x->chunk;
    uint64_t want = x->sum, got;
    if (x->ok[k]) continue;
    got = XXH3_64bits((const char *)t->data + at, (size_t)n);
    if (x->sums && !ck_hex_digits(x->sums + 17 * k, &want))
      return status_error("%s: checksum %" PRIu64 " of tensor %s is no number", x->path, k,
                          t->name);
    if (want != got)
      return status_error("%s: tensor %s is damaged%s: its checksum is %016" PRIx64
                          ", the %s says %016" PRIx64,
                          x->path, t->name, n < t->bytes ? " in part" : "", got,
                          x->sums ? "header" : "manifest", want);
    x->ok[k] = 1;
  }
  return NULL;
}

// Sets n bits from bit `at` on; false: one of them is set already.
static bool mark(unsigned char *bits, int64_t at, int64_t n) {
  for (int64_t end = at + n, k; at < end; at += k) {
    k = 8 - at % 8 < end - at ? 8 - at % 8 : end - at;
    unsigned char mask = (unsigned char)(((1u << k) - 1) << at % 8);
    if (bits[at / 8] & mask) return false;
    bits[at / 8] |= mask;
  }
  return true;
}

// `seen`: a bit for each element that was found; NULL: they cannot be found twice.
static status *verify_pieces(const ck_slice *w, source *src, unsigned char *seen) {
  int64_t found = 0;
  bool once = true;
  for (int i = 0; once && i < src->pieces.n; i++) {
    piece *x = &src->pieces.at[i];
    uint64_t unit = x->t->bytes / (uint64_t)(elements(x->t) ? elements(x->t) : 1);
    int64_t at = 0, bt = 0, local;
    for (part_run r; once && part_common(&w->part, &at, &x->part, &bt, &r, &local); found += r.n) {
      once = !seen || mark(seen, r.local, r.n);
      STATUS_DO(verify(x, (uint64_t)local * unit, (uint64_t)(local + r.n) * unit));
    }
  }
  if (!once || found != part_elements(&w->part))
    return status_error("%s: some elements of %s are there twice and some are missing",
                        src->pieces.at[0].path, w->name);
  return NULL;
}

static status *verify_slice(const ck_slice *w, source *src) {
  unsigned char *seen = NULL;
  if (src->pieces.n > 1 && !(seen = calloc((size_t)part_elements(&w->part) / 8 + 1, 1)))
    return status_error("out of memory");
  status *s = verify_pieces(w, src, seen);
  free(seen);
  return s;
}

// n elements of a file to those of a copy, by way of its weight's type.
static void round_in(const ck_slice *w, unsigned char *to, const unsigned char *from,
                     uint32_t dtype, int64_t n) {
  enum { BLOCK = 1024 };
  float x[BLOCK];
  int unit = dtype_of(dtype)->bytes;
  for (int64_t i = 0; i < n; i += BLOCK) {
    int64_t k = n - i < BLOCK ? n - i : BLOCK;
    dtype_convert(x, PROG_F32, from + i * unit, dtype, k);
    vm_round_copy(w->state, (const unsigned char *)x, to + 2 * i, k);
  }
}

static status *copy_slice(const ck_slice *w, const source *src) {
  const dtype_info *type = dtype_of(w->state->dtype);
  for (int i = 0; i < src->pieces.n; i++) {
    const piece *x = &src->pieces.at[i];
    int unit = dtype_of(x->t->dtype)->bytes;
    int64_t at = 0, bt = 0, local;
    for (part_run r; part_common(&w->part, &at, &x->part, &bt, &r, &local);) {
      unsigned char *to = w->data + r.local * type->bytes;
      const unsigned char *from = (const unsigned char *)x->t->data + local * unit;
      if (w->state->cls == PROG_COPY)
        round_in(w, to, from, x->t->dtype, r.n);
      else if (dtype_convert(to, w->state->dtype, from, x->t->dtype, r.n) != r.n)
        return status_error("tensor %s has numbers that do not fit in %s", w->name, type->name);
    }
  }
  int64_t n = part_elements(&w->part);
  memset(w->data + n * type->bytes, 0, (size_t)((w->part.held - n) * type->bytes));
  return NULL;
}

// All ranks. Everything is verified before anything is used.
static status *read_in(const checkpoint *c, const fileset *sets, const ck_slices *want, int n) {
  status *s = NULL;
  for (int k = 0; k < n; k++)
    for (int i = 0; !s && i < want[k].n; i++)
      s = verify_slice(&want[k].at[i], map_get(&sets[k].sources, want[k].at[i].name));
  STATUS_DO(ck_agree(c, s));
  for (int k = 0; k < n; k++)
    for (int i = 0; !s && i < want[k].n; i++)
      s = copy_slice(&want[k].at[i], map_get(&sets[k].sources, want[k].at[i].name));
  return ck_agree(c, s);
}

// ---- saves and files ----------------------------------------------------------------------------

static status *read_classes(arena *a, const checkpoint *c, const char *dir, int classes,
                            fileset *sets) {
  ck_slices want[CK_CLASSES] = {0};
  status *s = NULL;
  int n = classes;
  for (int k = 0; !s && k < classes; k++) s = ck_list(a, c, k, &want[k]);
  ck_list_copies(a, c, &want[CK_WEIGHTS]);
  if (classes > CK_OPTIMIZER && sets[CK_OPTIMIZER].n == 0) {
    n = CK_OPTIMIZER;
    if (!s && want[CK_OPTIMIZER].n > 0)
      s = status_error("%s has no %s, so training cannot go on from it; `--load` takes its weights",
                       dir, ck_file_name(a, CK_OPTIMIZER, -1));
  }
  STATUS_DO(ck_agree(c, s));
  for (int k = 0; k < n; k++) STATUS_DO(compare(a, c, &sets[k], &want[k], classes > CK_OPTIMIZER));
  return read_in(c, sets, want, n);
}

status *ck_read_save(arena *a, const checkpoint *c, const char *dir, bool weights_only,
                     ck_state *out) {
  json_t *root = NULL;
  fileset sets[CK_CLASSES] = {0};
  int classes = weights_only ? CK_WEIGHTS + 1 : CK_CLASSES;
  status *s = ck_read_manifest(a, dir, &root, out);
  for (int k = 0; !s && k < classes; k++) s = open_class(a, dir, k, root, &sets[k]);
  s = ck_agree(c, s);
  if (!s) s = read_classes(a, c, dir, classes, sets);
  uint64_t digest;
  if (!s && !weights_only && c->notes && comm_rank(c->comm) == 0 &&
      ck_hex_value(json_object_get(root, "source_digest"), &digest) &&
      digest != c->prog->header->source_digest)
    fprintf(c->notes, "note: %s was written by another build: later bits may differ from its run\n",
            dir);
  for (int k = 0; k < CK_CLASSES; k++) close_files(&sets[k]);
  json_decref(root);
  return s;
}

status *ck_read_files(arena *a, const checkpoint *c, const file_names *paths) {
  fileset set = {.where = paths->n == 1 ? paths->at[0] : "the files",
                 .f = arena_new(a, st_file, paths->n),
                 .sources = {.arena = a}};
  status *s = NULL;
  for (int i = 0; !s && i < paths->n; i++) s = add_file(a, &set, paths->at[i], NULL);
  s = ck_agree(c, s);
  if (!s) s = read_classes(a, c, NULL, CK_WEIGHTS + 1, &set);
  close_files(&set);
  return s;
}
