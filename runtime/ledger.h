// The byte ledger: what ranks send in a step, by the kind of exchange and the axes it is over.
//
// Two sides keep one: the program, whose records, layers and micro-batches say what will be sent
// (ledger_planned), and the run, which counts what was handed to the engine (ledger_sent). They are
// equal as integers. Bytes count once for each peer; of shorter last pieces only what is there is
// sent, so no padding is in them. Exchanges of one number (losses, norms, counts) stand apart.
//
//   ledger *all = ledger_new(p);
//   ledger_planned(p, rank, all);                       // add a rank's; all NULL: out of memory
//   json_t *j = ledger_json(p, all);
//   free(all);
//
//   "all_reduce over data": {"bytes": 196608, "exchanges": 14}, "scalars": {...}
#ifndef DSM_LEDGER_H
#define DSM_LEDGER_H

#include <jansson.h>

#include "runtime/comm.h"

typedef struct ledger_row {
  int64_t bytes, exchanges;
} ledger_row;

// Rows by kind and axes: row[kind << naxes | axes], behind them one of all that moves one number.
// A flat array of numbers, equally long on all ranks of a run.
typedef struct ledger {
  uint32_t rows;
  ledger_row row[];
} ledger;

// Zeros; NULL: out of memory. The caller frees it. A program of one rank has one row, of nothing.
ledger *ledger_new(const prog *p);
size_t ledger_bytes(const ledger *l);
// Adds what `rank` sends in a call of the first entry for training, by its program.
void ledger_planned(const prog *p, int rank, ledger *l);
// Sets what this rank has sent since the program was opened.
void ledger_sent(const prog *p, const comm *c, ledger *l);
// to += times * from, row by row; both are of ranks of one run.
void ledger_add(ledger *to, const ledger *from, int64_t times);
int64_t ledger_sum(const ledger *l);
// An object with a member for each row that is not empty; NULL: out of memory.
json_t *ledger_json(const prog *p, const ledger *l);
// How often each record runs in a call of the entry: times[p->nexchanges].
void ledger_times(const prog *p, const prog_entry *e, int64_t *times);

#endif
