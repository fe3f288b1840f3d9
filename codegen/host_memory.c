// Buffers: addresses, bounds, and conversion between storage types and the types kernels compute
// in.
//
// A vector of a tile is read in the cheapest way its access allows: one (masked) vector load when
// lanes are neighbours, one scalar load when they are the same place, a gather otherwise. Lanes
// outside the limits never touch memory.
#include <string.h>

#include "codegen/host.h"

LLVMValueRef h_splat(host *h, LLVMValueRef scalar, int lanes) {
  if (lanes == 1) return scalar;
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMTypeRef vt = LLVMVectorType(LLVMTypeOf(scalar), (unsigned)lanes);
  if (LLVMIsConstant(scalar)) {
    LLVMValueRef all[64];
    for (int i = 0; i < lanes; i++) all[i] = scalar;
    return LLVMConstVector(all, (unsigned)lanes);
  }
  LLVMValueRef v =
      LLVMBuildInsertElement(h->b, LLVMGetPoison(vt), scalar, LLVMConstInt(i32, 0, 0), "");
  LLVMTypeRef it = LLVMVectorType(i32, (unsigned)lanes);
  return LLVMBuildShuffleVector(h->b, v, LLVMGetPoison(vt), LLVMConstNull(it), "");
}

// ---- storage types -----------------------------------------------------------------------------

static LLVMTypeRef storage_type(host *h, ir_dtype t) {
  switch (t) {
    case DT_f32: return LLVMFloatTypeInContext(h->context);
    case DT_f64: return LLVMDoubleTypeInContext(h->context);
    case DT_i32: return LLVMInt32TypeInContext(h->context);
    case DT_i64: return LLVMInt64TypeInContext(h->context);
    case DT_bf16:
    case DT_f16:
    case DT_i16:
    case DT_u16: return LLVMInt16TypeInContext(h->context);
    default: return LLVMInt8TypeInContext(h->context);
  }
}

static LLVMTypeRef vector_of(LLVMTypeRef e, int lanes) {
  return lanes == 1 ? e : LLVMVectorType(e, (unsigned)lanes);
}

// Integer helpers on <lanes x i32>, so that the bit formulas below can be read.
typedef struct bits {
  host *h;
  int lanes;
} bits;
static LLVMValueRef num(bits w, int64_t v) { return h_number(w.h, K_I32, w.lanes, (double)v); }
static LLVMValueRef and_(bits w, LLVMValueRef a, int64_t b) {
  return LLVMBuildAnd(w.h->b, a, num(w, b), "");
}
static LLVMValueRef or_(bits w, LLVMValueRef a, LLVMValueRef b) {
  return LLVMBuildOr(w.h->b, a, b, "");
}
static LLVMValueRef shl(bits w, LLVMValueRef a, int n) {
  return LLVMBuildShl(w.h->b, a, num(w, n), "");
}
static LLVMValueRef shr(bits w, LLVMValueRef a, int n) {
  return LLVMBuildLShr(w.h->b, a, num(w, n), "");
}
static LLVMValueRef add(bits w, LLVMValueRef a, LLVMValueRef b) {
  return LLVMBuildAdd(w.h->b, a, b, "");
}
static LLVMValueRef as_i32(bits w, LLVMValueRef f) {
  return LLVMBuildBitCast(w.h->b, f, h_type(w.h, K_I32, w.lanes), "");
}
static LLVMValueRef as_f32(bits w, LLVMValueRef i) {
  return LLVMBuildBitCast(w.h->b, i, h_type(w.h, K_F32, w.lanes), "");
}
static LLVMValueRef pick(bits w, LLVMValueRef c, LLVMValueRef a, LLVMValueRef b) {
  return LLVMBuildSelect(w.h->b, c, a, b, "");
}
static LLVMValueRef above(bits w, LLVMValueRef a, int64_t b) {
  return LLVMBuildICmp(w.h->b, LLVMIntUGT, a, num(w, b), "");
}

