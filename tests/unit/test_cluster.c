// Clusters and collectives: numbers worked by hand, and every axis of small trees against a
// simulation that moves chunks from device to device.
#include "tests/unit/arena_fixture.h"

#include <math.h>
#include <string.h>

#include "frontend/clusters.h"

#define NEAR(X, Y) \
  if (fabs((X) - (Y)) > 1e-12 * fabs(Y)) fail_msg("%s: %.17g is not %.17g", #X, X, Y)

// A cluster of a text, as --cluster finds it; fails the test when it does not.
static const cl_cluster *cluster_of(arena *a, const char *text, const char *spec) {
  diags d;
  diags_init(&d, a);
  sema_program *p = sema_open_text(a, &d, "t.dsm", text, strlen(text));
  const cl_cluster *c = cluster_find(a, &d, p, spec, NULL);
  if (!c || diags_errors(&d)) fail_msg("%s", diag_render(a, d.all.at[0], false));
  return c;
}

#define DEVICE "device d { memory = 1GB; bandwidth = 1GB/s; matmul.f32 = 1GFLOPS }\n"
#define SELENE                                                                            \
  "cluster c { node n { members = 8 * a100_80g; link = switch(300GB/s, 3us); nics = 8 * " \
  "nic(25GB/s, 5us) }; group g { members = 4 * n; link = fat_tree() } }"
#define TWO                                                                                        \
  "cluster two { node ib { members = 8 * a100_80g; link = switch(300GB/s, 3us); nics = 4 * "       \
  "nic(25GB/s, 5us) }; node roce { members = 8 * a100_80g; link = switch(300GB/s, 3us); nics = 4 " \
  "* nic(12.5GB/s, 9us) }; group a { members = 4 * ib; link = fat_tree() }; group b { members = "  \
  "4 "                                                                                             \
  "* roce; link = fat_tree() }; members = a + b; link = ethernet(25Gbit/s, 50us) }"

// ---- by hand ------------------------------------------------------------------------------------

// The example of the header: 1 GB over 2 nodes of 8.
static void all_reduce_by_hand(void **state) {
  const cl_cluster *c = cluster_of(*state, SELENE, "c:16");
  cl_cost x = cl_collective_cost(c, CL_ALL_REDUCE, 1, 16, 1e9);
  NEAR(x.intra, 2 * 7.0 / 8 * 1e9);
  NEAR(x.inter, 2 * 1.0 / 2 * 1e9 / 8);
  NEAR(x.seconds, 2 * (7.0 / 8 * 1e9 / 300e9 + 7 * 3e-6) + 2 * (0.5 * 1e9 / 8 / 25e9 + 5e-6));
  assert_string_equal(x.how, "ring x ring");
  // Few bytes: latencies count, and a tree has fewer: 2 * 3 inside, 2 * 1 between.
  x = cl_collective_cost(c, CL_ALL_REDUCE, 1, 16, 8);
  assert_string_equal(x.how, "tree");
  NEAR(x.seconds, 2 * 8 / 300e9 + 6 * 3e-6 + 2 * 8 / 25e9 + 2 * 5e-6);
  NEAR(x.intra + x.inter, 2 * 15.0 / 16 * 8);
}

static void others_by_hand(void **state) {
  const cl_cluster *c = cluster_of(*state, SELENE, "c");
  // Stride 8: one device of each node, so 3 steps over the cards.
  cl_cost x = cl_collective_cost(c, CL_ALL_GATHER, 8, 4, 4e9);
  NEAR(x.inter, 3e9);
  NEAR(x.seconds, 3 * (1e9 / 25e9 + 5e-6));
  NEAR(x.intra + 1, 1.0);
  // 4 devices 4 apart: 2 in each of 2 nodes. To 1 of 3 others inside.
  x = cl_collective_cost(c, CL_ALL_TO_ALL, 4, 4, 4e9);
  NEAR(x.intra, 1e9);
  NEAR(x.inter, 2e9);
  NEAR(x.seconds, 1e9 / 300e9 + 3e-6 + 2e9 / 25e9 + 2 * 5e-6);
  x = cl_collective_cost(c, CL_REDUCE_SCATTER, 1, 4, 1e9);
  NEAR(x.seconds, 0.75 * 1e9 / 300e9 + 3 * 3e-6);
  assert_true(x.inter == 0);
  // Some hop of a group that spans nodes goes over the cards.
  x = cl_collective_cost(c, CL_SEND, 4, 4, 1e9);
  NEAR(x.inter, 1e9);
  NEAR(x.seconds, 1e9 / 25e9 + 5e-6);
  x = cl_send_cost(c, 0, 7, 3e9);
  NEAR(x.seconds, 0.01 + 3e-6);
  x = cl_send_cost(c, 7, 8, 1e9);
  NEAR(x.seconds, 0.04 + 5e-6);
  for (int k = 0; k < CL_COLLECTIVES; k++)
    assert_true(cl_collective_cost(c, (cl_collective)k, 4, 1, 1e9).seconds == 0);
  // 12 in nodes of 8: pieces of 4, of which the outer 3 cross.
  c = cluster_of(*state, SELENE, "c:24");
  x = cl_collective_cost(c, CL_ALL_GATHER, 1, 12, 12e9);
  NEAR(x.intra, 9e9);
  NEAR(x.inter, 2e9);
}

static void unlike_networks(void **state) {
  const cl_cluster *c = cluster_of(*state, TWO, "two");
  assert_int_equal(c->devices, 64);
  assert_int_equal(c->kinds, 1);
  assert_false(cl_spans_unlike(c, 1, 32));
  assert_true(cl_spans_unlike(c, 1, 64));
  assert_true(cl_spans_unlike(c, 32, 2));
  // Of the two networks the slower counts, and each group by itself has its own.
  double ib = 0.5 * 1e9 / 12.5e9 + 5e-6, roce = 0.5 * 1e9 / 6.25e9 + 9e-6;
  NEAR(cl_collective_cost(c, CL_ALL_GATHER, 8, 2, 1e9).seconds, roce);
  NEAR(cl_group_cost(c, CL_ALL_GATHER, (cl_group){0, 8, 2}, 1e9).seconds, ib);
  NEAR(cl_group_cost(c, CL_ALL_GATHER, (cl_group){33, 8, 2}, 1e9).seconds, roce);
  // Ethernet: 25 Gbit/s of a group of 32 devices, behind the slower card.
  NEAR(cl_send_cost(c, 31, 32, 1e6).seconds, 1e6 / (3.125e9 / 32) + 59e-6);
  const cl_cluster *one = cluster_of(*state, TWO, "two:32");
  assert_int_equal(one->ntiers, 2);
  NEAR(cl_collective_cost(one, CL_ALL_GATHER, 8, 2, 1e9).seconds, ib);
}

// ---- parts --------------------------------------------------------------------------------------

static void parts(void **state) {
  arena *a = *state;
  const char *why;
  const cl_cluster *c = cluster_of(a, SELENE, "c");
  for (int64_t n = -1; n <= 40; n++) {
    const cl_cluster *p = cl_part(a, c, n, &why);
    bool can = n >= 1 && n <= 32 && (n < 8 || n % 8 == 0);
    assert_true(can == (p != NULL) && can == (why == NULL));
    if (!p) continue;
    assert_int_equal(p->devices, n);
    int64_t first, count;
    const cl_level *node = cl_node_of(p, n - 1, &first, &count);
    assert_int_equal(count, n < 8 ? n : 8);
    assert_int_equal(first + count, n);
    NEAR(node->nic_bandwidth, 25e9 * (double)count);
    if (n > 1) NEAR(cl_collective_cost(p, CL_ALL_GATHER, 1, 2, 2e9).seconds, 1e9 / 300e9 + 3e-6);
    assert_true((p->digest == c->digest) == (n == 32));
  }
  cl_part(a, c, 12, &why);
  assert_string_equal(why, "12 devices would cut a node of 8: 8 or 16 are whole nodes");
}

// Two kinds of devices, nodes of 4 and of 6.
// A slice costs what its own links give, wherever it is cut.
static void slices(void **state) {
  arena *a = *state;
  const cl_cluster *c = cluster_of(a, TWO, "two");
  assert_false(c->alike);
  assert_true(cluster_of(a, SELENE, "c")->alike);
  double ib = 0.5 * 1e9 / 12.5e9 + 5e-6, roce = 0.5 * 1e9 / 6.25e9 + 9e-6;
  const cl_cluster *first = cl_slice(a, c, 0, 32), *second = cl_slice(a, c, 32, 32);
  assert_true(first->alike && second->alike && first->devices == 32);
  NEAR(cl_collective_cost(first, CL_ALL_GATHER, 8, 2, 1e9).seconds, ib);
  NEAR(cl_collective_cost(second, CL_ALL_GATHER, 8, 2, 1e9).seconds, roce);
  assert_false(cl_spans_unlike(first, 8, 4));
  assert_true(cl_spans_unlike(cl_slice(a, c, 16, 32), 16, 2));
  // Parts of the same shape are the same, and routes say so; those of the other network are not.
  assert_true(cl_slice(a, c, 8, 8)->digest == cl_slice(a, c, 16, 8)->digest);
  assert_true(cl_route_digest(first, 1, 8) == cl_route_digest(second, 1, 8));  // in a node
  assert_true(cl_route_digest(first, 8, 2) != cl_route_digest(second, 8, 2));
  assert_true(cl_route_digest(first, 8, 2) == cl_route_digest(cl_slice(a, c, 0, 16), 8, 2));
  // Every slice has the devices it was cut from and what joins them.
  for (int64_t from = 0; from < 64; from += 3)
    for (int64_t n = 1; from + n <= 64; n += 5) {
      const cl_cluster *s = cl_slice(a, c, from, n);
      assert_int_equal(s->devices, n);
      int64_t base, count;
      for (int64_t d = 0; d < n; d++) {
        assert_ptr_equal(cl_device_at(s, d), cl_device_at(c, from + d));
        assert_string_equal(cl_node_of(s, d, &base, &count)->name,
                            cl_node_of(c, from + d, &base, &count)->name);
      }
      if (n > 1)
        NEAR(cl_send_cost(s, 0, n - 1, 1e6).seconds,
             cl_send_cost(c, from, from + n - 1, 1e6).seconds);
    }
}

static void speed_of_a_link(void **state) {
  arena *a = *state;
  const cl_cluster *c = cluster_of(a, TWO, "two");
  const cl_level *l = cl_unlike_level(c);
  assert_ptr_equal(l, c->top);
  assert_null(cl_unlike_level(cluster_of(a, SELENE, "c")));
  NEAR(cl_member_speed(l), 3.125e9);
  NEAR(cl_member_most(l), 32 * 6.25e9);  // the slower cards
  const cl_cluster *fast = cl_with_speed(a, c, l, 6.25e9);
  NEAR(cl_member_speed(fast->top), 6.25e9);
  NEAR(cl_send_cost(fast, 31, 32, 1e6).seconds, 1e6 / (6.25e9 / 32) + 59e-6);
  assert_true(fast->digest != c->digest);
  NEAR(cl_member_speed(cl_with_speed(a, c, l, 1e15)->top), 32 * 6.25e9);
  NEAR(cl_send_cost(fast, 8, 16, 1e6).seconds, cl_send_cost(c, 8, 16, 1e6).seconds);
}

static void unlike_devices(void **state) {
  const cl_cluster *c = cluster_of(
      *state,
      DEVICE
      "device e { memory = 2GB; bandwidth = 1GB/s; matmul.f32 = 2GFLOPS; matmul.bf16 = "
      "8GFLOPS }\ncluster c { node x { members = 3 * d + e; link = switch(10GB/s, 1us) }; "
      "node y { members = 6 * e; link = switch(20GB/s, 2us) }; members = 2 * x + y; link = "
      "ethernet(4GB/s, 10us) }",
      "c");
  assert_int_equal(c->devices, 14);
  assert_int_equal(c->kinds, 2);
  const char *kinds = "dddedddeeeeeee";
  for (int i = 0; i < 14; i++) assert_int_equal(cl_device_at(c, i)->name[0], kinds[i]);
  int64_t first, count;
  assert_string_equal(cl_node_of(c, 7, &first, &count)->name, "x");
  assert_int_equal(first, 4);
  assert_string_equal(cl_node_of(c, 9, &first, &count)->name, "y");
  assert_int_equal(first, 8);
  assert_int_equal(count, 6);
  assert_string_equal(cl_between(c, 4, 7)->name, "x");
  assert_string_equal(cl_between(c, 7, 8)->name, "c");
  assert_int_equal(c->tier[0].unit, 2);
  // Pairs lie inside nodes; the slower node counts. The link between is that of the largest node.
  NEAR(cl_collective_cost(c, CL_ALL_GATHER, 1, 2, 2e9).seconds, 0.1 + 2e-6);
  NEAR(cl_send_cost(c, 0, 13, 4e9).seconds, 6 + 10e-6);
  NEAR(cl_matmul_peak(cl_device_at(c, 13), DT_f8e4m3), 8e9);
  NEAR(cl_matmul_peak(cl_device_at(c, 0), DT_bf16), 1e9);
}

static void shares(void **state) {
  (void)state;
  cl_curve k = {3, {1e8, 1e10, 1e12}, {0.1, 0.5, 0.8}};
  NEAR(cl_share(&k, 1), 0.1);
  NEAR(cl_share(&k, 1e9), 0.3);
  NEAR(cl_share(&k, 1e11), 0.65);
  NEAR(cl_share(&k, 1e15), 0.8);
  NEAR(cl_share(&(cl_curve){0}, 5), 1.0);
}

// ---- against a simulation -----------------------------------------------------------------------

// Height of the lowest level that holds all of `k` devices of a group from its `from`-th on.
static int span_of(const cl_cluster *c, int64_t first, int64_t stride, int64_t k) {
  return k == 1 ? 0 : cl_between(c, first, first + (k - 1) * stride)->height;
}

// Reduce-scatter and all-gather of an axis, chunk by chunk: in each factor every device hands a
// chunk to the next of its ring at each step, all at once. The factors are those of the largest
// pieces that lie inside levels, found by trying.
static void simulate(const cl_cluster *c, int64_t stride, int64_t size, double bytes,
                     double *seconds, double *intra, double *inter) {
  int64_t inner = 1;
  *seconds = *intra = *inter = 0;
  for (int h = 1; h <= c->ntiers; h++) {
    int64_t ranks = inner;
    for (int64_t k = size; k > inner; k--) {
      bool fits = size % k == 0 && k % inner == 0;
      for (int64_t d = 0; fits && d < c->devices; d++) {
        int64_t place = d / stride % size;
        if (place % k == 0) fits = span_of(c, d, stride, k) <= h;
      }
      if (!fits) continue;
      ranks = k;
      break;
    }
    int64_t f = ranks / inner;
    double chunk = bytes / (double)inner / (double)f;
    double *sent = calloc((size_t)c->devices, sizeof *sent);
    bool node = true;  // no hop leaves a node
    for (int64_t step = 1; step < f; step++) {
      double slowest = 0;
      for (int64_t d = 0; d < c->devices; d++) {
        int64_t place = d / stride % size, at = place / inner % f;
        int64_t next = d + ((at + 1) % f - at) * inner * stride, first;
        cl_cost x = cl_send_cost(c, d, next, chunk);
        bool inside;
        cl_holds(c, d, next, &first, &inside);
        node &= inside;
        slowest = fmax(slowest, x.seconds);
        sent[d] += chunk;
      }
      *seconds += slowest;
    }
    for (int64_t d = 0; d < c->devices; d++) assert_true(fabs(sent[d] - sent[0]) < 1e-6);
    *(node ? intra : inter) += sent[0];
    free(sent);
    inner = ranks;
  }
}

static void axes_of_small_trees(void **state) {
  static const char *const texts[] = {
      "cluster c { node n { members = 4 * d; link = switch(30GB/s, 3us); nics = 2 * nic(5GB/s, "
      "4us) }; group g { members = 6 * n; link = fat_tree() } }",
      "cluster c { node n { members = 6 * d; link = switch(30GB/s, 3us); nics = 2 * nic(5GB/s, "
      "4us) }; group g { members = 2 * n; link = fat_tree(10GB/s, 1us, 0.5) }; members = 3 * g; "
      "link = ethernet(6GB/s, 50us) }",
      "cluster c { node board { members = 2 * d; link = switch(50GB/s, 1us) }; node n { members = "
      "2 * board; link = switch(40GB/s, 2us); nics = 1 * nic(4GB/s, 3us) }; group g { members = 3 "
      "* n; link = fat_tree() }; members = 2 * g; link = switch(6GB/s, 9us) }",
  };
  int axes = 0;
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
    const cl_cluster *c = cluster_of(*state, arena_printf(*state, DEVICE "%s", texts[i]), "c");
    for (int64_t stride = 1; stride <= c->devices; stride++)
      for (int64_t size = 2; size * stride <= c->devices; size++) {
        if (c->devices % (size * stride)) continue;  // no axis of a mesh
        double seconds, intra, inter, bytes = 1e9 * (double)size;
        simulate(c, stride, size, bytes, &seconds, &intra, &inter);
        cl_cost x = cl_collective_cost(c, CL_ALL_GATHER, stride, size, bytes);
        if (fabs(x.seconds - seconds) > 1e-9 * seconds || fabs(x.intra - intra) > 1 ||
            fabs(x.inter - inter) > 1)
          fail_msg("tree %d, stride %d, size %d: %g s %g %g, simulated %g s %g %g", (int)i,
                   (int)stride, (int)size, x.seconds, x.intra, x.inter, seconds, intra, inter);
        // (n-1)/n of the bytes, whatever the factors.
        NEAR(x.intra + x.inter, (double)(size - 1) / (double)size * bytes);
        cl_cost all = cl_collective_cost(c, CL_ALL_REDUCE, stride, size, bytes);
        NEAR(all.intra, 2 * x.intra + 0.0);
        NEAR(all.inter, 2 * x.inter + 0.0);
        assert_true(all.seconds <= 2 * seconds * (1 + 1e-9));
        axes++;
      }
  }
  assert_true(axes > 50);
}

