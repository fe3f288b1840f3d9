// NVRTC and what stands on it (codegen/nvrtc.h, codegen/cuda_emit.h), on functions written by hand.
// Where NVRTC is not installed (scripts/nvrtc.sh fetches it) only what does without it is tested.
#include <elf.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "codegen/cuda_emit.h"
#include "runtime/base/file.h"

typedef struct fixture {
  arena a;
  char *folder;
  cuda_unit unit;
  cuda_options options;
} fixture;

// y[i] = f(x[i]) for the i below number[0]; `f` tells one function from another.
static cuda_function mapping(fixture *f, const char *name, const char *expression) {
  return (cuda_function){
      .symbol = name,
      .threads = 128,
      .source = arena_printf(&f->a,
                             "D_KERNEL(%s, 128, 2, 1) {\n"
                             "  const float *x = (const float *)a.buffer[0];\n"
                             "  d_i64 i = d_block() * 128 + d_tid();\n"
                             "  if (i < a.number[0]) ((float *)a.buffer[1])[i] = %s;\n"
                             "}\n",
                             name, expression)};
}

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  arena_init(&f->a);
  f->folder = arena_strdup(&f->a, "/tmp/test_nvrtc_XXXXXX");
  assert_non_null(mkdtemp(f->folder));
  f->unit.function = arena_new(&f->a, cuda_function, 3);
  f->unit.function[f->unit.nfunctions++] = mapping(f, "plain", "x[i]");
  f->unit.function[f->unit.nfunctions++] = mapping(f, "exponential", "d_exp(x[i])");
  f->unit.function[f->unit.nfunctions++] = mapping(f, "logarithm", "d_log(x[i])");
  f->options.targets = 1u << GPU_sm_80 | 1u << GPU_sm_90a;
  f->options.ptx = true;
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture *f = *state;
  int rc = system(arena_printf(&f->a, "rm -rf '%s'", f->folder));
  arena_free(&f->a);
  free(f);
  return rc;
}

static void need_nvrtc(fixture *f) {
  nvrtc n;
  const char *why = nvrtc_open(&f->a, &n);
  if (!why) return;
  print_message("skipped: %s\n", why);
  skip();
}

static cg_image compiled(fixture *f) {
  cg_image image;
  cuda_failure why;
  if (!cuda_compile(&f->a, &f->unit, &f->options, &image, &why)) fail_msg("%s", why.text);
  return image;
}

static void same_image(const cg_image *a, const cg_image *b) {
  assert_int_equal(a->n, b->n);
  assert_memory_equal(a->bytes, b->bytes, (size_t)a->n);
}

// ---- without NVRTC ------------------------------------------------------------------------------

static void reads_reports(void **state) {
  (void)state;
  nvrtc_usage u;
  // As 13.5 and 12.9 print them.
  const char *two =
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'f' for 'sm_80'\n"
      "ptxas info    : Function properties for f\n"
      "ptxas         .     288 bytes stack frame, 284 bytes spill stores, 280 bytes spill loads\n"
      "ptxas info    : Used 64 registers, used 1 barriers, 288 bytes cumulative stack size, 40 "
      "bytes smem, 400 bytes cmem[0]\n"
      "ptxas info    : Compile time = 21.828 ms\n"
      "ptxas info    : Compiling entry function 'ff' for 'sm_80'\n"
      "ptxas info    : Used 90 registers, used 1 barriers\n";
  assert_true(nvrtc_read_usage(two, "f", &u));
  assert_int_equal(u.registers, 64);
  assert_int_equal(u.shared, 40);
  assert_int_equal(u.stack, 288);
  assert_int_equal(u.spill_stores, 284);
  assert_int_equal(u.spill_loads, 280);
  assert_true(
      nvrtc_read_usage("    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill "
                       "loads\nptxas info    : Used 32 registers, 376 bytes cmem[0]",
                       NULL, &u));
  assert_int_equal(u.registers, 32);
  assert_int_equal(u.stack + u.shared + u.spill_stores + u.spill_loads, 0);
  assert_true(nvrtc_read_usage(two, "ff", &u));
  assert_int_equal(u.registers, 90);
  assert_int_equal(u.stack, 0);
  assert_true(nvrtc_read_usage(two, NULL, &u));
  assert_int_equal(u.registers, 90);
  assert_int_equal(u.stack, 288);
  assert_false(nvrtc_read_usage(two, "fff", &u));
  assert_false(nvrtc_read_usage("", NULL, &u));
  assert_false(nvrtc_read_usage("registers\n bytes smem", NULL, &u));
}

