// The readers: how a window of tokens becomes one sample's inputs.
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "runtime/base/rng.h"
#include "runtime/base/str.h"
#include "runtime/data_impl.h"
#include "runtime/dtype.h"
#include "runtime/settings.h"

#define IGNORE (-100)
#define START 0  // what a decoder reads first, and padding

// ---- writing into inputs ----------------------------------------------------------------------

static void put(unsigned char *base, const prog_io *io, int64_t micro, int64_t row, int64_t col,
                int32_t value) {
  int64_t width = io->rank > 1 ? io->dims[1] : 1, v = value;
  int unit = dtype_of(io->dtype)->bytes;
  unsigned char *at = base + io->offset + micro * io->micro_stride + (row * width + col) * unit;
  if (io->dtype == PROG_I32)
    memcpy(at, &value, sizeof value);
  else
    dtype_convert(at, io->dtype, &v, PROG_I64, 1);
}

// ---- next_token -------------------------------------------------------------------------------

static void next_row(data *d, unsigned char *base, int64_t micro, int64_t row) {
  for (int64_t i = 0; i < d->stride; i++) {
    put(base, d->in_tokens, micro, row, i, d->raw[i]);
    put(base, d->in_targets, micro, row, i, d->raw[i + 1]);
  }
}

// ---- masked -----------------------------------------------------------------------------------

// Each position takes three draws: whether it is chosen, what happens to it, a random token.
static int64_t masked_row(data *d, unsigned char *base, int64_t micro, int64_t row, uint64_t key) {
  int64_t chosen = 0;
  for (int64_t i = 0; i < d->window; i++) {
    int32_t token = d->raw[i], target = IGNORE;
    uint64_t c = 3 * (uint64_t)i;
    if (rng_unit(key, c) < d->share) {
      double fate = rng_unit(key, c + 1);
      target = token;
      if (fate < 0.8)
        token = (int32_t)d->mask_id;
      else if (fate < 0.9)
        token = (int32_t)rng_below(key, c + 2, (uint64_t)d->vocab);
      chosen++;
    }
    put(base, d->in_tokens, micro, row, i, token);
    put(base, d->in_targets, micro, row, i, target);
  }
  if (d->in_length) put(base, d->in_length, micro, row, 0, (int32_t)d->window);
  for (int64_t i = 0; d->in_segments && i < d->window; i++)
    put(base, d->in_segments, micro, row, i, 0);
  return chosen;
}

// ---- span -------------------------------------------------------------------------------------

static void span_counts(int64_t n, double p, double mean, int64_t *noise, int64_t *spans) {
  *noise = llround((double)n * p);
  if (*noise < 1) *noise = 1;
  if (*noise > n - 1) *noise = n - 1;
  *spans = llround((double)*noise / mean);
  if (*spans < 1) *spans = 1;
  if (*spans > *noise) *spans = *noise;
  if (*spans > n - *noise) *spans = n - *noise;
}

int64_t data_span_window(int64_t src, int64_t dst, double p, double mean, int64_t *noise,
                         int64_t *spans) {
  // Both lengths grow with n, so the largest window is found by halving.
  int64_t lo = 1, hi = src + dst;
  while (lo < hi) {
    int64_t n = (lo + hi + 1) / 2, m, k;
    span_counts(n, p, mean, &m, &k);
    if (n - m + k <= src && m + k + 1 <= dst)
      lo = n;
    else
      hi = n - 1;
  }
  if (lo < 2) return 0;
  span_counts(lo, p, mean, noise, spans);
  return *noise + *spans + 1 <= dst && lo - *noise + *spans <= src ? lo : 0;
}

// Cuts n into k pieces of at least one, all cuts equally likely: chooses k-1 of the n-1 gaps by
// selection sampling.
static void cut(int64_t n, int64_t k, uint64_t key, int32_t *out) {
  int64_t need = k - 1, length = 1;
  for (int64_t gap = 0; gap < n - 1; gap++) {
    bool here = rng_below(key, (uint64_t)gap, (uint64_t)(n - 1 - gap)) < (uint64_t)need;
    if (here) {
      *out++ = (int32_t)length;
      length = 0;
      need--;
    }
    length++;
  }
  *out = (int32_t)length;
}

