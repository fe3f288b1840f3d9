#include "runtime/data_impl.h"

#include <endian.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"
#include "runtime/dtype.h"

#define SCAN_LIMIT ((size_t)64 << 20)  // files up to this size are read whole when opened

// ---- order ------------------------------------------------------------------------------------

// A Feistel network over the next even power of two, walked until it lands inside: a permutation
// of any size without a table.
uint64_t data_permute(uint64_t key, uint64_t n, uint64_t i) {
  if (n <= 1) return 0;
  unsigned half = 1;
  while (half < 32 && ((uint64_t)1 << (2 * half)) < n) half++;
  uint64_t mask = ((uint64_t)1 << half) - 1;
  do {
    uint64_t left = i >> half, right = i & mask;
    for (uint64_t round = 0; round < 6; round++) {
      uint64_t next = left ^ (rng_mix(key + right * 0x9e3779b97f4a7c15u + round) & mask);
      left = right;
      right = next;
    }
    i = left << half | right;
  } while (i >= n);
  return i;
}

// The window (or row) that is sample n of the run.
static int64_t order(const data *d, int64_t n) {
  uint64_t size = (uint64_t)d->samples, epoch = (uint64_t)n / size, i = (uint64_t)n % size;
  return (int64_t)(d->shuffle ? data_permute(rng_key(d->seed, epoch), size, i) : i);
}

// ---- finding files ----------------------------------------------------------------------------

typedef VEC(const char *) paths;

static status *add_pattern(arena *a, const char *text, paths *out) {
  if (file_kind(text) == FILE_REGULAR) {
    vec_push(a, out, text);
    return NULL;
  }
  if (file_kind(text) == FILE_DIR) {
    file_names st;
    STATUS_DO(file_glob(a, arena_printf(a, "%s/*.safetensors", text), &st));
    if (st.n == 0)
      return status_error("folder %s holds no safetensors files; for token files write %s/*.bin",
                          text, text);
    for (int i = 0; i < st.n; i++) vec_push(a, out, st.at[i]);
    return NULL;
  }
  file_names hits;
  STATUS_DO(file_glob(a, text, &hits));
  int before = out->n;
  for (int i = 0; i < hits.n; i++)
    if (file_kind(hits.at[i]) == FILE_REGULAR) vec_push(a, out, hits.at[i]);
  if (out->n > before) return NULL;
  if (strpbrk(text, "*?[")) return status_error("no data file matches %s", text);
  return status_error("there is no data file %s", text);
}

// "a.bin", a.bin, or ["a.bin", "b.bin"]
static status *find_paths(arena *a, const char *text, paths *out) {
  const char *p = text + strspn(text, " ");
  if (*p != '[' && *p != '"') return add_pattern(a, text, out);
  while (*p) {
    p += strspn(p, " [],");
    if (!*p) break;
    if (*p != '"') return status_error("data = %s: expected quoted names", text);
    const char *end = strchr(p + 1, '"');
    if (!end) return status_error("data = %s: a quote is not closed", text);
    STATUS_DO(add_pattern(a, arena_strndup(a, p + 1, (size_t)(end - p - 1)), out));
    p = end + 1;
  }
  return out->n ? NULL : status_error("data = %s names no file", text);
}

// ---- token streams ----------------------------------------------------------------------------

static int32_t token_at(const token_file *f, int64_t i) {
  if (f->width == 1) return f->map.bytes[i];
  uint16_t v;
  memcpy(&v, f->map.bytes + 2 * i, sizeof v);
  return le16toh(v);
}

static status *bad_token(const data *d, const token_file *f, int64_t i) {
  return status_error("%s: token %" PRId64 " is %d, the vocabulary has %" PRId64
                      " (ids 0 to %" PRId64 ")%s",
                      f->path, i, token_at(f, i), d->vocab, d->vocab - 1,
                      f->width == 1 ? "; a file that is not .bin is read byte by byte" : "");
}

