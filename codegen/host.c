// From kernel IR to LLVM IR: the walk over statements, loops, branches, and where tiles live.
//
// A scalar is an LLVM value. A tile that more than one group of statements needs is an array on the
// stack (h_tile), rows padded to whole vectors, so that full vectors may always be read and
// written; what lies in the padding is never looked at. Arrays are reused once all readers are
// lowered, and carried tiles are updated in place where nothing else reads the old value (h_home).
#include "codegen/host.h"

#include <string.h>

#include "runtime/program.h"

// ---- types and small things --------------------------------------------------------------------

LLVMTypeRef h_stack_type(host *h, k_type t) {
  switch (t) {
    case K_F32: return LLVMFloatTypeInContext(h->context);
    case K_I32: return LLVMInt32TypeInContext(h->context);
    case K_I64: return LLVMInt64TypeInContext(h->context);
    case K_BOOL: return LLVMInt8TypeInContext(h->context);
  }
  return NULL;
}

LLVMTypeRef h_type(host *h, k_type t, int lanes) {
  LLVMTypeRef e = t == K_BOOL ? LLVMInt1TypeInContext(h->context) : h_stack_type(h, t);
  return lanes == 1 ? e : LLVMVectorType(e, (unsigned)lanes);
}

LLVMValueRef h_i64(host *h, int64_t v) {
  return LLVMConstInt(LLVMInt64TypeInContext(h->context), (unsigned long long)v, 1);
}

LLVMValueRef h_number(host *h, k_type t, int lanes, double v) {
  LLVMTypeRef e = h_type(h, t, 1);
  LLVMValueRef c =
      t == K_F32 ? LLVMConstReal(e, v) : LLVMConstInt(e, (unsigned long long)(int64_t)v, 1);
  if (lanes == 1) return c;
  LLVMValueRef all[64];
  for (int i = 0; i < lanes; i++) all[i] = c;
  return LLVMConstVector(all, (unsigned)lanes);
}

LLVMValueRef h_element(host *h, LLVMTypeRef t, LLVMValueRef base, LLVMValueRef index) {
  return LLVMBuildGEP2(h->b, t, base, &index, 1, "");
}

LLVMValueRef h_alloca(host *h, LLVMTypeRef t, unsigned align) {
  LLVMBasicBlockRef here = LLVMGetInsertBlock(h->b);
  LLVMPositionBuilderBefore(h->b, h->entry_end);
  LLVMValueRef p = LLVMBuildAlloca(h->b, t, "");
  if (align) LLVMSetAlignment(p, align);
  LLVMPositionBuilderAtEnd(h->b, here);
  return p;
}

static int padded(int n) { return (n + K_LANES - 1) / K_LANES * K_LANES; }

static h_value new_tile(host *h, k_type t, int rows, int cols) {
  int ld = cols == 1 ? 1 : padded(cols);
  int64_t n = cols == 1 ? padded(rows) : (int64_t)rows * ld;
  LLVMTypeRef e = h_stack_type(h, t);
  h->stack += n * (t == K_I64 ? 8 : t == K_BOOL ? 1 : 4);
  return (h_value){
      .kind = H_MEMORY, .v = h_alloca(h, LLVMArrayType2(e, (uint64_t)n), 64), .ld = ld};
}

h_value h_tile(host *h, const k_value *like) {
  return new_tile(h, like->type, like->rows, like->cols);
}

LLVMValueRef h_loop_begin(host *h, h_loop *l, LLVMValueRef lo, LLVMValueRef hi) {
  LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
  l->var = h_alloca(h, i64, 0);
  l->head = LLVMAppendBasicBlockInContext(h->context, h->fn, "loop");
  l->body = LLVMAppendBasicBlockInContext(h->context, h->fn, "body");
  l->exit = LLVMAppendBasicBlockInContext(h->context, h->fn, "done");
  LLVMBuildStore(h->b, lo, l->var);
  LLVMBuildBr(h->b, l->head);
  LLVMPositionBuilderAtEnd(h->b, l->head);
  l->i = LLVMBuildLoad2(h->b, i64, l->var, "i");
  LLVMBuildCondBr(h->b, LLVMBuildICmp(h->b, LLVMIntSLT, l->i, hi, ""), l->body, l->exit);
  LLVMPositionBuilderAtEnd(h->b, l->body);
  return l->i;
}

