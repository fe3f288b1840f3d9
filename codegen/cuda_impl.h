// Inside the CUDA lowering: what codegen/cuda*.c share (codegen/cuda.h is the outside).
//
// cuda.c walks a kernel's statements, keeps scalars, loops and branches; cuda_layout.c decides how
// tiles are spread over threads; cuda_group.c turns runs of pointwise statements into one loop over
// a thread's registers; cuda_memory.c reads and writes buffers; cuda_dot.c has shared memory and
// the matrix products.
//
// A *layout* says which element of a tile a thread's register holds. Every bit of the register's
// number, of the lane and of the warp stands for one bit of the row's or the column's number, or
// for none (then threads hold copies); registers repeat beyond that, so extents need not be powers
// of two:
//
//   row = sum of the row bits + span[0] * (number of the repetition along rows),  columns alike
//
// A tile [8, 128] on 64 threads, four columns side by side in a thread:
//   reg  0 1 -> columns 0 1     lane 0..4 -> columns 2..6    warp 0 -> row 0    outer {4, 1}
//
// Fragments of mma.sync are such a layout, and so is what is left when a tile is reduced: the bits
// of the reduced axis stand for none (cu_slice). So one piece of code reduces, converts, loads and
// stores in all of them.
#ifndef DSM_CODEGEN_CUDA_IMPL_H
#define DSM_CODEGEN_CUDA_IMPL_H

#include "codegen/cuda.h"
#include "codegen/group.h"

enum { CU_ROW, CU_COL, CU_NONE };
enum { CU_REG_BITS = 8, CU_LANE_BITS = 5, CU_WARP_BITS = 4 };

typedef struct cu_bit {
  signed char axis;
  unsigned char shift;
} cu_bit;

typedef struct cu_layout {
  int rows, cols;  // extents of the tile
  int nreg, nwarp;
  cu_bit reg[CU_REG_BITS], lane[CU_LANE_BITS], warp[CU_WARP_BITS];
  int outer[2], span[2];
} cu_layout;

typedef enum cu_kind {
  CU_ABSENT,   // not computed yet, or only inside its group
  CU_UNIFORM,  // `text` is a scalar expression: the value of every element
  CU_ARRAY,    // `text` is the name of an array, a register's number its index, spread as `layout`
} cu_kind;

typedef struct cu_shared cu_shared;

typedef struct cu_value {
  cu_kind kind;
  const char *text;
  int layout;         // number in cu.layouts
  cu_shared *shared;  // where it lies in shared memory too, or NULL
} cu_value;

// A part of shared memory. `read`, `written`: since the last barrier.
struct cu_shared {
  int at, bytes, ld;  // ld: elements from row to row
  ir_dtype dtype;
  bool read, written;
};

// A load whose bytes a store may write in place; a store by other threads waits for it.
typedef struct cu_seen {
  int rows, cols, layout;
} cu_seen;

typedef struct cu {
  arena *arena;
  const k_kernel *k;
  int threads, warp_bits;
  int dots;          // of the kernel
  sb head, body;     // declarations of the whole kernel; statements
  int depth, loops;  // of the text; of loops around the statement
  VEC(int64_t) number;
  VEC(cu_layout) layouts;
  VEC(bool) named;   // by layout: its r and c are declared
  int *class_of;     // by value id: representative
  int *layout_of;    // by representative: number of the layout; -1: not known yet
  cu_value *at;      // by value id
  k_groups pending;  // a group's key is its layout
  VEC(cu_shared *) shared;
  int shared_bytes;
  cu_shared *scratch;  // of reductions and conversions
  VEC(cu_seen) seen;
  const char *why;
} cu;

