// Kernel IR: what one kernel computes, over tiles.
//
// A kernel is a grid of independent *cells* (CPU: ranges of them are given to threads; CUDA:
// blocks) and one structured body in SSA form that every cell runs. A value is a *tile* [rows,
// cols] of fixed extents of f32, i32, i64 or bool; a [1,1] tile is a scalar. Buffers hold any
// storage type; loads widen, stores round. The lowerings (host.c to LLVM IR, cuda.c to CUDA C)
// decide where a tile lives: vector registers, a stack array, fragments.
//
//   kernel rows_scale(x: f32 in, w: f32 in, y: f32 out) grid(8)
//     %0 = grid 0 : i64
//     %1 = mul %0, 2048 : i64
//     %2 = load x[%1 + 128*r + c] : f32[16,128]
//     %3 = load w[c] : f32[1,128]
//     %4 = mul %2, %3 : f32[16,128]
//     store y[%1 + 128*r + c], %4
//
// is built by
//
//   k_kernel *k = k_new(a, "rows_scale");
//   int x = k_buffer(k, "x", DT_f32, K_READ), ...;
//   k_value *row = k_mul(k, k_grid(k, 8), k_int(k, 2048));
//   k_value *t = k_load(k, 16, 128, (k_access){.buffer = x, .base = row, .row_stride = 128,
//   .col_stride = 1});
//
// Semantics that both lowerings keep bit for bit: no operation is contracted, reassociated or
// flushed, `fma` is one rounding; a dot adds its products in order of k, each by one fma (products
// with the zeros beyond a load's limits may be left out); a sum
// over columns, or over the rows of a single column, adds element c into partial c mod 16 in order
// of c, then the partials as a tree (0+8, 1+9, ...; 0+4, ...; 0+2, ...; 0+1); any other sum over
// rows adds in order of the rows.
//
// A dot of bf16 operands rounds them to nearest, even, first. Where the CPU has vdpbf16ps
// (AVX-512), it adds products by pairs, k = 0, 2, 4, ..., the second of a pair first:
//
//   acc = fma(a[k], b[k], fma(a[k+1], b[k+1], acc))        an odd last k has zeros for a partner
//
// with denormal operands, acc and results taken for zeros. (That is what a Zen 4 computes: no bit
// differs on 48 million random lanes, denormals among them.) There, rounding to bf16 anywhere in a
// kernel takes denormals for zeros too, so that it makes no difference whether a value is rounded
// when it is stored or when a dot reads it. On other CPUs products are added in order of k, each by
// one fma, and nothing is flushed: the bits of bf16 dots hold on one kind of CPU.
//
// Memory: statements take effect in program order within a cell. A store may write what an earlier
// load of the same cell read at the same place (in-place update); otherwise buffers do not overlap.
#ifndef DSM_CODEGEN_KERNEL_H
#define DSM_CODEGEN_KERNEL_H

#include "ir/ir.h"
#include "passes/skip.h"
#include "runtime/base/arena.h"
#include "runtime/base/str.h"
#include "runtime/base/vec.h"
#include "runtime/program.h"

#define K_MAX_GRID 4
#define K_MAX_BUFFERS 40
#define K_LANES 16  // partials of a sum over columns

typedef enum k_type { K_F32, K_I32, K_I64, K_BOOL } k_type;
typedef enum k_use { K_READ = 1, K_WRITE = 2, K_BOTH = 3 } k_use;
// Fields of dsm_call (runtime/program.h); K_COORD + a is the rank's coordinate on axis a. ORDER
// CALL
typedef enum k_field { K_LAYER, K_MICRO, K_SAMPLE0, K_STEP, K_PAST, K_SEED, K_COORD } k_field;
enum { K_FIELDS = K_COORD + PROG_MAX_AXES };

typedef enum k_code {
  K_CONST,   // every element the same number
  K_GRID,    // coordinate of the cell along a grid dimension
  K_FIELD,   // a field of the call
  K_TABLE,   // f32 numbers known to the builder, along rows [R,1] or columns [1,C]
  K_IOTA,    // 0, 1, 2, ... along rows [R,1] or columns [1,C]
  K_SCALAR,  // a SCALAR row of ir/ops.def, element by element; [1,1], [R,1], [1,C] repeat
  K_FMA,     // a*b + c, one rounding
  K_CAST,    // another type; `storage` also rounds through that storage type
  K_SPREAD,  // repeats a scalar, row or column to a whole tile
  K_KEY,     // i64 key of a sample's random draws: base_draw_key of runtime/base/random.h
  K_DRAW,    // bool: base_draw_at(key, index) >= below
  K_LOAD,
  K_STORE,
  K_STORE_ADD,  // memory += value, element after element, row by row: places may repeat
  K_REDUCE,     // sum or max over columns -> [R,1], or over rows -> [1,C]
  K_DOT,        // acc + a b
  K_TRANSPOSE,
  K_FOR,  // for i = lo; i < hi; i += step, with carried tiles
  K_IF,
  K_STAGE,    // the tile is to be shared by the whole cell (CUDA: shared memory); a copy otherwise
  K_BARRIER,  // stores of the cell before it are seen by loads after it
} k_code;