void h_loop_end(host *h, h_loop *l, int64_t step) {
  LLVMBuildStore(h->b, LLVMBuildNSWAdd(h->b, l->i, h_i64(h, step), ""), l->var);
  LLVMBuildBr(h->b, l->head);
  LLVMPositionBuilderAtEnd(h->b, l->exit);
}

void h_function_attributes(host *h, LLVMValueRef fn) {
  // Nothing may call a library: the code image is linked against none. Without "no-builtins" LLVM
  // would turn loops into memset and memcpy.
  static const char *const text[][2] = {{"no-builtins", ""}, {"frame-pointer", "none"}};
  for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
    LLVMAddAttributeAtIndex(
        fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
        LLVMCreateStringAttribute(h->context, text[i][0], (unsigned)strlen(text[i][0]), text[i][1],
                                  (unsigned)strlen(text[i][1])));
  }
  const char *const more[][2] = {{"target-cpu", h->cpu},
                                 {"target-features", h->features},
                                 {"prefer-vector-width", h->wide ? "512" : "256"},
                                 {"min-legal-vector-width", h->wide ? "512" : "256"}};
  for (size_t i = 0; i < sizeof more / sizeof *more; i++)
    LLVMAddAttributeAtIndex(
        fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
        LLVMCreateStringAttribute(h->context, more[i][0], (unsigned)strlen(more[i][0]), more[i][1],
                                  (unsigned)strlen(more[i][1])));
  unsigned kind = LLVMGetEnumAttributeKindForName("nounwind", 8);
  LLVMAddAttributeAtIndex(fn, (LLVMAttributeIndex)LLVMAttributeFunctionIndex,
                          LLVMCreateEnumAttribute(h->context, kind, 0));
}

LLVMValueRef h_helper(host *h, const char *name, LLVMTypeRef *type) {
  LLVMValueRef fn = map_get(&h->functions, name);
  if (fn) *type = LLVMGlobalGetValueType(fn);
  return fn;
}

LLVMValueRef h_new_helper(host *h, const char *name, LLVMTypeRef type) {
  LLVMValueRef fn = LLVMAddFunction(h->module, name, type);
  LLVMSetLinkage(fn, LLVMInternalLinkage);
  h_function_attributes(h, fn);
  map_set(&h->functions, arena_strdup(h->arena, name), fn);
  return fn;
}

// ---- tiles in memory ---------------------------------------------------------------------------

// Calls for each vector of a tile: loads from `from` (or takes `fill`) and stores to `to`.
static void each_vector(host *h, h_value to, h_value from, const k_value *like) {
  LLVMTypeRef e = h_stack_type(h, like->type);
  int64_t n = like->cols == 1 ? padded(like->rows) : padded(like->cols);
  int rows = like->cols == 1 ? 1 : like->rows;
  LLVMTypeRef vec = LLVMVectorType(e, K_LANES);
  LLVMValueRef fill = NULL;
  if (from.kind == H_SCALAR) {
    LLVMValueRef s = from.v;
    if (like->type == K_BOOL) s = LLVMBuildZExt(h->b, s, e, "");
    fill = h_splat(h, s, K_LANES);
  }
  h_loop row, col;
  LLVMValueRef r = h_loop_begin(h, &row, h_i64(h, 0), h_i64(h, rows));
  LLVMValueRef c = h_loop_begin(h, &col, h_i64(h, 0), h_i64(h, n));
  LLVMValueRef v = fill;
  if (!v) {
    LLVMValueRef at = LLVMBuildAdd(h->b, LLVMBuildMul(h->b, r, h_i64(h, from.ld), ""), c, "");
    v = LLVMBuildLoad2(h->b, vec, h_element(h, e, from.v, at), "");
    LLVMSetAlignment(v, 4);
  }
  LLVMValueRef at = LLVMBuildAdd(h->b, LLVMBuildMul(h->b, r, h_i64(h, to.ld), ""), c, "");
  LLVMSetAlignment(LLVMBuildStore(h->b, v, h_element(h, e, to.v, at)), 4);
  h_loop_end(h, &col, K_LANES);
  h_loop_end(h, &row, 1);
}