// The kept part of |f| when all but `keep` of the 23 fraction bits go: round to nearest, even.
static LLVMValueRef round_bits(bits w, LLVMValueRef u, int drop) {
  LLVMValueRef odd = and_(w, shr(w, u, drop), 1);
  return shr(w, add(w, add(w, u, num(w, (1 << (drop - 1)) - 1)), odd), drop);
}

// f32 to an 8-bit float with `man` fraction bits and exponent bias `bias`; `top` is the largest
// finite code, `over` what becomes of larger numbers (the format's infinity or NaN), `nan` its NaN.
static LLVMValueRef to_f8(bits w, LLVMValueRef f, int man, int bias, int over, int nan) {
  host *h = w.h;
  LLVMValueRef u = as_i32(w, f), a = and_(w, u, 0x7fffffff);
  LLVMValueRef sign = and_(w, shr(w, u, 24), 0x80);
  // Normal range: rebias, then round the fraction; a carry goes into the exponent as it should.
  LLVMValueRef rebased = add(w, a, num(w, -((127 - bias) << 23)));
  LLVMValueRef normal = round_bits(w, rebased, 23 - man);
  // Below: adding 2^k puts the last kept bit at the unit of the sum, and the hardware rounds.
  float unit = 1.0f;
  for (int i = 0; i < 23 + 1 - bias - man; i++) unit *= 2.0f;
  for (int i = 0; i > 23 + 1 - bias - man; i--) unit *= 0.5f;
  LLVMValueRef magic = h_number(h, K_F32, w.lanes, (double)unit);
  LLVMValueRef sum = LLVMBuildFAdd(h->b, as_f32(w, a), magic, "");
  LLVMValueRef small = LLVMBuildSub(h->b, as_i32(w, sum), as_i32(w, magic), "");
  LLVMValueRef code = pick(w, above(w, a, ((int64_t)(128 - bias) << 23) - 1), normal, small);
  code = pick(w, above(w, code, over - 1), num(w, over), code);
  code = pick(w, above(w, a, 0x7f7fffff), num(w, over), code);
  code = pick(w, above(w, a, 0x7f800000), num(w, nan), code);
  return or_(w, code, sign);
}

static LLVMValueRef from_f8(bits w, LLVMValueRef i, int man, int bias, int inf) {
  host *h = w.h;
  LLVMValueRef sign = shl(w, and_(w, i, 0x80), 24), a = and_(w, i, 0x7f);
  // Moved into place the code is a float with the wrong bias: one exact multiplication repairs it,
  // denormals included.
  double scale = 1;
  for (int n = 0; n < 127 - bias; n++) scale *= 2;
  LLVMValueRef f =
      LLVMBuildFMul(h->b, as_f32(w, shl(w, a, 23 - man)), h_number(h, K_F32, w.lanes, scale), "");
  LLVMValueRef u = as_i32(w, f);
  if (inf) {
    LLVMValueRef special = or_(w, shl(w, and_(w, a, (1 << man) - 1), 23 - man), num(w, 0x7f800000));
    u = pick(w, above(w, a, inf - 1), special, u);
  } else {
    u = pick(w, above(w, a, 0x7e), num(w, 0x7fc00000), u);  // the only NaN of e4m3
  }
  return as_f32(w, or_(w, u, sign));
}

LLVMValueRef h_widen(host *h, LLVMValueRef v, ir_dtype t, int lanes) {
  bits w = {h, lanes};
  LLVMTypeRef i32 = h_type(h, K_I32, lanes), f32 = h_type(h, K_F32, lanes);
  switch (t) {
    case DT_f32:
    case DT_i32:
    case DT_i64: return v;
    case DT_f64: return LLVMBuildFPTrunc(h->b, v, f32, "");
    case DT_bf16: return as_f32(w, shl(w, LLVMBuildZExt(h->b, v, i32, ""), 16));
    case DT_f16: {
      LLVMTypeRef half = vector_of(LLVMHalfTypeInContext(h->context), lanes);
      return LLVMBuildFPExt(h->b, LLVMBuildBitCast(h->b, v, half, ""), f32, "");
    }
    case DT_f8e4m3: return from_f8(w, LLVMBuildZExt(h->b, v, i32, ""), 3, 7, 0);
    case DT_f8e5m2: return from_f8(w, LLVMBuildZExt(h->b, v, i32, ""), 2, 15, 0x7c);
    case DT_i16:
    case DT_i8: return LLVMBuildSExt(h->b, v, i32, "");
    case DT_u16: return LLVMBuildZExt(h->b, v, i32, "");
    case DT_bool: return LLVMBuildICmp(h->b, LLVMIntNE, v, LLVMConstNull(LLVMTypeOf(v)), "");
    default: IR_BUG("no such storage type");
  }
}

