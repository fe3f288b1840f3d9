// A program made by hand, with C functions as kernels: a bigram model that learns for real. Lets
// runtime tests run everything (VM, drivers, checkpoints, data) without the compiler.
//
//   logits[token] = wte[token] + sum of h.#.bias over 3 layers     (256 tokens)
//   update        = SGD with momentum; gradients accumulate over 2 micro-batches of 2 samples
//
// For two ranks (TOY_RANKS), each has half of the batch, one micro-batch, and gradients and losses
// are added up among them: the former on the stream for communication, between events.
//
// Built for a device, its kernels are functions of made-up modules, and its entries move inputs,
// arguments and outputs between the homes, as the compiler's do.
#ifndef TOY_PROGRAM_H
#define TOY_PROGRAM_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/dtype.h"
#include "runtime/exchange.h"
#include "runtime/load.h"

enum { TOY_V = 256, TOY_L = 3, TOY_B = 4, TOY_MB = 2, TOY_S = 8, TOY_CONTEXT = 24 };

// ---- kernels ----------------------------------------------------------------------------------

typedef unsigned char *const *toy_bufs;

static double toy_row(const float *wte, const float *bias, int32_t token, float *logits) {
  float top = -INFINITY;
  for (int c = 0; c < TOY_V; c++) {
    float x = wte[token * TOY_V + c];
    for (int l = 0; l < TOY_L; l++) x += bias[l * TOY_V + c];
    logits[c] = x;
    if (x > top) top = x;
  }
  double sum = 0;
  for (int c = 0; c < TOY_V; c++) sum += exp((double)(logits[c] - top));
  return (double)top + log(sum);
}

// Called by the kernel of cell 0 when it is done; tests spoil gradients and losses here.
static void (*toy_spoil)(const dsm_call *call, float *grad, float *rows);

// tokens, targets, wte, bias, grad of wte, loss by row
static void toy_grad(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  const int32_t *tokens = (const void *)b[0], *targets = (const void *)b[1];
  float *grad = (void *)b[4], *rows = (void *)b[5], logits[TOY_V];
  for (int64_t v = lo; v < hi; v++)
    for (int i = 0; i < TOY_MB * TOY_S; i++) {
      if (tokens[i] != v) continue;
      double lse = toy_row((const void *)b[2], (const void *)b[3], tokens[i], logits);
      rows[v] += (float)((lse - (double)logits[targets[i]]) / (TOY_B * TOY_S));
      for (int c = 0; c < TOY_V; c++)
        grad[v * TOY_V + c] +=
            (float)((exp((double)logits[c] - lse) - (c == targets[i])) / (TOY_B * TOY_S));
    }
  if (toy_spoil && lo == 0 && hi > 0) toy_spoil(call, grad, rows);
}

// grad of wte -> grad of a bias
static void toy_column(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  const float *grad = (const void *)b[0];
  float *out = (void *)b[1];
  (void)call;
  for (int64_t c = lo; c < hi; c++) {
    float sum = 0;
    for (int v = 0; v < TOY_V; v++) sum += grad[v * TOY_V + c];
    out[c] = sum;
  }
}

// rows -> loss; grad -> norm
static void toy_reduce(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  const float *rows = (const void *)b[0], *grad = (const void *)b[2];
  double loss = 0, norm = 0;
  (void)call, (void)lo, (void)hi;
  for (int v = 0; v < TOY_V; v++) loss += (double)rows[v];
  for (int i = 0; i < TOY_V * TOY_V; i++) norm += (double)grad[i] * (double)grad[i];
  *(float *)(void *)b[1] = (float)loss;
  *(float *)(void *)b[3] = (float)sqrt(norm);
}

// weights, grad, momentum state, lr, momentum, bf16 of the weights
static void toy_update(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  float *w = (void *)b[0], *m = (void *)b[2];
  uint16_t *copy = (void *)b[5];
  const float *g = (const void *)b[1];
  float lr = *(const float *)(const void *)b[3], mu = *(const float *)(const void *)b[4];
  (void)call;
  for (int64_t i = lo * TOY_V; i < hi * TOY_V; i++) {
    m[i] = mu * m[i] + g[i];
    w[i] -= lr * m[i];
    copy[i] = dtype_to_bf16(w[i]);
  }
}