void h_copy(host *h, h_value to, h_value from, const k_value *like) {
  if (from.kind == H_MEMORY && from.v == to.v) return;
  each_vector(h, to, from, like);
}

h_value h_in_memory(host *h, const k_value *v) {
  h_value at = h->at[v->id];
  IR_CHECK(at.kind != H_NONE);
  if (at.kind == H_MEMORY) return at;
  h_value tile = h_tile(h, v);
  each_vector(h, tile, at, v);
  return tile;
}

static bool in_group(const k_group *g, const k_stmt *s) {
  for (int i = 0; g && i < g->stmts.n; i++)
    if (g->stmts.at[i] == s) return true;
  return false;
}

// Nobody but `now` and statements already lowered reads v; reads by `except` do not count.
static bool is_dead(host *h, const k_value *v, const k_group *now, const k_stmt *except) {
  for (int i = 0; i < v->uses.n; i++) {
    const k_stmt *u = v->uses.at[i];
    if (u != except && !h->done[u->seq] && !in_group(now, u)) return false;
  }
  return true;
}

static bool yields(const k_block *b, const k_value *v) {
  for (int i = 0; i < b->yield.n; i++)
    if (b->yield.at[i] == v) return true;
  return false;
}

h_value h_home(host *h, const k_value *v, const k_group *now) {
  const h_value none = {0};
  for (int i = 0; i < v->uses.n; i++) {
    const k_stmt *u = v->uses.at[i];
    if (u == v->block->owner && (u->code == K_FOR || u->code == K_IF)) {
      for (int j = 0; j < v->block->yield.n; j++) {
        if (v->block->yield.at[j] != v) continue;
        const h_slot *s = &h->slot[u->seq][j];
        // An IF's other branch may yield the guard: that is the copy that was saved. A FOR that
        // yields its own argument again still needs it.
        const k_stmt *except =
            u->code == K_IF && s->guard && !yields(v->block, s->guard) ? u : NULL;
        if (s->at.kind == H_MEMORY && (!s->guard || is_dead(h, s->guard, now, except)))
          return s->at;
      }
    }
    if (u->code == K_DOT && u->in[0] == v && v->uses.n == 1 && u->parent == v->block)
      return h_home(h, u->out[0], now);
  }
  return none;
}

// ---- statements --------------------------------------------------------------------------------

static LLVMValueRef scalar_of(host *h, const k_value *v) {
  if (h->at[v->id].kind == H_NONE) h_flush(h);
  IR_CHECK(h->at[v->id].kind == H_SCALAR);
  return h->at[v->id].v;
}

static bool is_scalar(const k_value *v) { return v->rows == 1 && v->cols == 1; }

static void set_scalar(host *h, const k_value *v, LLVMValueRef x) {
  h->at[v->id] = (h_value){.kind = H_SCALAR, .v = x};
}

static h_lanes scalar_lanes(host *h, const k_access *x) {
  h_lanes at = {.lanes = 1, .valid = 1, .r = h_i64(h, 0), .c = h_i64(h, 0)};
  if (x->offset) at.offset = scalar_of(h, x->offset);
  if (x->mask) at.mask = scalar_of(h, x->mask);
  return at;
}

// A statement all of whose tiles are [1,1].
static void scalar_stmt(host *h, k_stmt *s) {
  LLVMValueRef in[3] = {0};
  for (int i = 0; i < s->nin; i++) in[i] = scalar_of(h, s->in[i]);
  k_value *out = s->nout ? s->out[0] : NULL;
  switch (s->code) {
    case K_SCALAR:
      set_scalar(h, out,
                 h_scalar(h, s->op, s->in[s->op == IR_where]->type, 1, in[0], in[1], in[2]));
      break;
    case K_FMA: set_scalar(h, out, h_fma(h, in[0], in[1], in[2])); break;
    case K_CAST: {
      LLVMValueRef v = h_cast(h, in[0], s->in[0]->type, out->type, 1);
      set_scalar(h, out, h_widen(h, h_narrow(h, v, s->storage, 1), s->storage, 1));
      break;
    }
    case K_STAGE:
    case K_TRANSPOSE:
    case K_SPREAD: set_scalar(h, out, in[0]); break;
    case K_TABLE: set_scalar(h, out, h_number(h, K_F32, 1, (double)s->table[0])); break;
    case K_KEY: set_scalar(h, out, h_key(h, s->i, 1, in[0])); break;
    case K_DRAW:
      set_scalar(h, out, h_draw(h, (uint32_t)s->i, s->in[1]->type, 1, in[0], in[1]));
      break;
    case K_LOAD: {
      for (int i = 0; i < h->pending.n; i++)
        if (h->pending.at[i]->stores) {
          h_flush(h);
          break;
        }
      h_lanes at = scalar_lanes(h, &s->access);
      if (s->access.base) scalar_of(h, s->access.base);
      set_scalar(h, out, h_load(h, &s->access, &at));
      break;
    }
    case K_STORE:
    case K_STORE_ADD: {
      h_flush(h);
      h_lanes at = scalar_lanes(h, &s->access);
      h_store(h, &s->access, &at, in[0], s->code == K_STORE_ADD);
      break;
    }
    default: IR_BUG("statement %d is not a scalar's", s->seq);
  }
}