LLVMValueRef h_narrow(host *h, LLVMValueRef v, ir_dtype t, int lanes) {
  bits w = {h, lanes};
  LLVMTypeRef to = vector_of(storage_type(h, t), lanes);
  switch (t) {
    case DT_f32:
    case DT_i32:
    case DT_i64: return v;
    case DT_f64: return LLVMBuildFPExt(h->b, v, to, "");
    case DT_bf16: {
      if (h->bf16) {  // one instruction; it takes denormals for zeros
        LLVMTypeRef bf = vector_of(LLVMBFloatTypeInContext(h->context), lanes);
        return LLVMBuildBitCast(h->b, LLVMBuildFPTrunc(h->b, v, bf, ""), to, "");
      }
      LLVMValueRef u = as_i32(w, v), a = and_(w, u, 0x7fffffff);
      LLVMValueRef quiet = or_(w, shr(w, u, 16), num(w, 0x40));  // a NaN must not round to infinity
      return LLVMBuildTrunc(h->b, pick(w, above(w, a, 0x7f800000), quiet, round_bits(w, u, 16)), to,
                            "");
    }
    case DT_f16: {
      LLVMTypeRef half = vector_of(LLVMHalfTypeInContext(h->context), lanes);
      return LLVMBuildBitCast(h->b, LLVMBuildFPTrunc(h->b, v, half, ""), to, "");
    }
    case DT_f8e4m3: return LLVMBuildTrunc(h->b, to_f8(w, v, 3, 7, 0x7f, 0x7f), to, "");
    case DT_f8e5m2: return LLVMBuildTrunc(h->b, to_f8(w, v, 2, 15, 0x7c, 0x7e), to, "");
    case DT_i16:
    case DT_i8:
    case DT_u16: return LLVMBuildTrunc(h->b, v, to, "");
    case DT_bool: return LLVMBuildZExt(h->b, v, to, "");
    default: IR_BUG("no such storage type");
  }
}

// ---- addresses ---------------------------------------------------------------------------------

static LLVMValueRef both(host *h, LLVMValueRef a, LLVMValueRef b) {
  return !a ? b : !b ? a : LLVMBuildAnd(h->b, a, b, "");
}

static LLVMValueRef lane_numbers(host *h, k_type t, int lanes) {
  LLVMValueRef n[64];
  for (int i = 0; i < lanes; i++) n[i] = LLVMConstInt(h_type(h, t, 1), (unsigned)i, 0);
  return lanes == 1 ? n[0] : LLVMConstVector(n, (unsigned)lanes);
}

