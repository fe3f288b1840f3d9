// `--cluster`: whose section it means, the built-in clusters, and this machine.
#include "frontend/clusters.h"

#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "frontend/clusters_impl.h"
#include "frontend/keys.h"
#include "runtime/base/file.h"

// ---- built-ins ----------------------------------------------------------------------------------

// ORDER CLUSTERS: the texts of frontend/clusters/ (CMakeLists.txt makes the symbols), older first.
#define BUILTINS(X)               \
  X("dgx-v100", dgx_v100)         \
  X("dgx-a100-40g", dgx_a100_40g) \
  X("dgx-a100-80g", dgx_a100_80g) \
  X("dgx-h100", dgx_h100)         \
  X("dgx-h200", dgx_h200)         \
  X("dgx-b200", dgx_b200)

#define EXTERN(NAME, SYMBOL) extern const char dsm_cluster_##SYMBOL[];
BUILTINS(EXTERN)
#undef EXTERN

static const struct builtin {
  const char *name, *section, *text;
} builtins[] = {
#define ROW(NAME, SYMBOL) {NAME, #SYMBOL, dsm_cluster_##SYMBOL},
    BUILTINS(ROW)
#undef ROW
};
enum { NBUILTINS = sizeof builtins / sizeof *builtins };

const char *const *cluster_names(int *n) {
#define NAME(NAME, SYMBOL) NAME,
  static const char *const names[] = {BUILTINS(NAME) "this-host"};
#undef NAME
  *n = NBUILTINS + 1;
  return names;
}

// Parses a text of ours, in which nothing can be wrong.
static sema_program *open_builtin(arena *a, int i) {
  diags d;
  diags_init(&d, a);
  const struct builtin *b = &builtins[i];
  sema_program *p = sema_open_text(a, &d, b->name, b->text, strlen(b->text));
  if (diags_errors(&d)) IR_BUG("built-in cluster %s: %s", b->name, d.all.at[0]->message);
  return p;
}

const section *builtin_device(arena *a, const char *name) {
  for (int i = 0; i < NBUILTINS; i++) {
    if (!strstr(builtins[i].text, name)) continue;
    const section *s = sema_section(open_builtin(a, i), "device", name);
    if (s) return s;
  }
  return NULL;
}

int builtin_device_names(arena *a, const char **out, int most) {
  int n = 0;
  for (int i = 0; i < NBUILTINS; i++) {
    const sema_program *p = open_builtin(a, i);
    for (int k = 0; k < p->sections.n && n < most; k++)
      if (str_eq(p->sections.at[k]->kind.text, "device")) out[n++] = p->sections.at[k]->label.text;
  }
  return n;
}

// ---- this machine -------------------------------------------------------------------------------

// The first whole number in a small file such as a cgroup limit; -1 when there is none.
static long long number_in_file(const char *path) {
  FILE *f = fopen(path, "r");
  long long v = -1;
  if (f && fscanf(f, "%lld", &v) != 1) v = -1;
  if (f) fclose(f);
  return v;
}

int64_t host_memory(void) {
  int64_t all = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
  long long limit = number_in_file("/sys/fs/cgroup/memory.max");
  return limit > 0 && limit < all ? limit : all;
}

int host_cores(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                     : (int)sysconf(_SC_NPROCESSORS_ONLN);
}

host_facts host_guess(arena *a) {
  host_facts h = {.cores = host_cores(), .memory = host_memory()};
  double each = 10e9;  // FLOP/s of a core without wide vectors
  bool bf16 = false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // 16 f32 multiply-adds a cycle at about 3 GHz, and pairs of bf16 in twice as many.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) each = 80e9;
  bf16 = __builtin_cpu_supports("avx512bf16");
#endif
  h.matmul_f32 = each * h.cores;
  h.matmul_bf16 = bf16 ? 2 * h.matmul_f32 : 0;
  h.vector_f32 = h.matmul_f32 / 4;
  // One core draws some 20 GB/s, and a socket's memory is full with a few of them.
  h.bandwidth = 20e9 * (h.cores < 4 ? h.cores : 4);
  h.link_bandwidth = h.bandwidth / 4;  // a copy reads and writes, on both sides
  h.link_latency = 2e-6;
  h.launch = 2e-6;
  long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  h.cache = cache > 0 ? cache : 0;
  struct statvfs disk;
  if (statvfs("/tmp", &disk) == 0) {
    h.disk = (int64_t)disk.f_bavail * (int64_t)disk.f_frsize;
    h.disk_bandwidth = 0.5e9;
  }
  h.comment = arena_printf(
      a, "# This machine, guessed from its %d cores; `dsmc calibrate` measures.\n", h.cores);
  return h;
}

