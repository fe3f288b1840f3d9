// A plan for a terminal: what is chosen, what it takes, why, and what lost.
//
//   PLAN    data 32 × pipeline 8 × tensor 4 · interleave 6 · zero 1 · recompute none
//   STEP    18.0 s (17.0 to 18.9) · 175 k tokens/s · 184 TFLOP/s per device · MFU 59.0 %
//
// Each part begins with a word in the first eight columns; whatever does not fit into the width
// goes on below, indented. Widths are counted in code points. Nothing is worked out here but
// shares, sums and which of two numbers is larger.
#include <ctype.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "passes/plan/show.h"
#include "runtime/base/str.h"

#define LABEL 8  // columns of the words on the left
#define MOST_ROWS 12
#define MOST_OTHERS 8

typedef struct page {
  arena *arena;
  FILE *out;
  int columns;
  bool color;
  int used;  // columns of the line so far
} page;

// ---- lines --------------------------------------------------------------------------------------

static void put(page *p, const char *text) {
  fputs(text, p->out);
  p->used += show_columns(text);
}

static void spaces(page *p, int upto) {
  if (p->used < upto) fprintf(p->out, "%*s", upto - p->used, "");
  if (p->used < upto) p->used = upto;
}

static void newline(page *p, int indent) {
  fputc('\n', p->out);
  p->used = 0;
  if (indent) spaces(p, indent);
}

// Orders to a terminal take no columns.
static void paint(page *p, const char *code) {
  if (p->color) fprintf(p->out, "\x1b[%sm", code);
}

static void label(page *p, const char *word) {
  paint(p, "1");
  put(p, word);
  paint(p, "0");
  spaces(p, LABEL);
}

// Bytes of the next word of a text. A number stays with its unit: "25 GB/s", "89.6 %".
static size_t word_length(const char *s) {
  size_t n = strcspn(s, " ");
  bool number = n && strspn(s, "+-0123456789.,") == n && s[0] != '-' && s[n - 1] != ',';
  if (!number || !s[n]) return n;
  size_t unit = strcspn(s + n + 1, " ");
  return unit && unit <= 8 && !isdigit((unsigned char)s[n + 1]) ? n + 1 + unit : n;
}

// Words of a text; what does not fit goes on in lines of its own, from column `indent` on.
static void words(page *p, const char *text, int indent) {
  bool fresh = true;  // nothing of the text on this line yet
  for (const char *s = text + strspn(text, " "); *s; fresh = false) {
    size_t n = word_length(s);
    const char *word = arena_strndup(p->arena, s, n);
    int wide = show_columns(word), gap = !fresh;
    if (p->used + gap + wide > p->columns && p->used > indent) newline(p, indent), gap = 0;
    if (gap) put(p, " ");
    while (show_columns(word) > p->columns - p->used) {  // longer than a line
      const char *head = word;
      int room = p->columns - p->used;
      while (*word && room >= 0) {
        if (((unsigned char)*word & 0xc0) != 0x80 && room-- == 0) break;
        word++;
      }
      put(p, arena_strndup(p->arena, head, (size_t)(word - head)));
      newline(p, indent);
    }
    put(p, word);
    s += n + strspn(s + n, " ");
  }
}

typedef VEC(const char *) texts;

// Parts with a dot between them; a line is broken between parts where that is possible.
static void parts(page *p, const texts *t, int indent) {
  for (int i = 0; i < t->n; i++) {
    if (i) {
      int wide = show_columns(t->at[i]);
      if (p->used + 3 + wide > p->columns)
        newline(p, indent);
      else
        put(p, " " SHOW_DOT " ");
    }
    words(p, t->at[i], indent);
  }
  newline(p, 0);
}

static const char *repeated(page *p, const char *mark, int n) {
  sb s = {.arena = p->arena};
  for (int i = 0; i < n; i++) sb_puts(&s, mark);
  return sb_str(&s);
}

static void right(page *p, const char *text, int upto) {
  spaces(p, upto - show_columns(text));
  put(p, text);
}

// ---- headline, plan, step -----------------------------------------------------------------------

