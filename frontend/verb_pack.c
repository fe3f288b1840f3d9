// dsmc pack SIZES.csv: the memory planner by itself, over a list of buffers.
//
// The list is read strictly: what this prints is taken as the truth about a program's memory, so a
// line that could be meant in two ways is an error with its place. The packing is checked by code
// that shares nothing with the search before anything is said about it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "frontend/cli.h"
#include "passes/pack.h"
#include "runtime/base/map.h"
#include "runtime/base/str.h"

#define HEADER "id,lower,upper,size"
// More would make the quadratic parts of the simple rules take minutes.
#define MOST_BUFFERS (1 << 17)
#define DEFAULT_SECONDS 60

typedef struct buffers {
  VEC(pack_buffer) list;
  VEC(const char *) ids;
} buffers;

// A part of a line: bytes [start, end) of the source, blanks around it left out.
typedef struct field {
  int start, end;
} field;

static field trim(const source *src, int start, int end) {
  while (start < end && strchr(" \t\r", src->text[start])) start++;
  while (start < end && strchr(" \t\r", src->text[end - 1])) end--;
  return (field){start, end};
}

// Splits [start, end) at commas; returns how many fields there are, of which `most` are kept.
static int split(const source *src, int start, int end, field *f, int most) {
  int n = 0;
  for (int from = start, i = start; i <= end; i++) {
    if (i < end && src->text[i] != ',') continue;
    if (n < most) f[n] = trim(src, from, i);
    n++;
    from = i + 1;
  }
  return n;
}

static bool same(const source *src, field f, const char *word) {
  size_t n = (size_t)(f.end - f.start);
  return strlen(word) == n && memcmp(src->text + f.start, word, n) == 0;
}

static diag *complain(cli *c, const source *src, field f, const char *what) {
  return diag_error(&c->diags, source_span(src, f.start, f.end), DIAG_BAD_SIZES, "%s", what);
}

// A whole number from 0 to INT64_MAX and nothing else.
static bool read_number(cli *c, const source *src, field f, const char *name, int64_t *out) {
  int64_t value = 0;
  bool digits = f.end > f.start, fits = true;
  for (int i = f.start; i < f.end && digits; i++) {
    int digit = src->text[i] - '0';
    digits = digit >= 0 && digit <= 9;
    if (!digits) break;
    fits = fits && value <= (INT64_MAX - digit) / 10;
    if (fits) value = value * 10 + digit;
  }
  *out = value;
  if (digits && fits) return true;
  if (f.end == f.start) {
    complain(c, src, f,
             arena_printf(c->arena, "`%s` is missing: a whole number is expected", name));
    return false;
  }
  const char *text = span_text(c->arena, source_span(src, f.start, f.end));
  bool negative = text[0] == '-' && text[1] && strspn(text + 1, "0123456789") == strlen(text + 1);
  const char *why = digits     ? "is more than 9223372036854775807"
                    : negative ? "is negative: a whole number from 0 is expected"
                               : "is not a whole number";
  complain(c, src, f, arena_printf(c->arena, "`%s`, the %s, %s", text, name, why));
  return false;
}

// JSON is UTF-8, and ids are printed in it.
static bool is_utf8(const char *s) {
  for (const unsigned char *p = (const unsigned char *)s; *p;) {
    int more = *p < 0x80                 ? 0
               : *p >= 0xc2 && *p < 0xe0 ? 1
               : (*p & 0xf0) == 0xe0     ? 2
               : *p >= 0xf0 && *p < 0xf5 ? 3
                                         : -1;
    if (more < 0) return false;
    unsigned char lead = *p++, next = *p;
    // Overlong forms, surrogates and what lies beyond Unicode.
    if ((lead == 0xe0 && next < 0xa0) || (lead == 0xed && next > 0x9f)) return false;
    if ((lead == 0xf0 && next < 0x90) || (lead == 0xf4 && next > 0x8f)) return false;
    for (; more > 0; more--, p++)
      if ((*p & 0xc0) != 0x80) return false;
  }
  return true;
}

static bool is_header(const source *src, int start, int end) {
  static const char *const names[4] = {"id", "lower", "upper", "size"};
  field f[4];
  if (split(src, start, end, f, 4) != 4) return false;
  for (int i = 0; i < 4; i++)
    if (!same(src, f[i], names[i])) return false;
  return true;
}

