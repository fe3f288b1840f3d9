// The program format and the VM, on hand-made programs (toy_program.h).
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "runtime/check.h"
#include "runtime/init.h"
#include "tests/unit/driver_fixture.h"

// Every bit of the blob: flipping one is noticed by the checksum; with the checksum put right the
// rest of prog_open either accepts or refuses, but stays inside the blob (ASan watches).
static void flip_bits(int kind) {
  toy *t = toy_build("next_token", kind);
  prog p;
  for (size_t i = 0; i < t->n; i++) {
    for (int bit = 0; bit < 8; bit += 3) {
      t->blob[i] ^= (unsigned char)(1 << bit);
      status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
      assert_non_null(s);
      status_free(s);
      if (i % 7 == 0 && i > offsetof(prog_header, checksum) + 8) {
        toy_seal(t);
        status_free(prog_open(t->blob, t->n, t->code_bytes, &p));
      }
      t->blob[i] ^= (unsigned char)(1 << bit);
      toy_seal(t);
    }
  }
  for (size_t n = 0; n < t->n; n += 13) {
    status *s = prog_open(t->blob, n, t->code_bytes, &p);
    assert_non_null(s);
    status_free(s);
  }
  toy_free(t);
}

static void test_flipped_bits(void **state) {
  (void)state;
  flip_bits(TOY_GEMM);
  flip_bits(TOY_DEVICE);
  flip_bits(TOY_RANKS);
}

static void test_refuses(void **state) {
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  h->stack_bytes = PROG_MAX_STACK + 1;
  refuse(t, "bytes of stack");
  h->stack_bytes = 0;
  toy_seal(t);
  PATCH(operands, prog_operand, 0, base, -8, "leaves the arena");
  PATCH(operands, prog_operand, 0, bytes, ARENA + 1, "leaves the arena");
  PATCH(operands, prog_operand, 2, micro_stride, INT64_MAX, "leaves the arena");
  PATCH(operands, prog_operand, 2, layer_mod, -1, "bad sizes");
  PATCH(operands, prog_operand, 2, micro_mod, -1, "leaves the arena");
  PATCH(runs, prog_run, 1, micro_count, 3, "no meaning");
  PATCH(runs, prog_run, 1, task, 1000, "no meaning");
  PATCH(runs, prog_run, 1, task, 6, "");
  PATCH(runs, prog_run, 5, layer_count, 100000, "leaves the arena");
  PATCH(runs, prog_run, 4, task, 99, "unknown task");
  PATCH(kernels, prog_kernel, 0, code_offset, (int64_t)t->code_bytes, "outside the code");
  PATCH(kernels, prog_kernel, 0, nbufs, 5, "operands");
  PATCH(instrs, prog_instr, 2, kernel, 77, "unknown kernel");
  PATCH(instrs, prog_instr, 2, op, RTOP_COUNT, "no meaning");
  PATCH(instrs, prog_instr, 2, flags, 64, "no meaning");
  PATCH(states, prog_state, 0, dtype, 40, "unknown");
  PATCH(states, prog_state, 0, bytes, 12, "dims say");
  PATCH(states, prog_state, 1, layers, 1 << 20, "leaves the arena");
  PATCH(states, prog_state, 0, layers, 2, "one #");
  PATCH(states, prog_state, 0, name, 1u << 30, "no name");
  PATCH(states, prog_state, 4, of, 0, "copy of no weight");
  PATCH(states, prog_state, 4, cls, PROG_COPY + 2, "unknown class");
  PATCH(states, prog_state, 0, cls, PROG_OPTIMIZER, "copy of no weight");
  PATCH(states, prog_state, 5, step, 2, "not the bf16 of weight h.#.bias");
  PATCH(states, prog_state, 5, layers, TOY_L - 1, "copy of no weight");
  PATCH(states, prog_state, 4, dtype, PROG_F16, "not the bf16 of weight wte.weight");
  PATCH(states, prog_state, 4, init_a, (double)NAN, "bad init");
  PATCH(states, prog_state, 4, init_a, 1e300, "bad init");
  PATCH(ios, prog_io, 0, micro_stride, 1 << 30, "leaves the arena");
  PATCH(entries, prog_entry, 0, micro_batch, 3, "bad batch");
  PATCH(entries, prog_entry, 0, inputs, 4000, "outside the tables");
  PATCH(args, prog_arg, 0, offset, 2, "argument 0");
}