static void headline(page *p, const plan_result *r) {
  arena *a = p->arena;
  const plan_model *m = &r->model;
  texts t = {0};
  vec_push(a, &t,
           arena_printf(a, "%s, %s parameters", show_clean(a, m->name),
                        show_quantity(a, m->parameters)));
  double each = m->batch > 0 ? m->tokens / (double)m->batch : 0;
  vec_push(
      a, &t,
      each > 0 && each == floor(each)
          ? arena_printf(a, "batch %" PRId64 " " SHOW_TIMES " %.0f tokens", m->batch, each)
          : arena_printf(a, "batch %" PRId64 ", %s tokens", m->batch, show_short(a, m->tokens)));
  vec_push(a, &t, show_clean(a, m->precision));
  vec_push(a, &t, plan_cluster_words(a, r->cluster, SHOW_TIMES));
  paint(p, "1");
  parts(p, &t, 2);
  paint(p, "0");
  newline(p, 0);
}

static const char *batch_words(arena *a, const plan_choice *c, int64_t batch) {
  sb s = {.arena = a};
  sb_printf(&s, "%" PRId64 " %s = ", batch, batch == 1 ? "sequence" : "sequences");
  if (c->size[PLAN_EXPERT] > 1)
    sb_printf(&s, "%" PRId64 " data-parallel (data %" PRId64 " " SHOW_TIMES " expert %" PRId64 ")",
              plan_batch_ranks(c), c->size[PLAN_DATA], c->size[PLAN_EXPERT]);
  else
    sb_printf(&s, "%" PRId64 " data", c->size[PLAN_DATA]);
  sb_printf(&s, " " SHOW_TIMES " %" PRId64 " micro-%s " SHOW_TIMES " %" PRId64, c->micro_batches,
            c->micro_batches == 1 ? "batch" : "batches", c->micro_batch);
  if (c->sequence_parallel) sb_puts(&s, " " SHOW_DOT " norms cut along the sequence");
  return sb_str(&s);
}

// "full in 15 of 96 layers: 0-14", where layers of a stage take two kinds of recomputation.
static const char *mixed_words(arena *a, const plan_candidate *c) {
  sb runs = {.arena = a};
  int64_t some = 0, all = 0;
  int shown = 0;
  for (int i = 0; i < c->nlayers; i++) {
    const plan_layers *l = &c->layers[i];
    all += l->last + 1 - l->first;
    if (l->recompute != c->choice.also) continue;
    some += l->last + 1 - l->first;
    if (++shown > 8) continue;
    sb_printf(&runs, "%s%" PRId64, shown > 1 ? ", " : "", l->first);
    if (l->last > l->first) sb_printf(&runs, "-%" PRId64, l->last);
  }
  return arena_printf(a, "recompute %s in %" PRId64 " of %" PRId64 " layers: %s%s",
                      plan_recompute_name(c->choice.also), some, all, sb_str(&runs),
                      shown > 8 ? ", " SHOW_MORE : "");
}

static void show_choice(page *p, const char *word, const plan_result *r, const plan_candidate *c) {
  label(p, word);
  words(p, plan_choice_words(p->arena, &c->choice, " " SHOW_TIMES " ", " " SHOW_DOT " "), LABEL);
  newline(p, LABEL);
  words(p, batch_words(p->arena, &c->choice, r->model.batch), LABEL);
  newline(p, 0);
  if (c->ring_inner) {
    spaces(p, LABEL);
    words(p,
          arena_printf(p->arena,
                       "double ring: %" PRId64 " ranks inside a node " SHOW_TIMES " %" PRId64
                       " nodes",
                       c->ring_inner, c->choice.size[PLAN_RING] / c->ring_inner),
          LABEL);
    newline(p, 0);
  }
  if (!c->choice.also) return;
  spaces(p, LABEL);
  words(p, mixed_words(p->arena, c), LABEL);
  newline(p, 0);
}

// "18.0 s (17.0 to 18.9)": the bounds in the unit of the value.
static const char *step_words(arena *a, const plan_candidate *c) {
  const char *step = show_seconds(a, c->step_s);
  if (!(c->step_low < c->step_high)) return step;
  show_unit u = show_seconds_unit(c->step_s);
  return arena_printf(a, "%s (%.1f to %.1f)", step, c->step_low / u.by, c->step_high / u.by);
}

