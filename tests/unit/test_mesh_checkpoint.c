// Checkpoints of meshes: any mesh loads any mesh's, bit for bit; what fails on one rank fails on
// all, in the same words, and leaves the older checkpoint as it was.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "runtime/base/str.h"
#include "runtime/base/vec.h"
#include "runtime/safetensors.h"
#include "tests/unit/flip.h"
#include "tests/unit/rank_fixture.h"

typedef struct world {
  char dir[64], ck[80];
} world;

static int setup(void **state) {
  world *w = calloc(1, sizeof *w);
  snprintf(w->dir, sizeof w->dir, "/tmp/dsm_mesh_XXXXXX");
  assert_non_null(mkdtemp(w->dir));
  snprintf(w->ck, sizeof w->ck, "%s/ck", w->dir);
  *state = w;
  return 0;
}

static int teardown(void **state) {
  char cmd[128];
  world *w = *state;
  snprintf(cmd, sizeof cmd, "rm -rf %s", w->dir);
  free(w);
  return system(cmd) != 0;
}

static const layout *layout_of(const char *name) {
  for (int i = 0; i < LAYOUTS; i++)
    if (str_eq(layouts[i].name, name)) return &layouts[i];
  fail_msg("no layout %s", name);
  return NULL;
}

static void has(const char *text, const char *part) {
  if (!strstr(text, part)) fail_msg("`%s` is missing in:\n%s", part, text);
}

// ---- calls of every rank ------------------------------------------------------------------------

typedef struct saving {
  const char *dir;
  int64_t step;
} saving;

static status *save_one(seat *s, void *arg) {
  const saving *v = arg;
  ck_state st = {v->step, v->step * 4, 7};
  const char *pairs[] = {"train.steps", "40"};
  return ck_save(&s->c, v->dir, 2, &st, pairs, 1, NULL);
}

static status *save(crew *w, const char *dir, int64_t step) {
  crew_paint(w, step);
  return crew_run(w, save_one, &(saving){dir, step});
}

static status *resume_one(seat *s, void *arg) {
  return ck_resume(&s->c, arg, &s->state, &s->found);
}
static status *load_one(seat *s, void *arg) { return ck_load_weights(&s->c, arg); }

// Loads the newest save into memory full of rubbish, and checks all of it. The step, or -1.
static int64_t resume(crew *w, const char *dir) {
  crew_paint(w, -1);
  status *s = crew_run(w, resume_one, (void *)(uintptr_t)dir);
  if (s) fail_msg("%s: %s", w->layout->name, s->message);
  for (int r = 0; r < w->n; r++) {
    const seat *x = &w->seats[r], *y = &w->seats[0];
    assert_int_equal(x->found, y->found);
    if (!x->found) continue;
    assert_int_equal(x->state.step, y->state.step);
    assert_int_equal(x->state.samples, x->state.step * 4);
    assert_int_equal(x->state.seed, 7);
  }
  if (!w->seats[0].found) return -1;
  crew_check(w, w->seats[0].state.step);
  return w->seats[0].state.step;
}

// The message with which all ranks refuse; valid until the next one.
static const char *refused(crew *w, status *(*call)(seat *, void *), const char *path) {
  static char text[8192];
  status *s = crew_run(w, call, (void *)(uintptr_t)path);
  if (!s) fail_msg("%s: accepted", w->layout->name);
  snprintf(text, sizeof text, "%s", s->message);
  status_free(s);
  return text;
}

static int files_like(const char *dir, const char *prefix) {
  arena a;
  arena_init(&a);
  file_names names = {0};
  int n = 0;
  assert_null(file_list(&a, dir, &names));
  for (int i = 0; i < names.n; i++) n += str_starts(names.at[i], prefix);
  arena_free(&a);
  return n;
}

static const char *in(const char *dir, const char *name) {
  static char path[4][300];
  static int turn;
  char *at = path[turn++ % 4];
  snprintf(at, sizeof *path, "%s/%s", dir, name);
  return at;
}

// ---- any mesh loads any mesh's ------------------------------------------------------------------