static void test_refuses_products(void **state) {
  (void)state;
  toy *t = toy_build("next_token", TOY_GEMM);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  uint32_t at = 0, kernel = p.nkernels - 1;
  while (p.instrs[at].op != RTOP_gemm) at++;
  uint32_t first = p.instrs[at].first_operand;
  PATCH(gemms, prog_gemm, 0, library, PROG_LIBRARIES, "no meaning");
  PATCH(gemms, prog_gemm, 0, start, PROG_GEMM_STARTS, "no meaning");
  PATCH(gemms, prog_gemm, 0, start, PROG_GEMM_SUM, "not the operands");
  PATCH(gemms, prog_gemm, 0, turned, 4, "no meaning");
  PATCH(gemms, prog_gemm, 0, axes, PROG_GEMM_AXES + 1, "no meaning");
  PATCH(gemms, prog_gemm, 0, m, 0, "bad shape");
  PATCH(gemms, prog_gemm, 0, n, (int64_t)1 << 40, "bad shape");
  PATCH(gemms, prog_gemm, 0, k, -1, "bad shape");
  PATCH(gemms, prog_gemm, 0, size[1], 0, "bad batch");
  PATCH(gemms, prog_gemm, 0, size[1], INT64_MAX, "bad batch");
  PATCH(gemms, prog_gemm, 0, ld[0], 19, "bad strides");
  PATCH(gemms, prog_gemm, 0, ld[2], INT64_MAX, "bad strides");
  PATCH(gemms, prog_gemm, 0, offset[1], -1, "bad strides");
  PATCH(gemms, prog_gemm, 0, stride[1][0], -1, "bad strides");
  PATCH(gemms, prog_gemm, 0, stride[1][0], INT64_MAX, "bad strides");
  PATCH(gemms, prog_gemm, 0, m, 240, "no matrix");
  PATCH(gemms, prog_gemm, 0, offset[2], TOY_V * TOY_V, "no matrix");
  PATCH(kernels, prog_kernel, kernel, gemm, 2, "unknown product");
  PATCH(kernels, prog_kernel, kernel, gemm, 0, "not what its kernel is");
  PATCH(instrs, prog_instr, at, kernel, 2, "not what its kernel is");
  PATCH(instrs, prog_instr, at, operands, 2, "2 operands, expected 4");
  PATCH(instrs, prog_instr, at, op, RTOP_launch, "not what its kernel is");
  PATCH(operands, prog_operand, first + 2, writes, 1, "not the operands");
  PATCH(operands, prog_operand, first, base, 2, "no matrix");
  PATCH(operands, prog_operand, first + 3, bytes, 4, "not the operands");
  // The bytes up to which the operands are touched are enough, and not a byte more than needed.
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset) + first;
  const int64_t enough[] = {4 * (2 * 16 * TOY_V + 32 + 15 * TOY_V + 20), 4 * (16 + 11 * TOY_V + 20),
                            4 * (2 * 16 * TOY_V + 16 + 15 * TOY_V + 12)};
  for (int i = 0; i < 3; i++) {
    int64_t whole = o[i].bytes;
    o[i].bytes = enough[i];
    if (i == 2) o[3].bytes = enough[i];
    toy_seal(t);
    s = prog_open(t->blob, t->n, t->code_bytes, &p);
    if (s) fail_msg("operand %d: %s", i, s->message);
    o[i].bytes--;
    if (i == 2) o[3].bytes--;
    refuse(t, "no matrix");
    o[i].bytes = whole;
    if (i == 2) o[3].bytes = whole;
  }
  toy_free(t);
}

