// What `info` says of a program for several ranks: its mesh, and of each stage of a pipeline the
// arena of its ranks and what they send in a step (ledger.h).
//
//   "ranks": {"count": 4, "mesh": [{"axis": "pipeline", "size": 2}, {"axis": "data", "size": 2}],
//             "sent": {"all_reduce over data": {"bytes": 98304, "exchanges": 28}, ...},
//             "stages": [{"ranks": [0, 1], "arena": 81920, "states": 65536, "weights": 16384,
//                         "optimizer": 49152, "sent": {...}}, ...]}
//
// Bytes and exchanges of `sent` are those of all ranks together, or of all ranks of the stage.
#ifndef DSM_INFO_RANKS_H
#define DSM_INFO_RANKS_H

#include <jansson.h>

#include "runtime/drivers/driver.h"

// *out NULL: the program is for one rank. Opens the programs of all stages one after the other.
status *info_ranks_json(const rt *r, json_t **out) STATUS_MUST_USE;
// The same in words; nothing for one rank.
status *info_ranks_print(const rt *r) STATUS_MUST_USE;

#endif
