// Damaged programs: a toy program with one field changed is refused, in words.
//
//   const prog_header *h = (const void *)t->blob;
//   PATCH(axes, prog_axis, 0, size, 0, "axis data has a bad size");      // of toy *t; as it was
//   behind
//
// For tests that include cmocka.h before.
#ifndef TOY_REFUSE_H
#define TOY_REFUSE_H

#include "tests/unit/toy_program.h"

// Fails when `part` is not in `text`.
static inline void has(const char *text, const char *part) {
  if (!strstr(text, part)) fail_msg("`%s` is missing in:\n%s", part, text);
}

// The program, sealed again, is refused with a message that has `part`.
static inline void refuse(toy *t, const char *part) {
  prog p;
  toy_seal(t);
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  assert_non_null(s);
  has(s->message, part);
  status_free(s);
}

#define PATCH(table_name, T, index, field, value, part)               \
  do {                                                                \
    T *at_ = (T *)(void *)(t->blob + h->table_name.offset) + (index); \
    T old_ = *at_;                                                    \
    at_->field = (value);                                             \
    refuse(t, part);                                                  \
    *at_ = old_;                                                      \
    toy_seal(t);                                                      \
  } while (0)

#endif