// "123.4GB/s": few digits, read back by the lexer.
static void put_number(sb *s, const char *key, double x, const char *of) {
  const char *prefix = "";
  double by = 1;
  if (x >= 1e12)
    prefix = "T", by = 1e12;
  else if (x >= 1e9)
    prefix = "G", by = 1e9;
  else if (x >= 1e6)
    prefix = "M", by = 1e6;
  sb_printf(s, "%s%.4g%s%s", key, x / by, prefix, of);
}

static void put_curve(sb *s, const char *name, const double (*at)[2], int n) {
  if (!n) return;
  sb_printf(s, "  efficiency.%s = [", name);
  for (int i = 0; i < n; i++) sb_printf(s, "%s[%.3g, %.3g]", i ? ", " : "", at[i][0], at[i][1]);
  sb_puts(s, "]\n");
}

const char *host_text(arena *a, const host_facts *h) {
  sb s = {.arena = a};
  sb_puts(&s, h->comment);
  sb_puts(&s, "device cpu {\n");
  // What the system, the page cache and the program's code need.
  sb_printf(&s, "  memory = %lldB; reserve = %lldB\n", (long long)h->memory,
            (long long)h->memory / 16);
  put_number(&s, "  bandwidth = ", h->bandwidth, "B/s\n");
  put_number(&s, "  matmul.f32 = ", h->matmul_f32, "FLOPS\n");
  if (h->matmul_bf16 > 0) put_number(&s, "  matmul.bf16 = ", h->matmul_bf16, "FLOPS\n");
  put_number(&s, "  vector.f32 = ", h->vector_f32, "FLOPS\n");
  put_curve(&s, "matmul", h->matmul_curve, h->nmatmul);
  put_curve(&s, "attention", h->attention_curve, h->nattention);
  put_curve(&s, "vector", h->vector_curve, h->nvector);
  put_curve(&s, "memory", h->memory_curve, h->nmemory);
  sb_printf(&s, "  launch = %.3gus; threads = %d; units = %d; arch = cpu\n", h->launch * 1e6,
            h->cores, h->cores);
  if (h->cache) sb_printf(&s, "  cache = %lldB\n", (long long)h->cache);
  sb_puts(&s, "}\ncluster this_host {\n  node box {\n    members = 1 * cpu\n");
  put_number(&s, "    link = switch(", h->link_bandwidth, "B/s");
  sb_printf(&s, ", %.3gus)\n", h->link_latency * 1e6);
  if (h->disk) {
    sb_printf(&s, "    disk = disk(%lldB", (long long)h->disk);
    put_number(&s, ", ", h->disk_bandwidth, "B/s)\n");
  }
  sb_puts(&s, "  }\n}\n");
  return sb_str(&s);
}

// A machine of one device cut into ranks that share its cores, its memory and its ways.
static const cl_cluster *cut_host(arena *a, const cl_cluster *c, int64_t ranks) {
  int64_t first, count;
  cl_level box = *cl_node_of(c, 0, &first, &count);
  cl_device d = *cl_device_at(c, 0), *part = arena_new(a, cl_device, 1);
  cl_member *m = arena_new(a, cl_member, 1);
  double n = (double)ranks;
  d.memory /= ranks;
  d.reserve /= ranks;
  d.bandwidth /= n;
  d.matmul_tf32 /= n;
  for (int t = 0; t < DT_COUNT; t++) d.matmul[t] /= n, d.vector[t] /= n;
  d.units = d.units > ranks ? (int)(d.units / ranks) : 1;
  d.threads = d.threads > ranks ? (int)(d.threads / ranks) : 1;
  d.cache /= ranks;
  d.power /= n;
  *part = d;
  *m = (cl_member){ranks, NULL, part};
  box.nmembers = 1;
  box.member = m;
  box.link.bandwidth /= n;
  box.disk.bandwidth /= n;
  box.host.bandwidth /= n;
  return cl_cluster_make(a, "this-host", cl_level_make(a, &box));
}