static void lower_block(host *h, k_block *b);

// Gives carried value i of a FOR its slot, holding the first value.
static h_slot carried_slot(host *h, const k_stmt *s, int i) {
  const k_value *init = s->in[2 + i];
  const k_value *arg = s->body[0]->args.at[1 + i];
  if (is_scalar(init)) {
    h_value var = {.kind = H_SCALAR, .v = h_alloca(h, h_type(h, init->type, 1), 0)};
    LLVMBuildStore(h->b, scalar_of(h, init), var.v);
    return (h_slot){var, NULL};
  }
  if (h->at[init->id].kind == H_NONE) h_flush(h);
  h_value at = h->at[init->id];
  // The first value's own array can become the slot when the loop is its only reader.
  bool own = at.kind == H_MEMORY && init->uses.n == 1 && init->block == s->parent && init->def &&
             init->def->code != K_STAGE;
  h_value slot = own ? at : h_home(h, s->out[i], NULL);
  if (slot.kind != H_MEMORY) slot = h_tile(h, init);
  if (!own) h_copy(h, slot, at, init);
  return (h_slot){slot, arg};
}

static void lower_for(host *h, k_stmt *s) {
  h_flush(h);
  k_block *b = s->body[0];
  h_slot *slot = arena_new(h->arena, h_slot, s->nout + 1);
  for (int i = 0; i < s->nout; i++) slot[i] = carried_slot(h, s, i);
  h->slot[s->seq] = slot;
  h_loop loop;
  LLVMValueRef count = h_loop_begin(h, &loop, scalar_of(h, s->in[0]), scalar_of(h, s->in[1]));
  set_scalar(h, b->args.at[0], count);
  for (int i = 0; i < s->nout; i++) {
    const k_value *arg = b->args.at[1 + i];
    if (is_scalar(arg)) {
      set_scalar(h, arg, LLVMBuildLoad2(h->b, h_type(h, arg->type, 1), slot[i].at.v, ""));
    } else {
      h->at[arg->id] = slot[i].at;
    }
  }
  lower_block(h, b);
  // All values are read before any slot is written: a yield may be another carried value.
  h_value *next = arena_new(h->arena, h_value, s->nout + 1);
  for (int i = 0; i < s->nout; i++) {
    const k_value *y = b->yield.at[i];
    next[i] = h->at[y->id];
    for (int j = 0; j < s->nout; j++)
      if (next[i].kind == H_MEMORY && j != i && next[i].v == slot[j].at.v) {
        h_value copy = h_tile(h, y);
        h_copy(h, copy, next[i], y);
        next[i] = copy;
        break;
      }
  }
  for (int i = 0; i < s->nout; i++) {
    if (is_scalar(b->yield.at[i])) {
      LLVMBuildStore(h->b, next[i].v, slot[i].at.v);
    } else {
      h_copy(h, slot[i].at, next[i], b->yield.at[i]);
    }
  }
  h_loop_end(h, &loop, s->i);
  for (int i = 0; i < s->nout; i++) {
    if (is_scalar(s->out[i])) {
      set_scalar(h, s->out[i],
                 LLVMBuildLoad2(h->b, h_type(h, s->out[i]->type, 1), slot[i].at.v, ""));
    } else {
      h->at[s->out[i]->id] = slot[i].at;
    }
  }
}