static void test_all_pairs(void **state) {
  world *w = *state;
  char dir[160];
  for (int i = 0; i < LAYOUTS; i++) {
    crew *from = crew_new(&layouts[i]);
    snprintf(dir, sizeof dir, "%s/%d", w->dir, i);
    assert_int_equal(resume(from, dir), -1);
    status *s = save(from, dir, 10 + i);
    if (s) fail_msg("%s: %s", layouts[i].name, s->message);
    assert_int_equal(files_like(dir, ".tmp-"), 0);
    for (int k = 0; k < LAYOUTS; k++) {
      crew *to = crew_new(&layouts[k]);
      assert_int_equal(resume(to, dir), 10 + i);
      fflush(to->notes);
      assert_int_equal(to->ntext, 0);
      crew_free(to);
    }
    crew_free(from);
  }
}

static bool same_files(const char *a, const char *b) {
  file_map x, y;
  assert_null(file_map_open(a, &x));
  assert_null(file_map_open(b, &y));
  bool same = x.n == y.n && memcmp(x.bytes, y.bytes, x.n) == 0;
  file_map_close(&x);
  file_map_close(&y);
  return same;
}

// Who writes what: whole weights are one file, the same as of one rank; parts have files of ranks,
// and no element is written twice.
static void test_files(void **state) {
  world *w = *state;
  static const struct {
    const char *layout;
    int weights, optimizer;  // files of ranks; 0: the one file of all
  } cases[] = {{"one", 0, 0},      {"data 3", 0, 0},          {"zero 2", 0, 2},
               {"tensor 2", 2, 2}, {"zero 4, masters", 4, 4}, {"data 4 tensor 2", 8, 8},
               {"stages 3", 3, 3}, {"data 2 stages 3", 3, 6}};
  char one[200] = "", dir[200];
  uint64_t bytes[2] = {0};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    crew *c = crew_new(layout_of(cases[i].layout));
    snprintf(dir, sizeof dir, "%s/%zu", w->dir, i);
    assert_null(save(c, dir, 5));
    snprintf(dir, sizeof dir, "%s/%zu/step-00000005", w->dir, i);
    if (i == 0) memcpy(one, dir, sizeof one);
    const char *const names[] = {"weights", "optimizer"};
    const int want[] = {cases[i].weights, cases[i].optimizer};
    assert_int_equal(files_like(dir, ""), (want[0] ? want[0] : 1) + (want[1] ? want[1] : 1) + 1);
    for (int k = 0; k < 2; k++) {
      char prefix[32], whole[32];
      snprintf(prefix, sizeof prefix, "%s-", names[k]);
      snprintf(whole, sizeof whole, "%s.safetensors", names[k]);
      assert_int_equal(files_like(dir, prefix), want[k]);
      if (!want[k]) assert_true(same_files(in(dir, whole), in(one, whole)));
      arena a;
      arena_init(&a);
      file_names paths;
      uint64_t sum = 0;
      assert_null(file_glob(&a, in(dir, k ? "optimizer*" : "weights*"), &paths));
      for (int f = 0; f < paths.n; f++) {
        st_file file;
        assert_null(st_open(&a, paths.at[f], &file));
        assert_true(file.n > 0);
        for (int t = 0; t < file.n; t++) sum += file.tensors[t].bytes;
        st_close(&file);
      }
      if (i == 0) bytes[k] = sum;
      assert_int_equal(sum, bytes[k]);
      arena_free(&a);
    }
    crew_free(c);
  }
}

// A save of one mesh goes on as one of another in the same directory.
static void test_goes_on(void **state) {
  world *w = *state;
  int64_t step = 1;
  for (int i = LAYOUTS - 1; i >= 0; i--, step++) {
    crew *c = crew_new(&layouts[i]);
    assert_int_equal(resume(c, w->ck), step == 1 ? -1 : step - 1);
    assert_null(save(c, w->ck, step));
    assert_null(save(c, w->ck, step));  // the same again
    assert_int_equal(files_like(w->ck, "step-"), step < 2 ? 1 : 2);
    assert_int_equal(resume(c, w->ck), step);
    crew_free(c);
  }
}

// ---- first values -------------------------------------------------------------------------------

static status *init_one(seat *s, void *arg) {
  (void)arg;
  init_states(s->vm, &s->mesh.prog, s->threads, 42, s->rank);
  return NULL;
}

typedef struct tensors {
  arena *a;
  map at;  // name and class -> bytes
  int64_t compared, random;
} tensors;

static const char *tensor_key(arena *a, const prog_state *st, const char *name) {
  return arena_printf(a, "%u %s", st->cls, name);
}

static void remember_one(void *ctx, const seat *s, const prog_state *st, const char *name,
                         const part *t, unsigned char *at) {
  tensors *x = ctx;
  (void)s, (void)t;
  map_set(&x->at, tensor_key(x->a, st, name), at);
}