// Where an id was first used, for the message about its second use.
typedef struct first_use {
  span at;
} first_use;

static void read_line(cli *c, const source *src, int start, int end, map *used, int64_t *sum,
                      buffers *out) {
  static const char *const names[4] = {"id", "lower", "upper", "size"};
  field f[4], line = trim(src, start, end);
  int fields = split(src, start, end, f, 4);
  if (fields != 4) {
    complain(c, src, line,
             fields < 4
                 ? arena_printf(c->arena, "`%s` is missing: a line is " HEADER, names[fields])
                 : arena_printf(c->arena, "%d columns: a line is " HEADER, fields));
    return;
  }
  const char *id = span_text(c->arena, source_span(src, f[0].start, f[0].end));
  if (!*id || strlen(id) != (size_t)(f[0].end - f[0].start) || !is_utf8(id)) {
    complain(c, src, f[0],
             *id ? "the id is not UTF-8 text" : "the id is empty: any text is expected");
    return;
  }
  pack_buffer b = {0};
  if (!read_number(c, src, f[1], "lower", &b.lower) ||
      !read_number(c, src, f[2], "upper", &b.upper) || !read_number(c, src, f[3], "size", &b.size))
    return;
  if (b.lower >= b.upper) {
    complain(
        c, src, (field){f[1].start, f[2].end},
        arena_printf(c->arena, "lower %lld is not less than upper %lld: it lives in [lower, upper)",
                     (long long)b.lower, (long long)b.upper));
    return;
  }
  if (b.size > PACK_MOST_BYTES - *sum) {
    complain(c, src, f[3],
             arena_printf(c->arena, "sizes up to here add up to more than %lld",
                          (long long)PACK_MOST_BYTES));
    return;
  }
  *sum += b.size;
  first_use *use = arena_new(c->arena, first_use, 1);
  use->at = source_span(src, f[0].start, f[0].end);
  const first_use *before = map_get(used, id);
  if (before) {
    diag *e = complain(c, src, f[0], arena_printf(c->arena, "the id `%s` is used twice", id));
    diag_place_at(e, before->at, "first used here");
    return;
  }
  map_set(used, id, use);
  vec_push(c->arena, &out->list, b);
  vec_push(c->arena, &out->ids, id);
}

// False when something is wrong with the file; it has been reported.
static bool read_buffers(cli *c, const char *path, buffers *out) {
  const char *why;
  const source *src = source_read(c->arena, path, &why);
  if (!src) {
    diag *e = diag_error(&c->diags, span_none(), DIAG_CANNOT_READ, "cannot read %s", path);
    diag_note(e, "%s", why);
    return false;
  }
  map used = {.arena = c->arena};
  int64_t sum = 0;
  bool header = false;
  int mark = strncmp(src->text, "\xef\xbb\xbf", 3) == 0 ? 3 : 0;
  // Twenty are printed; a file of another kind would make one per line.
  for (int k = 1; k <= src->lines && diags_errors(&c->diags) < 20; k++) {
    int n, start;
    const char *text = source_line(src, k, &n);
    start = (int)(text - src->text);
    int end = start + n;
    if (k == 1) start += mark;
    field all = trim(src, start, end);
    if (all.start == all.end) continue;
    if (!header) {
      header = true;
      if (is_header(src, start, end)) continue;
      complain(c, src, all, "the first line is not `" HEADER "`");
      return false;
    }
    if (out->list.n == MOST_BUFFERS) {
      complain(c, src, all, arena_printf(c->arena, "more than %d buffers", MOST_BUFFERS));
      return false;
    }
    read_line(c, src, start, end, &used, &sum, out);
  }
  if (diags_errors(&c->diags)) return false;
  if (out->list.n) return true;
  diag_error(&c->diags, source_span(src, 0, 0), DIAG_BAD_SIZES,
             header ? "no buffers: behind the first line, every line is one"
                    : "the file is empty: the first line is `" HEADER "`");
  return false;
}

// ---------------------------------------------------------------------------------------------
// Saying it
// ---------------------------------------------------------------------------------------------

static void put_json_text(const char *s) {
  putchar('"');
  for (; *s; s++) {
    unsigned char byte = (unsigned char)*s;
    if (byte < 0x20 || byte == 0x7f) {
      printf("\\u%04x", byte);
      continue;
    }
    if (byte == '"' || byte == '\\') putchar('\\');
    putchar(byte);
  }
  putchar('"');
}