// Which lanes are inside, as <lanes x i1>; NULL: all.
static LLVMValueRef inside(host *h, const k_access *x, const h_lanes *at) {
  const k_value *along = at->along_rows ? x->row_limit : x->col_limit;
  const k_value *across = at->along_rows ? x->col_limit : x->row_limit;
  LLVMValueRef from = at->along_rows ? at->r : at->c, other = at->along_rows ? at->c : at->r;
  LLVMValueRef m = at->mask, here = NULL;
  if (across) here = LLVMBuildICmp(h->b, LLVMIntSLT, other, h->at[across->id].v, "");
  if (along && at->lanes == 1) {
    here = both(h, here, LLVMBuildICmp(h->b, LLVMIntSLT, from, h->at[along->id].v, ""));
  } else if (along) {
    // Lanes left, cut to 0 .. lanes, compared in 32 bits.
    LLVMValueRef left = LLVMBuildSub(h->b, h->at[along->id].v, from, "");
    LLVMTypeRef i64 = LLVMInt64TypeInContext(h->context);
    LLVMValueRef args[] = {left, h_i64(h, 0)};
    left = h_intrinsic(h, "llvm.smax", &i64, 1, args, 2);
    LLVMValueRef args2[] = {left, h_i64(h, at->lanes)};
    left = h_intrinsic(h, "llvm.smin", &i64, 1, args2, 2);
    left = h_splat(h, LLVMBuildTrunc(h->b, left, h_type(h, K_I32, 1), ""), at->lanes);
    m = both(h, m, LLVMBuildICmp(h->b, LLVMIntSLT, lane_numbers(h, K_I32, at->lanes), left, ""));
  }
  if (at->valid < at->lanes) {
    LLVMValueRef v[64];
    for (int i = 0; i < at->lanes; i++)
      v[i] = LLVMConstInt(LLVMInt1TypeInContext(h->context), i < at->valid, 0);
    m = both(h, m, LLVMConstVector(v, (unsigned)at->lanes));
  }
  return both(h, m, here ? h_splat(h, here, at->lanes) : NULL);
}

// The place of lane 0 in elements, without an offset that varies.
static LLVMValueRef first_place(host *h, const k_access *x, const h_lanes *at) {
  LLVMValueRef p = x->base ? h->at[x->base->id].v : h_i64(h, 0);
  if (at->offset && !at->offset_varies) p = LLVMBuildAdd(h->b, p, at->offset, "");
  if (x->row_stride)
    p = LLVMBuildAdd(h->b, p, LLVMBuildMul(h->b, at->r, h_i64(h, x->row_stride), ""), "");
  if (x->col_stride)
    p = LLVMBuildAdd(h->b, p, LLVMBuildMul(h->b, at->c, h_i64(h, x->col_stride), ""), "");
  return p;
}

static LLVMValueRef lane(host *h, LLVMValueRef v, int i) {
  return LLVMBuildExtractElement(
      h->b, v, LLVMConstInt(LLVMInt32TypeInContext(h->context), (unsigned)i, 0), "");
}

// The addresses of all lanes.
static LLVMValueRef places(host *h, const k_access *x, const h_lanes *at, LLVMTypeRef e,
                           int64_t stride) {
  LLVMValueRef p = h_splat(h, first_place(h, x, at), at->lanes);
  if (at->offset_varies) p = LLVMBuildAdd(h->b, p, at->offset, "");
  if (stride) {
    LLVMValueRef step = LLVMBuildMul(h->b, lane_numbers(h, K_I64, at->lanes),
                                     h_splat(h, h_i64(h, stride), at->lanes), "");
    p = LLVMBuildAdd(h->b, p, step, "");
  }
  return h_element(h, e, h->buf[x->buffer], p);
}

static unsigned size_of(ir_dtype t) { return (unsigned)ir_dtype_bytes(t); }

// One element, or `nowhere` where it is outside.
static LLVMValueRef load_one(host *h, LLVMTypeRef e, LLVMValueRef p, LLVMValueRef ok,
                             unsigned align) {
  if (ok) p = LLVMBuildSelect(h->b, ok, p, h->nowhere, "");
  LLVMValueRef v = LLVMBuildLoad2(h->b, e, p, "");
  LLVMSetAlignment(v, align);
  return v;
}

// The first n lanes of v, which has `width`; lanes beyond its own are zeros.
static LLVMValueRef some_lanes(host *h, LLVMValueRef v, int width, int n) {
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  LLVMValueRef pick[64];
  for (int i = 0; i < n; i++) pick[i] = LLVMConstInt(i32, (unsigned)(i < width ? i : width), 0);
  return LLVMBuildShuffleVector(h->b, v, LLVMConstNull(LLVMTypeOf(v)),
                                LLVMConstVector(pick, (unsigned)n), "");
}