// What a program for the host may not say, and one for a device must.
static void test_refuses_machines(void **state) {
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  h->machine = PROG_MACHINES;
  refuse(t, "no known machine");
  h->machine = PROG_CUDA;
  refuse(t, "kernel 0 is ");  // for a device and has code of the host, or an unknown function
  h->machine = PROG_HOST;
  h->events = 1;
  refuse(t, "has 1 events");
  h->events = 0;
  h->step_offset = 16;
  refuse(t, "has functions of a device");
  h->step_offset = 0;
  PATCH(kernels, prog_kernel, 1, function, 1, "names a function of a device");
  PATCH(kernels, prog_kernel, 1, numbers, 1, "names a function of a device");
  PATCH(instrs, prog_instr, 0, stream, PROG_COPIES, "unknown stream");
  PATCH(instrs, prog_instr, 0, event, 1, "unknown event");
  PATCH(operands, prog_operand, 0, home, PROG_HOST_HOME, "not at home");
}

static void test_refuses_devices(void **state) {
  (void)state;
  toy *t = toy_build("next_token", TOY_DEVICE);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  assert_null(prog_check_code(&p, t->code));
  assert_int_equal(prog_argument_bytes(&p.kernels[0]), 8 * (6 + 4 + 1));
  assert_int_equal(
      check_split(&p, prog_entry_of(&p, PROG_TRAIN),
                  (const prog_io *[]){prog_output(&p, prog_entry_of(&p, PROG_TRAIN), "loss")}, 1),
      6);  // the outputs are on the host before the first weight changes
  h->machine = PROG_HOST;
  refuse(t, "has 3 events");
  h->events = 0;
  refuse(t, "has functions of a device");
  h->events = 3;
  h->machine = PROG_CUDA;
  prog_str targets = h->targets;
  h->targets = 0;
  refuse(t, "names no target");
  h->targets = h->model;
  refuse(t, "names target toy and has no module");
  h->targets = targets;
  h->events = 2;
  refuse(t, "unknown event");
  h->events = 1 << 20;
  refuse(t, "events");
  h->events = 3;
  h->step_offset = 20;
  refuse(t, "step lies outside");
  h->step_offset = AT_WORK;
  refuse(t, "step lies outside");
  h->step_offset = AT_STEP;
  PATCH(functions, prog_function, 0, threads, 0, "bad shape");
  PATCH(functions, prog_function, 0, threads, 48, "bad shape");
  PATCH(functions, prog_function, 0, threads, 1056, "bad shape");
  PATCH(functions, prog_function, 0, shared_bytes, (227 << 10) + 1, "bad shape");
  PATCH(functions, prog_function, 0, registers, 256, "bad shape");
  PATCH(functions, prog_function, 0, symbol, h->targets, "has no name");
  PATCH(functions, prog_function, 0, symbol, 0, "has no name");
  PATCH(kernels, prog_kernel, 0, function, K_COUNT, "unknown function");
  PATCH(kernels, prog_kernel, 0, code_offset, 8, "code of the host");
  PATCH(kernels, prog_kernel, 0, first_number, p.nnumbers, "numbers outside");
  PATCH(kernels, prog_kernel, 0, numbers, p.nnumbers + 1, "numbers outside");
  PATCH(kernels, prog_kernel, 0, cells, (int64_t)1 << 31, "one launch");
  PATCH(modules, prog_module, 0, kind, PROG_PTX, "no architecture");
  PATCH(modules, prog_module, 2, kind, PROG_CUBIN, "no architecture");
  PATCH(modules, prog_module, 0, target, h->model, "no architecture");
  PATCH(modules, prog_module, 0, functions, K_COUNT - 1, "hold 5 functions of 6");
  PATCH(modules, prog_module, 0, functions, K_COUNT + 1, "hold 7 functions of 6");
  PATCH(modules, prog_module, 1, first_function, 1, "from 1 on, expected 0");
  PATCH(modules, prog_module, 1, target, p.modules[0].target, "from 0 on, expected 6");
  PATCH(modules, prog_module, 1, offset, -8, "outside the code");
  PATCH(modules, prog_module, 1, offset, 4, "outside the code");
  PATCH(modules, prog_module, 2, bytes, (int64_t)t->code_bytes - 31, "outside the code");
  PATCH(modules, prog_module, 2, bytes, 0, "outside the code");
  uint32_t at = 0;
  while (p.instrs[at].op != RTOP_fetch) at++;
  uint32_t o = p.instrs[at].first_operand;
  PATCH(instrs, prog_instr, at, op, RTOP_evict, "not at home");
  PATCH(instrs, prog_instr, at, op, RTOP_copy, "not at home");
  PATCH(instrs, prog_instr, at, stream, PROG_STREAMS, "unknown stream");
  PATCH(instrs, prog_instr, at, event, 1, "unknown event");
  PATCH(operands, prog_operand, o, home, PROG_HOST_HOME, "not at home");
  PATCH(operands, prog_operand, o + 1, home, PROG_DEVICE_HOME, "not at home");
  PATCH(operands, prog_operand, o, home, PROG_HOMES, "not at home");
  PATCH(operands, prog_operand, o, writes, 1, "wrong way");
  PATCH(operands, prog_operand, o + 1, bytes, 8, "different sizes");
  // A text that does not end, at the end of the image.
  prog_module *m = (prog_module *)(void *)(t->blob + h->modules.offset) + 2;
  m->bytes--;
  toy_seal(t);
  assert_null(prog_open(t->blob, t->n, t->code_bytes, &p));
  s = prog_check_code(&p, t->code);
  assert_non_null(s);
  has(s->message, "the text of module 2 has no end");
  status_free(s);
  toy_free(t);
}