static void show_step(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  texts t = {0};
  vec_push(a, &t, step_words(a, c));
  vec_push(a, &t, arena_printf(a, "%s tokens/s", show_short(a, c->tokens_per_s)));
  vec_push(
      a, &t,
      arena_printf(
          a, c->tflops_per_device < 9.95 ? "%.2f TFLOP/s per device" : "%.0f TFLOP/s per device",
          c->tflops_per_device));
  vec_push(a, &t, arena_printf(a, "MFU %s", show_percent(a, c->mfu)));
  if (c->hfu > 1.0005 * c->mfu) vec_push(a, &t, arena_printf(a, "HFU %s", show_percent(a, c->hfu)));
  label(p, "STEP");
  parts(p, &t, LABEL);
}

// ---- where the time goes ------------------------------------------------------------------------

// `brief`: without the links that bytes go over.
static const char *time_note(arena *a, const plan_candidate *c, plan_time t, bool brief) {
  const plan_choice *k = &c->choice;
  if (t == PLAN_T_BUBBLE && k->size[PLAN_PIPELINE] > 1 && k->pipe != PIPE_ZERO_BUBBLE) {
    int64_t fill = k->size[PLAN_PIPELINE] - 1;
    return k->interleave > 1
               ? arena_printf(a, "%" PRId64 " / (%" PRId64 " " SHOW_TIMES " %" PRId64 ")", fill,
                              k->interleave, k->micro_batches)
               : arena_printf(a, "%" PRId64 " / %" PRId64, fill, k->micro_batches);
  }
  sb s = {.arena = a};
  double sent[2];
  plan_sent(c, t, sent);
  if (sent[0] + sent[1] > 0) {
    sb_printf(&s, "sends %s", show_bytes(a, sent[0] + sent[1]));
    if (brief)
      ;
    else if (sent[1] > 0 && sent[0] > 0)
      sb_printf(&s, ", %s between nodes", show_bytes(a, sent[1]));
    else
      sb_puts(&s, sent[1] > 0 ? " between nodes" : " inside nodes");
  }
  double hidden = plan_hidden(c, t);
  if (hidden > 0) sb_printf(&s, "%s%.0f %% hidden", s.n ? ", " : "", 100 * hidden / c->busy[t]);
  return sb_str(&s);
}

static void show_time(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  show_unit u = show_seconds_unit(c->step_s);
  plan_time rows[PLAN_TIMES];
  int n = 0;
  for (int t = 0; t < PLAN_TIMES; t++) {
    if (!plan_takes_time(c, (plan_time)t)) continue;
    int at = n++;
    for (; at > 0 && c->time[rows[at - 1]] < c->time[t]; at--) rows[at] = rows[at - 1];
    rows[at] = (plan_time)t;
  }
  enum { BAR = LABEL + 32 };
  int most = p->columns - BAR > 50 ? 50 : p->columns - BAR;
  label(p, "TIME");
  for (int i = 0; i < n; i++) {
    plan_time t = rows[i];
    double share = c->step_s > 0 ? c->time[t] / c->step_s : 0;
    spaces(p, LABEL);
    put(p, plan_time_name(t));
    right(p, arena_printf(a, "%.2f %s", c->time[t] / u.by, u.name), LABEL + 21);
    right(p, show_percent(a, share), LABEL + 30);
    int bar = (int)lround(share * most);
    if (bar < 0) bar = 0;
    if (bar > most) bar = most;
    int from = bar < 6 ? BAR + 8 : BAR + bar + 2;  // behind short bars notes stand in one column
    const char *note = time_note(a, c, t, false);
    if (from + show_columns(note) > p->columns) note = time_note(a, c, t, true);
    if (bar) spaces(p, BAR);
    paint(p, t == PLAN_T_COMPUTE ? "32" : "33");
    put(p, repeated(p, "#", bar));
    paint(p, "0");
    if (*note && from + show_columns(note) <= p->columns) {
      spaces(p, from);
      put(p, note);
    } else if (*note) {
      newline(p, LABEL + 2);
      words(p, note, LABEL + 2);
    }
    newline(p, 0);
  }
}

