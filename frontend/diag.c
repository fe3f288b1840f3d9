// Collecting and rendering diagnostics.
//
// Rendering works in columns of characters: UTF-8 sequences count one, tabs and control characters
// are shown as one character each, so carets stand under what they mean whatever the text holds.
// Nothing printed is wider than WIDTH, except a path that is itself too long.
#include "frontend/diag.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/str.h"

enum { WIDTH = 100, GUTTER = 8, LIMIT = 20, KEPT_MAX = 1000 };

static const diag_info table[] = {
#define DIAG(ID, WORD, LEVEL, SUMMARY, TEXT, FAILING, FIXED) \
  {WORD, LEVEL, SUMMARY, TEXT, FAILING, FIXED},
#include "frontend/diag.def"
#undef DIAG
};

const diag_info *diag_info_of(diag_code code) { return &table[code]; }

diag_code diag_find(const char *word) {
  for (int i = 0; i < DIAG_CODES; i++)
    if (str_eq(table[i].word, word)) return (diag_code)i;
  return DIAG_CODES;
}

void diags_init(diags *d, arena *a) { *d = (diags){.arena = a}; }

void diags_color(diags *d, const char *color, FILE *stream) {
  if (str_eq(color, "always")) {
    d->color = true;
  } else if (str_eq(color, "never")) {
    d->color = false;
  } else {
    const char *off = getenv("NO_COLOR"), *term = getenv("TERM");
    d->color = isatty(fileno(stream)) && !(off && *off) && !str_eq(term, "dumb");
  }
}

int diags_errors(const diags *d) { return d->errors; }

bool diags_within(const diags *d, span at) {
  for (int i = 0; i < d->all.n; i++) {
    const diag *e = d->all.at[i];
    if (e->level == DIAG_ERROR && e->at.file == at.file && e->at.start >= at.start &&
        e->at.end <= at.end)
      return true;
  }
  return false;
}

// ---------------------------------------------------------------------------------------------
// Building one
// ---------------------------------------------------------------------------------------------

diag *diag_add(diags *d, span at, diag_code code, const char *fmt, ...) {
  if (table[code].level == DIAG_ERROR) d->errors++;
  // A binary file could draw one per byte: beyond a number nobody reads they are only counted.
  if (d->all.n >= KEPT_MAX) {
    if (!d->spare) d->spare = arena_new(d->arena, diag, 1);
    *d->spare = (diag){.code = code, .level = table[code].level, .at = at, .message = ""};
    return d->spare;
  }
  diag *e = arena_new(d->arena, diag, 1);
  va_list ap;
  va_start(ap, fmt);
  e->message = arena_vprintf(d->arena, fmt, ap);
  va_end(ap);
  e->arena = d->arena;
  e->code = code;
  e->level = table[code].level;
  e->at = at;
  e->order = d->all.n;
  vec_push(d->arena, &d->all, e);
  return e;
}

void diag_label(diag *e, const char *fmt, ...) {
  if (!e->arena) return;
  va_list ap;
  va_start(ap, fmt);
  e->label = arena_vprintf(e->arena, fmt, ap);
  va_end(ap);
}

void diag_note(diag *e, const char *fmt, ...) {
  if (!e->arena) return;
  va_list ap;
  va_start(ap, fmt);
  const char *text = arena_vprintf(e->arena, fmt, ap);
  va_end(ap);
  vec_push(e->arena, &e->notes, text);
}

void diag_help(diag *e, const char *replacement, const char *fmt, ...) {
  if (!e->arena) return;
  va_list ap;
  va_start(ap, fmt);
  e->label = arena_vprintf(e->arena, fmt, ap);
  va_end(ap);
  e->suggestion = arena_strdup(e->arena, replacement);
}

const char *diag_did_you_mean(diag *e, const char *word, const char *const *names, int n) {
  const char *near = str_nearest(word, names, n);
  if (near) diag_help(e, near, "did you mean `%s`?", near);
  return near;
}

void diag_list(diag *e, const char *what, const char *const *names, int n) {
  if (!e->arena) return;
  sb s = {.arena = e->arena};
  sb_printf(&s, "%s:", what);
  for (int i = 0; i < n; i++) sb_printf(&s, " %s", names[i]);
  vec_push(e->arena, &e->notes, arena_strdup(e->arena, sb_str(&s)));
}

void diag_place_at(diag *e, span at, const char *fmt, ...) {
  if (!e->arena) return;
  va_list ap;
  va_start(ap, fmt);
  const char *text = arena_vprintf(e->arena, fmt, ap);
  va_end(ap);
  vec_push(e->arena, &e->places, (diag_place){at, text});
}