static void test_targets(void **state) {
  (void)state;
  static const struct {
    const char *text;
    int number;  // 0: none
    bool exact;
  } cases[] = {{"sm_80", 80, false},        {"sm_90a", 90, true},   {"compute_90a", 90, true},
               {"sm_100", 100, false},      {"sm_120f", 120, true}, {"compute_75", 75, false},
               {"sm_", 0, false},           {"sm_8x", 0, false},    {"sm_90ab", 0, false},
               {"sm_-80", 0, false},        {"gfx_90", 0, false},   {"sm_ 80", 0, false},
               {"sm_99999999999", 0, false}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    int number;
    bool exact, ok = prog_target(cases[i].text, &number, &exact);
    assert_int_equal(ok, cases[i].number > 0);
    if (!ok) continue;
    assert_int_equal(number, cases[i].number);
    assert_int_equal(exact, cases[i].exact);
  }
}

// A library's product on the toy: sums that start at another operand, set, and go on.
static void test_library_product(void **state) {
  (void)state;
  void *library = dlopen("libopenblas.so.0", RTLD_LAZY);
  if (!library) {
    print_message("libopenblas.so.0 is not installed\n");
    skip();
  }
  toy *t = toy_build("next_token", TOY_GEMM);
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_gemm *g = (prog_gemm *)(void *)(t->blob + h->gemms.offset);
  image img;
  assert_null(toy_image(t, &img));
  uint32_t at = 0;
  while (img.prog.instrs[at].op != RTOP_gemm) at++;
  prog_instr *in = (prog_instr *)(void *)(t->blob + h->instrs.offset) + at;
  prog_kernel *k = (prog_kernel *)(void *)(t->blob + h->kernels.offset) + in->kernel;
  prog_run *run = (prog_run *)(void *)(t->blob + h->runs.offset);
  const prog_entry *e = prog_entry_of(&img.prog, PROG_EVAL);
  float *want = calloc((size_t)TOY_V * TOY_V, sizeof *want);
  for (int start = PROG_GEMM_SET; start < PROG_GEMM_STARTS; start++) {
    g->start = (uint32_t)start;
    in->operands = k->nbufs = start == PROG_GEMM_ADD ? 4 : 3;
    uint32_t last = e->first_run + e->runs - 1;
    // The runs of evaluate become: for micro in 0..1, the task with the product.
    run[last - 3] = (prog_run){.kind = PROG_LOOP, .task = 1, .micro_count = 2};
    run[last - 2] = run[last];
    toy_seal(t);
    assert_null(toy_image(t, &img));
    pool *threads = pool_new(2);
    vm *m;
    assert_null(vm_open(&img.prog, img.code, threads, &m));
    float *a = (float *)(void *)vm_at(m, AT_WTE), *b = (float *)(void *)vm_at(m, AT_M);
    float *c = (float *)(void *)vm_at(m, AT_GRAD);
    for (int i = 0; i < TOY_V * TOY_V; i++) {
      a[i] = (float)(i * 7 % 11 - 5), b[i] = (float)(i * 5 % 13 - 6), c[i] = 3;
      want[i] = start == PROG_GEMM_ADD ? a[i] : 3;
    }
    vm_call_part(m, e, &(vm_step){.seed = 1}, 0, 2);
    int times = start == PROG_GEMM_SUM ? 2 : 1;
    for (int x = 0; x < 3; x++)
      for (int y = 0; y < 2; y++)
        for (int i = 0; i < 16; i++)
          for (int j = 0; j < 12; j++) {
            float sum = 0;
            for (int s = 0; s < 20; s++)
              sum += a[x * 16 * TOY_V + y * 32 + i * TOY_V + s] * b[y * 16 + j * TOY_V + s];
            float *w = &want[x * 16 * TOY_V + y * 16 + i * TOY_V + j];
            *w = (start == PROG_GEMM_ADD ? *w : 0) + (float)times * sum;
          }
    assert_memory_equal(c, want, sizeof *want * TOY_V * TOY_V);  // small whole numbers: exact
    vm_close(m);
    pool_free(threads);
  }
  free(want);
  toy_free(t);
}