static int64_t span_row(data *d, unsigned char *base, int64_t micro, int64_t row, uint64_t key) {
  int32_t *kept = d->scratch, *gone = kept + d->window, *source = gone + d->window,
          *target = source + d->window;
  cut(d->window - d->noise, d->spans, rng_key(key, 1), kept);
  cut(d->noise, d->spans, rng_key(key, 2), gone);
  int64_t at = 0, ns = 0, nt = 0, src = d->in_source->dims[1], dst = d->in_tokens->dims[1];
  for (int64_t k = 0; k < d->spans; k++) {
    int32_t sentinel = (int32_t)(d->vocab - 1 - k);
    for (int32_t i = 0; i < kept[k]; i++) source[ns++] = d->raw[at++];
    source[ns++] = sentinel;
    target[nt++] = sentinel;
    for (int32_t i = 0; i < gone[k]; i++) target[nt++] = d->raw[at++];
  }
  target[nt++] = (int32_t)(d->vocab - 1 - d->spans);
  for (int64_t i = 0; i < src; i++)
    put(base, d->in_source, micro, row, i, i < ns ? source[i] : START);
  for (int64_t i = 0; i < dst; i++) {
    put(base, d->in_tokens, micro, row, i, i > 0 && i <= nt ? target[i - 1] : START);
    put(base, d->in_targets, micro, row, i, i < nt ? target[i] : IGNORE);
  }
  if (d->in_length) put(base, d->in_length, micro, row, 0, (int32_t)ns);
  return nt;
}

// ---- choosing ---------------------------------------------------------------------------------

// An input of a reader must be integers of [samples, S], or of [samples] when `rank` is 1.
static status *need_input(const data *d, const prog_io *io, const char *name, const char *reader,
                          uint32_t rank) {
  if (!io) return status_error("read = %s needs an input `%s`, the model has none", reader, name);
  if (dtype_of(io->dtype)->kind != 'I' || dtype_of(io->dtype)->bytes < 2 || !io->sampled ||
      io->rank != rank)
    return status_error("read = %s needs %s to be i32[batch%s]", reader, name,
                        rank > 1 ? ", positions" : "");
  (void)d;
  return NULL;
}

static status *only_inputs(const data *d, const char *reader, const prog_io *const *known, int n) {
  for (uint32_t k = 0; k < d->entry->inputs; k++) {
    const prog_io *io = &d->prog->ios[d->entry->first_input + k];
    bool found = false;
    for (int i = 0; i < n; i++) found |= io == known[i];
    if (!found)
      return status_error(
          "read = %s does not make input `%s`; give a folder of safetensors with one tensor for "
          "each input instead",
          reader, prog_text(d->prog, io->name));
  }
  return NULL;
}

static status *same_width(const data *d) {
  if (d->in_tokens->dims[1] != d->in_targets->dims[1])
    return status_error("tokens has %" PRId64 " positions and targets %" PRId64,
                        d->in_tokens->dims[1], d->in_targets->dims[1]);
  return NULL;
}

static status *open_next(data *d, const call_text *c) {
  const prog_io *known[] = {d->in_tokens, d->in_targets};
  if (c->nargs) return status_error("read = next_token takes no arguments");
  STATUS_DO(only_inputs(d, c->name, known, 2));
  d->kind = READ_NEXT;
  d->stride = d->in_tokens->dims[1];
  d->window = d->stride + 1;
  return NULL;
}