static bool used_only_by_if(const k_value *v, const k_stmt *s) {
  for (int i = 0; i < v->uses.n; i++) {
    const k_stmt *u = v->uses.at[i];
    if (u == s) continue;
    const k_block *b = u->parent;
    while (b && b->owner != s) b = b->parent;
    if (!b) return false;
  }
  return true;
}

// Result i of an IF may take over the array of a value that a branch only passes through.
static h_slot if_slot(host *h, const k_stmt *s, int i) {
  if (is_scalar(s->out[i]))
    return (h_slot){{.kind = H_SCALAR, .v = h_alloca(h, h_type(h, s->out[i]->type, 1), 0)}, NULL};
  for (int j = 0; j < 2; j++) {
    const k_value *y = s->body[j]->yield.at[i];
    if (h->at[y->id].kind == H_MEMORY && y->block == s->parent && y->def &&
        y->def->code != K_STAGE && used_only_by_if(y, s)) {
      bool twice = false;
      for (int n = 0; n < i; n++) twice |= h->slot[s->seq][n].at.v == h->at[y->id].v;
      if (!twice) return (h_slot){h->at[y->id], y};
    }
  }
  h_value home = h_home(h, s->out[i], NULL);
  return (h_slot){home.kind == H_MEMORY ? home : h_tile(h, s->out[i]), NULL};
}

static void lower_if(host *h, k_stmt *s) {
  h_flush(h);
  LLVMValueRef cond = scalar_of(h, s->in[0]);
  h->slot[s->seq] = arena_new(h->arena, h_slot, s->nout + 1);
  h_slot *slot = h->slot[s->seq];
  for (int i = 0; i < s->nout; i++) slot[i] = if_slot(h, s, i);
  LLVMBasicBlockRef to[2], end;
  to[0] = LLVMAppendBasicBlockInContext(h->context, h->fn, "then");
  to[1] = LLVMAppendBasicBlockInContext(h->context, h->fn, "else");
  end = LLVMAppendBasicBlockInContext(h->context, h->fn, "end");
  LLVMBuildCondBr(h->b, cond, to[0], to[1]);
  for (int j = 0; j < 2; j++) {
    LLVMPositionBuilderAtEnd(h->b, to[j]);
    lower_block(h, s->body[j]);
    for (int i = 0; i < s->nout; i++) {
      const k_value *y = s->body[j]->yield.at[i];
      if (is_scalar(y)) {
        LLVMBuildStore(h->b, scalar_of(h, y), slot[i].at.v);
      } else {
        h_copy(h, slot[i].at, h->at[y->id], y);
      }
    }
    LLVMBuildBr(h->b, end);
  }
  LLVMPositionBuilderAtEnd(h->b, end);
  for (int i = 0; i < s->nout; i++) {
    if (is_scalar(s->out[i])) {
      set_scalar(h, s->out[i],
                 LLVMBuildLoad2(h->b, h_type(h, s->out[i]->type, 1), slot[i].at.v, ""));
    } else {
      h->at[s->out[i]->id] = slot[i].at;
    }
  }
}

static void lower_stmt(host *h, k_stmt *s) {
  const k_value *first = s->nout ? s->out[0] : s->nin ? s->in[0] : NULL;
  switch (s->code) {
    case K_CONST:
      set_scalar(h, first,
                 first->type == K_F32
                     ? h_number(h, K_F32, 1, s->f)
                     : LLVMConstInt(h_type(h, first->type, 1), (unsigned long long)s->i, 1));
      break;
    case K_GRID: set_scalar(h, first, h->coord[s->i]); break;
    case K_FIELD: set_scalar(h, first, h->call[s->i]); break;
    case K_BARRIER: h_flush(h); break;
    case K_FOR: lower_for(h, s); break;
    case K_IF: lower_if(h, s); break;
    case K_DOT:
      h_flush(h);
      h_dot(h, s);
      if (h->at[first->id].kind == H_BANDED) return;  // done when its readers are lowered
      break;
    case K_TRANSPOSE:
      if (is_scalar(first)) {
        scalar_stmt(h, s);
      } else {
        h_flush(h);
        h_transpose(h, s);
      }
      break;
    case K_STAGE:
      if (h->at[s->in[0]->id].kind == H_NONE) h_flush(h);
      h->at[first->id] = h->at[s->in[0]->id];
      break;
    case K_SPREAD:
      if (is_scalar(s->in[0])) {
        set_scalar(h, first, scalar_of(h, s->in[0]));
      } else {
        h_group_add(h, s);
      }
      break;
    default:
      if (is_scalar(first) && s->code != K_REDUCE) {
        scalar_stmt(h, s);
      } else if (s->code == K_LOAD && h_stays_in_buffer(h, s)) {
        const k_access *x = &s->access;
        LLVMValueRef base = x->base ? scalar_of(h, x->base) : h_i64(h, 0);
        LLVMTypeRef e = h->k->buffer[x->buffer].dtype == DT_bf16
                            ? LLVMInt16TypeInContext(h->context)
                            : LLVMFloatTypeInContext(h->context);
        h->at[first->id] = (h_value){.kind = H_LOADED,
                                     .v = h_element(h, e, h->buf[x->buffer], base),
                                     .ld = x->row_stride,
                                     .load = s};
      } else if (s->code == K_STORE && h->at[first->id].kind == H_STORED) {
        // its dot did it
      } else {
        h_group_add(h, s);
        return;  // done when its group is lowered
      }
  }
  h->done[s->seq] = true;
}

