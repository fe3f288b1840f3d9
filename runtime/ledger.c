#include "runtime/ledger.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

ledger *ledger_new(const prog *p) {
  uint32_t rows = ((uint32_t)PROG_EXCHANGES << p->naxes) + 1;
  ledger *l = calloc(1, sizeof *l + rows * sizeof *l->row);
  if (l) l->rows = rows;
  return l;
}

size_t ledger_bytes(const ledger *l) { return sizeof *l + l->rows * sizeof *l->row; }

// A receive sends nothing and a part neither: they have rows, which count exchanges.
static void add(const prog *p, ledger *l, uint32_t index, int64_t bytes, int64_t times) {
  const prog_exchange *x = &p->exchanges[index];
  int64_t n = x->size[0] * x->size[1] * x->size[2] * x->run;
  bool scalar = n == (x->values > 1 ? x->values : 1) && !x->whole;
  ledger_row *r = &l->row[scalar ? l->rows - 1 : x->of << p->naxes | x->axes];
  r->bytes += bytes;
  r->exchanges += times;
}

// Adds what a run executes for micro-batches first .. first + n - 1 of its own; `last`: the last
// micro-batch is among them, in which alone some exchanges run.
static void count_run(const prog *p, const prog_run *run, int64_t n, bool last, int64_t *times) {
  const prog_task *t = &p->tasks[run->task];
  for (uint32_t i = 0; i < t->instrs; i++) {
    const prog_instr *in = &p->instrs[t->first_instr + i];
    if (in->op == RTOP_exchange)
      times[in->kernel] += run->layer_count * (in->flags & PROG_LAST ? last : n);
  }
}

void ledger_times(const prog *p, const prog_entry *e, int64_t *times) {
  int64_t micros = e->batch / e->micro_batch;
  const prog_run *r = &p->runs[e->first_run], *end = r + e->runs;
  memset(times, 0, p->nexchanges * sizeof *times);
  for (; r < end; r++) {
    if (r->kind == PROG_RUN) {
      count_run(p, r, 1, true, times);
      continue;
    }
    for (uint32_t i = 1; i <= r->task; i++) {
      int64_t first = r->micro_first + r[i].micro_add, behind = first + r->micro_count;
      count_run(p, r + i, r->micro_count, first < micros && behind >= micros, times);
    }
    r += r->task;
  }
}

void ledger_planned(const prog *p, int rank, ledger *l) {
  const prog_entry *e = prog_entry_of(p, PROG_TRAIN);
  int64_t *times = calloc(p->nexchanges + 1, sizeof *times);
  if (e && times) {
    ledger_times(p, e, times);
    for (uint32_t i = 0; i < p->nexchanges; i++) {
      const prog_exchange *x = &p->exchanges[i];
      int64_t once =
          exchange_sent_bytes(x, comm_group_size(p, x->axes), comm_place(p, rank, x->axes));
      add(p, l, i, times[i] * once, times[i]);
    }
  }
  free(times);
}

void ledger_sent(const prog *p, const comm *c, ledger *l) {
  memset(l->row, 0, l->rows * sizeof *l->row);
  for (uint32_t i = 0; i < p->nexchanges; i++)
    add(p, l, i, comm_sent_bytes(c, i), comm_times(c, i));
}

void ledger_add(ledger *to, const ledger *from, int64_t times) {
  for (uint32_t i = 0; i < to->rows && i < from->rows; i++) {
    to->row[i].bytes += times * from->row[i].bytes;
    to->row[i].exchanges += times * from->row[i].exchanges;
  }
}

int64_t ledger_sum(const ledger *l) {
  int64_t n = 0;
  for (uint32_t i = 0; i < l->rows; i++) n += l->row[i].bytes;
  return n;
}

// "all_reduce over data, ulysses"
static void name_of(const prog *p, uint32_t row, uint32_t rows, char out[256]) {
  int n = 0;
  if (row + 1 == rows) {
    snprintf(out, 256, "scalars");
    return;
  }
  n = snprintf(out, 256, "%s", exchange_name(row >> p->naxes));
  const char *between = " over ";
  for (uint32_t a = 0; a < p->naxes && n < 255; a++) {
    if (!(row >> a & 1)) continue;
    n += snprintf(out + n, (size_t)(256 - n), "%s%s", between, prog_text(p, p->axes[a].name));
    between = ", ";
  }
}

json_t *ledger_json(const prog *p, const ledger *l) {
  json_t *o = json_object();
  char name[256];
  for (uint32_t i = 0; o && i < l->rows; i++) {
    if (!l->row[i].exchanges) continue;
    name_of(p, i, l->rows, name);
    json_object_set_new(o, name,
                        json_pack("{s:I, s:I}", "bytes", (json_int_t)l->row[i].bytes, "exchanges",
                                  (json_int_t)l->row[i].exchanges));
  }
  return o;
}
