// Attention's forward and backward kernels share their geometry and their scores.
#ifndef DSM_CODEGEN_BUILD_ATTENTION_H
#define DSM_CODEGEN_BUILD_ATTENTION_H

#include "codegen/build_impl.h"

// Tensors by role. Queries' side: [..., s, kv rep e]; keys' side: [..., t, kv e]; per row:
// [..., kv rep, s].
typedef enum att_role {
  AT_Q,
  AT_K,
  AT_V,
  AT_O,
  AT_LSE,
  AT_O_IN,  // what attention_next goes on with
  AT_LSE_IN,
  AT_DO,
  AT_DQ,
  AT_DK,
  AT_DV,
  AT_DELTA,
  AT_ROLES
} att_role;

typedef struct att {
  bld *b;
  ir_op *op;
  int first_capture;  // operand number
  int64_t batch_n, kv, rep, s, t, d, v;
  double scale, drop;
  ir_dtype round;          // of what its products multiply
  ir_region *mask, *bias;  // NULL: none
  ir_value *lse_value;     // its type is delta's
  bool past;
  // of the kernel being built
  bool used[AT_ROLES];
  cg_tensor tensor[AT_ROLES];
  ir_view split[AT_ROLES];   // the heads dimension, cut into kv . rep . e
  b_part part[3][AT_ROLES];  // batch, kv, rep
  b_axes axes[3];
  int64_t row_stride[AT_ROLES], col_stride[AT_ROLES];
  b_env *env;
  k_value *coord[3][B_MAX_AXES];
  k_value *bi, *h;                // batch row and query head, i32 scalars
  k_value *keys;                  // how many keys exist (i64); NULL: all t
  k_value *draw_key, *draw_row;   // for dropout: the sample's, and where the head's draws begin
  int64_t draw_query, draw_next;  // from a query or key to the next one
  b_cut qc, kc;
} att;

// Reads the op's attributes and extents. q, k, v are its operands of these roles.
bool att_open(att *a, bld *b, ir_value *q, ir_value *k, ir_value *v, int first_capture);
// Begins a kernel and forgets the roles of the last one.
void att_begin(att *a, const char *name);
void att_use(att *a, att_role r, ir_value *v, k_use use);
void att_use_delta(att *a, int scratch, k_use use);
// After all roles: axes, the captures of mask and bias. False: layouts do not nest (b->why is set).
bool att_ready(att *a);
// Sets where the cell is: positions counted through batch, kv and rep (i64 scalars).
void att_cell(att *a, k_value *batch, k_value *kv, k_value *rep);
k_value *att_load(att *a, att_role r, k_value *row0, double fill);
void att_store(att *a, att_role r, k_value *row0, k_value *v);
// The case of the tile at query i0, key j0: may anything be seen, is everything seen?
void att_case(att *a, k_value *i0, k_value *j0, k_value **some, k_value **all);
// scale * q k' + bias for the tile, hidden places -inf.
k_value *att_scores(att *a, k_value *q, k_value *keys, k_value *i0, k_value *j0, k_value *all);
// What dropout multiplies the tile's probabilities with: 1/(1-drop) or 0; NULL: no dropout.
k_value *att_dropout(att *a, k_value *i0, k_value *j0);
// Tiles of positions: i [QT,1] (past included) and j [1,KT], i32.
void att_positions(att *a, k_value *i0, k_value *j0, k_value **i, k_value **j);

#endif
