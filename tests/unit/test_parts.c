// Parts of states against a map made the long way: every element of the whole is walked through the
// cuts one after the other.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "runtime/comm.h"
#include "runtime/parts.h"
#include "tests/unit/draw.h"
#include "tests/unit/mesh_fixture.h"

// A number below n.
static uint64_t draw_below(uint64_t *seed, uint64_t n) { return draw(seed) % n; }

// What a rank holds, by pushing numbers through the cuts as program.h defines them.
static int64_t *brute(const mesh *m, int rank, const prog_state *s, int64_t *held) {
  int64_t n = mesh_product(s->global, s->global_rank);
  int64_t *all = malloc(sizeof *all * (size_t)n);
  for (int64_t i = 0; i < n; i++) all[i] = i;
  for (uint32_t c = 0; c < s->ncuts; c++) {
    // The group: ranks that differ from this one in axes of the cut alone, in the order of ranks.
    int64_t parts = 0, place = -1;
    for (int other = 0; other < mesh_ranks(m); other++) {
      bool same = true;
      for (uint32_t a = 0; a < m->prog.naxes; a++) {
        int64_t x = rank / m->axes[a].stride % m->axes[a].size;
        int64_t y = other / m->axes[a].stride % m->axes[a].size;
        same = same && (s->cut[c].axes >> a & 1 || x == y);
      }
      if (other == rank) place = parts;
      parts += same;
    }
    int64_t block = s->cut[c].block, outer = (n + parts * block - 1) / (parts * block);
    int64_t *mine = malloc(sizeof *mine * (size_t)(outer * block)), k = 0;
    assert_int_equal(n, s->cut[c].whole);
    for (int64_t o = 0; o < outer; o++)
      for (int64_t b = 0; b < block; b++, k++) {
        int64_t at = (o * parts + place) * block + b;
        mine[k] = at < n ? all[at] : -1;
      }
    free(all);
    all = mine;
    n = k;
  }
  *held = n;
  return all;
}

static void check_rank(const mesh *m, int rank, const prog_state *s, int *count) {
  int64_t n, real = 0, at = 0;
  int64_t *want = brute(m, rank, s, &n);
  part t = part_of(&m->prog, rank, s);
  assert_int_equal(t.held, n);
  assert_int_equal(t.whole, mesh_product(s->global, s->global_rank));
  for (int64_t i = 0; i < n; i++) {
    assert_int_equal(part_global(&t, i), want[i]);
    if (want[i] >= 0) real++, count[want[i]]++;
  }
  assert_int_equal(part_elements(&t), real);
  // Runs: all elements once, in order, and no two that could be one.
  part_run r, last = {.global = -9};
  while (part_next(&t, &at, &r)) {
    assert_int_equal(r.local, last.local + last.n);
    assert_true(r.n > 0 && r.global != last.global + last.n);
    for (int64_t i = 0; i < r.n; i++) assert_int_equal(want[r.local + i], r.global + i);
    assert_int_equal(at, r.local + r.n);
    last = r;
  }
  assert_int_equal(last.local + last.n, real);
  // From the middle.
  for (int64_t i = 0; i < real; i += 1 + real / 7) {
    at = i;
    assert_true(part_next(&t, &at, &r) && r.local == i && r.global == want[i]);
  }
  for (int64_t g = 0; g <= t.whole; g += 1 + t.whole / 50) {
    int64_t first = 0;
    while (first < real && want[first] < g) first++;
    assert_int_equal(part_seek(&t, g), first);
  }
  // As text and back.
  arena a;
  arena_init(&a);
  part back;
  assert_true(part_parse(part_text(&a, &t), t.whole, &back));
  assert_memory_equal(&back, &t, sizeof t);
  arena_free(&a);
  free(want);
}

// Who answers for an element: one rank, the lowest of those that have it.
static void check_owners(const mesh *m, const prog_state *s) {
  int64_t n = mesh_product(s->global, s->global_rank);
  int *owners = calloc((size_t)n, sizeof *owners), *seen = calloc((size_t)n, sizeof *seen);
  for (int rank = 0; rank < mesh_ranks(m); rank++) {
    part t = part_of(&m->prog, rank, s);
    bool owner = part_is_owner(&m->prog, rank, s);
    for (int64_t i = 0; i < part_elements(&t); i++) {
      int64_t g = part_global(&t, i);
      if (owner) owners[g]++;
      assert_int_equal(owner, !seen[g]++);
    }
  }
  for (int64_t i = 0; i < n; i++) assert_int_equal(owners[i], 1);
  free(owners);
  free(seen);
}