// tokens, wte, bias -> logits; one cell a position
static void toy_logits(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  (void)call;
  for (int64_t i = lo; i < hi; i++)
    toy_row((const void *)b[1], (const void *)b[2], ((const int32_t *)(const void *)b[0])[i],
            (float *)(void *)b[3] + i * TOY_V);
}

// Called by the last instruction of a training step; tests look in and interfere here.
static void (*toy_hook)(const dsm_call *call);
static void toy_end(toy_bufs b, const dsm_call *call, int64_t lo, int64_t hi) {
  (void)b, (void)lo, (void)hi;
  if (toy_hook) toy_hook(call);
}

static dsm_kernel *const toy_kernel[] = {toy_grad,   toy_column, toy_reduce,
                                         toy_update, toy_logits, toy_end};
enum { K_GRAD, K_COLUMN, K_REDUCE, K_UPDATE, K_LOGITS, K_END, K_COUNT };

// ---- layout of the arena ----------------------------------------------------------------------

enum {
  AT_LR = 0,
  AT_MOMENTUM = 4,
  AT_PAST = 8,
  AT_STEP = 16,  // of a device: the call
  AT_WTE = 64,
  AT_BIAS = AT_WTE + 4 * TOY_V * TOY_V,
  AT_M = AT_BIAS + 4 * TOY_V * TOY_L,
  AT_MBIAS = AT_M + 4 * TOY_V * TOY_V,
  AT_COPY = AT_MBIAS + 4 * TOY_V * TOY_L,
  AT_CBIAS = AT_COPY + 2 * TOY_V * TOY_V,
  AT_WORK = AT_CBIAS + 2 * TOY_V * TOY_L,
  AT_TOKENS = AT_WORK,
  AT_TARGETS = AT_TOKENS + 4 * TOY_B * TOY_S,
  AT_GRAD = AT_TARGETS + 4 * TOY_B * TOY_S,
  AT_GBIAS = AT_GRAD + 4 * TOY_V * TOY_V,
  AT_ROWS = AT_GBIAS + 4 * TOY_V,
  AT_LOSS = AT_ROWS + 4 * TOY_V,
  AT_NORM = AT_LOSS + 4,
  AT_LOGITS = AT_NORM + 60,
  AT_SCRATCH = AT_LOGITS + 4 * TOY_V * TOY_CONTEXT,  // of TOY_RANKS
  ARENA = AT_SCRATCH + 2 * TOY_V * TOY_V
};

// ---- the blob ---------------------------------------------------------------------------------

typedef struct toy_table {
  _Alignas(8) unsigned char bytes[65536];
  size_t n;
  uint32_t count;
} toy_table;

typedef struct toy {
  toy_table strings, states, args, ios, kernels, gemms, operands, instrs, tasks, runs, entries,
      settings, functions, numbers, modules, axes, exchanges;
  bool device, ranks;
  unsigned char *blob;
  size_t n;
  uint64_t code_bytes;
  const unsigned char *code;
} toy;

static uint32_t toy_add(toy_table *t, const void *record, size_t bytes) {
  memcpy(t->bytes + t->n, record, bytes);
  t->n += bytes;
  return t->count++;
}

static prog_str toy_str(toy *t, const char *text) {
  prog_str at = (prog_str)t->strings.n;
  toy_add(&t->strings, text, strlen(text) + 1);
  return at;
}

static void toy_state(toy *t, const char *name, const char *of, uint32_t cls, uint32_t init,
                      double a, int rank, int64_t layers, int64_t offset) {
  prog_state s = {.name = toy_str(t, name),
                  .of = toy_str(t, of),
                  .cls = cls,
                  .dtype = PROG_F32,
                  .rank = (uint32_t)rank,
                  .init = init,
                  .dims = {TOY_V, TOY_V},
                  .layers = layers,
                  .step = 1,
                  .offset = offset,
                  .layer_stride = 4 * TOY_V,
                  .bytes = rank == 2 ? 4 * TOY_V * TOY_V : 4 * TOY_V,
                  .init_a = a};
  if (rank == 1) s.dims[1] = 0;
  if (!layers) s.layer_stride = 0;
  if (cls == PROG_COPY) {
    s.dtype = PROG_BF16;
    s.layer_stride /= 2;
    s.bytes /= 2;
  }
  toy_add(&t->states, &s, sizeof s);
}

