// `dsmc plan --report`: one page that needs nothing but itself. Charts are in report_svg.c.
//
// The order is that of a reader's questions: what was chosen and what limits it, does it fit and
// how close, what happens when, where the time goes, what else there was and why it lost; then what
// was assumed. Every chart has its numbers in or beside it.
#include "passes/plan/report.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "runtime/base/str.h"
#include "runtime/base/version.h"

// Colours of Okabe and Ito, which people of any colour vision tell apart; text on a bar is dark or
// light as the bar needs.
static const char style[] =
    ":root{--paper:#fff;--ink:#1c2128;--soft:#59636e;--line:#d8dee4;--panel:#f5f7f9;--bad:#b3261e;"
    "--blue:#0072b2;--sky:#56b4e9;--green:#009e73;--orange:#e69f00;--red:#d55e00;--pink:#cc79a7;"
    "--yellow:#e5d93a;--brown:#8a5a2b;--grey:#9aa4ae;--beyond:#b3261e14}\n"
    "@media (prefers-color-scheme:dark){:root{--paper:#11161c;--ink:#e4e9ee;--soft:#9ba6b2;"
    "--line:#2d353e;--panel:#1a2028;--bad:#ff8a80;--blue:#2b7bc4;--sky:#86ccf3;--brown:#b98a55;--"
    "grey:#7d8894;"
    "--beyond:#ff8a8018}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--paper);color:var(--ink);"
    "font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,'DejaVu Sans',"
    "sans-serif;font-variant-numeric:tabular-nums}\n"
    "main{max-width:1000px;margin:0 auto;padding:28px 20px 60px}\n"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px;overflow-wrap:anywhere}\n"
    "h2{font-size:18px;margin:44px 0 4px;line-height:1.3}\n"
    "p{margin:4px 0 10px}.sub,.note,.key{color:var(--soft);overflow-wrap:anywhere}"
    ".note,.key{font-size:13.5px}\n"
    ".tiles{display:grid;grid-template-columns:1.9fr 1.25fr 1.1fr 1.3fr;gap:12px;margin:20px 0 "
    "8px}\n"
    "@media screen and (max-width:760px){.tiles{grid-template-columns:1fr "
    "1fr}section{overflow-x:auto}svg{min-width:680px}}\n"
    ".tile{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px "
    "14px;"
    "overflow-wrap:anywhere}\n"
    ".tile b{display:block;font-size:20px;line-height:1.3;margin:2px 0}"
    ".tile span{color:var(--soft);font-size:13px;display:block}\n"
    ".tile .head{font-size:12.5px}\n"
    ".bad{border-left:5px solid var(--bad);padding:2px 14px;margin:18px 0}.bad "
    "b{color:var(--bad)}\n"
    "svg{display:block;width:100%;height:auto;margin:10px 0 4px}\n"
    "svg text{font-size:12.5px;fill:var(--ink)}svg .soft{fill:var(--soft)}svg "
    ".tiny{font-size:9.5px;"
    "fill:#10161c}svg .over{fill:var(--bad);font-weight:600}svg .strong{font-weight:700}\n"
    ".grid{stroke:var(--line);stroke-width:1}.edge{stroke:var(--ink);stroke-width:1.5;"
    "stroke-dasharray:5 4}\n"
    ".m0{fill:var(--blue)}.m1{fill:var(--sky)}.m2{fill:var(--green)}.m3{fill:var(--orange)}"
    ".m4{fill:var(--pink)}\n"
    ".t0{fill:var(--blue)}.t1{fill:var(--orange)}.t2{fill:var(--yellow)}.t3{fill:var(--pink)}"
    ".t4{fill:var(--sky)}.t5{fill:var(--green)}.t6{fill:var(--red)}.t7{fill:var(--brown)}"
    ".t8{fill:var(--grey)}\n"
    "svg .in{fill:#10161c}svg .n0,svg .o0,svg .n2,svg .o5,svg .o6,svg .o7{fill:#fff}\n"
    ".pf{fill:var(--sky)}.pb{fill:var(--orange)}.pw{fill:var(--green)}.pa{fill:var(--grey)}"
    ".c1{opacity:.84}.c2{opacity:.68}.c3{opacity:.54}\n"
    "@media (prefers-color-scheme:dark){.c1{opacity:.92}.c2{opacity:.83}.c3{opacity:.74}}\n"
    ".front{fill:none;stroke:var(--green);stroke-width:2}.beyond{fill:var(--beyond)}\n"
    ".best{fill:var(--blue);stroke:var(--ink);stroke-width:1.5}.fits{fill:var(--sky);"
    "stroke:var(--ink);stroke-width:.8}.misfit{fill:none;stroke:var(--bad);stroke-width:1.8}"
    ".cross{fill:none;stroke:var(--bad);stroke-width:2}\n"
    "i{display:inline-block;width:12px;height:12px;border-radius:2px;vertical-align:-1px;"
    "margin:0 3px 0 8px}td i,.key i:first-child{margin-left:0}\n"
    "i.m0,i.t0{background:var(--blue)}i.m1,i.t4,i.pf{background:var(--sky)}i.m2,i.t5,i.pw"
    "{background:var(--green)}i.m3,i.t1,i.pb{background:var(--orange)}i.m4,i.t3{background:var(--"
    "pink)"
    "}i.t2{background:var(--yellow)}i.t6{background:var(--red)}i.t7{background:var(--brown)}i.t8,i."
    "pa"
    "{background:var(--grey)}\n"
    ".wide{overflow-x:auto}.narrow{max-width:560px}table{border-collapse:collapse;width:100%;font-"
    "size:13.5px;margin:8px "
    "0}\n"
    "th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;"
    "text-align:left}th{color:var(--soft);font-weight:600;white-space:nowrap;vertical-align:bottom}"
    "\n"
    ".r{text-align:right;white-space:nowrap}.w{white-space:nowrap}td.t{overflow-wrap:anywhere;min-"
    "width"
    ":12em}tr.sum td{font-weight:600}tr.first td{font-weight:600}\n"
    "code{font:12.5px/1.5 ui-monospace,SFMono-Regular,Consolas,'DejaVu Sans Mono',monospace;"
    "overflow-wrap:anywhere}\n"
    "footer{margin-top:48px;color:var(--soft);font-size:13px}\n"
    "@media print{*{-webkit-print-color-adjust:exact;print-color-adjust:exact}body{font-size:11pt}"
    "main{max-width:none;padding:0 2px}section,.tiles{break-inside:avoid}.long{break-inside:auto}"
    "tr{break-inside:avoid}h2{break-after:avoid;margin-top:26px}.wide{overflow:visible}.tiles{grid-"
    "template-columns:1fr 1fr}table{font-size:8.5pt}th,td{padding-right:6px}"
    "@page{margin:14mm}}\n"
    "@media print and (prefers-color-scheme:dark){:root{--paper:#fff;--ink:#1c2128;--soft:#59636e;"
    "--line:#d8dee4;--panel:#f5f7f9;--bad:#b3261e}}\n";