static void compare_one(void *ctx, const seat *s, const prog_state *st, const char *name,
                        const part *t, unsigned char *at) {
  tensors *x = ctx;
  const unsigned char *all = map_get(&x->at, tensor_key(x->a, st, name));
  size_t unit = (size_t)dtype_of(st->dtype)->bytes;
  assert_non_null(all);
  for (int64_t i = 0; i < t->held; i++) {
    int64_t g = part_global(t, i);
    const unsigned char *want = g < 0 ? (const unsigned char *)"\0\0\0\0" : all + (size_t)g * unit;
    if (memcmp(want, at + (size_t)i * unit, unit) != 0)
      fail_msg("%s rank %d: %s element %lld", s->crew->layout->name, s->rank, name, (long long)g);
    x->compared++;
    x->random += st->init == PROG_NORMAL && memcmp(want, "\0\0\0\0", unit) != 0;
  }
}

static void test_first_values(void **state) {
  (void)state;
  crew *one = crew_new(layout_of("one"));
  assert_null(crew_run(one, init_one, NULL));
  arena a;
  arena_init(&a);
  tensors x = {.a = &a, .at = {.arena = &a}};
  crew_visit(one, remember_one, &x);
  for (int i = 1; i < LAYOUTS; i++) {
    crew *c = crew_new(&layouts[i]);
    assert_null(crew_run(c, init_one, NULL));
    crew_visit(c, compare_one, &x);
    crew_free(c);
  }
  assert_true(x.compared > 10000000 && x.random > 1000000);
  arena_free(&a);
  crew_free(one);
}

// ---- weights from elsewhere ---------------------------------------------------------------------

static void clear_optimizer(void *ctx, const seat *s, const prog_state *st, const char *name,
                            const part *t, unsigned char *at) {
  const int64_t *step = ctx;
  (void)name;
  if (st->cls == PROG_OPTIMIZER) paint_one(&(int64_t){*step}, s, st, name, t, at);
}

// Loads weights into rubbish and checks weights and copies.
static void load(crew *c, const char *path, int64_t step) {
  crew_paint(c, -1);
  status *s = crew_run(c, load_one, (void *)(uintptr_t)path);
  if (s) fail_msg("%s: %s", c->layout->name, s->message);
  // What was not loaded must not be looked at.
  int64_t now = step;
  crew_visit(c, clear_optimizer, &now);
  for (int r = 0; r < c->n; r++)
    for (uint32_t i = 0; i < c->seats[r].mesh.prog.nstates; i++) {
      const prog_state *st = &c->seats[r].mesh.prog.states[i];
      part t = part_of(&c->seats[r].mesh.prog, r, st);
      int64_t n = part_elements(&t), unit = dtype_of(st->dtype)->bytes;
      for (int64_t k = 0; st->cls == PROG_OPTIMIZER && k < prog_state_slices(st); k++)
        memset(vm_at(c->seats[r].vm, st->offset + k * st->layer_stride + n * unit), 0,
               (size_t)((t.held - n) * unit));
    }
  crew_check(c, step);
}

// Weights of one rank in another type: numbers that f64 holds exactly.
static void write_f64(crew *one, const char *path) {
  arena a;
  arena_init(&a);
  VEC(st_tensor) list = {0};
  const prog *p = &one->seats[0].mesh.prog;
  char name[256];
  for (uint32_t i = 0; i < p->nstates; i++) {
    const prog_state *st = &p->states[i];
    if (st->cls != PROG_WEIGHT) continue;
    for (int64_t k = 0; k < prog_state_slices(st); k++) {
      int64_t n = prog_state_elements(st);
      double *x = arena_new(&a, double, n);
      dtype_convert(x, PROG_F64, vm_at(one->seats[0].vm, st->offset + k * st->layer_stride),
                    st->dtype, n);
      st_tensor t = {.name = arena_strdup(&a, init_state_name(p, st, k, name, sizeof name)),
                     .dtype = PROG_F64,
                     .rank = st->rank,
                     .data = x,
                     .bytes = 8 * (uint64_t)n};
      memcpy(t.dims, st->dims, sizeof t.dims);
      vec_push(&a, &list, t);
    }
  }
  uint64_t bytes, header;
  assert_null(st_write(&a, file_io_system(), path, list.at, list.n, NULL, 0, &bytes, &header));
  arena_free(&a);
}

