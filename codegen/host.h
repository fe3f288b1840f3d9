// The host lowering's inside: kernel IR to LLVM IR (codegen/emit.h is the outside).
//
// host.c walks a kernel's statements and keeps loops and branches, host_group.c turns runs of
// pointwise statements into loop nests over vectors, host_memory.c reads and writes buffers and
// converts storage types, host_dot.c holds the matrix micro-kernel, host_pack.c and host_pairs.c
// lay its operands, host_math.c has the functions of single elements. Mutable things (loop
// counters, carried scalars, accumulators) are allocas of the entry block; LLVM's SROA makes
// registers of them, so no phi is written by hand.
#ifndef DSM_CODEGEN_HOST_H
#define DSM_CODEGEN_HOST_H

#include <llvm-c/Core.h>

#include "codegen/group.h"
#include "runtime/base/map.h"

// Where a kernel value is while the kernel is lowered.
typedef enum h_kind {
  H_NONE,    // not computed yet (or only inside the vectors of its group)
  H_SCALAR,  // `v` is an LLVM scalar; for a tile: every element is `v`
  H_MEMORY,  // `v` is the address of a tile on the stack, rows `ld` elements apart
  H_LOADED,  // a dot reads it where it lies: `v` is the address in the buffer, rows `ld` apart
  H_STORED,  // a dot wrote it where its only reader, a store, would
  H_BANDED,  // a dot that waits for the group that reads it: `band` computes a few rows at a time
} h_kind;

typedef struct h_band h_band;

typedef struct h_value {
  h_kind kind;
  LLVMValueRef v;
  int64_t ld;
  const k_stmt *load;  // H_LOADED: whose limits hold
  h_band *band;        // H_BANDED: how; `v` is the tile of its H_BAND rows
} h_value;

// A stack array that a FOR or IF keeps a result in.
typedef struct h_slot {
  h_value at;
  const k_value *guard;  // what lies in it before; must be dead before it is overwritten
} h_slot;

typedef struct host {
  arena *arena;
  LLVMContextRef context;
  LLVMModuleRef module;
  LLVMBuilderRef b;
  bool wide;      // 512-bit vectors: 32 registers of 16 lanes
  bool bf16;      // and vdpbf16ps, vcvtneps2bf16 on them
  map functions;  // helpers made so far in this module, by name
  const char *cpu, *features;

  // the kernel being lowered
  const k_kernel *k;
  LLVMValueRef fn;
  LLVMBasicBlockRef entry;  // allocas go before its last statement
  LLVMValueRef entry_end;
  LLVMValueRef buf[K_MAX_BUFFERS];
  LLVMValueRef call[K_FIELDS];  // ORDER CALL
  LLVMValueRef coord[K_MAX_GRID];
  LLVMValueRef nowhere;  // readable bytes for lanes that must not touch memory
  h_value *at;           // by value id
  bool *done;            // by statement number: lowered
  h_slot **slot;         // by statement number: slots of FOR and IF
  k_groups pending;
  int64_t stack;  // bytes of tiles so far
} host;

// ---- host.c ------------------------------------------------------------------------------------
// Adds function `symbol` that computes k to the module.
void host_kernel(host *h, const k_kernel *k, const char *symbol);
LLVMTypeRef h_type(host *h, k_type t, int lanes);  // bool is i1
LLVMTypeRef h_stack_type(host *h, k_type t);       // element of a tile on the stack; bool is i8
LLVMValueRef h_i64(host *h, int64_t v);
LLVMValueRef h_number(host *h, k_type t, int lanes, double v);  // constant
LLVMValueRef h_alloca(host *h, LLVMTypeRef t, unsigned align);
h_value h_tile(host *h, const k_value *like);  // a new tile on the stack
LLVMValueRef h_element(host *h, LLVMTypeRef t, LLVMValueRef base, LLVMValueRef index);  // address
// A counted loop: for (i = 0; i < n; i++). h_loop_begin returns i; both leave the builder inside.
typedef struct h_loop {
  LLVMBasicBlockRef head, body, exit;
  LLVMValueRef var, i;
} h_loop;
LLVMValueRef h_loop_begin(host *h, h_loop *l, LLVMValueRef lo, LLVMValueRef hi);
void h_loop_end(host *h, h_loop *l, int64_t step);
// The stack tile of v; fills one when v is the same number everywhere.
h_value h_in_memory(host *h, const k_value *v);
void h_copy(host *h, h_value to, h_value from, const k_value *like);
// Where v may be written so that no copy is needed later: the slot of the loop or branch that
// yields it. kind H_NONE when there is none that is free. `now` are statements about to be lowered.
h_value h_home(host *h, const k_value *v, const k_group *now);
// A helper function of this module by name, or NULL; made helpers are internal and never unwind.
LLVMValueRef h_helper(host *h, const char *name, LLVMTypeRef *type);
LLVMValueRef h_new_helper(host *h, const char *name, LLVMTypeRef type);
void h_function_attributes(host *h, LLVMValueRef fn);

// ---- host_group.c ------------------------------------------------------------------------------
// Takes a pointwise statement or reduction of a tile into a pending group.
void h_group_add(host *h, k_stmt *s);
void h_flush(host *h);