static void test_layer_ring(void **state) {
  // layer_mod: a ring of 2 slots for 7 layers stays inside 2 slots.
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset);
  prog_run *r = (prog_run *)(void *)(t->blob + h->runs.offset) + 5;
  prog_instr *in = (prog_instr *)(void *)(t->blob + h->instrs.offset);
  prog_task *k = (prog_task *)(void *)(t->blob + h->tasks.offset) + r->task;
  r->layer_count = 7;
  for (uint32_t i = 0; i < in[k->first_instr].operands; i++)
    o[in[k->first_instr].first_operand + i].layer_mod = 2;
  toy_seal(t);
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  r->layer_dir = -1;  // layer -6 has no slot
  refuse(t, "leaves the arena");
}

static void test_micro_places(void **state) {
  // micro_mod: two micro-batches in one place. micro_add: a run of a later one, if there is one.
  world *w = *state;
  toy *t = w->toy;
  prog_header *h = (prog_header *)(void *)t->blob;
  prog_run *r = (prog_run *)(void *)(t->blob + h->runs.offset) + 1;
  prog_operand *o = (prog_operand *)(void *)(t->blob + h->operands.offset);
  assert_int_equal(r->kind, PROG_LOOP);
  assert_int_equal(r->micro_count, 2);
  int64_t stride = o[2].micro_stride;
  o[2].micro_stride = (int64_t)h->arena_bytes;
  refuse(t, "leaves the arena");
  o[2].micro_mod = 1;
  toy_seal(t);
  prog p;
  status *s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
  o[2].micro_mod = 2;
  refuse(t, "leaves the arena");
  o[2].micro_mod = 0;
  o[2].micro_stride = stride;
  r[1].micro_add = 1;
  refuse(t, "no such micro-batch");
  r[1].micro_add = -1;
  refuse(t, "no such micro-batch");
  r[1].micro_add = INT64_MAX;
  refuse(t, "no such micro-batch");
  r->micro_count = 1;
  r[1].micro_add = 1;
  toy_seal(t);
  s = prog_open(t->blob, t->n, t->code_bytes, &p);
  if (s) fail_msg("%s", s->message);
}