static void targets_are_known(void **state) {
  (void)state;
  assert_int_equal(gpu_find("sm_90a"), GPU_sm_90a);
  assert_int_equal(gpu_find("sm_90"), -1);
  assert_int_equal(gpu_find(""), -1);
  double both = gpu_capacity(1u << GPU_sm_80 | 1u << GPU_sm_100);
  assert_true(both == gpu_capacity(1u << GPU_sm_80));
  assert_true(both < gpu_capacity(1u << GPU_sm_100));
}

static void missing_is_said(void **state) {
  fixture *f = *state;
  const char *before = getenv("DSM_NVRTC");
  cg_image image;
  cuda_failure why;
  setenv("DSM_NVRTC", "/nowhere/libnvrtc.so", 1);
  assert_false(cuda_compile(&f->a, &f->unit, &f->options, &image, &why));
  assert_false(why.ours);
  assert_non_null(strstr(why.text, "/nowhere/libnvrtc.so"));
  setenv("DSM_NVRTC", "libm.so.6", 1);
  assert_false(cuda_compile(&f->a, &f->unit, &f->options, &image, &why));
  assert_non_null(strstr(why.text, "libm.so.6 has no function nvrtcVersion"));
  if (before)
    setenv("DSM_NVRTC", before, 1);
  else
    unsetenv("DSM_NVRTC");
}

// ---- with it ------------------------------------------------------------------------------------

static void makes_modules(void **state) {
  fixture *f = *state;
  need_nvrtc(f);
  cg_image image = compiled(f);
  assert_ptr_equal(image.cuda, &f->unit);
  static const char *const target[] = {"sm_80", "sm_90a", GPU_PTX};
  // Three small functions are one program.
  assert_int_equal(f->unit.nmodules, 3);
  for (int i = 0; i < 3; i++) {
    const cuda_module *m = &f->unit.module[i];
    const char *code = (const char *)image.bytes + m->offset;
    assert_string_equal(m->target, target[i]);
    assert_int_equal(m->function, 0);
    assert_int_equal(m->functions, 3);
    assert_int_equal(m->offset % 64, 0);
    assert_true(m->bytes > 0 && m->offset + m->bytes <= image.n);
    assert_int_equal(m->ptx, i == 2);
    if (m->ptx) {
      assert_int_equal(code[m->bytes - 1], 0);
      assert_int_equal(strlen(code) + 1, m->bytes);
      assert_non_null(strstr(code, ".target sm_80"));
      for (int k = 0; k < 3; k++)
        assert_non_null(
            strstr(code, arena_printf(&f->a, ".entry %s(", f->unit.function[k].symbol)));
    } else {
      assert_memory_equal(code, ELFMAG, SELFMAG);
      for (int k = 0; k < 3; k++) {
        assert_true(f->unit.function[k].usage[gpu_find(m->target)].registers > 0);
        assert_int_equal(f->unit.function[k].usage[gpu_find(m->target)].stack, 0);
      }
    }
  }
}

static void spills_are_seen(void **state) {
  fixture *f = *state;
  need_nvrtc(f);
  f->unit.nfunctions = 1;
  f->unit.function[0] =
      (cuda_function){.symbol = "many",
                      .threads = 1024,
                      .source =
                          "D_KERNEL(many, 1024, 1, 0) {\n"
                          "  float *x = (float *)a.buffer[0] + d_tid(), v[128];\n"
                          "  D_UNROLL for (int i = 0; i < 128; i++) v[i] = x[i * 1024];\n"
                          "  d_barrier();\n"
                          "  D_UNROLL for (int i = 0; i < 128; i++) x[i * 1024] = v[127 - i];\n"
                          "}\n"};
  compiled(f);
  const nvrtc_usage *u = &f->unit.function[0].usage[GPU_sm_80];
  assert_int_equal(u->registers, 64);  // of 65536 for 1024 threads
  assert_true(u->spill_stores > 0 && u->spill_loads > 0 && u->stack > 0);
}