typedef struct k_stmt k_stmt;
typedef struct k_block k_block;

typedef struct k_value {
  int id;
  k_type type;
  int rows, cols;
  k_stmt *def;         // NULL for an argument of a block
  k_block *block;      // where it is defined
  int pos;             // result or argument number
  VEC(k_stmt *) uses;  // statements that read it, once per operand; yields belong to the FOR or IF
  int mark;            // scratch of a lowering: its own number for the value
} k_value;

// Where element (r, c) of a tile is, in elements from the buffer's address:
//   base + offset(r, c) + r*row_stride + c*col_stride
// Elements with r >= row_limit, c >= col_limit or a false mask are not touched; loads give `fill`.
typedef struct k_access {
  int buffer;
  k_value *base;    // i64 scalar; NULL: 0
  k_value *offset;  // i64 tile that repeats to the tile; NULL: none
  int64_t row_stride, col_stride;
  k_value *row_limit;  // i64 scalars; NULL: all
  k_value *col_limit;
  k_value *mask;  // bool tile that repeats to the tile; NULL: all
  double fill;
} k_access;

// Statements of one nesting level. A FOR's block has the arguments (i, carried...) and yields the
// next carried; an IF has two blocks without arguments, both yielding its results.
struct k_block {
  k_stmt *owner;  // NULL: the kernel's body
  k_block *parent;
  VEC(k_stmt *) stmts;
  VEC(k_value *) args;
  VEC(k_value *) yield;
};

struct k_stmt {
  k_code code;
  int nin, nout;
  k_value **in, **out;  // operands without those of `access`
  k_block *parent;
  int seq;       // position in the order of building
  ir_opcode op;  // SCALAR; REDUCE: IR_add or IR_max
  double f;      // CONST of type f32
  int64_t i;  // CONST otherwise; GRID: dim; FIELD: which; FOR: step; KEY: the op's key; DRAW: below
  bool open;  // CONST: not folded, nor part of a function's text
  int axis;   // IOTA, REDUCE: 0 rows, 1 columns
  bool ta, tb;         // DOT: a is given as [K,M], b as [N,K]
  ir_dtype storage;    // CAST; DOT: what operands are rounded through
  const float *table;  // TABLE
  k_access access;     // LOAD, STORE, STORE_ADD
  k_block *body[2];    // FOR: body[0]; IF: then, else
  int mark;            // scratch of a lowering
};

typedef struct k_buffer_info {
  const char *name;
  ir_dtype dtype;
  k_use use;
  int align;  // bytes that its address is a multiple of, where that is less than 16; 0: it is not
} k_buffer_info;

typedef struct k_kernel {
  arena *arena;
  const char *name;
  int ngrid, nbuffers;
  int64_t grid[K_MAX_GRID];
  k_buffer_info buffer[K_MAX_BUFFERS];
  skip_set skip;    // choices that the lowering does without; part of the text
  const ir_op *op;  // what it was first made for, for messages; not part of the text; may be NULL
  k_block *body;
  k_block *at;  // where the next statement goes
  int next_id, next_seq;
  double flops, bytes;  // of the whole grid; set by k_finish, or by builders that know better
} k_kernel;

// ---- kernels -----------------------------------------------------------------------------------

k_kernel *k_new(arena *a, const char *name);
int k_buffer(k_kernel *k, const char *name, ir_dtype t, k_use use);
int64_t k_cells(const k_kernel *k);
// Ends the kernel: verifies it (aborts on a mistake: builders are ours) and, where they are still
// 0, estimates flops and bytes from the statements.
void k_finish(k_kernel *k);
// Adds the statements of `from`, a finished kernel of one cell, behind those of `to` and a barrier;
// buffer i there is number buffer[i] of `to`. kernel_join.c.
void k_append(k_kernel *to, const k_kernel *from, const int *buffer);
// The first thing wrong with it, or NULL.
const char *k_verify(const k_kernel *k);
void k_estimate(const k_kernel *k, double *flops, double *bytes);
// The readable text. Equal texts mean equal kernels.
void k_print(sb *out, const k_kernel *k);
const char *k_type_name(k_type t);
// Computed element by element from operands of the same element: SCALAR, FMA, CAST, SPREAD, KEY,
// DRAW.
bool k_pointwise(const k_stmt *s);
k_type k_type_of(ir_dtype t);  // the type an element of that storage has in a kernel
// Bytes of stack a cell's tiles take at most on the host (every tile kept in memory).
int64_t k_scratch_bound(const k_kernel *k);
// All operands of a statement, those of its access included; returns how many.
int k_operands(const k_stmt *s, k_value **out);
#define K_MAX_OPERANDS 64