// Reads a byte of every page, so that steps do not fault on them.
static void touch(const file_map *m) {
  for (size_t at = 0; at < m->n; at += 4096) (void)*(const volatile unsigned char *)(m->bytes + at);
}

static status *check_range(const data *d, const token_file *f) {
  if (f->map.n > SCAN_LIMIT) return NULL;  // read_window checks as it goes
  touch(&f->map);
  if (!d->vocab || d->vocab >= (f->width == 1 ? 256 : 65536)) return NULL;
  for (int64_t i = 0; i < f->tokens; i++)
    if (token_at(f, i) >= d->vocab) return bad_token(d, f, i);
  return NULL;
}

static status *open_tokens(arena *a, data *d, const paths *names, const char *read) {
  d->files = arena_new(a, token_file, names->n);
  for (int i = 0; i < names->n; i++) {
    token_file *f = &d->files[i];
    f->path = names->at[i];
    STATUS_DO(file_map_open(f->path, &f->map));
    d->nfiles = i + 1;
    f->width = str_ends(f->path, ".bin") ? 2 : 1;
    if (f->map.n % (size_t)f->width)
      return status_error("%s has %zu bytes: a .bin file holds 16-bit tokens, so an even number",
                          f->path, f->map.n);
    f->start = d->tokens;
    f->tokens = (int64_t)(f->map.n / (size_t)f->width);
    d->tokens += f->tokens;
    STATUS_DO(check_range(d, f));
  }
  STATUS_DO(read_open(d, read, a));
  d->samples = d->tokens < d->window ? 0 : (d->tokens - d->window) / d->stride + 1;
  if (d->samples < 1)
    return status_error("%s%s has %" PRId64 " tokens, one sample needs %" PRId64, d->files[0].path,
                        d->nfiles > 1 ? " and the other files" : "", d->tokens, d->window);
  d->raw = arena_new(a, int32_t, d->window);
  d->scratch = arena_new(a, int32_t, 4 * d->window + 16);
  d->summary = arena_printf(a, "%d file%s, %" PRId64 " tokens, %" PRId64 " samples", d->nfiles,
                            d->nfiles > 1 ? "s" : "", d->tokens, d->samples);
  return NULL;
}

static status *read_window(data *d, int64_t k) {
  int64_t at = k * d->stride;
  int lo = 0, hi = d->nfiles - 1;
  while (lo < hi) {  // the last file that starts at or before `at`
    int mid = (lo + hi + 1) / 2;
    if (d->files[mid].start <= at)
      lo = mid;
    else
      hi = mid - 1;
  }
  const token_file *f = &d->files[lo];
  for (int64_t i = 0; i < d->window; i++, at++) {
    while (at >= f->start + f->tokens) f++;
    int32_t v = token_at(f, at - f->start);
    if (d->vocab && v >= d->vocab) return bad_token(d, f, at - f->start);
    d->raw[i] = v;
  }
  return NULL;
}

// ---- tensors ----------------------------------------------------------------------------------

// What the numbers of an input may be, where the name says it: an id outside the vocabulary would
// read memory that is not there.
static void allowed(const data *d, tensor_source *s) {
  const char *name = prog_text(d->prog, s->io->name);
  s->low = 1;
  s->high = 0;
  if (dtype_of(s->io->dtype)->kind != 'I') return;
  if ((str_eq(name, "tokens") || str_eq(name, "source")) && d->vocab)
    s->low = 0, s->high = d->vocab - 1;
  if (str_eq(name, "targets") && d->vocab) s->low = -100, s->high = d->vocab - 1;
  if (str_eq(name, "length")) {
    const prog_io *along = prog_input(d->prog, d->entry, "source");
    if (!along) along = prog_input(d->prog, d->entry, "tokens");
    if (along && along->rank > 1) s->low = 0, s->high = along->dims[1];
  }
}

