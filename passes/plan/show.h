// What the printers of plans share: numbers with their units, texts made safe, choices in words.
//
// Every text a plan carries may come from a user's file: show_clean makes it fit to print. Numbers
// have one form everywhere, so that terminal, page and plan file say the same:
//
//   show_seconds(a, 18.04)      "18.0 s"        show_bytes(a, 45.8 * GiB)   "45.8 GiB"
//   show_seconds(a, 0.0042)     "4.2 ms"        show_short(a, 175e3)        "175 k"
//   show_whole(a, 41208)        "41,208"        show_percent(a, 0.896)      "89.6 %"
#ifndef DSM_PLAN_SHOW_H
#define DSM_PLAN_SHOW_H

#include "passes/plan/plan.h"

// One code point of a terminal's and a page's punctuation.
#define SHOW_TIMES "\xc3\x97"     // multiplication sign
#define SHOW_DOT "\xc2\xb7"       // middle dot
#define SHOW_DASH "\xe2\x80\x93"  // en dash, where a table has no value
#define SHOW_MORE "\xe2\x80\xa6"  // ellipsis

// `s` as valid UTF-8 on one line: control characters become spaces, wrong bytes U+FFFD. NULL is "".
const char *show_clean(arena *a, const char *s);
// Code points of a valid text: the columns it takes.
int show_columns(const char *s);
// At most `columns` of it; what is cut off shows as an ellipsis.
const char *show_cut(arena *a, const char *s, int columns);

const char *show_seconds(arena *a, double s);
const char *show_bytes(arena *a, double bytes);
const char *show_short(arena *a, double count);     // "175 k", "1.23 M": three digits
const char *show_quantity(arena *a, double count);  // "174.6 B": one decimal
const char *show_whole(arena *a, int64_t n);        // "41,208"
const char *show_percent(arena *a, double share);   // "89.6 %"

// A unit for a column of numbers whose largest is `most`: what to divide by and what it is called.
typedef struct show_unit {
  double by;
  const char *name;  // "GiB", "MiB", "ms"
} show_unit;
show_unit show_bytes_unit(double most);
show_unit show_seconds_unit(double most);

// The ranks over which the batch is cut: data times expert.
int64_t plan_batch_ranks(const plan_choice *c);
// Layers of a stage, all its chunks together.
int64_t plan_stage_layers(const plan_stage *s);
// Devices of a choice.
int64_t plan_choice_devices(const plan_choice *c);
// plan_choice_text with these marks between factors and between parts.
const char *plan_choice_words(arena *a, const plan_choice *c, const char *times, const char *comma);
// Only what `c` chooses otherwise than `base`: "tensor 8, pipeline 1"; "the same choice" if
// nothing.
const char *plan_choice_differs(arena *a, const plan_choice *base, const plan_choice *c);
// "none", or "none+full" where layers of a stage take two kinds.
const char *plan_recompute_words(arena *a, const plan_choice *c);
bool plan_choice_equal(const plan_choice *x, const plan_choice *y);
// The same as pins: "tensor=8,pipeline=1" ("" when nothing).
const char *plan_choice_pins(arena *a, const plan_choice *base, const plan_choice *c);

// Devices of a cluster in words: "1024 x a100_80g (128 nodes)", with `times` for the x.
const char *plan_cluster_words(arena *a, const cl_cluster *c, const char *times);
// "2.50 Gbit/s"
const char *show_bits(arena *a, double bytes_a_second);
// Where the stages of a plan lie on an unlike cluster, and what spans unlike networks; "" on
// others.
const char *plan_places_words(arena *a, const plan_candidate *c);
// Which link speed makes a reduction across unlike networks pay, in a sentence.
const char *plan_crossing_words(arena *a, const plan_crossing *x);
// Whether a class has seconds, waited for or hidden, beyond the rounding of a difference.
bool plan_takes_time(const plan_candidate *c, plan_time t);
// The seconds of a class that other work hides; 0 when none are.
double plan_hidden(const plan_candidate *c, plan_time t);
// Bytes sent over the axes that a class of time is about, by a rank, in a step, [0] intra; returns
// in how many collectives.
int64_t plan_sent(const plan_candidate *c, plan_time t, double sent[2]);
// The class with the most seconds, and the one after it that is not the same (PLAN_TIMES: none).
plan_time plan_slowest(const plan_candidate *c, plan_time *next);
const char *plan_time_words(plan_time t);      // "tensor traffic", "matrix and vector work"
const char *plan_memory_words(plan_memory m);  // "weights", "gradients", "workspace"
// Whether a choice is one of the candidates, or the closest where nothing fits: what a list of
// rejected plans need not repeat.
bool plan_is_shown(const plan_result *r, const plan_choice *c);
// Why no plan is legal, when that is for one reason; else NULL. (Of a search that was stopped
// nobody knows.)
const char *plan_illegal_why(arena *a, const plan_result *r);
// The stage with the highest peak.
int plan_highest(const plan_candidate *c);

// A run of neighbouring stages that a table shows as one row: what they hold is the same as
// printed in `unit`.
typedef struct plan_rows {
  int first, last;
} plan_rows;
int plan_group_stages(const plan_candidate *c, show_unit unit, plan_rows *out);
// "0-11+embed"
const char *plan_layers_words(arena *a, const plan_candidate *c, plan_rows g);

#endif
