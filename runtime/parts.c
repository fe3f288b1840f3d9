#include "runtime/parts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/comm.h"

// How many elements a rank has room for when `whole` are cut so; 0: they cannot be.
static int64_t held_of(int64_t parts, int64_t block, int64_t whole) {
  int64_t stripe;
  if (parts < 1 || block < 1 || whole < 1 || __builtin_mul_overflow(parts, block, &stripe))
    return 0;
  if (whole % stripe == 0) return whole / parts;
  return whole < stripe ? block : 0;
}

// Adds a cut of what is left. False: it makes no sense.
static bool cut(part *t, int64_t parts, int64_t place, int64_t block) {
  int64_t held = held_of(parts, block, t->held);
  if (held == 0 || place < 0 || place >= parts) return false;
  if (parts == 1 && held == t->held) return true;
  if (t->ncuts == PROG_MAX_CUTS) return false;
  t->cut[t->ncuts++] = (part_cut){parts, place, block, t->held};
  t->held = held;
  return true;
}

part part_all(int64_t whole) { return (part){.whole = whole, .held = whole}; }

part part_of(const prog *p, int rank, const prog_state *s) {
  uint32_t n;
  const int64_t *dims = prog_state_dims(s, &n);
  int64_t whole = 1;
  for (uint32_t i = 0; i < n; i++) whole *= dims[i];
  part t = part_all(whole);
  for (uint32_t i = 0; i < s->ncuts; i++) {
    const prog_cut *c = &s->cut[i];
    // (Cannot fail: the program was checked.)
    if (!cut(&t, comm_group_size(p, c->axes), comm_place(p, rank, c->axes), c->block)) break;
  }
  return t;
}

// ---- the map ------------------------------------------------------------------------------------

// Local element i of what a cut leaves, in what it cuts; elements from there on that stay side by
// side, at most n, are told in *n. Padding gives -1.
static int64_t outward(const part_cut *c, int64_t i, int64_t *n) {
  int64_t in_block = i % c->block, at = (i / c->block * c->parts + c->place) * c->block + in_block;
  if (at >= c->whole) return -1;
  int64_t room = c->block - in_block;
  if (room > c->whole - at) room = c->whole - at;
  if (*n > room) *n = room;
  return at;
}

// The first local element of what a cut leaves that lies at `at` or behind.
static int64_t inward(const part_cut *c, int64_t at) {
  int64_t stripe = c->parts * c->block, begin = c->place * c->block;
  int64_t row = at / stripe * c->block, in_stripe = at % stripe;
  if (in_stripe <= begin) return row;
  return in_stripe < begin + c->block ? row + in_stripe - begin : row + c->block;
}

// The global number of local element i, and how many follow it side by side.
static int64_t global_run(const part *t, int64_t i, int64_t *n) {
  *n = t->held - i;
  for (int k = t->ncuts - 1; k >= 0 && i >= 0; k--) i = outward(&t->cut[k], i, n);
  return i;
}

int64_t part_elements(const part *t) { return part_seek(t, t->whole); }

int64_t part_global(const part *t, int64_t i) {
  int64_t n;
  return global_run(t, i, &n);
}

int64_t part_seek(const part *t, int64_t global) {
  int64_t i = global < t->whole ? global : t->whole;
  for (int k = 0; k < t->ncuts; k++) i = inward(&t->cut[k], i);
  return i < t->held ? i : t->held;
}

bool part_next(const part *t, int64_t *at, part_run *out) {
  if (*at >= t->held) return false;
  *out = (part_run){.local = *at};
  out->global = global_run(t, *at, &out->n);
  if (out->global < 0) return false;
  // Blocks of several cuts may meet: they are one run then.
  for (int64_t n; out->local + out->n < t->held; out->n += n)
    if (global_run(t, out->local + out->n, &n) != out->global + out->n) break;
  *at = out->local + out->n;
  return true;
}

bool part_common(const part *a, int64_t *at, const part *b, int64_t *bt, part_run *out,
                 int64_t *b_local) {
  part_run x, y;
  // Each in turn jumps to where the other one goes on.
  while (part_next(a, at, &x)) {
    *bt = part_seek(b, x.global);
    int64_t from = *bt;
    if (!part_next(b, bt, &y)) return false;
    int64_t low = x.global > y.global ? x.global : y.global;
    int64_t x_end = x.global + x.n, y_end = y.global + y.n;
    int64_t high = x_end < y_end ? x_end : y_end;
    if (low < high) {
      *out = (part_run){x.local + low - x.global, low, high - low};
      *b_local = from + low - y.global;
      *at = out->local + out->n;
      *bt = *b_local + out->n;
      return true;
    }
    *at = part_seek(a, y.global);
  }
  return false;
}

// ---- who has what -------------------------------------------------------------------------------

bool part_is_owner(const prog *p, int rank, const prog_state *s) {
  uint32_t named = 0;
  for (uint32_t i = 0; i < s->ncuts; i++) named |= s->cut[i].axes;
  for (uint32_t a = 0; a < p->naxes; a++)
    if (!(named >> a & 1) && comm_coordinate(p, rank, a) != 0) return false;
  return true;
}

bool part_cut_alike(const prog *p, const prog_state *a, const prog_state *b) {
  part x = part_of(p, 0, a), y = part_of(p, 0, b);
  if (x.whole != y.whole || x.held != y.held || x.ncuts != y.ncuts) return false;
  for (uint32_t i = 0, k = 0;; i++, k++) {
    // Cuts over one rank are none.
    while (i < a->ncuts && comm_group_size(p, a->cut[i].axes) == 1) i++;
    while (k < b->ncuts && comm_group_size(p, b->cut[k].axes) == 1) k++;
    if (i >= a->ncuts || k >= b->ncuts) return i >= a->ncuts && k >= b->ncuts;
    if (a->cut[i].axes != b->cut[k].axes || a->cut[i].block != b->cut[k].block) return false;
  }
}

const char *part_text(arena *a, const part *t) {
  sb s = {.arena = a};
  for (int i = 0; i < t->ncuts; i++)
    sb_printf(&s, "%s%" PRId64 "/%" PRId64 "x%" PRId64, i ? " " : "", t->cut[i].place,
              t->cut[i].parts, t->cut[i].block);
  return sb_str(&s);
}

static bool number(const char **text, char end, int64_t *out) {
  char *after;
  if (**text < '0' || **text > '9') return false;
  errno = 0;
  *out = strtoll(*text, &after, 10);
  if (errno || (end ? *after != end : *after != 0 && *after != ' ')) return false;
  *text = after + (*after != 0);
  return true;
}

bool part_parse(const char *text, int64_t whole, part *out) {
  *out = part_all(whole);
  if (whole < 1) return whole == 0 && *text == 0;
  while (*text) {
    int64_t place, parts, block;
    if (!number(&text, '/', &place) || !number(&text, 'x', &parts) || !number(&text, 0, &block) ||
        !cut(out, parts, place, block))
      return false;
  }
  return true;
}