static void put_json(const buffers *b, const pack_result *r, int64_t capacity) {
  printf("{\"height\":%lld,\"lower_bound\":%lld,\"optimal\":%s,\"seconds\":%.6f",
         (long long)r->height, (long long)r->load, r->optimal ? "true" : "false", r->seconds);
  printf(",\"proved\":%lld,\"buffers\":%d", (long long)r->floor, b->list.n);
  if (capacity)
    printf(",\"capacity\":%lld,\"fits\":%s", (long long)capacity,
           r->height <= capacity ? "true" : "false");
  printf(",\"offsets\":{");
  for (int i = 0; i < b->list.n; i++) {
    if (i) putchar(',');
    put_json_text(b->ids.at[i]);
    printf(":%lld", (long long)b->list.at[i].offset);
  }
  printf("}}\n");
}

static const char *grouped(arena *a, int64_t x) {
  char digits[24];
  int n = snprintf(digits, sizeof digits, "%lld", (long long)x);
  sb s = {.arena = a};
  for (int i = 0; i < n; i++) {
    if (i && (n - i) % 3 == 0) sb_put(&s, ',');
    sb_put(&s, digits[i]);
  }
  return arena_strdup(a, sb_str(&s));
}

static void put_text(cli *c, const buffers *b, const pack_result *r, int64_t capacity) {
  printf("%d buffers in %s bytes", b->list.n, grouped(c->arena, r->height));
  if (r->optimal)
    printf(", the least there can be (%.3f s)\n", r->seconds);
  else
    printf(", not proved to be the least (%.3f s)\n", r->seconds);
  printf("  max load  %s, the sum of sizes alive at one time\n", grouped(c->arena, r->load));
  printf("  gap       %s", grouped(c->arena, r->height - r->load));
  if (r->height > r->load && r->load)
    printf(" (%.2f %%)", 100.0 * (double)(r->height - r->load) / (double)r->load);
  if (r->floor > r->load) printf("; nothing below %s is possible", grouped(c->arena, r->floor));
  printf("\n");
  if (capacity && r->height <= capacity)
    printf("  capacity  %s, %s left\n", grouped(c->arena, capacity),
           grouped(c->arena, capacity - r->height));
}

static void check(cli *c, const buffers *b, const pack_result *r) {
  int x = 0, y = 0;
  int64_t height = 0;
  for (int i = 0; i < b->list.n; i++) {
    int64_t top = b->list.at[i].offset + b->list.at[i].size;
    if (b->list.at[i].size && top > height) height = top;
  }
  bool apart = pack_check(c->arena, b->list.at, b->list.n, &x, &y);
  if (apart && height == r->height && r->load <= r->floor && r->floor <= height) return;
  if (apart)
    fprintf(stderr, "dsmc: pack: height %lld is not that of its offsets\n", (long long)r->height);
  else
    fprintf(stderr, "dsmc: pack: `%s` and `%s` overlap\n", b->ids.at[x], b->ids.at[y]);
  abort();
}

int verb_pack(cli *c) {
  buffers b = {0};
  if (!read_buffers(c, c->files.at[0], &b)) return cli_finish(c);
  const char *limit = cli_get(c, OPT_LIMIT);
  pack_options o = {.capacity = cli_number(c, OPT_CAPACITY, 0),
                    .seconds = limit ? strtod(limit, NULL) : DEFAULT_SECONDS};
  pack_result r;
  pack_solve(c->arena, b.list.at, b.list.n, &o, &r);
  check(c, &b, &r);
  if (cli_has(c, OPT_JSON))
    put_json(&b, &r, o.capacity);
  else
    put_text(c, &b, &r, o.capacity);
  if (!o.capacity || r.height <= o.capacity) return EXIT_GOOD;
  fflush(stdout);
  diag *e =
      diag_error(&c->diags, span_none(), DIAG_DOES_NOT_FIT, "%d buffers do not fit into %s bytes",
                 b.list.n, grouped(c->arena, o.capacity));
  diag_note(e, "the packing found takes %s more", grouped(c->arena, r.height - o.capacity));
  if (r.floor > o.capacity)
    diag_note(e, "proved: every packing takes at least %s more",
              grouped(c->arena, r.floor - o.capacity));
  else
    diag_note(e, "not proved: the search gave up after %.1f s; --limit gives it longer", r.seconds);
  cli_finish(c);
  return EXIT_UNFIT;
}