#define FIXED "\xc2\xa0"  // a space at which no line breaks

// ---- pieces -------------------------------------------------------------------------------------

const char *html_escape(arena *a, const char *s) {
  sb out = {.arena = a};
  for (const char *p = show_clean(a, s); *p; p++) switch (*p) {
      case '<': sb_puts(&out, "&lt;"); break;
      case '>': sb_puts(&out, "&gt;"); break;
      case '&': sb_puts(&out, "&amp;"); break;
      case '"': sb_puts(&out, "&quot;"); break;
      case '\'': sb_puts(&out, "&#39;"); break;
      default: sb_put(&out, *p);
    }
  return sb_str(&out);
}

typedef struct page {
  arena *arena;
  FILE *out;
  const plan_result *r;
  const plan_candidate *c;  // what is drawn: the best, or the closest
} page;

static void say(page *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void say(page *p, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vfprintf(p->out, fmt, ap);
  va_end(ap);
}

static const char *esc(page *p, const char *s) { return html_escape(p->arena, s); }

static void section(page *p, const char *title, bool is_long) {
  say(p, "<section%s>\n<h2>%s</h2>\n", is_long ? " class=\"long\"" : "", title);
}

// A row of heads: `heads` with a blank in front of those of columns of numbers.
static void table_head(page *p, const char *const *heads, int n) {
  say(p, "<div class=\"%s\"><table>\n<tr>", n > 2 ? "wide" : "narrow");
  for (int i = 0; i < n; i++)
    say(p, *heads[i] == ' ' ? "<th class=\"r\">%s</th>" : "<th>%s</th>",
        heads[i] + (*heads[i] == ' '));
  say(p, "</tr>\n");
}

static void table_end(page *p) { say(p, "</table></div>\n"); }

static void number(page *p, const char *text) { say(p, "<td class=\"r\">%s</td>", text); }
static void cell(page *p, const char *text) { say(p, "<td class=\"t\">%s</td>", esc(p, text)); }

static const char *in_unit(page *p, double bytes, show_unit u) {
  return bytes == 0 ? "0" : arena_printf(p->arena, "%.1f", bytes / u.by);
}

// ---- headline -----------------------------------------------------------------------------------

static void tile(page *p, const char *head, const char *big, const char *small, const char *more) {
  say(p, "<div class=\"tile\"><span class=\"head\">%s</span><b>%s</b><span>%s</span>", head, big,
      small);
  if (more) say(p, "<span>%s</span>", more);
  say(p, "</div>\n");
}

// "data 32 × pipeline 8 × tensor 4", and the rest of the choice.
static void split_tile(page *p) {
  arena *a = p->arena;
  const char *all = plan_choice_words(a, &p->c->choice, " " SHOW_TIMES " ", " " SHOW_DOT " ");
  const char *rest = strstr(all, " " SHOW_DOT " ");
  const char *mesh = rest ? arena_strndup(a, all, (size_t)(rest - all)) : all;
  const plan_choice *k = &p->c->choice;
  tile(p, "Split", mesh, rest ? rest + strlen(" " SHOW_DOT " ") : "",
       arena_printf(
           a, "%s sequences = %s data-parallel " SHOW_TIMES " %s micro-batches " SHOW_TIMES " %s",
           show_whole(a, p->r->model.batch), show_whole(a, plan_batch_ranks(k)),
           show_whole(a, k->micro_batches), show_whole(a, k->micro_batch)));
}

static void headline(page *p) {
  arena *a = p->arena;
  const plan_result *r = p->r;
  const plan_model *m = &r->model;
  say(p, "<header>\n<h1>%s on %s</h1>\n", esc(p, m->name),
      esc(p, plan_cluster_words(a, r->cluster, SHOW_TIMES)));
  say(p,
      "<p class=\"sub\">%s parameters " SHOW_DOT " %s layers " SHOW_DOT
      " batch %s sequences, %s tokens a step " SHOW_DOT " %s " SHOW_DOT " cluster %s " SHOW_DOT
      " from %s</p>\n",
      show_quantity(a, m->parameters), show_whole(a, m->layers), show_whole(a, m->batch),
      show_short(a, m->tokens), esc(p, m->precision), esc(p, r->cluster->name), esc(p, r->source));
  const plan_candidate *c = p->c;
  const char *why = plan_illegal_why(a, r);
  if (!r->best)
    say(p, "<div class=\"bad\"><p><b>No plan fits%s.</b> %s</p></div>\n",
        r->search.optimal ? "" : " of those met before the search was stopped at its limit",
        c                   ? arena_printf(a, "The closest, shown below, is over by %s%s.",
                                           show_bytes(a, (double)c->over),
                         c->peak > c->capacity ? "" : " of the host or disk")
        : why               ? arena_printf(a, "None is legal: %s.", esc(p, why))
        : r->search.optimal ? "Every way to split this job is illegal; the reasons are below."
                            : "");
  if (c) {
    say(p, "<div class=\"tiles\">\n");
    split_tile(p);
    show_unit u = show_seconds_unit(c->step_s);
    tile(p, "Step", show_seconds(a, c->step_s),
         arena_printf(a, "%.1f to %.1f %s (80" FIXED "%%)", c->step_low / u.by, c->step_high / u.by,
                      u.name),
         arena_printf(
             a, "%s" FIXED "tokens/s, %.3g" FIXED "TFLOP/s per device, MFU" FIXED "%.1f" FIXED "%%",
             show_short(a, c->tokens_per_s), c->tflops_per_device, 100 * c->mfu));
    double full = c->capacity > 0 ? (double)c->peak / (double)c->capacity : 0;
    tile(p, "Peak memory", show_bytes(a, (double)c->peak),
         arena_printf(a, "of %s, %s", show_bytes(a, (double)c->capacity), show_percent(a, full)),
         arena_printf(a, "stage %d%s%s", plan_highest(c), c->peak_at && *c->peak_at ? ": " : "",
                      esc(p, show_cut(a, show_clean(a, c->peak_at), 60))));
    plan_time next;
    plan_time first = plan_slowest(c, &next);
    double whole = c->step_s > 0 ? c->step_s : 1;
    tile(p, "Bottleneck", plan_time_words(first),
         arena_printf(a, "%s of the step", show_percent(a, c->time[first] / whole)),
         next < PLAN_TIMES ? arena_printf(a, "next: %s, %s", plan_time_words(next),
                                          show_percent(a, c->time[next] / whole))
                           : NULL);
    say(p, "</div>\n<p class=\"note\">As flags: <code>%s</code></p>\n",
        esc(p, plan_choice_flags(a, &c->choice)));
  }
  const char *places = r->best ? plan_places_words(a, r->best) : "";
  if (*places) say(p, "<p class=\"note\">Places: %s</p>\n", esc(p, places));
  if (r->crossing)
    say(p, "<p class=\"note\">Link: %s</p>\n", esc(p, plan_crossing_words(a, r->crossing)));
  for (int i = 0; i < r->warnings.n; i++)
    say(p, "<p class=\"note\">Note: %s</p>\n", esc(p, r->warnings.at[i]));
  say(p, "</header>\n");
}

static void fixes(page *p) {
  const plan_result *r = p->r;
  if (!r->fixes.n) return;
  section(p, "Cheapest changes that would fit, each checked", false);
  static const char *const heads[] = {"change", "flags", " peak", " step"};
  table_head(p, heads, 4);
  for (int i = 0; i < r->fixes.n; i++) {
    const plan_fix *f = &r->fixes.at[i];
    say(p, "<tr>");
    cell(p, f->change);
    say(p, "<td class=\"t\"><code>%s</code></td>", esc(p, f->flags));
    number(p, show_bytes(p->arena, (double)f->peak));
    number(p, show_seconds(p->arena, f->step_s));
    say(p, "</tr>\n");
  }
  table_end(p);
  say(p, "</section>\n");
}

// ---- memory -------------------------------------------------------------------------------------

static void memory(page *p) {
  arena *a = p->arena;
  const plan_candidate *c = p->c;
  section(p, "Memory per device, by stage and class, against the capacity", true);
  svg_memory(a, c, p->out);
  say(p, "<p class=\"key\">");
  for (int m = 0; m < PLAN_MEMORIES; m++)
    say(p, "<i class=\"m%d\"></i> %s", m, plan_memory_words((plan_memory)m));
  say(p, "</p>\n");
  show_unit u = show_bytes_unit((double)c->peak);
  plan_rows *g = arena_new(a, plan_rows, c->nstages);
  int n = plan_group_stages(c, u, g);
  bool host = false, disk = false;
  for (int i = 0; i < c->nstages; i++) {
    host = host || c->stage[i].host > 0;
    disk = disk || c->stage[i].disk > 0;
  }
  const char *heads[16] = {"stage",      "layers",       " weights", " grads",
                           " optimizer", " activations", " work",    " peak"};
  int columns = 8;
  if (host) heads[columns++] = " host";
  if (disk) heads[columns++] = " disk";
  heads[columns++] = " params";
  heads[columns++] = " forward";
  heads[columns++] = " backward";
  heads[columns++] = " in flight";
  table_head(p, heads, columns);
  for (int i = 0; i < n; i++) {
    if (n > REPORT_STAGES && i == REPORT_STAGES / 2) {
      i = n - REPORT_STAGES / 2 - 1;
      say(p, "<tr><td colspan=\"%d\">%s %d rows between: plan --json</td></tr>\n", columns,
          SHOW_MORE, n - REPORT_STAGES);
      continue;
    }
    const plan_stage *s = &c->stage[g[i].first], *last = &c->stage[g[i].last];
    say(p, "<tr><td class=\"w\">%d", g[i].first);
    if (g[i].last > g[i].first) say(p, "\xe2\x80\x93%d", g[i].last);
    say(p, "</td><td class=\"w\">%s</td>", esc(p, plan_layers_words(a, c, g[i])));
    for (int m = 0; m < PLAN_MEMORIES; m++) number(p, in_unit(p, (double)s->memory[m], u));
    number(p, in_unit(p, (double)s->peak, u));
    if (host) number(p, in_unit(p, (double)s->host, u));
    if (disk) number(p, in_unit(p, (double)s->disk, u));
    number(p, show_quantity(a, s->parameters));
    number(p, s->forward_s > 0 ? show_seconds(a, s->forward_s) : SHOW_DASH);
    number(p, s->backward_s > 0 ? show_seconds(a, s->backward_s) : SHOW_DASH);
    number(p, s->stash == last->stash
                  ? show_whole(a, s->stash)
                  : arena_printf(a, "%" PRId64 "\xe2\x80\x93%" PRId64, s->stash, last->stash));
    say(p, "</tr>\n");
  }
  table_end(p);
  say(p,
      "<p class=\"note\">Bytes in %s. Capacity is the device's memory less %s reserved for driver, "
      "code and communication buffers. Forward and backward are of one micro-batch; in flight: "
      "micro-batches whose activations a stage holds at most.</p>\n</section>\n",
      u.name, show_bytes(a, (double)c->reserve));
}

// ---- time ---------------------------------------------------------------------------------------

static void timeline(page *p) {
  if (p->c->choice.size[PLAN_PIPELINE] < 2) return;
  section(p, "What each pipeline stage does during a step", false);
  svg_timeline(p->arena, p->c, p->out);
  say(p, "</section>\n");
}

static void where_time_goes(page *p) {
  arena *a = p->arena;
  const plan_candidate *c = p->c;
  section(p, "Where the time of a step goes", false);
  svg_time(a, c, p->out);
  static const char *const heads[] = {"",
                                      " exposed",
                                      " share",
                                      " busy",
                                      " hidden",
                                      " sent inside nodes",
                                      " sent between nodes",
                                      " collectives"};
  table_head(p, heads, 8);
  show_unit u = show_seconds_unit(c->step_s);
  double sum = 0;
  for (int i = 0; i < PLAN_TIMES; i++) sum += c->time[i];
  for (int i = 0; i < PLAN_TIMES; i++) {
    plan_time t = (plan_time)i;
    double sent[2];
    int64_t calls = plan_sent(c, t, sent);
    double busy = t == PLAN_T_BUBBLE ? 0 : c->busy[t];
    if (!plan_takes_time(c, t) && sent[0] + sent[1] <= 0) continue;
    say(p, "<tr><td class=\"w\"><i class=\"t%d\"></i> %s</td>", i, plan_time_name(t));
    number(p, arena_printf(a, "%.2f %s", c->time[t] / u.by, u.name));
    number(p, show_percent(a, sum > 0 ? c->time[t] / sum : 0));
    number(p, busy > 0 ? arena_printf(a, "%.2f %s", busy / u.by, u.name) : SHOW_DASH);
    double hidden = plan_hidden(c, t);
    number(p, busy > 0 ? show_percent(a, hidden / busy) : SHOW_DASH);
    number(p, sent[0] > 0 ? show_bytes(a, sent[0]) : SHOW_DASH);
    number(p, sent[1] > 0 ? show_bytes(a, sent[1]) : SHOW_DASH);
    number(p, calls ? show_whole(a, calls) : SHOW_DASH);
    say(p, "</tr>\n");
  }
  say(p, "<tr class=\"sum\"><td>step</td>");
  number(p, arena_printf(a, "%.2f %s", sum / u.by, u.name));
  number(p, show_percent(a, 1));
  say(p, "<td colspan=\"5\"></td></tr>\n");
  table_end(p);
  say(p,
      "<p class=\"note\">Exposed: seconds that stage %" PRId64
      ", which sets the pace, waits for it. Busy: seconds the engine or link works, hidden work "
      "included. Bytes and collectives are of one rank and step, the rank that sends most.</p>\n",
      c->critical);
  bool any = false;
  for (int k = 0; k < CL_COLLECTIVES; k++) {
    if (!c->tensor_calls_layer[k]) continue;
    say(p, any ? ", "
               : "<p class=\"note\">Of these a layer makes, forward and backward, over tensor: ");
    say(p, "%" PRId64 " " SHOW_TIMES " %s", c->tensor_calls_layer[k],
        cl_collective_name((cl_collective)k));
    any = true;
  }
  say(p, any ? ".</p>\n</section>\n" : "</section>\n");
}

// ---- other plans --------------------------------------------------------------------------------

static const char *tooltip(page *p, int n, const plan_choice *c, double bytes, double tokens) {
  arena *a = p->arena;
  return arena_printf(
      a, "%d: %s; %s, %s", n, html_escape(a, plan_choice_text(a, c)),
      bytes > 0 ? show_bytes(a, bytes) : "memory not worked out",
      tokens > 0 ? arena_printf(a, "%s tokens/s", show_short(a, tokens)) : "speed not worked out");
}

// A plan of the list: one that was worked out whole, or one that was turned down.
typedef struct listed {
  report_point at;
  const plan_choice *choice;
  double step;
  const char *why;
} listed;
typedef VEC(listed) listing;

static const char *against_best(page *p, const plan_candidate *c) {
  arena *a = p->arena;
  const plan_candidate *best = p->r->best;
  if (c == best) return "chosen";
  if (!best) return arena_printf(a, "closest, over by %s", show_bytes(a, (double)c->over));
  double more = c->step_s / best->step_s - 1;
  return c->step_s <= best->step_high
             ? arena_printf(a, "slower by %s, a tie within the error", show_percent(a, more))
             : arena_printf(a, "slower by %s", show_percent(a, more));
}

static void list_plan(page *p, listing *all, listed x) {
  x.at.number = all->n + 1;
  x.at.text = tooltip(p, x.at.number, x.choice, x.at.bytes, x.at.tokens_per_s);
  vec_push(p->arena, all, x);
}

static void list_candidate(page *p, listing *all, const plan_candidate *c) {
  list_plan(p, all,
            (listed){.at = {.bytes = (double)c->peak,
                            .tokens_per_s = c->tokens_per_s,
                            .fits = c->over <= 0,
                            .best = c == p->r->best},
                     .choice = &c->choice,
                     .step = c->step_s,
                     .why = against_best(p, c)});
}

static void list_all(page *p, listing *all) {
  const plan_result *r = p->r;
  for (int i = 0; i < r->candidates.n; i++) list_candidate(p, all, r->candidates.at[i]);
  if (!r->best && r->closest) list_candidate(p, all, r->closest);
  for (int i = 0; i < r->rejected.n; i++) {
    const plan_rejected *x = &r->rejected.at[i];
    if (plan_is_shown(r, &x->choice)) continue;
    list_plan(p, all,
              (listed){.at = {.bytes = (double)x->peak,
                              .tokens_per_s = x->step_s > 0 ? r->model.tokens / x->step_s : 0,
                              .fits = x->over <= 0},
                       .choice = &x->choice,
                       .step = x->step_s,
                       .why = x->reason});
  }
}

static void others(page *p) {
  arena *a = p->arena;
  listing all = {0};
  list_all(p, &all);
  if (all.n < 2) return;
  report_points points = {0};
  int drawn = 0, timed = 0;
  for (int i = 0; i < all.n; i++) {
    vec_push(a, &points, all.at[i].at);
    drawn += all.at[i].at.bytes > 0;
    timed += all.at[i].at.bytes > 0 && all.at[i].at.tokens_per_s > 0;
  }
  report_mark_front(&points);
  section(p, "Throughput against memory: the plans considered, and why the others lost", true);
  if (p->c && drawn > 1 && timed) {
    svg_throughput(a, &points, (double)p->c->capacity, p->out);
    say(p,
        "<p class=\"note\">Numbers are rows of the table. %sShaded: beyond the capacity. A cross "
        "on the axis does not fit, and its speed was not worked out; what lies far out stands at "
        "the "
        "edge.</p>\n",
        p->r->best ? "Large: chosen. Green line: the front; no plan that fits is both smaller and "
                     "faster. "
                   : "");
  }
  static const char *const heads[] = {" #", "plan", " step", " tokens/s", " peak", "why"};
  table_head(p, heads, 6);
  for (int i = 0; i < all.n; i++) {
    const listed *x = &all.at[i];
    say(p, x->at.best ? "<tr class=\"first\">" : "<tr>");
    number(p, arena_printf(a, "%d", x->at.number));
    cell(p, plan_choice_words(a, x->choice, " " SHOW_TIMES " ", " " SHOW_DOT " "));
    number(p, x->step > 0 ? show_seconds(a, x->step) : SHOW_DASH);
    number(p, x->at.tokens_per_s > 0 ? show_short(a, x->at.tokens_per_s) : SHOW_DASH);
    number(p, x->at.bytes > 0 ? show_bytes(a, x->at.bytes) : SHOW_DASH);
    cell(p, x->why);
    say(p, "</tr>\n");
  }
  table_end(p);
  if (p->r->rejected.n)
    say(p,
        "<p class=\"note\">Plans of another kind were looked for near the best one, and better "
        "ones of their kinds may exist: <code>--why zero=0</code>, say, searches for it.</p>\n");
  say(p, "</section>\n");
}

// ---- the rest -----------------------------------------------------------------------------------

static void placement(page *p) {
  const plan_candidate *c = p->c;
  if (!c->ncuts) return;
  section(p, "How values and weights are cut", true);
  static const char *const heads[] = {"value or weight", "index / axis"};
  table_head(p, heads, 2);
  for (int i = 0; i < c->ncuts; i++)
    say(p, "<tr><td class=\"t\"><code>%s</code></td><td class=\"t\"><code>%s</code></td></tr>\n",
        esc(p, c->cut[i].name), esc(p, c->cut[i].cut));
  table_end(p);
  say(p,
      "<p class=\"note\">Found from the index rules of the ops, not from names.</p>\n</section>\n");
}

static void assumptions(page *p) {
  const plan_result *r = p->r;
  if (!r->assumptions.n) return;
  section(p, "What was assumed, and from where", true);
  static const char *const heads[] = {"what", "value", "source"};
  table_head(p, heads, 3);
  for (int i = 0; i < r->assumptions.n; i++) {
    say(p, "<tr>");
    cell(p, r->assumptions.at[i].what);
    cell(p, r->assumptions.at[i].value);
    cell(p, r->assumptions.at[i].source);
    say(p, "</tr>\n");
  }
  table_end(p);
  say(p, "</section>\n");
}

static void settings(page *p) {
  const plan_result *r = p->r;
  if (!r->settings.n) return;
  section(p, "Settings of the job", true);
  static const char *const heads[] = {"setting", "value"};
  table_head(p, heads, 2);
  for (int i = 0; i < r->settings.n; i++)
    say(p, "<tr><td class=\"t\"><code>%s</code></td><td class=\"t\"><code>%s</code></td></tr>\n",
        esc(p, r->settings.at[i].name), esc(p, r->settings.at[i].value));
  table_end(p);
  say(p, "</section>\n");
}

static void fact(page *p, const char *what, const char *value) {
  say(p, "<tr><td>%s</td><td class=\"r\">%s</td></tr>\n", what, value);
}

static void search(page *p) {
  arena *a = p->arena;
  const plan_search_stats *s = &p->r->search;
  section(p, "How the plan was found", false);
  say(p, "<p>%s</p>\n",
      !p->r->best      ? s->optimal ? "The whole space was searched; nothing in it fits."
                                    : "The search was stopped before its end."
      : s->optimal     ? "Proved optimal: within the model, no point of the space is better."
      : s->bound_s > 0 ? arena_printf(a, "Within %s of the best: no plan takes less than %s.",
                                      show_percent(a, s->gap), show_seconds(a, s->bound_s))
                       : "Not proved optimal.");
  static const char *const heads[] = {"", " "};
  table_head(p, heads, 2);
  fact(p, "points of the space", show_whole(a, s->points));
  if (s->predicted_points)
    fact(p, "predicted before the search", show_whole(a, s->predicted_points));
  fact(p, "legal ones, considered", show_whole(a, s->considered));
  fact(p, "of these pruned by a bound", show_whole(a, s->pruned));
  fact(p, "block searches", show_whole(a, s->fronts));
  if (s->predicted_fronts) fact(p, "predicted", show_whole(a, s->predicted_fronts));
  fact(p, "time", show_seconds(a, s->seconds));
  table_end(p);
  say(p, "</section>\n");
}

void plan_print_html(const plan_result *r, FILE *out) {
  arena a;
  arena_init(&a);
  page p = {.arena = &a, .out = out, .r = r, .c = r->best ? r->best : r->closest};
  say(&p,
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
      "<meta name=\"color-scheme\" content=\"light dark\"/>\n"
      "<title>Plan of %s on %s</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n",
      esc(&p, r->model.name), esc(&p, r->cluster->name), style);
  headline(&p);
  fixes(&p);
  if (p.c) {
    memory(&p);
    timeline(&p);
    where_time_goes(&p);
  }
  others(&p);
  if (p.c) placement(&p);
  assumptions(&p);
  settings(&p);
  search(&p);
  say(&p,
      "<footer>dsmc %s " SHOW_DOT " %s, digest %016" PRIx64 " " SHOW_DOT
      " cluster digest %016" PRIx64 " " SHOW_DOT
      " predictions of a model, not measurements</footer>\n",
      DSMC_VERSION, esc(&p, r->source), r->source_digest, r->cluster->digest);
  say(&p, "</main>\n</body>\n</html>\n");
  arena_free(&a);
}
