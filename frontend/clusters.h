// Clusters of the text: from `--cluster` to ir/cluster.h.
//
//   const cl_cluster *c = cluster_find(a, d, program, "dgx-a100-80g:1024", cache);
//   if (!c) return cli_finish(...);                     // it has been reported
//
// What `--cluster` takes:
//
//   NAME[:DEVICES]            a `cluster` section of the job's file or its imports, or a built-in
//   FILE[:NAME][:DEVICES]     a section of that file, its only one without NAME; a FILE has a `.`
//   or
//                             a `/` in it, a NAME has not
//   this-host[:RANKS]         this machine, cut into so many CPU ranks; 1 without RANKS
//
// The built-ins are the texts of frontend/clusters/, which travel inside dsmc. A member that a text
// does not define may be a device of theirs (`8 * a100_80g`).
#ifndef DSM_FRONTEND_CLUSTERS_H
#define DSM_FRONTEND_CLUSTERS_H

#include "frontend/sema.h"
#include "ir/cluster.h"

// NULL when there is no such cluster or its text is wrong, which has been reported. `program` has
// no errors, and may be NULL. `cache`: the folder that `dsmc calibrate` wrote this-host.dsm into;
// NULL: none.
const cl_cluster *cluster_find(arena *a, diags *d, const sema_program *program, const char *spec,
                               const char *cache);

// The names of the built-ins, `this-host` last.
const char *const *cluster_names(int *n);
// "dgx-a100-80g: 1024 × a100_80g, 128 nodes".
const char *cluster_text(arena *a, const cl_cluster *c);

// `dsmc check`: makes every cluster of the main file, for its diagnostics.
void clusters_check(sema_program *p);

// What this machine is without measuring: what calibrate starts from, and what this-host is when
// nobody has calibrated.
typedef struct host_facts {
  int cores;                                   // this process may use
  int64_t memory;                              // of the machine, or of its control group
  double bandwidth;                            // of memory
  double matmul_f32, matmul_bf16, vector_f32;  // of all cores; 0: not in hardware
  // Shares of matmul_f32 (products, attention), of vector_f32 and of the bandwidth.
  double matmul_curve[CL_CURVE][2], attention_curve[CL_CURVE][2], vector_curve[CL_CURVE][2];
  double memory_curve[CL_CURVE][2];
  int nmatmul, nattention, nvector, nmemory;
  double launch;                        // seconds to start a kernel on all cores
  double link_bandwidth, link_latency;  // one rank hands to another
  int64_t cache;                        // last level
  int64_t disk;                         // bytes free; 0: no disk
  double disk_bandwidth;
  const char *comment;  // lines for the head of the text, each with its `# `
} host_facts;
host_facts host_guess(arena *a);
int host_cores(void);
int64_t host_memory(void);
// The cluster text of a machine: a device, and a cluster this_host of one of it.
const char *host_text(arena *a, const host_facts *h);

#endif