// ---- memory -------------------------------------------------------------------------------------

// "77.0 GiB (80 less 3 reserved)"
static const char *capacity_words(arena *a, const plan_candidate *c) {
  const char *capacity = show_bytes(a, (double)c->capacity);
  if (c->reserve <= 0) return capacity;
  show_unit u = show_bytes_unit((double)c->capacity);
  return arena_printf(a, "%s (%.4g less %.3g reserved)", capacity,
                      (double)(c->capacity + c->reserve) / u.by, (double)c->reserve / u.by);
}

#define MEMORY_COLUMNS 10

// One line of the table as texts: stage, layers, five classes, peak, host, disk.
typedef struct memory_row {
  const char *cell[MEMORY_COLUMNS];
  int64_t peak, capacity;
} memory_row;

static memory_row memory_cells(arena *a, const plan_candidate *c, plan_rows g, show_unit u) {
  const plan_stage *s = &c->stage[g.first];
  memory_row row = {.peak = s->peak, .capacity = s->device ? s->capacity : c->capacity};
  row.cell[0] = g.first == g.last ? arena_printf(a, "%d", g.first)
                                  : arena_printf(a, "%d-%d", g.first, g.last);
  row.cell[1] = plan_layers_words(a, c, g);
  for (int m = 0; m < PLAN_MEMORIES; m++)
    row.cell[2 + m] = arena_printf(a, "%.1f", (double)s->memory[m] / u.by);
  row.cell[7] = arena_printf(a, "%.1f", (double)s->peak / u.by);
  row.cell[8] = arena_printf(a, "%.1f", (double)s->host / u.by);
  row.cell[9] = arena_printf(a, "%.1f", (double)s->disk / u.by);
  return row;
}

static void memory_bar(page *p, int64_t peak, int64_t capacity, int wide) {
  double share = capacity > 0 ? (double)peak / (double)capacity : 0;
  int full = share >= 1 ? wide : (int)(share * wide + 0.5);
  paint(p, share > 1 ? "31" : share > 0.9 ? "33" : "32");
  put(p, repeated(p, "#", full));
  paint(p, "0");
  put(p, repeated(p, "-", wide - full));
}

static void memory_sentence(page *p, const memory_row *row, const char *const *heads,
                            const bool *shown) {
  sb s = {.arena = p->arena};
  for (int k = 0; k < MEMORY_COLUMNS; k++)
    if (shown[k]) sb_printf(&s, "%s%s %s", k ? ", " : "", heads[k], row->cell[k]);
  spaces(p, 2);
  words(p, sb_str(&s), 4);
  newline(p, 0);
}