static status *match_tensor(const data *d, const st_file *f, tensor_source *s, int64_t rows,
                            const st_tensor **out) {
  const char *name = prog_text(d->prog, s->io->name);
  const st_tensor *t = st_find(f, name);
  char have[200], want[200];
  if (!t)
    return status_error("%s: tensor %s is missing; the model has an input of that name", f->path,
                        name);
  bool same = t->rank == s->io->rank && t->rank > 0;
  for (uint32_t i = 1; same && i < t->rank; i++) same = t->dims[i] == s->io->dims[i];
  if (!same) {
    st_dims(s->io->dims + 1, s->io->rank ? s->io->rank - 1 : 0, want);
    return status_error("%s: tensor %s is %s, expected [samples%s%s", f->path, name,
                        st_shape(t, have), s->io->rank > 1 ? ", " : "", want + 1);
  }
  if (t->dtype == ST_FOREIGN || !dtype_convertible(s->io->dtype, t->dtype))
    return status_error("%s: tensor %s has type %s, expected %s", f->path, name, t->type,
                        dtype_of(s->io->dtype)->st);
  if (rows >= 0 && t->dims[0] != rows)
    return status_error("%s: tensor %s has %" PRId64 " samples, the others have %" PRId64, f->path,
                        name, t->dims[0], rows);
  *out = t;
  return NULL;
}

// Checks elements lo .. hi-1.
static status *check_numbers(const st_file *f, const tensor_source *s, const st_tensor *t,
                             int64_t lo, int64_t hi) {
  if (s->low > s->high) return NULL;
  int unit = dtype_of(t->dtype)->bytes;
  for (int64_t i = lo; i < hi; i++) {
    int64_t v = 0;
    dtype_convert(&v, PROG_I64, (const char *)t->data + i * unit, t->dtype, 1);
    if (v < s->low || v > s->high)
      return status_error("%s: tensor %s: element %" PRId64 " is %" PRId64 ", expected %" PRId64
                          " to %" PRId64,
                          f->path, t->name, i, v, s->low, s->high);
  }
  return NULL;
}

static status *open_tensors(arena *a, data *d, const paths *names) {
  const prog_entry *e = d->entry;
  d->kind = READ_TENSORS;
  d->st = arena_new(a, st_file, names->n);
  d->sources = arena_new(a, tensor_source, e->inputs);
  for (uint32_t k = 0; k < e->inputs; k++) {
    tensor_source *s = &d->sources[d->nsources++];
    s->io = &d->prog->ios[e->first_input + k];
    s->part = arena_new(a, tensor_part, names->n);
    s->row_elements = prog_io_elements(s->io);
    if (!s->io->sampled)
      return status_error("input %s has no sample axis: it cannot come from data",
                          prog_text(d->prog, s->io->name));
    s->row_elements /= e->micro_batch;
    allowed(d, s);
  }
  if (d->nsources == 0) return status_error("the model has no inputs, so there is nothing to read");
  for (int i = 0; i < names->n; i++) {
    STATUS_DO(st_open(a, names->at[i], &d->st[i]));
    d->nst = i + 1;
    int64_t rows = -1;
    for (int k = 0; k < d->nsources; k++) {
      tensor_source *s = &d->sources[k];
      const st_tensor *t = NULL;
      STATUS_DO(match_tensor(d, &d->st[i], s, rows, &t));
      rows = t->dims[0];
      s->part[i] = (tensor_part){t, d->samples};
      if (t->bytes <= SCAN_LIMIT)  // larger ones are checked row by row
        STATUS_DO(check_numbers(&d->st[i], s, t, 0, rows * s->row_elements));
    }
    d->samples += rows;
  }
  if (d->samples < 1) return status_error("%s holds no samples", names->at[0]);
  d->summary =
      arena_printf(a, "%d file%s, %" PRId64 " samples", d->nst, d->nst > 1 ? "s" : "", d->samples);
  return NULL;
}