static void test_load(void **state) {
  world *w = *state;
  char dir[160], step_dir[200], file[200], text[300];
  crew *one = crew_new(layout_of("one")), *eight = crew_new(layout_of("data 4 tensor 2"));
  crew *stages = crew_new(layout_of("stages 3"));
  assert_null(save(one, w->ck, 3));
  load(eight, w->ck, 3);
  load(stages, w->ck, 3);
  snprintf(file, sizeof file, "%s/f64.safetensors", w->dir);
  write_f64(one, file);
  load(eight, file, 3);
  load(stages, file, 3);

  snprintf(dir, sizeof dir, "%s/eight", w->dir);
  snprintf(step_dir, sizeof step_dir, "%s/step-00000004", dir);
  assert_null(save(eight, dir, 4));
  load(one, dir, 4);
  load(one, step_dir, 4);
  load(stages, step_dir, 4);
  // Files of ranks without their manifest are weights in pieces; alone, not enough of them.
  assert_int_equal(unlink(in(step_dir, "manifest.json")), 0);
  snprintf(text, sizeof text, "rm %s/optimizer*", step_dir);
  assert_int_equal(system(text), 0);
  load(one, step_dir, 4);
  load(stages, step_dir, 4);
  const char *why = refused(one, load_one, in(step_dir, "weights-00003.safetensors"));
  has(why, "wte.weight has 1224 elements, of which 156 are in ");
  has(why, "h.0.qkv BF16 [3, 8, 10] is missing");
  has(why, "weights-00003.safetensors");
  assert_int_equal(rename(in(step_dir, "weights-00003.safetensors"), in(w->dir, "x")), 0);
  has(refused(one, load_one, step_dir),
      "wte.weight has 1224 elements, of which 1068 are in the files");
  snprintf(text, sizeof text,
           "cp %s/x %s/weights-00003.safetensors; cp %s/x %s/weights-7.safetensors", w->dir,
           step_dir, w->dir, step_dir);
  assert_int_equal(system(text), 0);
  has(refused(one, load_one, step_dir), "and again in");
  // As many elements as there should be, but rank 3's twice and rank 5's not at all.
  assert_int_equal(unlink(in(step_dir, "weights-7.safetensors")), 0);
  load(one, step_dir, 4);
  snprintf(text, sizeof text, "cp %s/weights-00003.safetensors %s/weights-00005.safetensors",
           step_dir, step_dir);
  assert_int_equal(system(text), 0);
  has(refused(one, load_one, step_dir), "are there twice and some are missing");
  crew_free(stages);
  crew_free(eight);
  crew_free(one);
}

// Notes and complaints know what other ranks have: said of the model, once.
static void test_said_once(void **state) {
  world *w = *state;
  layout more = *layout_of("stages 3");
  more.odd = true;
  crew *with = crew_new(&more), *without = crew_new(layout_of("data 2 stages 3"));
  assert_null(save(with, w->ck, 8));
  assert_int_equal(resume(with, w->ck), 8);
  const char *why = refused(without, resume_one, w->ck);
  has(why, "tensors the program does not have:\n  odd [3]");
  assert_null(strstr(why, "wte"));
  assert_null(strstr(why, "rank"));
  load(without, w->ck, 8);
  fflush(without->notes);
  has(without->text, "1 tensors are not used:\n  odd [3]");
  assert_null(strstr(strstr(without->text, "odd") + 1, "odd"));
  crew_paint(without, 9);
  assert_null(save(without, w->ck, 9));
  // Only the last of three stages misses something.
  why = refused(with, resume_one, w->ck);
  has(why, "rank 2: ");
  has(why, "odd F32 [3] is missing");
  assert_null(strstr(why, "wte"));
  // Half a copy of it: told once.
  assert_int_equal(unlink(in(w->ck, "step-00000009/manifest.json")), 0);
  size_t before = without->ntext;
  status_free(crew_run(without, resume_one, w->ck));
  fflush(without->notes);
  has(without->text + before, "step-00000009 has no manifest");
  assert_null(strstr(strstr(without->text + before, "has no manifest") + 1, "has no manifest"));
  crew_free(without);
  crew_free(with);
}

// ---- faults -------------------------------------------------------------------------------------