static void lower_block(host *h, k_block *b) {
  for (int i = 0; i < b->stmts.n; i++) lower_stmt(h, b->stmts.at[i]);
  h_flush(h);
}

// ---- the kernel --------------------------------------------------------------------------------

// void symbol(ptr buf, ptr call, i64 lo, i64 hi): cells lo .. hi-1, the last grid dimension
// fastest.
void host_kernel(host *h, const k_kernel *k, const char *symbol) {
  LLVMTypeRef ptr = LLVMPointerTypeInContext(h->context, 0),
              i64 = LLVMInt64TypeInContext(h->context);
  LLVMTypeRef params[] = {ptr, ptr, i64, i64};
  LLVMTypeRef type = LLVMFunctionType(LLVMVoidTypeInContext(h->context), params, 4, 0);
  h->k = k;
  h->fn = LLVMAddFunction(h->module, symbol, type);
  h_function_attributes(h, h->fn);
  h->at = arena_new(h->arena, h_value, k->next_id + 1);
  h->done = arena_new(h->arena, bool, k->next_seq + 1);
  h->slot = arena_new(h->arena, h_slot *, k->next_seq + 1);
  h->pending.n = 0;
  h->stack = 0;

  h->entry = LLVMAppendBasicBlockInContext(h->context, h->fn, "entry");
  LLVMBasicBlockRef start = LLVMAppendBasicBlockInContext(h->context, h->fn, "start");
  LLVMPositionBuilderAtEnd(h->b, h->entry);
  h->entry_end = LLVMBuildBr(h->b, start);
  LLVMPositionBuilderAtEnd(h->b, start);
  for (int i = 0; i < k->nbuffers; i++)
    h->buf[i] = LLVMBuildLoad2(h->b, ptr, h_element(h, ptr, LLVMGetParam(h->fn, 0), h_i64(h, i)),
                               k->buffer[i].name);
  for (int i = 0; i < K_FIELDS; i++)
    h->call[i] =
        LLVMBuildLoad2(h->b, i64, h_element(h, i64, LLVMGetParam(h->fn, 1), h_i64(h, i)), "");
  h->nowhere = h_alloca(h, LLVMArrayType2(LLVMInt8TypeInContext(h->context), 64), 64);
  LLVMBuildStore(h->b, LLVMConstNull(LLVMVectorType(LLVMInt8TypeInContext(h->context), 64)),
                 h->nowhere);

  h_loop cells;
  LLVMValueRef cell = h_loop_begin(h, &cells, LLVMGetParam(h->fn, 2), LLVMGetParam(h->fn, 3));
  for (int d = k->ngrid - 1; d >= 0; d--) {
    LLVMValueRef n = h_i64(h, k->grid[d]);
    h->coord[d] = d == 0 ? cell : LLVMBuildURem(h->b, cell, n, "");
    if (d > 0) cell = LLVMBuildUDiv(h->b, cell, n, "");
  }
  lower_block(h, k->body);
  h_loop_end(h, &cells, 1);
  LLVMBuildRetVoid(h->b);
}