// ---------------------------------------------------------------------------------------------
// Characters and wrapping
// ---------------------------------------------------------------------------------------------

// The length in bytes of the UTF-8 sequence at s (n bytes left); 0 when it is not valid.
static int utf8_length(const char *s, int n) {
  const unsigned char *p = (const unsigned char *)s;
  int len = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
  if (len == 0 || p[0] > 0xF4 || len > n) return 0;
  for (int i = 1; i < len; i++)
    if ((p[i] & 0xC0) != 0x80) return 0;
  if (p[0] == 0xE0 && p[1] < 0xA0) return 0;  // overlong
  if (p[0] == 0xED && p[1] > 0x9F) return 0;  // surrogates
  if (p[0] == 0xF0 && p[1] < 0x90) return 0;
  if (p[0] == 0xF4 && p[1] > 0x8F) return 0;
  return len;
}

// Copies the character at s so that it takes one column and harms no terminal; returns the bytes
// read. The user's bytes reach the screen only through here.
static int put_char(sb *out, const char *s, int n) {
  int len = utf8_length(s, n);
  unsigned char c = (unsigned char)*s;
  if (len == 0)
    sb_puts(out, "\xEF\xBF\xBD");  // U+FFFD
  else if (c == '\t')
    sb_put(out, ' ');
  else if (c < 0x20 || c == 0x7F || (len == 2 && c == 0xC2 && (unsigned char)s[1] < 0xA0))
    sb_put(out, '?');
  else
    sb_putn(out, s, (size_t)len);
  return len ? len : 1;
}

static int columns(const char *s) {
  int n = 0;
  for (; *s; s++) n += ((unsigned char)*s & 0xC0) != 0x80;
  return n;
}

// Writes text whose first line starts at column `at`, wrapping at words; continuation lines are
// indented. A "\n" in the text starts a new line too.
static void put_wrapped(sb *out, const char *text, int at, int indent) {
  int column = at;
  bool fresh = true;  // nothing on this line yet
  while (*text) {
    if (*text == '\n') {
      sb_printf(out, "\n%*s", indent, "");
      column = indent;
      fresh = true;
      text++;
      continue;
    }
    // A word with the spaces before it (they are kept, so that texts may align columns).
    int spaces = 0, len = 0;
    while (text[spaces] == ' ') spaces++;
    while (text[spaces + len] && text[spaces + len] != ' ' && text[spaces + len] != '\n') len++;
    int wide = 0;
    for (int i = 0; i < len; i++) wide += ((unsigned char)text[spaces + i] & 0xC0) != 0x80;
    if (!fresh && column + spaces + wide > WIDTH) {
      sb_printf(out, "\n%*s", indent, "");
      column = indent;
    } else {
      sb_printf(out, "%*s", spaces, "");
      column += spaces;
    }
    for (int i = 0; i < len;) i += put_char(out, text + spaces + i, len - i);
    column += wide;
    fresh = false;
    text += spaces + len;
  }
}

// ---------------------------------------------------------------------------------------------
// The text form
// ---------------------------------------------------------------------------------------------

typedef struct paint {
  const char *bold, *error, *warning, *note, *caret, *off;
} paint;

static paint paint_of(bool color) {
  if (!color) return (paint){"", "", "", "", "", ""};
  return (paint){"\x1b[1m", "\x1b[1;31m", "\x1b[1;35m", "\x1b[1;36m", "\x1b[1;32m", "\x1b[0m"};
}

static const char *level_name(diag_level l) {
  return l == DIAG_ERROR ? "error" : l == DIAG_WARNING ? "warning" : "note";
}