// ---- scalars and index arithmetic --------------------------------------------------------------
// Integer arithmetic on constants is done at once and x+0, x*1, x*0 disappear, so builders may
// write the general formula. Literals take the other operand's type.

k_value *k_grid(k_kernel *k, int64_t extent);  // adds a grid dimension, gives its coordinate (i64)
k_value *k_grid_open(k_kernel *k, int64_t extent);  // the same, not folded where the extent is 1
k_value *k_call(k_kernel *k, k_field f);            // i64
k_value *k_int(k_kernel *k, int64_t v);             // i64 scalar
k_value *k_const(k_kernel *k, k_type t, double v);
// A number that nothing is folded with: kernels that differ in it keep one shape.
k_value *k_open(k_kernel *k, int64_t v);
k_value *k_open_real(k_kernel *k, double v);  // f32
k_value *k_full(k_kernel *k, k_type t, int rows, int cols, double v);
bool k_is_const(const k_value *v, int64_t *out);             // an integer constant, not an open one
k_value *k_iota(k_kernel *k, k_type t, int rows, int cols);  // one of rows, cols is 1
k_value *k_table(k_kernel *k, const float *v, int rows,
                 int cols);  // copies; one of rows, cols is 1

k_value *k_scalar(k_kernel *k, ir_opcode op, k_value *a, k_value *b, k_value *c);
k_value *k_add(k_kernel *k, k_value *a, k_value *b);
k_value *k_sub(k_kernel *k, k_value *a, k_value *b);
k_value *k_mul(k_kernel *k, k_value *a, k_value *b);
k_value *k_muli(k_kernel *k, k_value *a, int64_t b);
k_value *k_addi(k_kernel *k, k_value *a, int64_t b);
k_value *k_divi(k_kernel *k, k_value *a, int64_t b);  // rounded down
k_value *k_modi(k_kernel *k, k_value *a, int64_t b);
k_value *k_max(k_kernel *k, k_value *a, k_value *b);
k_value *k_min(k_kernel *k, k_value *a, k_value *b);
k_value *k_where(k_kernel *k, k_value *c, k_value *a, k_value *b);
k_value *k_fma(k_kernel *k, k_value *a, k_value *b, k_value *c);
// To another type. From a real number to an integer truncates (NaN: 0, out of range: the nearest).
k_value *k_cast(k_kernel *k, k_value *a, k_type t);
// What the value is after being stored as `t` and loaded again.
k_value *k_round(k_kernel *k, k_value *a, ir_dtype t);
k_value *k_spread(k_kernel *k, k_value *a, int rows, int cols);
// Random draws (runtime/base/random.h) of this call's seed, step and layer: the key of a sample,
// and whether draw `index` (i32 or i64) is at least `below`.
k_value *k_key(k_kernel *k, int64_t op_key, k_value *sample);
k_value *k_draw(k_kernel *k, k_value *key, k_value *index, uint32_t below);

// ---- tiles -------------------------------------------------------------------------------------

k_value *k_load(k_kernel *k, int rows, int cols, k_access x);
void k_store(k_kernel *k, k_value *v, k_access x);
void k_store_add(k_kernel *k, k_value *v, k_access x);
k_value *k_reduce(k_kernel *k, ir_opcode op, k_value *a, int axis);  // IR_add or IR_max
k_value *k_dot(k_kernel *k, k_value *acc, k_value *a, k_value *b, bool ta, bool tb);
// Operands are rounded through `storage` (DT_f32, DT_bf16) first.
k_value *k_dot_rounded(k_kernel *k, ir_dtype storage, k_value *acc, k_value *a, k_value *b, bool ta,
                       bool tb);
k_value *k_transpose(k_kernel *k, k_value *a);
k_value *k_stage(k_kernel *k, k_value *a);
void k_barrier(k_kernel *k);

// ---- structure ---------------------------------------------------------------------------------
// Between k_for and k_end_for, statements go into the loop's body. arg[0] of the block is the
// counter, arg[1 + i] carried value i. k_end_for takes the next values; results are stmt->out[i].
//
//   k_stmt *loop = k_for(k, lo, hi, 64, init, 1);
//   k_value *i = loop->body[0]->args.at[0], *sum = loop->body[0]->args.at[1];
//   k_value *next = k_add(k, sum, ...);
//   k_end_for(k, loop, &next);                       // loop->out[0] is the final sum

k_stmt *k_for(k_kernel *k, k_value *lo, k_value *hi, int64_t step, k_value *const *init, int n);
void k_end_for(k_kernel *k, k_stmt *loop, k_value *const *next);
k_stmt *k_if(k_kernel *k, k_value *cond);
void k_else(k_kernel *k, k_stmt *s, k_value *const *yield, int n);    // ends the first branch
void k_end_if(k_kernel *k, k_stmt *s, k_value *const *yield, int n);  // ends the second

#endif
