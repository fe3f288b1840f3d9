// Inside type inference: what ir/infer.c, which dispatches, and the files of single rooms share.
//
// Each function gives the types of the results of `t->op`, whose row has been checked
// (ir_check_row), and returns NULL or a message in the user's words. Indices may be unified and
// refined on the way: ir_infer takes all of it back when a message comes out.
#ifndef DSM_IR_INFER_IMPL_H
#define DSM_IR_INFER_IMPL_H

#include "ir/rule.h"

typedef struct infer {
  ir_module *m;
  const ir_op *op;
  const char *name;  // of the op, for messages
} infer;

#define SAY(...) arena_printf(t->m->arena, __VA_ARGS__)

// ---- infer.c: words for messages ---------------------------------------------------------------
const char *infer_text_of(const infer *t, int k);               // the type of operand k
const char *infer_dim_text(const infer *t, const ir_index *x);  // "`seq` (64)"

// ---- infer_move.c ------------------------------------------------------------------------------
const char *infer_transpose(const infer *t, ir_type *out);
const char *infer_expand(const infer *t, ir_type *out);
const char *infer_squeeze(const infer *t, ir_type *out);
const char *infer_unfold(const infer *t, ir_type *out);
const char *infer_fold(const infer *t, ir_type *out);
const char *infer_slice(const infer *t, ir_type *out);
const char *infer_pad(const infer *t, ir_type *out);
const char *infer_concat(const infer *t, ir_type *out);
const char *infer_join(const infer *t, ir_type *out);
const char *infer_reduce(const infer *t, ir_type *out);
const char *infer_scatter_add(const infer *t, ir_type *out);
const char *infer_append(const infer *t, ir_type *out);
const char *infer_split(const infer *t, ir_type *out, int *nout);
const char *infer_at(const infer *t);

// ---- infer_repeat.c ----------------------------------------------------------------------------
const char *infer_repeat(const infer *t, ir_type *out, int *nout);

#endif
