// Packing: offsets for buffers whose lifetimes are known, in as little memory as possible.
//
// The memory planner by itself, behind `dsmc pack`. It knows nothing of programs: a buffer is a
// half-open lifetime [lower, upper) in any unit of time and a size in bytes. Two buffers whose
// lifetimes meet must not share a byte; the *height* is the highest byte used.
//
//   pack_buffer b[] = {{0, 2, 4}, {1, 3, 2}, {2, 4, 4}};   // lower, upper, size
//   pack_result r;
//   pack_solve(scratch, b, 3, &(pack_options){.seconds = 10}, &r);
//   // r.height 6, r.load 6, r.optimal; b[0].offset 0, b[1].offset 4, b[2].offset 0
//
//   6 |   1 1
//   4 | 0 0 2 2        bytes over time: 0 and 2 never live together, 1 lives beside both
//     | 0 0 2 2
//   0 +--------
//
// The largest sum of sizes alive at one time, the *load*, is a lower bound on the height, and often
// the height itself. Deciding whether a height can be reached is NP-complete (Garey and Johnson,
// problem SR2, "dynamic storage allocation"), so `pack_solve` is a search with a limit. Its ideas:
//
// - Solutions may be pushed down: every buffer lies on offset 0 or on another one. That the search
//   may place buffers from below is from Moffitt, "MiniMalloc" (ASPLOS 2023), as is solving parts
//   that time separates by themselves.
// - At one time buffers are a sequence, as jobs are on a machine. The bound is Jackson's preemptive
//   one for heads, and a buffer that must be first there, or cannot be, raises heads (Carlier and
//   Pinson, "An algorithm for solving the job-shop problem", 1989).
// - Subproblems that were refuted are remembered, over all restarts, by a 128-bit hash.
// - Run times have heavy tails, so rules to branch by take turns with limits that grow (Gomes,
//   Selman, Kautz, "Boosting combinatorial search through randomization", 1998).
//
// Results are the same on every run, unless the limit in seconds cuts the search. "Optimal" and
// "nothing lower than `floor`" are proofs up to a collision of those hashes (below 1e-20 for the
// nodes that a day makes).
//
// Ownership: all memory is the caller's; scratch is not needed after the call. Nothing can fail:
// the caller has checked lower < upper, lower >= 0, size >= 0 and that the sizes add up to at most
// PACK_MOST_BYTES.
#ifndef DSM_PACK_H
#define DSM_PACK_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"

// Sums of sizes, doubled, stay inside 64 bits.
#define PACK_MOST_BYTES (INT64_MAX / 8)
// Beyond this many buffers that overlap in one chain there is no search, only heuristics.
#define PACK_SEARCH_MOST 2048

typedef struct pack_buffer {
  int64_t lower, upper, size;  // alive in [lower, upper); bytes
  int64_t offset;              // the answer
} pack_buffer;

typedef struct pack_options {
  int64_t capacity;  // bytes; 0: none. Fitting into it comes first; then it looks on only briefly
  double seconds;    // longest time; 0: heuristics only
} pack_options;

typedef struct pack_result {
  int64_t height;  // of the packing found
  int64_t load;    // largest sum of sizes alive at one time
  int64_t floor;   // proved: no packing is lower than this; load <= floor <= height
  bool optimal;    // height == floor
  bool gave_up;    // the limit in seconds ended the search
  double seconds;
  uint64_t nodes;  // of the search
} pack_result;

// Fills in the offsets and *out.
void pack_solve(arena *scratch, pack_buffer *b, int n, const pack_options *o, pack_result *out);

// ---- pack_fit.c ---------------------------------------------------------------------------------

// The largest sum of sizes alive at one time.
int64_t pack_load(arena *scratch, const pack_buffer *b, int n);
// In the order of birth, each at the lowest offset free at that time. Quick for any number of
// buffers. Returns the height.
int64_t pack_by_time(arena *scratch, pack_buffer *b, int n);
// In the given order, each at the lowest offset free during its life. Returns the height, or -1
// when the clock (clock_s) passed `deadline`, and offsets are then of no use.
int64_t pack_by_order(arena *scratch, pack_buffer *b, int n, const int *order, double deadline);
// An independent look: whether no two buffers share a byte. Otherwise *x and *y are two that do
// (the same one twice: its offset is negative).
bool pack_check(arena *scratch, const pack_buffer *b, int n, int *x, int *y);

#endif