// ---- host_memory.c -----------------------------------------------------------------------------
// Elements of a tile at row r, columns c .. c+lanes-1 (lanes along rows when the tile is a column).
typedef struct h_lanes {
  int lanes;  // vector width; 1: a scalar
  int valid;  // of these the first so many exist
  bool along_rows;
  LLVMValueRef r, c;  // i64; position of lane 0
  LLVMValueRef offset,
      mask;  // of the access, as vectors (scalar i64 when it does not vary), or NULL
  bool offset_varies;
} h_lanes;
LLVMValueRef h_load(host *h, const k_access *x, const h_lanes *at);
void h_store(host *h, const k_access *x, const h_lanes *at, LLVMValueRef v, bool add);
LLVMValueRef h_splat(host *h, LLVMValueRef scalar, int lanes);
LLVMValueRef h_widen(host *h, LLVMValueRef v, ir_dtype t, int lanes);   // storage to computing type
LLVMValueRef h_narrow(host *h, LLVMValueRef v, ir_dtype t, int lanes);  // and back, rounding

// ---- host_math.c -------------------------------------------------------------------------------
LLVMValueRef h_scalar(host *h, ir_opcode op, k_type operand, int lanes, LLVMValueRef a,
                      LLVMValueRef b, LLVMValueRef c);
LLVMValueRef h_cast(host *h, LLVMValueRef v, k_type from, k_type to, int lanes);
LLVMValueRef h_fma(host *h, LLVMValueRef a, LLVMValueRef b, LLVMValueRef c);
LLVMValueRef h_key(host *h, int64_t op_key, int lanes, LLVMValueRef sample);
LLVMValueRef h_draw(host *h, uint32_t below, k_type index_type, int lanes, LLVMValueRef key,
                    LLVMValueRef index);
// A call of an overloaded LLVM intrinsic.
LLVMValueRef h_intrinsic(host *h, const char *name, LLVMTypeRef *types, int ntypes,
                         LLVMValueRef *args, int nargs);

// ---- host_dot.c --------------------------------------------------------------------------------
void h_dot(host *h, const k_stmt *s);
// Rows of a banded result that are computed at once.
enum { H_BAND = 16 };
// Computes rows i .. i + H_BAND - 1 of a banded result into its tile.
void h_dot_band(host *h, const h_value *v, LLVMValueRef i);
// Are there rows that it leaves as they were?
bool h_dot_ragged(const h_value *v);
// Computes all rows of the banded value v, which is a tile on the stack then.
void h_dot_whole(host *h, const k_value *v);
// True when the only reader of a load is a dot that can read the buffer itself.
bool h_stays_in_buffer(const host *h, const k_stmt *load);

// ---- host_pack.c -------------------------------------------------------------------------------
// Small steps of address arithmetic that the micro-kernels share.
LLVMValueRef h_plus(host *h, LLVMValueRef a, int64_t b);
LLVMValueRef h_times(host *h, LLVMValueRef a, int64_t b);
LLVMValueRef h_f32_at(host *h, LLVMValueRef base, LLVMValueRef index);  // address of an element
// Helpers take pointers, then i64 numbers. The builder is inside one between open and close.
typedef struct h_inner {
  LLVMValueRef fn, outer_fn, outer_end;
  LLVMBasicBlockRef here;
} h_inner;
LLVMTypeRef h_inner_type(host *h, int pointers, int numbers);
void h_inner_open(host *h, h_inner *x, const char *name, LLVMTypeRef type, int pointers);
void h_inner_close(host *h, const h_inner *x);
void h_transpose(host *h, const k_stmt *s);
// Operands whose columns are neighbours in memory are packed so many columns at once, a multiple of
// any panel's width, and ask for the cache lines of a row so many rows before they read it: rows
// lie pages apart, where the processor's own prefetching does not follow.
enum { H_PACK_COLS = 128, H_PACK_AHEAD = 16 };
// Asks for the cache line at p, which need not exist, into the second-level cache.
void h_prefetch(host *h, LLVMValueRef p);
// to[cols, rows] = from[rows, cols], both tiles on the stack with padded rows.
void h_turn(host *h, LLVMValueRef to, LLVMValueRef from, int rows, int cols, int64_t ld_to,
            int64_t ld_from);
// A dot's second operand, K x N elements in a buffer, as panels of `width` columns: element (k, n)
// at (n / width)*width*K + k*width + n % width; the last panel is as narrow as whole vectors allow.
// turned: it lies as [N, K] (K a multiple of 16). left_n, left_k: how many there are; beyond N
// zeros are put, beyond K anything (left_k NULL: all).
typedef struct h_panels {
  int k, n, width;  // of the tile, in elements
  int64_t ld;       // of the buffer
  bool turned, ragged;
} h_panels;
void h_pack(host *h, const h_panels *p, LLVMValueRef to, LLVMValueRef from, LLVMValueRef left_n,
            LLVMValueRef left_k);
// Turns 16 vectors of 16 32-bit lanes: rows become columns.
void h_turn_vectors(host *h, LLVMValueRef *v);

// ---- host_pairs.c ------------------------------------------------------------------------------
// An operand of a bf16 dot as it is found, on the stack or in a buffer: element (i, k), i counting
// the result's rows (or columns), is at i*ld + k when it runs along k, else at k*ld + i.
typedef struct h_operand {
  LLVMValueRef at;
  ir_dtype dtype;  // f32 or bf16
  int own, k;      // extents
  int64_t ld;
  bool along_k;
  LLVMValueRef left_own, left_k;       // how many there are; NULL: all
  const k_value *own_limit, *k_limit;  // the limits these come from
} h_operand;
// Steps of two k that the layouts below have room for.
int h_pair_steps(int k);
// Rounded, as pairs, in a new tile on the stack; host_pairs.c says how they lie.
LLVMValueRef h_pair_panels(host *h, const h_operand *o, int width);
LLVMValueRef h_pair_rows(host *h, const h_operand *o);  // of one along k
// A copy of a tile on the stack whose elements went through storage type t.
h_value h_round_tile(host *h, const k_value *v, h_value from, ir_dtype t);

#endif