static void show_memory(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  label(p, "MEMORY");
  show_unit u = show_bytes_unit((double)c->peak);
  words(p, arena_printf(a, "%s per device, of %s", u.name, capacity_words(a, c)), LABEL);
  newline(p, 0);

  plan_rows *g = arena_new(a, plan_rows, c->nstages);
  int n = plan_group_stages(c, u, g);
  static const char *const heads[MEMORY_COLUMNS] = {"stage", "layers", "weights", "grads", "optim",
                                                    "activ", "work",   "peak",    "host",  "disk"};
  memory_row *rows = arena_new(a, memory_row, n);
  int wide[MEMORY_COLUMNS];
  bool shown[MEMORY_COLUMNS];
  for (int k = 0; k < MEMORY_COLUMNS; k++) wide[k] = (int)strlen(heads[k]), shown[k] = k < 8;
  for (int i = 0; i < n; i++) {
    rows[i] = memory_cells(a, c, g[i], u);
    for (int k = 0; k < MEMORY_COLUMNS; k++) {
      int w = show_columns(rows[i].cell[k]);
      if (w > wide[k]) wide[k] = w;
    }
    shown[8] = shown[8] || c->stage[g[i].first].host > 0;
    shown[9] = shown[9] || c->stage[g[i].first].disk > 0;
  }
  int gap = 2, used = 0;
  for (; gap > 0; gap--) {
    used = 2 - gap;
    for (int k = 0; k < MEMORY_COLUMNS; k++) used += shown[k] ? wide[k] + gap : 0;
    if (used <= p->columns) break;
  }
  int bar = p->columns - used - 2;
  bar = bar < 8 ? 0 : bar > 20 ? 20 : bar;

  int head = n <= MOST_ROWS ? n : MOST_ROWS / 2, tail = n <= MOST_ROWS ? n : n - MOST_ROWS / 2;
  bool table = used <= p->columns;  // else each row is a sentence
  for (int i = table ? -1 : 0; i < n; i++) {
    if (i == head && i < tail) {
      put(p, arena_printf(a, "  %s %d more rows: --report or --json", SHOW_MORE, tail - head));
      newline(p, 0);
      i = tail - 1;
      continue;
    }
    if (!table) {
      memory_sentence(p, &rows[i], heads, shown);
      continue;
    }
    int at = 2 - gap;
    for (int k = 0; k < MEMORY_COLUMNS; k++) {
      if (!shown[k]) continue;
      const char *text = i < 0 ? heads[k] : rows[i].cell[k];
      at += gap + wide[k];
      if (k < 2)
        spaces(p, at - wide[k]), put(p, text);
      else
        right(p, text, at);
    }
    if (i >= 0 && bar) {
      spaces(p, at + 2);
      memory_bar(p, rows[i].peak, rows[i].capacity, bar);
    }
    newline(p, 0);
  }
  if (c->peak_at && *c->peak_at) {
    spaces(p, 2);
    words(p,
          arena_printf(a, "%shighest: %s%s",
                       c->nstages > 1 ? arena_printf(a, "stage %d is ", plan_highest(c)) : "",
                       show_clean(a, c->peak_at),
                       c->laid ? "; the arena that build lays out, to the byte" : ""),
          4);
    newline(p, 0);
  }
}

// ---- why ----------------------------------------------------------------------------------------

static void show_limit(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  plan_time next;
  plan_time first = plan_slowest(c, &next);
  sb s = {.arena = a};
  double whole = c->step_s > 0 ? c->step_s : 1;
  sb_printf(&s, "%s, %s of the step", plan_time_words(first),
            show_percent(a, c->time[first] / whole));
  if (next < PLAN_TIMES)
    sb_printf(&s, "; the next gain is %s, %s", plan_time_words(next),
              show_percent(a, c->time[next] / whole));
  if (c->capacity > 0 && (double)c->peak > 0.9 * (double)c->capacity)
    sb_printf(&s, "; memory is %.0f %% full", 100 * (double)c->peak / (double)c->capacity);
  if (c->pressed) sb_puts(&s, "; stages are cut as memory allows, with more of it otherwise");
  label(p, "LIMIT");
  words(p, sb_str(&s), LABEL);
  newline(p, 0);
}

// What only clusters of unlike parts have: where stages lie, and what the link between them
// decides.
static void show_places(page *p, const plan_result *r) {
  const char *places = plan_places_words(p->arena, r->best);
  if (*places) {
    label(p, "PLACES");
    words(p, places, LABEL);
    newline(p, 0);
  }
  if (!r->crossing) return;
  label(p, "LINK");
  words(p, plan_crossing_words(p->arena, r->crossing), LABEL);
  newline(p, 0);
}

// A row of OTHERS.
typedef struct other {
  const char *what, *step, *why;
} other;
typedef VEC(other) others;

static const char *slower_words(arena *a, const plan_candidate *best, const plan_candidate *c) {
  double more = c->step_s / best->step_s - 1;
  const char *peak = show_bytes(a, (double)c->peak);
  return best->step_high > best->step_s && c->step_s <= best->step_high
             ? arena_printf(a, "+%s, a tie within the error; peak %s", show_percent(a, more), peak)
             : arena_printf(a, "slower by %s; peak %s", show_percent(a, more), peak);
}