// The source line with its number, and below it the caret, tildes and label.
static void put_snippet(sb *out, span at, const char *label, paint p) {
  int n;
  const char *line = source_line(at.file, at.line, &n);
  int line_start = at.file->line_starts[at.line - 1];
  int from = at.start - line_start, to = at.end - line_start;
  if (from > n) from = n;
  if (to > n) to = n;

  // A long line shows a window around the caret. `skip` and `keep` count characters.
  int caret = at.column - 1, total = 0, room = WIDTH - GUTTER, width = 0;
  for (int i = 0; i < n; total++) {
    int len = utf8_length(line + i, n - i);
    if (i >= from && i < to) width++;
    i += len ? len : 1;
  }
  if (width < 1) width = 1;
  int skip = 0;
  if (total > room) {
    int ahead = width < room / 2 ? room / 2 : room / 4;
    skip = caret + ahead > total ? total - room : caret + ahead - room;
    if (skip < 0) skip = 0;
    if (skip > caret) skip = caret;
  }
  int keep = total - skip < room ? total - skip : room;
  sb_printf(out, "%5d | ", at.line);
  for (int i = 0, k = 0; i < n; k++) {
    bool cut = (skip > 0 && k >= skip && k < skip + 3 && k < caret) ||
               (skip + keep < total && k >= skip + keep - 3 && k > caret);
    int len = utf8_length(line + i, n - i);
    if (k >= skip && k < skip + keep) {
      if (cut)
        sb_put(out, '.');
      else
        put_char(out, line + i, n - i);
    }
    i += len ? len : 1;
  }
  while (out->n && out->at[out->n - 1] == ' ') out->n--;

  if (caret - skip + width > room) width = room - (caret - skip);
  if (width < 1) width = 1;
  sb_printf(out, "\n      | %*s%s^", caret - skip, "", p.caret);
  for (int i = 1; i < width; i++) sb_put(out, '~');
  if (label) {
    int at_column = GUTTER + caret - skip + width + 1;
    if (at_column + columns(label) <= WIDTH) {
      sb_put(out, ' ');
      put_wrapped(out, label, at_column, GUTTER);
    } else {  // no room beside it: on its own line, as far right as it fits
      int start = WIDTH - columns(label);
      start = start < GUTTER                  ? GUTTER
              : start > GUTTER + caret - skip ? GUTTER + caret - skip
                                              : start;
      sb_printf(out, "%s\n      | %*s%s", p.off, start - GUTTER, "", p.caret);
      put_wrapped(out, label, start, GUTTER);
    }
  }
  sb_printf(out, "%s\n", p.off);
}

static void put_head(sb *out, span at, diag_level level, const char *message, const char *word,
                     paint p) {
  int column = 0;
  if (at.file) {
    char *place = arena_printf(out->arena, "%s:%d:%d: ", at.file->path, at.line, at.column);
    sb_puts(out, p.bold);
    for (int i = 0, n = (int)strlen(place); i < n;) i += put_char(out, place + i, n - i);
    sb_puts(out, p.off);
    column = columns(place);
    // A deep path cannot be wrapped; it should not squeeze the message into a pillar either, and
    // where a message wraps should not depend on the folder a test runs in.
    if (column > 25) column = 25;
  }
  const char *color = level == DIAG_ERROR ? p.error : level == DIAG_WARNING ? p.warning : p.note;
  sb_printf(out, "%s%s:%s ", color, level_name(level), p.off);
  column += (int)strlen(level_name(level)) + 2;
  sb_puts(out, p.bold);
  put_wrapped(out, word ? arena_printf(out->arena, "%s [%s]", message, word) : message, column, 6);
  sb_printf(out, "%s\n", p.off);
}

const char *diag_render(arena *a, const diag *e, bool color) {
  sb out = {.arena = a};
  paint p = paint_of(color);
  put_head(&out, e->at, e->level, e->message, table[e->code].word, p);
  if (e->at.file && !e->bare) {
    put_snippet(&out, e->at, e->label, p);
  } else if (e->label) {
    sb_puts(&out, "   = ");
    put_wrapped(&out, e->label, 5, 5);
    sb_put(&out, '\n');
  }
  for (int i = 0; i < e->notes.n; i++) {
    sb_printf(&out, "   %s=%s ", p.bold, p.off);
    put_wrapped(&out, e->notes.at[i], 5, 5);
    sb_put(&out, '\n');
  }
  for (int i = 0; i < e->places.n; i++) {
    const diag_place *place = &e->places.at[i];
    put_head(&out, place->at, DIAG_NOTE, place->text, NULL, p);
    if (place->at.file) put_snippet(&out, place->at, NULL, p);
  }
  return sb_str(&out);
}

// ---------------------------------------------------------------------------------------------
// The JSON form
// ---------------------------------------------------------------------------------------------

void diag_json_string(sb *out, const char *s) {
  if (!s) {
    sb_puts(out, "null");
    return;
  }
  int n = (int)strlen(s);
  sb_put(out, '"');
  for (int i = 0; i < n;) {
    int len = utf8_length(s + i, n - i);
    unsigned char c = (unsigned char)s[i];
    if (len == 0)
      sb_puts(out, "\\ufffd");
    else if (c == '"' || c == '\\')
      sb_printf(out, "\\%c", c);
    else if (c == '\n')
      sb_puts(out, "\\n");
    else if (c == '\t')
      sb_puts(out, "\\t");
    else if (c < 0x20 || c == 0x7F)
      sb_printf(out, "\\u%04x", c);
    else
      sb_putn(out, s + i, (size_t)len);
    i += len ? len : 1;
  }
  sb_put(out, '"');
}