// ---- --cluster ----------------------------------------------------------------------------------

typedef struct request {
  arena *arena;
  diags *diags;
  const source *src;     // the value of --cluster, for carets
  int start[4], end[4];  // its parts between colons
  int n;
} request;

static const char *part_text(const request *r, int i) {
  return arena_strndup(r->arena, r->src->text + r->start[i], (size_t)(r->end[i] - r->start[i]));
}

static span part_at(const request *r, int i) { return source_span(r->src, r->start[i], r->end[i]); }

static bool is_number(const char *s) {
  for (const char *p = s; *p; p++)
    if (!isdigit((unsigned char)*p)) return false;
  return *s != 0;
}

static int cluster_sections(const sema_program *p, const char **names, int most) {
  int n = 0;
  for (int i = 0; p && i < p->sections.n && n < most; i++)
    if (str_eq(p->sections.at[i]->kind.text, "cluster") && p->sections.at[i]->label.text)
      names[n++] = p->sections.at[i]->label.text;
  return n;
}

enum { NAMES_MOST = 128 };

static void unknown_cluster(const request *r, int part, const char *where, const char *const *names,
                            int n, const char *list) {
  const char *name = part_text(r, part);
  diag *e = diag_error(r->diags, part_at(r, part), DIAG_UNKNOWN_CLUSTER, "`%s` is no cluster%s",
                       name, where);
  diag_did_you_mean(e, name, names, n);
  diag_list(e, list, names, n);
}

// The section `part` names in a file, or the file's only one when `part` is 0.
static const section *section_of(const request *r, const sema_program *p, int part) {
  const char *names[NAMES_MOST];
  int n = cluster_sections(p, names, NAMES_MOST);
  const section *s = part ? sema_section(p, "cluster", part_text(r, part)) : NULL;
  if (!part && n == 1) s = sema_section(p, "cluster", names[0]);
  if (s) return s;
  if (part) {
    unknown_cluster(r, part, arena_printf(r->arena, " of %s", p->path), names, n, "it has");
    return NULL;
  }
  diag *e = diag_error(r->diags, part_at(r, 0), DIAG_UNKNOWN_CLUSTER,
                       n ? "%s has several clusters" : "%s has no `cluster` section", p->path);
  if (n) diag_list(e, "write FILE:NAME, with one of", names, n);
  return NULL;
}

static const cl_cluster *host_of(const request *r, const char *cache, int64_t ranks) {
  arena *a = r->arena;
  const char *path = cache ? arena_printf(a, "%s/this-host.dsm", cache) : NULL;
  sema_program *p;
  if (path && file_kind(path) == FILE_REGULAR) {
    int before = diags_errors(r->diags);
    p = sema_open(a, r->diags, path);
    if (!p || diags_errors(r->diags) != before) return NULL;
  } else {
    host_facts h = host_guess(a);
    const char *text = host_text(a, &h);
    p = sema_open_text(a, r->diags, "this-host", text, strlen(text));
    diag_warning(r->diags, part_at(r, 0), DIAG_NOT_CALIBRATED,
                 "the speeds of this machine are guessed; `dsmc calibrate` measures them");
  }
  const section *s = section_of(r, p, 0);
  const cl_cluster *c = s ? cluster_make(a, r->diags, p, s, "this-host") : NULL;
  return c ? cut_host(a, c, ranks) : NULL;
}

static const section *in_job(const sema_program *program, const char *name) {
  return program ? sema_section(program, "cluster", name) : NULL;
}

static const cl_cluster *by_name(const request *r, const sema_program *program) {
  arena *a = r->arena;
  const char *name = part_text(r, 0);
  const section *s = in_job(program, name);
  if (s) return cluster_make(a, r->diags, program, s, name);
  for (int i = 0; i < NBUILTINS; i++) {
    if (!str_eq(builtins[i].name, name)) continue;
    const sema_program *p = open_builtin(a, i);
    s = sema_section(p, "cluster", builtins[i].section);
    const cl_cluster *c = s ? cluster_make(a, r->diags, p, s, name) : NULL;
    if (!c) IR_BUG("built-in cluster %s", name);
    return c;
  }
  const char *names[NAMES_MOST + NBUILTINS + 1];
  int n = cluster_sections(program, names, NAMES_MOST), more;
  const char *const *rest = cluster_names(&more);
  for (int i = 0; i < more; i++) names[n++] = rest[i];
  unknown_cluster(r, 0, "", names, n, "clusters");
  return NULL;
}