static void show_others(page *p, const plan_result *r, const plan_choice *base) {
  arena *a = p->arena;
  others all = {0};
  // The runners-up first; half of the rows are kept for those that lost in another way.
  int more = 0;
  for (int i = 1; r->best && i < r->candidates.n; i++) {
    const plan_candidate *c = r->candidates.at[i];
    if (all.n == MOST_OTHERS / 2) {
      more++;
      continue;
    }
    vec_push(a, &all,
             (other){plan_choice_differs(a, &r->best->choice, &c->choice),
                     show_seconds(a, c->step_s), slower_words(a, r->best, c)});
  }
  for (int i = 0; i < r->rejected.n; i++) {
    const plan_rejected *x = &r->rejected.at[i];
    if (plan_is_shown(r, &x->choice)) continue;
    if (all.n >= MOST_OTHERS) {
      more++;
      continue;
    }
    vec_push(
        a, &all,
        (other){base ? plan_choice_differs(a, base, &x->choice) : plan_choice_text(a, &x->choice),
                x->step_s > 0 ? show_seconds(a, x->step_s) : SHOW_DASH, show_clean(a, x->reason)});
  }
  if (!all.n) return;
  int what = 0, step = 1, most = p->columns * 2 / 5;
  for (int i = 0; i < all.n; i++) {
    int w = show_columns(all.at[i].what), s = show_columns(all.at[i].step);
    if (w <= most && w > what) what = w;
    if (s > step) step = s;
  }
  label(p, "OTHERS");
  for (int i = 0; i < all.n; i++) {
    const other *o = &all.at[i];
    spaces(p, LABEL);
    words(p, o->what, LABEL);
    if (p->used > LABEL + what) newline(p, 0);
    right(p, o->step, LABEL + what + 2 + step);
    int why = LABEL + what + step + 4;
    if (why + show_columns(o->why) > p->columns && p->columns - why < 36) {
      why = LABEL + 2;  // too narrow a column to read
      newline(p, why);
    }
    spaces(p, why);
    words(p, o->why, why);
    newline(p, 0);
  }
  if (more) {
    spaces(p, LABEL);
    put(p, arena_printf(a, "%s %d more: --report or --json", SHOW_MORE, more));
    newline(p, 0);
  }
}

// "41,208 plans, 40,913 pruned by bound, 410 ms", with `considered` behind the plans.
static const char *search_words(arena *a, const plan_search_stats *s, const char *considered) {
  return arena_printf(a, "%s plan%s%s, %s pruned by bound, %s", show_whole(a, s->considered),
                      s->considered == 1 ? "" : "s", considered, show_whole(a, s->pruned),
                      show_seconds(a, s->seconds));
}

static void show_proof(page *p, const plan_result *r) {
  arena *a = p->arena;
  const plan_search_stats *s = &r->search;
  sb t = {.arena = a};
  const char *plans = search_words(a, s, "");
  if (s->optimal)
    sb_printf(&t, "optimal: %s", plans);
  else if (r->best && s->bound_s > 0)
    sb_printf(&t, "within %s of the best (no plan takes less than %s): %s", show_percent(a, s->gap),
              show_seconds(a, s->bound_s), plans);
  else
    sb_printf(&t, "not proved optimal: %s", plans);
  label(p, "PROOF");
  words(p, sb_str(&t), LABEL);
  newline(p, 0);
}

static void show_warnings(page *p, const plan_result *r) {
  for (int i = 0; i < r->warnings.n; i++) {
    label(p, "NOTE");
    words(p, show_clean(p->arena, r->warnings.at[i]), LABEL);
    newline(p, 0);
  }
}

static void show_next(page *p, const plan_result *r) {
  arena *a = p->arena;
  texts t = {0};
  vec_push(a, &t, "--report plan.html");
  for (int i = 0; i < r->rejected.n; i++) {
    // One pin is what people ask for: the search finds the best of the rest, data ranks first.
    const char *pins = plan_choice_pins(a, &r->best->choice, &r->rejected.at[i].choice);
    const char *rest = strchr(pins, ',');
    if (str_starts(pins, "data=") && rest) pins = rest + 1;
    if (!*pins) continue;
    vec_push(a, &t, arena_printf(a, "--why %.*s", (int)strcspn(pins, ","), pins));
    break;
  }
  const char *name = show_clean(a, r->model.name);
  static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789_";
  if (!*name || strlen(name) > 24 || strspn(name, plain) != strlen(name)) name = "best";
  vec_push(a, &t, arena_printf(a, "-o %s.plan, then dsmc build --plan %s.plan", name, name));
  label(p, "NEXT");
  parts(p, &t, LABEL);
}