static void toy_io(toy *t, const char *name, uint32_t dtype, uint32_t rank, int64_t d0, int64_t d1,
                   int64_t d2, int64_t offset, bool sampled, int64_t micro) {
  int64_t n = 4 * (rank > 0 ? d0 : 1) * (rank > 1 ? d1 : 1) * (rank > 2 ? d2 : 1);
  prog_io io = {.name = toy_str(t, name),
                .dtype = dtype,
                .rank = rank,
                .sampled = sampled,
                .dims = {d0, d1, d2},
                .offset = offset,
                .bytes = n,
                .micro_stride = micro};
  toy_add(&t->ios, &io, sizeof io);
}

static uint32_t toy_operand(toy *t, int64_t base, int64_t bytes, int64_t layer, int64_t micro) {
  prog_operand o = {.base = base, .bytes = bytes, .layer_stride = layer, .micro_stride = micro};
  return toy_add(&t->operands, &o, sizeof o);
}

static void toy_instr(toy *t, uint32_t op, uint32_t kernel, uint32_t first, uint32_t n) {
  // For each kernel, its note, and what it does with each operand: 1 reads, 2 writes, 3 both.
  static const struct {
    const char *note, *access;
  } kernels[] = {{"grad %grad line 3", "111133"},   {"column line 4", "12"},
                 {"reduce %loss line 5", "1212"},   {"update line 6", "313112"},
                 {"logits line 7", "1112"},         {"end", ""},
                 {"update %bias line 8", "313112"}, {"logits line 7", "1112"}};
  bool launch = op == RTOP_launch, gemm = op == RTOP_gemm;
  prog_instr in = {.op = op,
                   .kernel = kernel,
                   .first_operand = first,
                   .operands = n,
                   .note = toy_str(t, launch ? kernels[kernel].note
                                      : gemm ? "product"
                                             : "zeros")};
  toy_add(&t->instrs, &in, sizeof in);
  prog_operand *o = (prog_operand *)(void *)t->operands.bytes + first;
  for (uint32_t i = 0; i < n; i++)
    o[i].writes = launch ? (uint32_t)(kernels[kernel].access[i] - '0')
                  : gemm ? (i == 2 ? 2 : 1)
                         : 2;
}

// What has no kernel, on a stream.
static void toy_other(toy *t, uint32_t op, uint32_t stream, uint32_t event, uint32_t first,
                      uint32_t n) {
  prog_instr in = {.op = op,
                   .first_operand = first,
                   .operands = n,
                   .note = toy_str(t, ""),
                   .stream = stream,
                   .event = event};
  toy_add(&t->instrs, &in, sizeof in);
}

static void toy_order(toy *t, uint32_t event, uint32_t first, uint32_t then) {
  toy_other(t, RTOP_record, first, event, 0, 0);
  toy_other(t, RTOP_wait, then, event, 0, 0);
}

static void toy_move(toy *t, uint32_t op, int64_t at, int64_t bytes) {
  uint32_t first = toy_operand(t, at, bytes, 0, 0);
  toy_operand(t, at, bytes, 0, 0);
  prog_operand *two = (prog_operand *)(void *)t->operands.bytes + first;
  two[0].writes = 2;
  two[1].writes = 1;
  two[op == RTOP_fetch ? 1 : 0].home = PROG_HOST_HOME;
  toy_other(t, op, PROG_COPIES, 0, first, 2);
}

// All elements at `at` become their sum over both ranks.
static void toy_sum(toy *t, const char *name, int64_t at, int64_t elements, uint32_t stream) {
  if (!t->ranks) return;
  prog_exchange x = {.name = toy_str(t, name),
                     .kind = PROG_ALL_REDUCE,
                     .axes = 1,
                     .dtype = PROG_F32,
                     .size = {1, 1, 1},
                     .run = elements};
  x.scratch = comm_scratch_bytes(&x, 2);
  uint32_t record = toy_add(&t->exchanges, &x, sizeof x);
  uint32_t first = toy_operand(t, at, 4 * elements, 0, 0);
  toy_operand(t, at, 4 * elements, 0, 0);
  toy_operand(t, AT_SCRATCH, x.scratch, 0, 0);
  prog_operand *o = (prog_operand *)(void *)t->operands.bytes + first;
  o[0].writes = 2, o[1].writes = 1, o[2].writes = 3;
  if (stream) toy_order(t, 0, PROG_COMPUTE, stream);
  toy_other(t, RTOP_exchange, stream, 0, first, 3);
  ((prog_instr *)(void *)t->instrs.bytes)[t->instrs.count - 1].kernel = record;
  if (stream) toy_order(t, 1, stream, PROG_COMPUTE);
}