static void put_json_place(sb *out, span at) {
  sb_puts(out, "\"file\":");
  diag_json_string(out, at.file ? at.file->path : NULL);
  if (!at.file) {
    sb_puts(out, ",\"line\":null,\"col\":null,\"end\":null");
    return;
  }
  span last = source_span(at.file, at.end, at.end);
  sb_printf(out, ",\"line\":%d,\"col\":%d,\"end\":{\"line\":%d,\"col\":%d}", at.line, at.column,
            last.line, last.column);
  sb_printf(out, ",\"bytes\":[%d,%d]", at.start, at.end);
}

static const char *render_json(arena *a, const diag *e) {
  sb out = {.arena = a};
  sb_puts(&out, "{\"code\":");
  diag_json_string(&out, table[e->code].word);
  sb_puts(&out, ",\"level\":");
  diag_json_string(&out, level_name(e->level));
  sb_put(&out, ',');
  put_json_place(&out, e->at);
  sb_puts(&out, ",\"message\":");
  diag_json_string(&out, e->message);
  sb_puts(&out, ",\"label\":");
  diag_json_string(&out, e->label);
  sb_puts(&out, ",\"notes\":[");
  for (int i = 0; i < e->notes.n; i++) {
    if (i) sb_put(&out, ',');
    diag_json_string(&out, e->notes.at[i]);
  }
  sb_puts(&out, "],\"places\":[");
  for (int i = 0; i < e->places.n; i++) {
    sb_puts(&out, i ? ",{" : "{");
    put_json_place(&out, e->places.at[i].at);
    sb_puts(&out, ",\"message\":");
    diag_json_string(&out, e->places.at[i].text);
    sb_put(&out, '}');
  }
  sb_puts(&out, "],\"suggestion\":");
  diag_json_string(&out, e->suggestion);
  sb_puts(&out, ",\"rendered\":");
  diag_json_string(&out, diag_render(a, e, false));
  sb_puts(&out, "}\n");
  return sb_str(&out);
}

// ---------------------------------------------------------------------------------------------
// Printing all
// ---------------------------------------------------------------------------------------------

typedef struct ranked {
  const diag *e;
  int file;  // order of arrival of its file
} ranked;

static int by_place(const void *x, const void *y) {
  const ranked *a = x, *b = y;
  if (a->file != b->file) return a->file < b->file ? -1 : 1;
  if (a->e->at.start != b->e->at.start) return a->e->at.start < b->e->at.start ? -1 : 1;
  return (a->e->order > b->e->order) - (a->e->order < b->e->order);
}

static bool same(const diag *a, const diag *b) {
  return a->code == b->code && a->at.file == b->at.file && a->at.start == b->at.start &&
         str_eq(a->message, b->message);
}

void diags_print(diags *d, FILE *out) {
  int n = d->all.n, limit = d->limit ? d->limit : LIMIT, shown = 0, more = 0;
  if (n == 0) return;
  ranked *list = arena_new(d->arena, ranked, n);
  for (int i = 0; i < n; i++) {
    list[i] = (ranked){d->all.at[i], i};
    for (int j = 0; j < i; j++)
      if (list[j].e->at.file == list[i].e->at.file) {
        list[i].file = list[j].file;
        break;
      }
  }
  qsort(list, (size_t)n, sizeof *list, by_place);
  for (int i = 0; i < n; i++) {
    bool twice = false;
    for (int j = i - 1; j >= 0 && list[j].e->at.start == list[i].e->at.start && !twice; j--)
      twice = same(list[j].e, list[i].e);
    if (twice) continue;
    if (d->format == DIAG_JSON) {
      fputs(render_json(d->arena, list[i].e), out);
    } else if (shown < limit) {
      if (shown) fputc('\n', out);
      fputs(diag_render(d->arena, list[i].e, d->color), out);
      shown++;
    } else {
      more++;
    }
  }
  // Those that were too many to keep are not counted here: the number may be larger.
  if (more) fprintf(out, "\nand %s%d more\n", n >= KEPT_MAX ? "at least " : "", more);
  d->all.n = 0;
}