static void refuse_file(const char *exe, const unsigned char *file, size_t n, const char *part) {
  image img;
  write_file(exe, file, n);
  status *s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, part);
  status_free(s);
}

// Two programs in one file: each rank opens that of its stage, and all compare one number.
static void test_stages_file(void **state) {
  world *w = *state;
  const char *exe = path(w, "exe");
  toy *t[] = {toy_build("next_token", TOY_RANKS), toy_build("next_token", TOY_RANKS)};
  // The toy's mesh has one axis of two; call it `pipeline`, and tell the second program apart.
  prog_part part[2] = {{0}};
  unsigned char *file = calloc(1, 1 << 20);
  size_t at = 4096;
  for (int i = 0; i < 2; i++) {
    prog_header *h = (prog_header *)(void *)t[i]->blob;
    prog_axis *axis = (prog_axis *)(void *)(t[i]->blob + h->axes.offset);
    assert_int_equal(h->axes.count, 1);
    for (size_t k = 0; k + 9 <= h->strings.count; k++)
      if (strcmp((char *)t[i]->blob + h->strings.offset + k, "pipeline") == 0)
        axis[0].name = (prog_str)k;
    h->parameters = (uint64_t)(100 + i);
    toy_seal(t[i]);
    part[i].code_offset = at;
    part[i].code_bytes = t[i]->code_bytes;
    memcpy(file + at, t[i]->code, t[i]->code_bytes);
    part[i].code_checksum = XXH3_64bits(file + at, t[i]->code_bytes);
    at = (at + t[i]->code_bytes + 4095) / 4096 * 4096;
    part[i].program_offset = at;
    part[i].program_bytes = t[i]->n;
    memcpy(file + at, t[i]->blob, t[i]->n);
    at = (at + t[i]->n + 4095) / 4096 * 4096;
  }
  prog_trailer tr = {.first = part[0], .parts_offset = at, .parts = 2};
  memcpy(tr.magic, PROG_TRAILER_MAGIC, 8);
  memcpy(file + at, part, sizeof part);
  size_t end = at + sizeof part, n = end + sizeof tr;
  memcpy(file + end, &tr, sizeof tr);
  write_file(exe, file, n);
  image img[2];
  for (int r = 0; r < 2; r++) {
    status *s = image_open(exe, "exe", r, &img[r]);
    if (s) fail_msg("%s", s->message);
    assert_int_equal(prog_parameters(&img[r].prog), 100 + r);
  }
  assert_true(img[0].prog.identity == img[1].prog.identity);
  assert_true(img[0].prog.header->checksum != img[1].prog.header->checksum);
  for (int r = 0; r < 2; r++) image_close(&img[r]);
  tr.parts = 1;
  memcpy(file + end, &tr, sizeof tr);
  refuse_file(exe, file, n, "trailer points outside");
  tr.parts = 3;
  memcpy(file + end, &tr, sizeof tr);
  refuse_file(exe, file, n, "trailer points outside");
  tr.parts = 2;
  memcpy(file + end, &tr, sizeof tr);
  part[1].program_bytes = n;
  memcpy(file + at, part, sizeof part);
  refuse_file(exe, file, n, "trailer points outside");
  for (int i = 0; i < 2; i++) toy_free(t[i]);
  free(file);
}

static void test_cpu(void **state) {
  (void)state;
  status *s = image_check_cpu("x86-64 avx2 fma avx512f", "x86-64", "fpu avx avx2 fma sse4_2\n");
  assert_non_null(s);
  has(s->message, "lacks avx512f:");
  status_free(s);
  assert_null(image_check_cpu("x86-64 +avx2,+sse4.2,-sse4a avx512vnni bmi", "x86-64",
                              " avx2 avx512_vnni sse4_2 bmi1"));
  s = image_check_cpu("aarch64 neon", "x86-64", "");
  assert_non_null(s);
  has(s->message, "is for aarch64");
  status_free(s);
}