// ---- built-ins ----------------------------------------------------------------------------------

static void built_ins(void **state) {
  static const char *const specs[] = {"dgx-v100:512",     "dgx-a100-40g:1024", "dgx-a100-80g:3072",
                                      "dgx-h100:16384",   "dgx-h200:1024",     "dgx-b200:1024",
                                      "dgx-a100-80g:4480"};
  for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
    const cl_cluster *c = cluster_of(*state, "", specs[i]);
    assert_int_equal(c->devices, atoi(strrchr(specs[i], ':') + 1));
    const cl_device *d = cl_device_at(c, c->devices - 1);
    assert_true(d->matmul_share.n > 3 && d->attention_share.n > 3 && d->memory_share.n > 3);
    double f16 = cl_matmul_peak(d, DT_f16), large = cl_share(&d->matmul_share, 1e12);
    assert_true(f16 > 1e14 && large >= 0.65 && large <= 0.82);
    assert_true(cl_share(&d->matmul_share, 1e8) < 0.15);
    int64_t first, count;
    const cl_level *n = cl_node_of(c, 0, &first, &count);
    assert_true(n->host.size > (int64_t)1 << 39 && n->disk.size > n->host.size);
  }
  const cl_cluster *a = cluster_of(*state, "", "this-host:1"),
                   *b = cluster_of(*state, "", "this-host:4");
  NEAR(4 * cl_matmul_peak(cl_device_at(b, 3), DT_f32), cl_matmul_peak(cl_device_at(a, 0), DT_f32));
  assert_int_equal(b->devices, 4);
  assert_true(b->digest != a->digest);
}

