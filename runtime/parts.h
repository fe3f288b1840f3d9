// What part of a state a rank has: which elements of the whole its own ones are.
//
// A prog_state says how it is cut for all ranks at once (prog_cut); a `part` is that for one rank,
// or read from a checkpoint, where the rank that had it is gone. Elements are numbered row-major:
// *local* ones as they lie in memory, *global* ones in the whole slice. Both run in the same order,
// so padding, which belongs to no global element, lies behind all others:
//
//   local    0 .. part_elements-1         those that are of the whole
//            part_elements .. t.held-1    padding
//
// An example: [4, 6] with its columns on 2 ranks (block 3, whole 24), each half (12) once more on 5
// ranks (block 3, whole 12). Rank (1, 0) has local 0 1 2 = global 3 4 5; rank (1, 4) has only
// padding.
//
//   part t = part_of(p, rank, state);
//   part_run r;
//   for (int64_t at = 0; part_next(&t, &at, &r);)
//     memcpy(mine + r.local, all + r.global, (size_t)r.n * sizeof *mine);
#ifndef DSM_PARTS_H
#define DSM_PARTS_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/prog.h"

// Part `place` of `parts`, as prog_cut says; cuts that leave all elements where they are are
// dropped.
typedef struct part_cut {
  int64_t parts, place, block, whole;
} part_cut;

typedef struct part {
  int64_t whole;  // elements of the whole
  int64_t held;   // elements there is room for, padding included
  int ncuts;
  part_cut cut[PROG_MAX_CUTS];
} part;

// `n` elements side by side in both numberings.
typedef struct part_run {
  int64_t local, global, n;
} part_run;

// What `rank` has of one slice of a state of the checked program.
part part_of(const prog *p, int rank, const prog_state *s);
// All of `whole` elements.
part part_all(int64_t whole);

// Elements that are not padding.
int64_t part_elements(const part *t);
// The global number of local element i, or -1 when that is padding.
int64_t part_global(const part *t, int64_t i);
// The first local element whose global number is at least `global`; part_elements when none is.
int64_t part_seek(const part *t, int64_t global);
// The run that begins at local element *at (*at is moved behind it), as long as can be. False:
// there is nothing but padding.
bool part_next(const part *t, int64_t *at, part_run *out);
// The next run of elements that both have, from local elements *at of `a` and *bt of `b` on (both
// are moved behind it). `out->local` is that of `a`, *b_local that of `b`.
bool part_common(const part *a, int64_t *at, const part *b, int64_t *bt, part_run *out,
                 int64_t *b_local);

// Whether `rank` is the one that answers for its part: of those with the same bytes, the lowest. It
// has coordinate 0 on all axes no cut names.
bool part_is_owner(const prog *p, int rank, const prog_state *s);
// Whether two states are cut alike, so that all ranks have the same elements of both.
bool part_cut_alike(const prog *p, const prog_state *a, const prog_state *b);

// A part as text, "2/4x3 0/5x3": place 2 of 4 in blocks of 3, what that leaves as place 0 of 5 in
// blocks of 3. The empty text is all. part_parse is false when it has no meaning for a whole of
// that many elements.
const char *part_text(arena *a, const part *t);
bool part_parse(const char *text, int64_t whole, part *out);

#endif