// A mesh and a state, drawn: up to 3 axes, up to 3 cuts over axes no other cut has.
static prog_state *draw_state(mesh *m, uint64_t *seed) {
  int64_t sizes[3], dims[3];
  int naxes = (int)draw_below(seed, 4);
  uint32_t rank = 1 + (uint32_t)draw_below(seed, 3), left = (1u << naxes) - 1;
  for (int i = 0; i < 3; i++) sizes[i] = 1 + (int64_t)draw_below(seed, 4);
  for (int i = 0; i < 3; i++) dims[i] = 1 + (int64_t)draw_below(seed, 9);
  mesh_init(m, naxes, sizes);
  bool divides = draw_below(seed, 2);
  if (divides)
    for (int i = 0; i < 3; i++) dims[i] *= (int64_t)(i == 1 ? sizes[0] * sizes[1] : sizes[i]);
  prog_state *s = mesh_state(m, "w", "", PROG_WEIGHT, PROG_F32, rank, dims);
  for (int i = 0; i < 3 && left; i++) {
    uint32_t axes = (uint32_t)draw_below(seed, 8) & left;
    if (!axes) continue;
    int64_t parts = comm_group_size(&m->prog, axes);
    int dim = (int)draw_below(seed, s->rank + 1) - 1;
    if (dim > 0 && s->dims[dim] % parts) dim = -1;
    mesh_cut(m, s, axes, dim);
    left &= ~axes;
  }
  mesh_lay(m);
  return s;
}

static void test_against_brute_force(void **state) {
  (void)state;
  uint64_t seed = 7;
  int cut_twice = 0, padded = 0, empty = 0, middle = 0;
  for (int round = 0; round < 3000; round++) {
    mesh m;
    prog_state *s = draw_state(&m, &seed);
    int64_t n = mesh_product(s->global, s->global_rank), copies = mesh_ranks(&m);
    int *count = calloc((size_t)n, sizeof *count);
    for (int rank = 0; rank < mesh_ranks(&m); rank++) {
      check_rank(&m, rank, s, count);
      part t = part_of(&m.prog, rank, s);
      cut_twice += t.ncuts > 1;
      padded += part_elements(&t) < t.held;
      empty += part_elements(&t) == 0;
      middle += t.ncuts > 0 && t.cut[0].whole > t.cut[0].parts * t.cut[0].block;
    }
    uint32_t named = 0;
    for (uint32_t c = 0; c < s->ncuts; c++) named |= s->cut[c].axes;
    copies /= comm_group_size(&m.prog, named);
    for (int64_t i = 0; i < n; i++) assert_int_equal(count[i], copies);
    check_owners(&m, s);
    free(count);
  }
  // The draw must meet what can go wrong.
  assert_true(cut_twice > 500 && padded > 500 && empty > 100 && middle > 500);
}