// A text of facts reads back as these facts.
static void host_reads_back(void **state) {
  arena *a = *state;
  host_facts h = host_guess(a);
  h.memory = 16 << 20;
  h.matmul_f32 = 123.4e9;
  h.matmul_bf16 = 246.8e9;
  h.nmatmul = 2;
  memcpy(h.matmul_curve, (double[2][2]){{1e6, 0.25}, {1e9, 0.9}}, sizeof(double[2][2]));
  const cl_cluster *c = cluster_of(a, host_text(a, &h), "this_host");
  const cl_device *d = cl_device_at(c, 0);
  assert_int_equal(d->memory, 16 << 20);
  NEAR(d->matmul[DT_f32], 123.4e9);
  NEAR(d->matmul[DT_bf16], 246.8e9);
  NEAR(cl_share(&d->matmul_share, 1e9), 0.9);
  assert_int_equal(d->threads, h.cores);
}

int main(void) {
  const struct CMUnitTest tests[] = {
#define TEST(F) cmocka_unit_test_setup_teardown(F, make_arena, free_arena)
      TEST(all_reduce_by_hand),  TEST(others_by_hand), TEST(unlike_networks), TEST(slices),
      TEST(speed_of_a_link),     TEST(parts),          TEST(unlike_devices),  TEST(shares),
      TEST(axes_of_small_trees), TEST(built_ins),      TEST(host_reads_back),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