static void mistakes_are_mapped(void **state) {
  fixture *f = *state;
  need_nvrtc(f);
  ir_span span = {.file = "gpt2.dsm", .line = 12};
  ir_value v = {.name = "c_attn"};
  ir_value *out = &v;
  ir_op op = {.code = IR_layernorm, .nout = 1, .out = &out, .span = span};
  k_kernel k = {.name = "norm", .op = &op};
  f->unit.function[1].kernel = &k;
  f->unit.function[1].source = "D_KERNEL(exponential, 128, 2, 1) {\n  no_such(a);\n}\n";
  cg_image image;
  cuda_failure why;
  assert_false(cuda_compile(&f->a, &f->unit, &f->options, &image, &why));
  assert_true(why.ours);
  assert_non_null(
      strstr(why.text, "function exponential, made for layernorm c_attn, line 12 of gpt2.dsm:\n"));
  assert_non_null(strstr(why.text, "exponential(2): error: "));
  assert_non_null(strstr(why.text, "  no_such(a);"));
  // More than a block of an A100 has.
  f->unit.function[1] = mapping(f, "exponential", "d_exp(x[i])");
  f->unit.function[1].shared_bytes = 200 << 10;
  assert_false(cuda_compile(&f->a, &f->unit, &f->options, &image, &why));
  assert_true(why.ours);
  assert_non_null(strstr(why.text, "204800 bytes of shared memory, sm_80 has 166912"));
  f->options.targets = 1u << GPU_sm_90a;
  compiled(f);
}

static void unknown_architectures_are_nvrtcs(void **state) {
  fixture *f = *state;
  need_nvrtc(f);
  nvrtc n;
  nvrtc_output o;
  assert_null(nvrtc_open(&f->a, &n));
  nvrtc_compile(&n, &f->a, "x", "", "sm_999", &o);
  assert_int_equal(o.outcome, NVRTC_UNABLE);
  assert_non_null(strstr(o.log, "arch"));
}

static void cached_or_not_the_same_bytes(void **state) {
  fixture *f = *state;
  need_nvrtc(f);
  cg_image want = compiled(f), got;
  const nvrtc_usage usage = f->unit.function[1].usage[GPU_sm_90a];
  assert_false(want.cached);
  f->options.cache = arena_printf(&f->a, "%s/kernels", f->folder);
  for (int threads = 0; threads < 4; threads++) {
    f->options.threads = threads;
    f->unit.function[1].usage[GPU_sm_90a] = (nvrtc_usage){0};
    got = compiled(f);
    same_image(&got, &want);
    assert_true(got.cached);
    assert_int_equal(got.hits, threads ? 3 : 0);
    assert_int_equal(got.misses, threads ? 0 : 3);
    assert_memory_equal(&f->unit.function[1].usage[GPU_sm_90a], &usage, sizeof usage);
  }
  // One more target: PTX and the other cubins are known.
  f->options.targets |= 1u << GPU_sm_100;
  got = compiled(f);
  assert_int_equal(got.hits, 3);
  assert_int_equal(got.misses, 1);
  f->options.targets &= ~(1u << GPU_sm_100);
  f->options.ptx = false;
  got = compiled(f);
  assert_int_equal(f->unit.nmodules, 2);
  f->options.ptx = true;
  // One function changes.
  cuda_function before = f->unit.function[2];
  f->unit.function[2] = mapping(f, "logarithm", "d_log(x[i]) + 1.0f");
  got = compiled(f);
  assert_int_equal(got.hits, 0);
  f->unit.function[2] = before;
  // Every entry is damaged.
  file_names names = {0};
  assert_null(file_list(&f->a, f->options.cache, &names));
  assert_int_equal(names.n, 7);
  for (int i = 0; i < names.n; i++) {
    FILE *e = fopen(arena_printf(&f->a, "%s/%s", f->options.cache, names.at[i]), "r+");
    assert_non_null(e);
    assert_int_equal(fseek(e, 60 + i, SEEK_SET), 0);
    int c = fgetc(e);
    fseek(e, 60 + i, SEEK_SET);
    fputc(c ^ 0x10, e);
    fclose(e);
  }
  got = compiled(f);
  same_image(&got, &want);
  assert_int_equal(got.hits, 0);
  got = compiled(f);
  assert_int_equal(got.hits, 3);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {TEST(reads_reports),
                                     TEST(targets_are_known),
                                     TEST(missing_is_said),
                                     TEST(makes_modules),
                                     TEST(spills_are_seen),
                                     TEST(mistakes_are_mapped),
                                     TEST(unknown_architectures_are_nvrtcs),
                                     TEST(cached_or_not_the_same_bytes)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