static void toy_task(toy *t, const char *name, const char *phase, uint32_t first) {
  prog_task k = {.name = toy_str(t, name),
                 .phase = toy_str(t, phase),
                 .first_instr = first,
                 .instrs = t->instrs.count - first,
                 .flops = 1e6,
                 .bytes = 1e5};
  toy_add(&t->tasks, &k, sizeof k);
}

static void toy_run(toy *t, uint32_t kind, uint32_t task, int64_t layers, int64_t micros) {
  prog_run r = {.kind = kind,
                .task = task,
                .layer_count = layers,
                .layer_dir = 1,
                .number_step = 1,
                .micro_count = micros};
  toy_add(&t->runs, &r, sizeof r);
}

static void toy_entry(toy *t, const char *name, uint32_t kind, uint32_t run, uint32_t io,
                      uint32_t inputs, int64_t batch, int64_t micro, int64_t tokens) {
  prog_entry e = {.name = toy_str(t, name),
                  .kind = kind,
                  .first_run = run,
                  .runs = t->runs.count - run,
                  .first_input = io,
                  .inputs = inputs,
                  .first_output = io + inputs,
                  .outputs = t->ios.count - io - inputs,
                  .batch = batch,
                  .micro_batch = micro,
                  .batch_axes = t->ranks && batch > 1,
                  .tokens = tokens,
                  .transient_bytes = ARENA - AT_WORK,
                  .flops = 2e6};
  toy_add(&t->entries, &e, sizeof e);
}