// A load of adjacent elements under a mask. The mask's constant part is kept to its own width: of a
// 16-lane load whose upper half is never wanted, LLVM 19 may read the upper half without a mask.
static LLVMValueRef load_masked(host *h, const h_lanes *at, LLVMTypeRef e, LLVMValueRef p,
                                LLVMValueRef in, ir_dtype t) {
  int width = at->lanes;
  while (width > 2 && width / 2 >= at->valid) width /= 2;
  LLVMTypeRef vt = vector_of(e, width);
  if (width < at->lanes) in = some_lanes(h, in, at->lanes, width);
  LLVMTypeRef types[] = {vt, LLVMPointerTypeInContext(h->context, 0)};
  LLVMValueRef args[] = {
      p, LLVMConstInt(LLVMInt32TypeInContext(h->context), (unsigned)ir_dtype_bytes(t), 0), in,
      LLVMConstNull(vt)};
  LLVMValueRef v = h_intrinsic(h, "llvm.masked.load", types, 2, args, 4);
  return width < at->lanes ? some_lanes(h, v, width, at->lanes) : v;
}

static LLVMValueRef load_raw(host *h, const k_access *x, const h_lanes *at, LLVMValueRef in,
                             ir_dtype t) {
  int64_t stride = at->along_rows ? x->row_stride : x->col_stride;
  LLVMTypeRef e = storage_type(h, t), vt = vector_of(e, at->lanes);
  LLVMTypeRef ptr = LLVMPointerTypeInContext(h->context, 0);
  LLVMValueRef buf = h->buf[x->buffer];
  LLVMTypeRef i32 = LLVMInt32TypeInContext(h->context);
  if (at->lanes == 1)
    return load_one(h, e, h_element(h, e, buf, first_place(h, x, at)), in, size_of(t));
  if (!at->offset_varies && stride == 1) {
    LLVMValueRef p = h_element(h, e, buf, first_place(h, x, at));
    if (!in) {
      LLVMValueRef v = LLVMBuildLoad2(h->b, vt, p, "");
      LLVMSetAlignment(v, size_of(t));
      return v;
    }
    return load_masked(h, at, e, p, in, t);
  }
  if (!at->offset_varies && stride == 0) {
    // The same place for all: any lane inside makes the place valid.
    LLVMValueRef any = NULL;
    if (in) {
      LLVMTypeRef it = LLVMTypeOf(in);
      any = h_intrinsic(h, "llvm.vector.reduce.or", &it, 1, &in, 1);
    }
    LLVMValueRef p = h_element(h, e, buf, first_place(h, x, at));
    return h_splat(h, load_one(h, e, p, any, size_of(t)), at->lanes);
  }
  LLVMValueRef p = places(h, x, at, e, stride);
  if (size_of(t) >= 4) {
    LLVMValueRef all = in ? in : LLVMConstAllOnes(h_type(h, K_BOOL, at->lanes));
    LLVMValueRef args[] = {p, LLVMConstInt(i32, size_of(t), 0), all, LLVMConstNull(vt)};
    LLVMTypeRef types[] = {vt, LLVMVectorType(ptr, (unsigned)at->lanes)};
    return h_intrinsic(h, "llvm.masked.gather", types, 2, args, 4);
  }
  // No gather of small elements: lane by lane, without branches.
  LLVMValueRef v = LLVMConstNull(vt);
  for (int i = 0; i < at->lanes; i++) {
    LLVMValueRef one = load_one(h, e, lane(h, p, i), in ? lane(h, in, i) : NULL, size_of(t));
    v = LLVMBuildInsertElement(h->b, v, one, LLVMConstInt(i32, (unsigned)i, 0), "");
  }
  return v;
}

LLVMValueRef h_load(host *h, const k_access *x, const h_lanes *at) {
  ir_dtype t = h->k->buffer[x->buffer].dtype;
  LLVMValueRef in = inside(h, x, at);
  LLVMValueRef v = h_widen(h, load_raw(h, x, at, in, t), t, at->lanes);
  bool limited = x->row_limit || x->col_limit || x->mask;
  if (!limited) return v;
  // Padding lanes need no fill; nobody looks at them.
  return LLVMBuildSelect(h->b, in, v, h_number(h, k_type_of(t), at->lanes, x->fill), "");
}