// The disk of one rank is full, at its first write and in the midst of it.
static void test_full_disk(void **state) {
  world *w = *state;
  layout small = *layout_of("data 4 tensor 2");
  small.small = true;
  crew *c = crew_new(&small);
  assert_null(save(c, w->ck, 1));
  for (int rank = 0; rank < c->n; rank++)
    for (int64_t k = 0; k < 3; k++) {
      crew_paint(c, 2);
      // (Rank 0 makes directories before.)
      c->disk.kind = FAULT_FULL, c->disk.rank = rank, c->disk.hit = false;
      c->disk.countdown = k + (rank ? 0 : 6);
      status *s = crew_run(c, save_one, &(saving){w->ck, 2});
      assert_true(c->disk.hit);
      c->disk.kind = FAULT_NONE;
      if (!s) fail_msg("rank %d, call %d: saved", rank, (int)k);
      char want[100];
      snprintf(want, sizeof want, "/step-00000002: rank %d: ", rank);
      has(s->message, want);
      snprintf(want, sizeof want, "/weights-%05d.safetensors", rank);
      has(s->message, want);
      has(s->message, strerror(ENOSPC));
      status_free(s);
      assert_int_equal(files_like(w->ck, ".tmp-"), 0);
      assert_int_equal(files_like(w->ck, "step-"), 1);
    }
  assert_int_equal(resume(c, w->ck), 1);
  crew_free(c);
}

// Every call of a rank in turn fails, or all ranks die at once: the older save or the newer one is
// there, and nothing in between.
static void every_call_fails(world *w, const char *name, fault kind, int rank) {
  layout small = *layout_of(name);
  small.small = true;
  crew *c = crew_new(&small);
  assert_null(save(c, w->ck, 1));
  int64_t step = 2;
  for (int64_t k = 0;; k++, step++) {
    crew_paint(c, step);
    c->disk.kind = kind, c->disk.rank = rank, c->disk.hit = false, c->disk.countdown = k;
    status *s = crew_run(c, save_one, &(saving){w->ck, step});
    bool met = c->disk.hit;
    c->disk.kind = FAULT_NONE;
    if (s) {
      assert_true(met);
      has(s->message, kind == FAULT_FULL ? strerror(ENOSPC) : strerror(EIO));
      if (rank >= 0 && kind != FAULT_CRASH) {
        char want[32];
        snprintf(want, sizeof want, "rank %d: ", rank);
        has(s->message, want);
      }
    }
    int64_t now = resume(c, w->ck);
    if (now != step && (!s || now >= step)) fail_msg("call %d: step %d", (int)k, (int)now);
    if (!s && !met) {
      assert_int_equal(files_like(w->ck, ".tmp-"), 0);
      assert_true(k > 10);
      break;
    }
    status_free(s);
    // So that each round begins with a save that stands.
    if (now != step) assert_null(save(c, w->ck, ++step));
  }
  crew_free(c);
}

static void test_one_call_fails(void **state) { every_call_fails(*state, "zero 2", FAULT_ONCE, 0); }
static void test_one_call_of_another_fails(void **state) {
  every_call_fails(*state, "tensor 2", FAULT_ONCE, 1);
}
static void test_all_die(void **state) { every_call_fails(*state, "tensor 2", FAULT_CRASH, -1); }

// Bytes of the files of ranks: any that is wrong is noticed by whoever reads it.
static void test_flipped_bytes(void **state) {
  world *w = *state;
  crew *c = crew_new(layout_of("tensor 2")), *other = crew_new(layout_of("zero 4, masters"));
  assert_null(save(c, w->ck, 1));
  static const char *const names[] = {"weights-00000.safetensors", "weights-00001.safetensors",
                                      "optimizer-00001.safetensors", "manifest.json"};
  for (int f = 0; f < 4; f++) {
    const char *path = in(in(w->ck, "step-00000001"), names[f]);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int64_t by = st.st_size / 23;
    for (off_t at = 0; at < st.st_size; at += by) {
      flip(path, at, (int)(at % 8));
      has(refused(at % 2 ? c : other, resume_one, w->ck), names[f]);
      flip(path, at, (int)(at % 8));
    }
  }
  // The last byte of rank 1's half of `head`, which ends its file: read by rank 1, and by the rank
  // that has the last quarter.
  const char *path = in(in(w->ck, "step-00000001"), names[1]);
  struct stat st;
  assert_int_equal(stat(path, &st), 0);
  flip(path, st.st_size - 1, 0);
  const char *why = refused(c, resume_one, w->ck);
  has(why, "rank 1: ");
  has(why, "weights-00001.safetensors: tensor head is damaged in part: its checksum is ");
  // A program that does not read it is not troubled.
  has(refused(other, load_one, w->ck), "tensor head is damaged in part");
  flip(path, st.st_size - 1, 0);
  assert_int_equal(resume(other, w->ck), 1);
  crew_free(other);
  crew_free(c);
}