static const cl_cluster *by_file(const request *r, int name) {
  arena *a = r->arena;
  const char *why;
  const source *src = source_read(a, part_text(r, 0), &why);
  if (!src) {
    diag_error(r->diags, part_at(r, 0), DIAG_CANNOT_READ, "cannot read %s: %s", part_text(r, 0),
               why);
    return NULL;
  }
  int before = diags_errors(r->diags);
  const sema_program *p = sema_open(a, r->diags, part_text(r, 0));
  if (!p || diags_errors(r->diags) != before) return NULL;
  const section *s = section_of(r, p, name);
  return s ? cluster_make(a, r->diags, p, s, s->label.text) : NULL;
}

// Numbers of devices that do not cut a node, around n.
static void note_possible(diag *e, const cl_cluster *c, int64_t n) {
  if (n >= 1 && n <= c->devices) return;  // cl_part has named them
  int64_t first, count;
  cl_node_of(c, 0, &first, &count);
  if (c->devices == 1)
    diag_note(e, "only 1 is possible");
  else if (count == c->devices)
    diag_note(e, "from 1 to %lld are possible", (long long)count);
  else
    diag_note(e, "possible are 1 to %lld, and whole nodes up to %lld", (long long)count,
              (long long)c->devices);
}

const cl_cluster *cluster_find(arena *a, diags *d, const sema_program *program, const char *spec,
                               const char *cache) {
  request r = {.arena = a, .diags = d, .src = source_from_text(a, "--cluster", spec, strlen(spec))};
  for (const char *p = spec; r.n < 4;) {
    size_t len = strcspn(p, ":");
    r.start[r.n] = (int)(p - spec);
    r.end[r.n++] = (int)(p - spec + (long)len);
    if (!p[len]) break;
    p += len + 1;
  }
  bool is_file = strpbrk(part_text(&r, 0), "./") != NULL;
  int name = is_file && r.n > 1 && !is_number(part_text(&r, 1)) ? 1 : 0, at = name + 1;
  if (r.n > at + 1 || (r.n == at + 1 && !is_number(part_text(&r, at)))) {
    diag *e = diag_error(d, part_at(&r, at), DIAG_UNKNOWN_CLUSTER,
                         "`%s` is not a number of devices", part_text(&r, at));
    diag_note(e, "--cluster takes NAME[:DEVICES] or FILE[:NAME][:DEVICES]");
    return NULL;
  }
  int64_t n = r.n == at + 1 ? strtoll(part_text(&r, at), NULL, 10) : -1;
  if (!is_file && str_eq(part_text(&r, 0), "this-host") && !in_job(program, "this-host")) {
    if (n >= -1 && n != 0 && n <= 4096) return host_of(&r, cache, n < 0 ? 1 : n);
    diag_error(d, part_at(&r, at), DIAG_BAD_DEVICES, "this-host takes from 1 to 4096 ranks");
    return NULL;
  }
  const cl_cluster *c = is_file ? by_file(&r, name) : by_name(&r, program);
  if (!c || n < 0) return c;
  const char *why;
  const cl_cluster *some = cl_part(a, c, n, &why);
  if (!some) {
    diag *e = diag_error(d, part_at(&r, at), DIAG_BAD_DEVICES, "%s", why);
    note_possible(e, c, n);
  }
  return some;
}

// ---- telling ------------------------------------------------------------------------------------

const char *cluster_text(arena *a, const cl_cluster *c) {
  const cl_named *named;
  int64_t nodes;
  int n = cl_census(a, c, &named, &nodes);
  sb s = {.arena = a};
  sb_printf(&s, "%s: ", c->name);
  for (int i = 0; i < n; i++)
    sb_printf(&s, "%s%lld × %s", i ? " + " : "", (long long)named[i].count, named[i].device->name);
  sb_printf(&s, ", %lld node%s", (long long)nodes, nodes == 1 ? "" : "s");
  return sb_str(&s);
}

void clusters_check(sema_program *p) {
  for (int i = 0; i < p->main_sections; i++) {
    const section *s = p->sections.at[i];
    if (str_eq(s->kind.text, "cluster") && s->label.text)
      cluster_make(p->arena, p->diags, p, s, s->label.text);
  }
}