// Adds lane after lane: two lanes may name one place.
static void add_in_order(host *h, const k_access *x, const h_lanes *at, LLVMValueRef in,
                         LLVMValueRef v) {
  ir_dtype t = h->k->buffer[x->buffer].dtype;
  LLVMTypeRef e = storage_type(h, t);
  LLVMValueRef p = places(h, x, at, e, at->along_rows ? x->row_stride : x->col_stride);
  for (int i = 0; i < at->lanes; i++) {
    LLVMValueRef one = lane(h, p, i);
    if (in) one = LLVMBuildSelect(h->b, lane(h, in, i), one, h->nowhere, "");
    LLVMValueRef old = h_widen(h, load_one(h, e, one, NULL, size_of(t)), t, 1);
    LLVMValueRef sum = h_scalar(h, IR_add, k_type_of(t), 1, old, lane(h, v, i), NULL);
    LLVMSetAlignment(LLVMBuildStore(h->b, h_narrow(h, sum, t, 1), one), size_of(t));
  }
}

void h_store(host *h, const k_access *x, const h_lanes *at, LLVMValueRef v, bool add_to) {
  ir_dtype t = h->k->buffer[x->buffer].dtype;
  int64_t stride = at->along_rows ? x->row_stride : x->col_stride;
  LLVMValueRef in = inside(h, x, at);
  if (add_to && at->lanes > 1 && (at->offset_varies || stride == 0)) {
    add_in_order(h, x, at, in, v);
    return;
  }
  if (add_to) {
    LLVMValueRef old = h_widen(h, load_raw(h, x, at, in, t), t, at->lanes);
    v = h_scalar(h, IR_add, k_type_of(t), at->lanes, old, v, NULL);
  }
  v = h_narrow(h, v, t, at->lanes);
  LLVMTypeRef e = storage_type(h, t), vt = vector_of(e, at->lanes);
  LLVMTypeRef ptr = LLVMPointerTypeInContext(h->context, 0),
              i32 = LLVMInt32TypeInContext(h->context);
  if (at->lanes == 1) {
    LLVMValueRef p = h_element(h, e, h->buf[x->buffer], first_place(h, x, at));
    if (in) p = LLVMBuildSelect(h->b, in, p, h->nowhere, "");
    LLVMSetAlignment(LLVMBuildStore(h->b, v, p), size_of(t));
    return;
  }
  if (!at->offset_varies && stride == 1) {
    LLVMValueRef p = h_element(h, e, h->buf[x->buffer], first_place(h, x, at));
    if (!in) {
      LLVMSetAlignment(LLVMBuildStore(h->b, v, p), size_of(t));
      return;
    }
    LLVMValueRef args[] = {v, p, LLVMConstInt(i32, size_of(t), 0), in};
    LLVMTypeRef types[] = {vt, ptr};
    h_intrinsic(h, "llvm.masked.store", types, 2, args, 4);
    return;
  }
  LLVMValueRef p = places(h, x, at, e, stride);
  if (size_of(t) >= 4) {
    LLVMValueRef all = in ? in : LLVMConstAllOnes(h_type(h, K_BOOL, at->lanes));
    LLVMValueRef args[] = {v, p, LLVMConstInt(i32, size_of(t), 0), all};
    LLVMTypeRef types[] = {vt, LLVMVectorType(ptr, (unsigned)at->lanes)};
    h_intrinsic(h, "llvm.masked.scatter", types, 2, args, 4);
    return;
  }
  for (int i = 0; i < at->lanes; i++) {
    LLVMValueRef one = lane(h, p, i);
    if (in) one = LLVMBuildSelect(h->b, lane(h, in, i), one, h->nowhere, "");
    LLVMSetAlignment(LLVMBuildStore(h->b, lane(h, v, i), one), size_of(t));
  }
}