static void test_missing_files(void **state) {
  world *w = *state;
  crew *c = crew_new(layout_of("tensor 2")), *one = crew_new(layout_of("one"));
  assert_null(save(c, w->ck, 1));
  const char *path = in(in(w->ck, "step-00000001"), "weights-00001.safetensors");
  assert_int_equal(rename(path, in(w->dir, "away")), 0);
  has(refused(one, resume_one, w->ck), "weights-00001.safetensors: No such file");
  const char *why = refused(c, resume_one, w->ck);
  has(why, "weights-00001.safetensors: No such file");
  assert_null(strstr(why, "rank"));  // it is everybody's
  assert_int_equal(rename(in(w->dir, "away"), path), 0);
  struct stat st;
  assert_int_equal(stat(path, &st), 0);
  assert_int_equal(truncate(path, st.st_size - 4), 0);
  has(refused(c, load_one, w->ck), "weights-00001.safetensors is damaged: it has ");
  crew_free(one);
  crew_free(c);
}

// What headers may say of parts and checksums, and must not.
static void test_bad_headers(void **state) {
  world *w = *state;
  layout small = *layout_of("one");
  small.small = true;
  crew *one = crew_new(&small);
  float x[48] = {0};
  arena a;
  arena_init(&a);
  const char *file = in(w->dir, "bad.safetensors");
  static const struct {
    const char *part, *sums;  // NULL: not said
    const char *why;          // NULL: it is a part of a weight
  } cases[] = {
      {"[51, 24] 0/51x24 0/1x48", NULL,
       "tensor wte.weight is not the part `[51, 24] 0/51x24 0/1x48`"},
      {"[51, 24] 3/17x72", NULL, "is not the part"},
      {"[51, 24] 1/26x48", NULL, NULL},
      {"[51, 24] 1/26x48", "", "has not the checksums its 192 bytes need"},
      {"[51, 24] 1/26x48", "0123456789abcdef 0123456789abcdef", "has not the checksums"},
      {"[51, 24] 1/26x48", "0123456789abcdex", NULL},  // looked at only when it is read
      {"[51, 24] 26/26x48", NULL, "is not the part"},
      {"[51, 24] 25/26x48", NULL, "is not the part"},  // of 24 elements
      {"[51, 24]", NULL, "is not the part"},
      {"[51, 24] ", NULL, "is not the part"},
      {"[51, 24", NULL, "is not the part"},
      {"51, 24] 1/26x48", NULL, "is not the part"},
      {"[51, -24] 1/26x48", NULL, "is not the part"},
      {"[51, 0] 1/26x48", NULL, "is not the part"},
      {"[9223372036854775807, 9223372036854775807] 1/26x48", NULL, "is not the part"},
      {"[1,1,1,1,1,1,1,1,1] 1/26x48", NULL, "is not the part"},
      {"[51, 24] 0/4611686018427387904x4", NULL, "is not the part"},
      {"[51, 24] 1/26x48 0/1x48 0/1x48 0/1x48 0/1x48", NULL, NULL},  // cuts that are none
      {"", NULL, "is not the part"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    const char *pairs[4];
    int n = 0;
    uint64_t bytes, header;
    if (cases[i].part) pairs[2 * n] = "part wte.weight", pairs[2 * n++ + 1] = cases[i].part;
    if (cases[i].sums) pairs[2 * n] = "xxh3 wte.weight", pairs[2 * n++ + 1] = cases[i].sums;
    st_tensor t = {.name = "wte.weight",
                   .dtype = PROG_F32,
                   .rank = 1,
                   .dims = {48},
                   .data = x,
                   .bytes = sizeof x};
    assert_null(st_write(&a, file_io_system(), file, &t, 1, pairs, n, &bytes, &header));
    const char *why = refused(one, load_one, file);
    has(why, file);
    has(why, cases[i].why ? cases[i].why : "wte.weight has 1224 elements, of which 48 are in ");
  }
  arena_free(&a);
  crew_free(one);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
      T(test_all_pairs),    T(test_files),          T(test_goes_on),
      T(test_first_values), T(test_load),           T(test_said_once),
      T(test_full_disk),    T(test_one_call_fails), T(test_one_call_of_another_fails),
      T(test_all_die),      T(test_flipped_bytes),  T(test_missing_files),
      T(test_bad_headers),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