// ---- cuda.c ------------------------------------------------------------------------------------
void cu_line(cu *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void cu_fail(cu *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static inline bool cu_is_scalar(const k_value *v) { return v->rows == 1 && v->cols == 1; }
const char *cu_type(k_type t);     // "float"
const char *cu_dtype(ir_dtype t);  // "d_bf16"
int cu_dtype_bytes(ir_dtype t);
ir_dtype cu_natural(k_type t);  // the storage type that holds it as it is
// The text of an expression of statement s (pointwise) on operands' texts.
const char *cu_expr(cu *c, const k_stmt *s, const char *const *in);
const char *cu_literal(cu *c, k_type t, double v);
// The text of an i64 that is not part of the function's text; 0 is.
const char *cu_number(cu *c, int64_t v);
// The scalar's text; flushes when it is the result of a pending reduction.
const char *cu_scalar(cu *c, const k_value *v);
// What is known of an i64: how many low bits are 0 (at most 16), and the largest value it can have,
// or -1 when that is not known or it may be negative.
int cu_zeros(const k_value *v);
int64_t cu_bound(const cu *c, const k_value *v);

// ---- cuda_layout.c -----------------------------------------------------------------------------
int cu_intern(cu *c, const cu_layout *l);
static inline const cu_layout *cu_lay(const cu *c, int n) { return &c->layouts.at[n]; }
int cu_registers(const cu_layout *l);
int cu_blocked(cu *c, int rows, int cols, int vec);           // tiles that memory reads and writes
int cu_fragment(cu *c, int rows, int cols, bool rows_whole);  // results of mma.sync
int cu_fma_tile(cu *c, int rows, int cols);                   // results of dots of f32
int cu_slice(cu *c, int layout, int axis);                    // what a reduction over `axis` leaves
int cu_turned(cu *c, int layout);
// How many neighbouring registers hold neighbouring elements, and along which axis.
int cu_vector(const cu_layout *l, int *axis);
// Is an extent rounded up, so that some registers hold no element?
bool cu_padded(const cu_layout *l, int axis);
// Does more than one thread hold an element?
bool cu_copies(const cu_layout *l);
// Text of the row (column) of register `i` (an expression), without the thread's part.
const char *cu_register_at(cu *c, const cu_layout *l, int axis, const char *i);
// Text of the thread's part, the names of two variables of the kernel: "r3", "c3".
const char *cu_thread_at(cu *c, int layout, int axis);
// Text that is true in the first thread that holds an element; NULL: every thread is.
const char *cu_owner(cu *c, int layout);
// Text of the number of the register of slice `to` that register i of `from` belongs to.
const char *cu_register_of(cu *c, const cu_layout *from, int axis, const char *i);
// Which layout every tile has; sets the number of threads.
void cu_assign(cu *c);
// The layout of v's class, or one that suits its shape.
int cu_layout_for(cu *c, const k_value *v);

// ---- cuda_group.c ------------------------------------------------------------------------------
void cu_group_add(cu *c, k_stmt *s, int layout);
void cu_flush(cu *c);
// The name of an array that holds v in that layout; converts where it has another one.
const char *cu_in_layout(cu *c, const k_value *v, int layout);
void cu_declare(cu *c, const k_value *v, const char *name, int layout);
// Copies v to the array or scalar `to`.
void cu_assign_to(cu *c, const char *to, const k_value *v, int layout);
// A value's element inside a group's loop, at register i + j.
typedef struct cu_place {
  int layout;
  const k_group *group;
  int vec, vaxis;
} cu_place;
const char *cu_ref(cu *c, const cu_place *p, const k_value *v, const char *j);
// Texts of the row and column of element j of a chunk.
const char *cu_coordinate(cu *c, const cu_place *p, int axis, const char *j);

// ---- cuda_memory.c -----------------------------------------------------------------------------
void cu_load(cu *c, const cu_place *p, const k_stmt *s);
void cu_store(cu *c, const cu_place *p, const k_stmt *s);
void cu_scalar_load(cu *c, const k_stmt *s);
void cu_scalar_store(cu *c, const k_stmt *s);
void cu_store_add(cu *c, const k_stmt *s);
// A store of this shape and layout is about to be written: waits for loads that other threads do.
void cu_before_store(cu *c, int rows, int cols, int layout);

// ---- cuda_dot.c --------------------------------------------------------------------------------
cu_shared *cu_new_shared(cu *c, int bytes);
cu_shared *cu_scratch(cu *c, int bytes);  // grows
void cu_barrier(cu *c);
void cu_will_write(cu *c, cu_shared *s);  // a barrier when somebody may still read it
void cu_will_read(cu *c, cu_shared *s);   // a barrier when somebody wrote it
// At the head of a loop or behind a branch nothing is known.
void cu_forget_barriers(cu *c);
// Writes the chunk of v to its place in shared memory, which exists.
void cu_stage_chunk(cu *c, const cu_place *p, const k_value *v);
void cu_stage_place(cu *c, const k_value *v, ir_dtype t);
void cu_dot(cu *c, k_stmt *s);

#endif