static status *tensor_row(data *d, unsigned char *base, int64_t micro, int64_t row, int64_t sample,
                          int64_t *predicted) {
  for (int k = 0; k < d->nsources; k++) {
    const tensor_source *s = &d->sources[k];
    int i = d->nst - 1;
    while (s->part[i].start > sample) i--;
    const st_tensor *t = s->part[i].tensor;
    int64_t from = (sample - s->part[i].start) * s->row_elements;
    STATUS_DO(check_numbers(&d->st[i], s, t, from, from + s->row_elements));
    int unit = dtype_of(s->io->dtype)->bytes;
    unsigned char *to =
        base + s->io->offset + micro * s->io->micro_stride + row * s->row_elements * unit;
    int64_t done =
        dtype_convert(to, s->io->dtype, (const char *)t->data + from * dtype_of(t->dtype)->bytes,
                      t->dtype, s->row_elements);
    if (done != s->row_elements)
      return status_error("%s: tensor %s: element %" PRId64 " does not fit in %s", d->st[i].path,
                          t->name, from + done, dtype_of(s->io->dtype)->name);
    if (s->io != d->in_targets || s->io->dtype != PROG_I32) continue;
    for (int64_t j = 0; j < s->row_elements; j++) {
      int32_t v;
      memcpy(&v, to + 4 * j, sizeof v);
      *predicted += v != -100;
    }
  }
  return NULL;
}

// ---- opening and filling ----------------------------------------------------------------------

static status *open_all(arena *a, data *d, const data_spec *spec) {
  paths names = {0};
  STATUS_DO(find_paths(a, spec->path, &names));
  int st = 0;
  for (int i = 0; i < names.n; i++) st += str_ends(names.at[i], ".safetensors");
  if (st == names.n) return open_tensors(a, d, &names);
  if (st > 0) return status_error("data %s mixes safetensors files with token files", spec->path);
  if (!spec->read || str_eq(spec->read, "none") || str_eq(spec->read, ""))
    return status_error(
        "%s is a token file, but the job does not say how to read one (read = next_token); without "
        "`read` give a folder of safetensors with one tensor for each input",
        names.at[0]);
  return open_tokens(a, d, &names, spec->read);
}

status *data_open(arena *a, const prog *p, const prog_entry *e, const data_spec *spec, data **out) {
  data *d = arena_new(a, data, 1);
  *out = NULL;
  d->prog = p;
  d->entry = e;
  d->seed = spec->seed;
  d->shuffle = spec->shuffle;
  d->vocab = prog_vocab(p);
  d->in_tokens = prog_input(p, e, "tokens");
  d->in_targets = prog_input(p, e, "targets");
  d->in_length = prog_input(p, e, "length");
  d->in_segments = prog_input(p, e, "segments");
  d->in_source = prog_input(p, e, "source");
  status *s = open_all(a, d, spec);
  if (s) {
    data_close(d);
    return s;
  }
  *out = d;
  return NULL;
}

void data_close(data *d) {
  if (!d) return;
  for (int i = 0; i < d->nfiles; i++) file_map_close(&d->files[i].map);
  for (int i = 0; i < d->nst; i++) st_close(&d->st[i]);
  d->nfiles = d->nst = 0;
}

void data_seed(data *d, uint64_t seed) { d->seed = seed; }

int64_t data_samples(const data *d) { return d->samples; }

const char *data_summary(const data *d) { return d->summary; }

status *data_fill(data *d, unsigned char *base, int64_t sample0, int64_t *predicted) {
  const prog_entry *e = d->entry;
  int64_t n = sample0;
  for (int64_t micro = 0; micro < e->batch / e->micro_batch; micro++)
    for (int64_t row = 0; row < e->micro_batch; row++, n++) {
      int64_t k = order(d, n);
      if (d->kind == READ_TENSORS) {
        STATUS_DO(tensor_row(d, base, micro, row, k, predicted));
        continue;
      }
      STATUS_DO(read_window(d, k));
      STATUS_DO(read_row(d, base, micro, row, n, predicted));
    }
  return NULL;
}