// The call, its arguments and inputs to the device. What the last call left is read and written
// before; what this one computes comes behind.
static void toy_fetch(toy *t, int64_t inputs, int64_t bytes) {
  if (!t->device) return;
  uint32_t first = t->instrs.count;
  toy_order(t, 0, PROG_COMPUTE, PROG_COPIES);
  toy_move(t, RTOP_fetch, 0, AT_WTE);
  toy_move(t, RTOP_fetch, inputs, bytes);
  toy_order(t, 1, PROG_COPIES, PROG_COMPUTE);
  toy_task(t, "fetch", "fetch", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
}

static void toy_evict(toy *t, int64_t outputs, int64_t bytes) {
  if (!t->device) return;
  uint32_t first = t->instrs.count;
  toy_order(t, 2, PROG_COMPUTE, PROG_COPIES);
  toy_move(t, RTOP_evict, outputs, bytes);
  toy_task(t, "evict", "evict", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
}

// tokens, targets, wte, bias, grad, rows: forward and backward of a micro-batch
static void toy_grad_instr(toy *t) {
  int64_t piece = 4 * TOY_MB * TOY_S;
  uint32_t o = toy_operand(t, AT_TOKENS, piece, 0, piece);
  toy_operand(t, AT_TARGETS, piece, 0, piece);
  toy_operand(t, AT_WTE, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_BIAS, 4 * TOY_V * TOY_L, 0, 0);
  toy_operand(t, AT_GRAD, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_ROWS, 4 * TOY_V, 0, 0);
  toy_instr(t, RTOP_launch, K_GRAD, o, 6);
}

static int64_t toy_batch(const toy *t) { return t->ranks ? TOY_B / 2 : TOY_B; }

static void toy_zero(toy *t, int64_t base, int64_t bytes) {
  toy_instr(t, RTOP_zero, 0, toy_operand(t, base, bytes, 0, 0), 1);
}

static void toy_reduce_instr(toy *t) {
  uint32_t o = toy_operand(t, AT_ROWS, 4 * TOY_V, 0, 0);
  toy_operand(t, AT_LOSS, 4, 0, 0);
  toy_operand(t, AT_GRAD, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_NORM, 4, 0, 0);
  toy_instr(t, RTOP_launch, K_REDUCE, o, 4);
}

static void toy_update_instr(toy *t, uint32_t kernel, int64_t w, int64_t g, int64_t m, int64_t copy,
                             int64_t bytes, int64_t layer) {
  uint32_t o = toy_operand(t, w, bytes, layer, 0);
  toy_operand(t, g, bytes, 0, 0);
  toy_operand(t, m, bytes, layer, 0);
  toy_operand(t, AT_LR, 4, 0, 0);
  toy_operand(t, AT_MOMENTUM, 4, 0, 0);
  toy_operand(t, copy, bytes / 2, layer / 2, 0);
  toy_instr(t, RTOP_launch, kernel, o, 6);
}

static void toy_logits_entry(toy *t, const char *name, uint32_t kind, int64_t positions,
                             uint32_t kernel) {
  uint32_t run = t->runs.count, io = t->ios.count;
  toy_fetch(t, AT_TOKENS, 4 * positions);
  uint32_t first = t->instrs.count, o = toy_operand(t, AT_TOKENS, 4 * positions, 0, 0);
  toy_operand(t, AT_WTE, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_BIAS, 4 * TOY_V * TOY_L, 0, 0);
  toy_operand(t, AT_LOGITS, 4 * TOY_V * positions, 0, 0);
  toy_instr(t, RTOP_launch, kernel, o, 4);
  toy_task(t, name, "forward", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  toy_evict(t, AT_LOGITS, 4 * TOY_V * positions);
  toy_io(t, "tokens", PROG_I32, 2, 1, positions, 0, AT_TOKENS, false, 0);
  toy_io(t, "logits", PROG_F32, 3, 1, positions, TOY_V, AT_LOGITS, false, 0);
  toy_entry(t, name, kind, run, io, 1, 1, 1, positions);
}

static void toy_batch_io(toy *t) {
  int64_t piece = 4 * TOY_MB * TOY_S;
  toy_io(t, "tokens", PROG_I32, 2, TOY_MB, TOY_S, 0, AT_TOKENS, true, piece);
  toy_io(t, "targets", PROG_I32, 2, TOY_MB, TOY_S, 0, AT_TARGETS, true, piece);
  toy_io(t, "loss", PROG_F32, 0, 0, 0, 0, AT_LOSS, false, 0);
}

static void toy_train_entry(toy *t) {
  uint32_t run = t->runs.count, io = t->ios.count;
  toy_fetch(t, AT_TOKENS, 8 * TOY_B * TOY_S);
  uint32_t first = t->instrs.count;
  toy_zero(t, AT_GRAD, 4 * TOY_V * TOY_V);
  toy_zero(t, AT_ROWS, 4 * TOY_V);
  toy_task(t, "begin", "forward", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);

  first = t->instrs.count;
  toy_grad_instr(t);
  toy_task(t, "gradients", "forward", first);
  toy_run(t, PROG_LOOP, 1, 0, toy_batch(t) / TOY_MB);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);

  first = t->instrs.count;
  toy_sum(t, "grad", AT_GRAD, TOY_V * TOY_V, PROG_COMMUNICATION);
  toy_sum(t, "rows", AT_ROWS, TOY_V, PROG_COMPUTE);
  uint32_t o = toy_operand(t, AT_GRAD, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_GBIAS, 4 * TOY_V, 0, 0);
  toy_instr(t, RTOP_launch, K_COLUMN, o, 2);
  toy_reduce_instr(t);
  toy_task(t, "reduce", "backward", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  toy_evict(t, AT_LOSS, 8);

  first = t->instrs.count;
  toy_update_instr(t, K_UPDATE, AT_WTE, AT_GRAD, AT_M, AT_COPY, 4 * TOY_V * TOY_V, 0);
  toy_task(t, "update", "update", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);

  first = t->instrs.count;
  toy_update_instr(t, K_COUNT, AT_BIAS, AT_GBIAS, AT_MBIAS, AT_CBIAS, 4 * TOY_V, 4 * TOY_V);
  toy_task(t, "update.h", "update", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, TOY_L, 0);

  first = t->instrs.count;
  toy_instr(t, RTOP_launch, K_END, 0, 0);
  toy_task(t, "end", "update", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  toy_batch_io(t);
  toy_io(t, "grad_norm", PROG_F32, 0, 0, 0, 0, AT_NORM, false, 0);
  toy_entry(t, "train_step", PROG_TRAIN, run, io, 2, toy_batch(t), TOY_MB, TOY_S);
}

// An instruction of `evaluate` that a library would do: 3 x 2 products of 16 x 16 corners.
static void toy_gemm(toy *t) {
  prog_gemm g = {.library = PROG_OPENBLAS,
                 .turned = 2,
                 .start = PROG_GEMM_ADD,
                 .axes = 2,
                 .m = 16,
                 .n = 12,
                 .k = 20,
                 .ld = {TOY_V, TOY_V, TOY_V},
                 .size = {3, 2},
                 .stride = {{16 * TOY_V, 32}, {0, 16}, {16 * TOY_V, 16}}};
  toy_add(&t->gemms, &g, sizeof g);
  prog_kernel k = {.name = toy_str(t, "openblas_nt_16x12x20"),
                   .nbufs = 4,
                   .gemm = 1,
                   .cells = 6,
                   .flops = 1e3,
                   .bytes = 1e3};
  toy_add(&t->kernels, &k, sizeof k);
  uint32_t o = toy_operand(t, AT_WTE, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_M, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_GRAD, 4 * TOY_V * TOY_V, 0, 0);
  toy_operand(t, AT_WTE, 4 * TOY_V * TOY_V, 0, 0);
  toy_instr(t, RTOP_gemm, t->kernels.count - 1, o, 4);
}

static void toy_eval_entry(toy *t, bool gemm) {
  uint32_t run = t->runs.count, io = t->ios.count;
  toy_fetch(t, AT_TOKENS, 8 * TOY_B * TOY_S);
  uint32_t first = t->instrs.count;
  toy_zero(t, AT_GRAD, 4 * TOY_V * TOY_V);
  toy_zero(t, AT_ROWS, 4 * TOY_V);
  toy_task(t, "eval.begin", "forward", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  first = t->instrs.count;
  toy_grad_instr(t);
  toy_task(t, "eval.loss", "forward", first);
  toy_run(t, PROG_LOOP, 1, 0, toy_batch(t) / TOY_MB);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  first = t->instrs.count;
  toy_sum(t, "rows", AT_ROWS, TOY_V, PROG_COMPUTE);
  toy_reduce_instr(t);
  if (gemm) toy_gemm(t);
  toy_task(t, "eval.end", "forward", first);
  toy_run(t, PROG_RUN, t->tasks.count - 1, 1, 0);
  toy_evict(t, AT_LOSS, 8);
  toy_batch_io(t);
  toy_entry(t, "evaluate", PROG_EVAL, run, io, 2, toy_batch(t), TOY_MB, TOY_S);
}

// Functions, and a module for each of three targets; nobody looks at the bytes.
static const unsigned char toy_modules[] =
    "binary one\0\0\0\0\0\0binary two\0\0\0\0\0\0.version 8.0";

static void toy_functions(toy *t) {
  static const char *const names[] = {"gpu_grad",   "gpu_column", "gpu_reduce",
                                      "gpu_update", "gpu_logits", "gpu_end"};
  for (uint32_t i = 0; i < K_COUNT; i++) {
    prog_function f = {.symbol = toy_str(t, names[i]),
                       .threads = 32 + 32 * i,
                       .shared_bytes = i == K_GRAD ? 65536 : 0,
                       .registers = 40 + i};
    toy_add(&t->functions, &f, sizeof f);
  }
  static const char *const targets[] = {"sm_80", "sm_90a", "compute_80"};
  for (uint32_t i = 0; i < 3; i++) {
    prog_module m = {.target = toy_str(t, targets[i]),
                     .kind = i == 2 ? PROG_PTX : PROG_CUBIN,
                     .functions = K_COUNT,
                     .offset = 16 * (int64_t)i,
                     .bytes = i == 2 ? (int64_t)sizeof toy_modules - 32 : 16};
    toy_add(&t->modules, &m, sizeof m);
  }
  t->code = toy_modules;
  t->code_bytes = sizeof toy_modules;
}

static void toy_kernels(toy *t) {
  static const char *const names[] = {"grad",   "column", "reduce",      "update",
                                      "logits", "end",    "update.bias", "logits.decode"};
  static const int which[] = {K_GRAD,   K_COLUMN, K_REDUCE, K_UPDATE,
                              K_LOGITS, K_END,    K_UPDATE, K_LOGITS};
  static const uint32_t nbufs[] = {6, 2, 4, 6, 4, 0, 6, 4};
  static const int64_t cells[] = {TOY_V, TOY_V, 1, TOY_V, TOY_CONTEXT, 1, 1, 1};
  uintptr_t low = UINTPTR_MAX, high = 0, at[K_COUNT];
  for (int i = 0; i < K_COUNT; i++) {
    memcpy(&at[i], &toy_kernel[i], sizeof at[i]);
    if (at[i] < low) low = at[i];
    if (at[i] > high) high = at[i];
  }
  t->code = (const unsigned char *)low;
  t->code_bytes = high - low + 1;
  if (t->device) toy_functions(t);
  for (int i = 0; i < 8; i++) {
    prog_kernel k = {.name = toy_str(t, names[i]),
                     .nbufs = nbufs[i],
                     .cells = cells[i],
                     .flops = 1e3,
                     .bytes = 1e3};
    if (t->device) {
      // The number of the kernel, so that launches of one function differ.
      int64_t number = i;
      k.function = (uint32_t)which[i];
      k.first_number = toy_add(&t->numbers, &number, sizeof number);
      k.numbers = 1;
    } else {
      k.code_offset = (int64_t)(at[which[i]] - low);
    }
    toy_add(&t->kernels, &k, sizeof k);
  }
}

static void toy_setting(toy *t, const char *name, const char *value) {
  prog_setting s = {toy_str(t, name), toy_str(t, value)};
  toy_add(&t->settings, &s, sizeof s);
}

static prog_table toy_lay(toy *t, const toy_table *from, uint32_t record) {
  t->n = (t->n + 7) & ~(size_t)7;
  prog_table r = {t->n, record == 1 ? (uint32_t)from->n : from->count, record};
  memcpy(t->blob + t->n, from->bytes, from->n);
  t->n += from->n;
  return r;
}

// Recomputes the checksum after a test changed the blob.
static void toy_seal(toy *t) {
  uint64_t sum = prog_checksum(t->blob, t->n);
  memcpy(t->blob + offsetof(prog_header, checksum), &sum, sizeof sum);
}

enum { TOY_PLAIN, TOY_GEMM, TOY_DEVICE, TOY_RANKS };

// Builds the whole program. TOY_GEMM: with an instruction that needs a library, to be checked and
// not to be run. TOY_DEVICE: for a GPU. Free with toy_free.
static toy *toy_build(const char *read, int kind) {
  toy *t = calloc(1, sizeof *t);
  if (!t) abort();
  bool gemm = kind == TOY_GEMM;
  t->device = kind == TOY_DEVICE;
  t->ranks = kind == TOY_RANKS;
  prog_header h = {.version = PROG_VERSION, .header_bytes = sizeof h};
  memcpy(h.magic, PROG_MAGIC, sizeof h.magic);
  toy_str(t, "");
  h.compiler = toy_str(t, "dsmc test");
  h.model = toy_str(t, "toy");
#if defined(__x86_64__)
  h.cpu = toy_str(t, "x86-64");
#else
  h.cpu = toy_str(t, "aarch64");
#endif
  h.plan = toy_str(t, "data 1");
  h.source_digest = 0x1234;
  h.arena_bytes = ARENA;
  h.states_bytes = AT_WORK;
  toy_state(t, "wte.weight", "", PROG_WEIGHT, PROG_NORMAL, 0.02, 2, 0, AT_WTE);
  toy_state(t, "h.#.bias", "", PROG_WEIGHT, PROG_ZEROS, 0, 1, TOY_L, AT_BIAS);
  toy_state(t, "wte.weight.m", "wte.weight", PROG_OPTIMIZER, PROG_ZEROS, 0, 2, 0, AT_M);
  toy_state(t, "h.#.bias.m", "h.#.bias", PROG_OPTIMIZER, PROG_ZEROS, 0, 1, TOY_L, AT_MBIAS);
  toy_state(t, "wte.weight.bf16", "wte.weight", PROG_COPY, PROG_ZEROS, 0, 2, 0, AT_COPY);
  toy_state(t, "h.#.bias.bf16", "h.#.bias", PROG_COPY, PROG_ZEROS, 0x1p-126, 1, TOY_L, AT_CBIAS);
  prog_arg lr = {toy_str(t, "lr"), 0, AT_LR, 1.0},
           mu = {toy_str(t, "momentum"), 0, AT_MOMENTUM, 0.5},
           past = {toy_str(t, "past"), 0, AT_PAST, 0};
  toy_add(&t->args, &lr, sizeof lr);
  toy_add(&t->args, &mu, sizeof mu);
  toy_add(&t->args, &past, sizeof past);
  if (t->ranks) {
    toy_str(t, "pipeline");  // what tests of stages call it
    prog_axis data = {.name = toy_str(t, "data"), .size = 2, .stride = 1};
    toy_add(&t->axes, &data, sizeof data);
    h.events = 2;
  }
  toy_kernels(t);
  toy_train_entry(t);
  toy_eval_entry(t, gemm);
  toy_logits_entry(t, "prefill", PROG_PREFILL, TOY_CONTEXT, K_LOGITS);
  toy_logits_entry(t, "decode", PROG_DECODE, 1, K_LOGITS + 3);
  toy_setting(t, "toy.vocab", "256");
  toy_setting(t, "train.steps", "40");
  toy_setting(t, "train.batch", "4");
  toy_setting(t, "train.read", read);
  toy_setting(t, "train.optimizer.lr", "4");
  toy_setting(t, "train.optimizer.momentum", "0.5");
  toy_setting(t, "train.schedule", "cosine(warmup=2, floor=0.1)");
  toy_setting(t, "train.schedule.warmup", "2");
  toy_setting(t, "train.schedule.floor", "0.1");
  toy_setting(t, "train.clip", "none");
  h.code_bytes = t->code_bytes;
  h.targets = 0;
  if (t->device) {
    h.machine = PROG_CUDA;
    h.targets = toy_str(t, "sm_80 sm_90a");
    h.events = 3;
    h.step_offset = AT_STEP;
  }

  t->blob = calloc(1, 17 * 65536);
  t->n = sizeof h;
  h.strings = toy_lay(t, &t->strings, 1);
  h.states = toy_lay(t, &t->states, sizeof(prog_state));
  h.args = toy_lay(t, &t->args, sizeof(prog_arg));
  h.ios = toy_lay(t, &t->ios, sizeof(prog_io));
  h.kernels = toy_lay(t, &t->kernels, sizeof(prog_kernel));
  h.gemms = toy_lay(t, &t->gemms, sizeof(prog_gemm));
  h.operands = toy_lay(t, &t->operands, sizeof(prog_operand));
  h.instrs = toy_lay(t, &t->instrs, sizeof(prog_instr));
  h.tasks = toy_lay(t, &t->tasks, sizeof(prog_task));
  h.runs = toy_lay(t, &t->runs, sizeof(prog_run));
  h.entries = toy_lay(t, &t->entries, sizeof(prog_entry));
  h.settings = toy_lay(t, &t->settings, sizeof(prog_setting));
  h.functions = toy_lay(t, &t->functions, sizeof(prog_function));
  h.numbers = toy_lay(t, &t->numbers, sizeof(int64_t));
  h.modules = toy_lay(t, &t->modules, sizeof(prog_module));
  h.axes = toy_lay(t, &t->axes, sizeof(prog_axis));
  h.exchanges = toy_lay(t, &t->exchanges, sizeof(prog_exchange));
  t->n = (t->n + 7) & ~(size_t)7;
  h.total_bytes = t->n;
  memcpy(t->blob, &h, sizeof h);
  toy_seal(t);
  return t;
}

__attribute__((unused)) static toy *toy_new(const char *read) { return toy_build(read, TOY_PLAIN); }

__attribute__((unused)) static void toy_free(toy *t) {
  free(t->blob);
  free(t);
}

// An opened executable without a file.
__attribute__((unused)) static status *toy_image(const toy *t, image *out) {
  memset(out, 0, sizeof *out);
  out->code = t->code;
  out->code_bytes = t->code_bytes;
  return prog_open(t->blob, t->n, t->code_bytes, &out->prog);
}

#endif