static void test_executable_file(void **state) {
  world *w = *state;
  toy *t = w->toy;
  const char *exe = path(w, "exe");
  size_t code_at = 8192, prog_at = code_at + (t->code_bytes + 4095) / 4096 * 4096;
  size_t n = prog_at + t->n + sizeof(prog_trailer);
  unsigned char *file = calloc(1, n);
  prog_trailer tr = {.first = {.code_offset = code_at,
                               .code_bytes = t->code_bytes,
                               .program_offset = prog_at,
                               .program_bytes = t->n}};
  memcpy(tr.magic, PROG_TRAILER_MAGIC, 8);
  image img;
  // The code is not run here: zeros will do, with their checksum wrong at first.
  memcpy(file + prog_at, t->blob, t->n);
  memcpy(file + n - sizeof tr, &tr, sizeof tr);
  write_file(exe, file, n);
  status *s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "checksum of its code");
  status_free(s);
#if defined(__x86_64__)
  // Code that is nothing but `ret`: every kernel returns at once, and losses are 0.
  memset(file + code_at, 0xc3, t->code_bytes);
#endif
  tr.first.code_checksum = XXH3_64bits(file + code_at, t->code_bytes);
  memcpy(file + n - sizeof tr, &tr, sizeof tr);
  write_file(exe, file, n);
  s = image_open(exe, "exe", 0, &img);
  if (s) fail_msg("%s", s->message);
  image kept = w->img;
  w->img = img;
  expect(w, 0, "info");
#if defined(__x86_64__)
  expect(w, 0, "train --data @/corpus.txt --steps 3");
  has(w->out, "loss 0.0000 -> 0.0000 over 3 steps");
#endif
  w->img = kept;
  image_close(&img);
  file[prog_at + 700] ^= 1;
  write_file(exe, file, n);
  s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "exe: the program is damaged");
  status_free(s);
  write_file(exe, file, n - 10);
  s = image_open(exe, "exe", 0, &img);
  assert_non_null(s);
  has(s->message, "carries no program");
  status_free(s);
  free(file);
}

static void test_schedule_values(void **state) {
  (void)state;
  arena a;
  arena_init(&a);
  call_text c;
  assert_null(settings_call(&a, "cosine(warmup=10, floor=1e-4)", &c));
  assert_true(fabs(settings_lr(&c, 1e-2, 0, 110) - 1e-3) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 9, 110) - 1e-2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 10, 110) - 1e-2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 60, 110) - (1e-2 + 1e-4) / 2) < 1e-12);
  assert_true(fabs(settings_lr(&c, 1e-2, 110, 110) - 1e-4) < 1e-12);
  assert_null(settings_call(&a, "linear(warmup=0, floor=0)", &c));
  assert_true(fabs(settings_lr(&c, 1, 25, 100) - 0.75) < 1e-12);
  assert_null(settings_call(&a, "constant", &c));
  assert_true(settings_lr(&c, 0.5, 1000, 10) == 0.5);
  arena_free(&a);
}

static void test_normal_draws(void **state) {
  (void)state;
  double sum = 0, square = 0;
  enum { N = 100000 };
  for (uint64_t i = 0; i < N; i++) {
    double x = init_normal(42, i);
    sum += x;
    square += x * x;
  }
  assert_true(fabs(sum / N) < 0.02);
  assert_true(fabs(square / N - 1) < 0.02);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      T(test_flipped_bits),
      T(test_refuses_products),
      T(test_library_product),
      T(test_refuses),
      T(test_refuses_machines),
      T(test_refuses_devices),
      cmocka_unit_test(test_targets),
      T(test_layer_ring),
      T(test_micro_places),
      T(test_stages_file),
      T(test_executable_file),
      cmocka_unit_test(test_cpu),
      cmocka_unit_test(test_schedule_values),
      cmocka_unit_test(test_normal_draws),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