// ---- nothing fits -------------------------------------------------------------------------------

static void show_needs(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  int order[PLAN_MEMORIES];
  for (int m = 0; m < PLAN_MEMORIES; m++) {
    int at = m;
    for (; at > 0 && c->memory[order[at - 1]] < c->memory[m]; at--) order[at] = order[at - 1];
    order[at] = m;
  }
  texts t = {0};
  for (int i = 0; i < PLAN_MEMORIES; i++)
    if (c->memory[order[i]] > 0)
      vec_push(a, &t,
               arena_printf(a, "%s %s", plan_memory_words((plan_memory)order[i]),
                            show_bytes(a, (double)c->memory[order[i]])));
  label(p, "NEEDS");
  parts(p, &t, LABEL);
}

static void show_fixes(page *p, const plan_result *r) {
  arena *a = p->arena;
  if (!r->fixes.n && !(r->closest && r->search.optimal)) return;
  label(p, "FIXES");
  if (!r->fixes.n) {
    words(p,
          "none: recomputing more, other homes of states, a smaller batch, shorter sequences and "
          "more devices, where the cluster has them, were tried, and none makes it fit: take a "
          "smaller model or devices of more memory",
          LABEL);
    newline(p, 0);
    return;
  }
  put(p, "cheapest changes, each checked to fit:");
  newline(p, 0);
  for (int i = 0; i < r->fixes.n; i++) {
    const plan_fix *f = &r->fixes.at[i];
    spaces(p, LABEL);
    put(p, arena_printf(a, "%d. ", i + 1));
    texts t = {0};
    vec_push(a, &t, show_clean(a, f->change));
    vec_push(a, &t, show_clean(a, f->flags));
    if (f->peak > 0) vec_push(a, &t, arena_printf(a, "peak %s", show_bytes(a, (double)f->peak)));
    if (f->step_s > 0) vec_push(a, &t, arena_printf(a, "step %s", show_seconds(a, f->step_s)));
    parts(p, &t, LABEL + 3);
  }
}

static void show_unfit(page *p, const plan_result *r) {
  arena *a = p->arena;
  const plan_candidate *c = r->closest;
  const char *why = plan_illegal_why(a, r);
  bool stopped = !r->search.optimal;
  label(p, "PLAN");
  if (!c) {
    words(p,
          stopped ? "none so far: the search was stopped at its limit before it met a legal plan"
          : why   ? arena_printf(a, "none: %s", why)
                  : "none: every way to split this job is illegal; the reasons are below",
          LABEL);
    newline(p, 0);
  } else {
    const char *where = c->peak > c->capacity ? "" : " of the host or disk";
    words(p,
          arena_printf(a, "none fits%s: the closest is over by %s%s; a device has %s",
                       stopped ? " so far (the search was stopped at its limit)" : "",
                       show_bytes(a, (double)c->over), where, capacity_words(a, c)),
          LABEL);
    newline(p, 0);
    show_choice(p, "CLOSEST", r, c);
    show_needs(p, c);
    show_memory(p, c);
  }
  show_fixes(p, r);
  if (c || !(why || stopped)) show_others(p, r, c ? &c->choice : NULL);
  show_warnings(p, r);
  label(p, "SEARCH");
  words(p, search_words(a, &r->search, " considered"), LABEL);
  newline(p, 0);
}

void plan_print_text(const plan_result *r, FILE *out, int columns, bool color) {
  arena a;
  arena_init(&a);
  page p = {.arena = &a,
            .out = out,
            .columns = columns < 60    ? 60
                       : columns > 100 ? 100
                                       : columns,
            .color = color};
  headline(&p, r);
  if (r->best) {
    show_choice(&p, "PLAN", r, r->best);
    show_step(&p, r->best);
    show_time(&p, r->best);
    show_memory(&p, r->best);
    show_limit(&p, r->best);
    show_places(&p, r);
    show_others(&p, r, &r->best->choice);
    show_warnings(&p, r);
    show_proof(&p, r);
    show_next(&p, r);
  } else {
    show_unfit(&p, r);
  }
  arena_free(&a);
}