static status *open_masked(data *d, const call_text *c) {
  const prog_io *known[] = {d->in_tokens, d->in_targets, d->in_length, d->in_segments};
  STATUS_DO(only_inputs(d, c->name, known, 4));
  if (d->in_length) STATUS_DO(need_input(d, d->in_length, "length", c->name, 1));
  if (d->in_segments) {
    STATUS_DO(need_input(d, d->in_segments, "segments", c->name, 2));
    if (d->in_segments->dims[1] != d->in_tokens->dims[1])
      return status_error("segments and tokens have different lengths");
  }
  d->kind = READ_MASKED;
  d->stride = d->window = d->in_tokens->dims[1];
  d->share = settings_call_value(c, "share", 0, 0.15);
  double mask = settings_call_value(c, "mask", 1, (double)(d->vocab - 1));
  if (!(d->share > 0 && d->share <= 1))
    return status_error("read = masked(share): the share must be above 0 and at most 1");
  if (mask < 0 || mask >= (double)d->vocab)
    return status_error("read = masked: mask id %g is outside the vocabulary of %" PRId64, mask,
                        d->vocab);
  d->mask_id = (int64_t)mask;
  return NULL;
}

static status *open_span(data *d, const call_text *c) {
  const prog_io *known[] = {d->in_source, d->in_length, d->in_tokens, d->in_targets};
  STATUS_DO(only_inputs(d, c->name, known, 4));
  STATUS_DO(need_input(d, d->in_source, "source", c->name, 2));
  if (d->in_length) STATUS_DO(need_input(d, d->in_length, "length", c->name, 1));
  d->kind = READ_SPAN;
  d->share = settings_call_value(c, "share", 0, 0.15);
  d->mean = settings_call_value(c, "mean", 1, 3);
  if (!(d->share > 0 && d->share < 1) || !(d->mean >= 1))
    return status_error(
        "read = span(share, mean): the share must lie between 0 and 1, the mean be at least 1");
  d->window = data_span_window(d->in_source->dims[1], d->in_tokens->dims[1], d->share, d->mean,
                               &d->noise, &d->spans);
  d->stride = d->window;
  if (d->window == 0)
    return status_error("source of %" PRId64 " and targets of %" PRId64
                        " positions are too short for read = span",
                        d->in_source->dims[1], d->in_tokens->dims[1]);
  if (d->spans + 1 >= d->vocab)
    return status_error("%" PRId64 " sentinels do not fit in a vocabulary of %" PRId64,
                        d->spans + 1, d->vocab);
  return NULL;
}

status *read_open(data *d, const char *text, arena *a) {
  call_text c;
  STATUS_TRY(settings_call(a, text, &c), "setting train.read");
  STATUS_DO(need_input(d, d->in_tokens, "tokens", c.name, 2));
  STATUS_DO(need_input(d, d->in_targets, "targets", c.name, 2));
  STATUS_DO(same_width(d));
  if (str_eq(c.name, "next_token")) return open_next(d, &c);
  if (!d->vocab)
    return status_error("read = %s needs the size of the vocabulary; the program does not tell it",
                        c.name);
  if (str_eq(c.name, "masked")) return open_masked(d, &c);
  if (str_eq(c.name, "span")) return open_span(d, &c);
  return status_error("read = %s is not one of next_token, masked(share), span(share, mean)", text);
}

status *read_row(data *d, unsigned char *base, int64_t micro, int64_t row, int64_t n,
                 int64_t *predicted) {
  uint64_t key = rng_key(d->seed ^ 0x72656164u, (uint64_t)n);
  switch (d->kind) {
    case READ_NEXT:
      next_row(d, base, micro, row);
      *predicted += d->stride;
      return NULL;
    case READ_MASKED: *predicted += masked_row(d, base, micro, row, key); return NULL;
    default: break;
  }
  for (int64_t i = 0; i < d->window; i++)
    if (d->raw[i] >= d->vocab - 1 - d->spans)
      return status_error(
          "the data holds token %d, which read = span needs as a sentinel: with %" PRId64
          " spans the vocabulary must be at least %" PRId64,
          d->raw[i], d->spans, d->raw[i] + 2 + d->spans);
  *predicted += span_row(d, base, micro, row, key);
  return NULL;
}