// What two parts of one whole have in common, for states and meshes that know nothing of each
// other.
static void test_common(void **state) {
  (void)state;
  uint64_t seed = 11;
  int met = 0;
  for (int round = 0; round < 3000; round++) {
    mesh m, o;
    prog_state *x = draw_state(&m, &seed), *y;
    int64_t n = mesh_product(x->global, x->global_rank);
    // The other one: the same number of elements in one row.
    int64_t sizes[2] = {1 + (int64_t)draw_below(&seed, 4), 1 + (int64_t)draw_below(&seed, 4)},
            dims[2] = {n, 1};
    mesh_init(&o, 2, sizes);
    for (int64_t d = 2; d <= 9; d++)
      if (n % d == 0 && draw_below(&seed, 2)) dims[0] = n / d, dims[1] = d;
    y = mesh_state(&o, "w", "", PROG_WEIGHT, PROG_F32, 2, dims);
    for (uint32_t axis = 0; axis < 2; axis++) {
      int dim = (int)draw_below(&seed, 3) - 1;
      if (dim > 0 && (y->rank < 2 || y->dims[1] % sizes[axis])) dim = -1;
      if (draw_below(&seed, 3)) mesh_cut(&o, y, 1u << axis, dim);
    }
    part a = part_of(&m.prog, (int)draw_below(&seed, (uint64_t)mesh_ranks(&m)), x);
    part b = part_of(&o.prog, (int)draw_below(&seed, (uint64_t)mesh_ranks(&o)), y);
    bool *has = calloc((size_t)n, sizeof *has);
    int64_t both = 0, at = 0, bt = 0, b_local, seen = 0, end = -1;
    for (int64_t i = 0; i < part_elements(&a); i++) has[part_global(&a, i)] = true;
    for (int64_t i = 0; i < part_elements(&b); i++) both += has[part_global(&b, i)];
    for (part_run r; part_common(&a, &at, &b, &bt, &r, &b_local); seen += r.n) {
      assert_true(r.n > 0 && r.global >= end);
      end = r.global + r.n;
      for (int64_t i = 0; i < r.n; i++) {
        assert_int_equal(part_global(&a, r.local + i), r.global + i);
        assert_int_equal(part_global(&b, b_local + i), r.global + i);
      }
    }
    assert_int_equal(seen, both);
    met += both > 0 && both < n;
    free(has);
  }
  assert_true(met > 500);
}

// The example of parts.h, and texts that mean nothing.
static void test_example(void **state) {
  (void)state;
  mesh m;
  mesh_init(&m, 2, (int64_t[]){2, 5});
  prog_state *s = mesh_state(&m, "w", "", PROG_WEIGHT, PROG_F32, 2, (int64_t[]){4, 6});
  mesh_cut(&m, s, 1, 1);
  mesh_cut(&m, s, 2, -1);
  part t = part_of(&m.prog, 5, s), u = part_of(&m.prog, 9, s);
  assert_int_equal(t.held, 3);
  for (int64_t i = 0; i < 3; i++) assert_int_equal(part_global(&t, i), 3 + i);
  assert_int_equal(part_elements(&u), 0);
  arena a;
  arena_init(&a);
  assert_string_equal(part_text(&a, &t), "1/2x3 0/5x3");
  part p;
  assert_true(part_parse("", 24, &p) && p.ncuts == 0 && p.held == 24);
  static const char *const bad[] = {"2/2x3",
                                    "0/0x3",
                                    "0/2x0",
                                    "0/2x5",
                                    "x",
                                    "0/2x3 ,",
                                    "-1/2x3",
                                    "0/2",
                                    "0/2x",
                                    "/2x3",
                                    " 0/2",
                                    "0/2x3x4",
                                    "0/2x3z4",
                                    "0/99999999999999999999x1",
                                    "0/4611686018427387904x4611686018427387904"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
    if (part_parse(bad[i], 24, &p)) fail_msg("%s is accepted", bad[i]);
  arena_free(&a);
}

// Cut alike or not, whatever axes of one rank say.
static void test_alike(void **state) {
  (void)state;
  mesh m;
  mesh_init(&m, 3, (int64_t[]){2, 1, 2});
  prog_state *s[6];
  for (int i = 0; i < 6; i++)
    s[i] = mesh_state(&m, "w", "", PROG_WEIGHT, PROG_F32, 2, (int64_t[]){4, 6});
  mesh_cut(&m, s[1], 1, 0);
  mesh_cut(&m, s[2], 4, 0);  // another axis of the same size
  mesh_cut(&m, s[3], 2, -1);
  mesh_cut(&m, s[3], 1, 0);
  mesh_cut(&m, s[4], 1, 1);
  mesh_cut(&m, s[5], 1, 0);
  mesh_cut(&m, s[5], 4, -1);
  for (int i = 0; i < 6; i++)
    for (int k = 0; k < 6; k++)
      assert_int_equal(part_cut_alike(&m.prog, s[i], s[k]),
                       i == k || (i == 1 && k == 3) || (i == 3 && k == 1));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_against_brute_force),
      cmocka_unit_test(test_common),
      cmocka_unit_test(test_example),
      cmocka_unit_test(test_alike),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
