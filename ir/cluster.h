// Clusters: devices, the links between them, and what lies beside them.
//
// A cluster is a tree of *levels*. The leaves are devices; a level says how many members it has,
// and what link joins them, per member and direction. Devices are numbered from left to right, so
// that a mesh of axes, outer to inner, lays consecutive devices along its innermost axis:
//
//   cluster selene {                          level 0  group pod, 280 members, fat tree at the
//   speed
//     node  dgx { members = 8 * a100_80g            of the network cards
//                 link = switch(300GB/s, 3us)       level 1  node dgx, 8 members, 300 GB/s
//                 nics = 8 * nic(25GB/s, 5us) }     devices 0..7 in node 0, 8..15 in node 1, ...
//     group pod { members = 280 * dgx; link = fat_tree() } }
//
// Members of a level need not be alike (`a + b`: two groups with other networks, other devices).
// All bandwidths are bytes a second, latencies seconds, memories bytes, speeds FLOPs a second.
// A cluster belongs to the arena it was made in and is never changed.
#ifndef DSM_IR_CLUSTER_H
#define DSM_IR_CLUSTER_H

#include "ir/ir.h"

// Share of a peak that a call reaches, by its FLOPs (matmul, attention) or bytes (vector, memory).
// Between points the share is linear in log(x); outside it is that of the nearest point. n = 0: 1.
#define CL_CURVE 12
typedef struct cl_curve {
  int n;
  double x[CL_CURVE], share[CL_CURVE];
} cl_curve;
double cl_share(const cl_curve *c, double x);

typedef struct cl_device {
  const char *name;
  int64_t memory, reserve;  // capacity is the difference
  double bandwidth;         // of its memory
  double matmul[DT_COUNT];  // peak of products by the type that is multiplied; 0: not given
  double matmul_tf32;       // 0: not given
  double vector[DT_COUNT];  // peak of elementwise work
  cl_curve matmul_share, attention_share, vector_share, memory_share;
  double launch;        // seconds to start a kernel
  int units;            // multiprocessors or cores; 0: not given
  int64_t cache;        // last-level cache; 0: not given
  int threads;          // of a CPU; 0: not given
  double power, price;  // watts; per hour; 0: not given
  const char *arch;     // "cpu", "sm_80", ...; NULL: not given
} cl_device;
// Peak of products of this type. A type that is not given runs at the speed of the next wider one
// that is (i8 and f8 as f16 or bf16, those as f32, f32 as f64), and f32 as its elementwise work;
// tf32 is another rounding, so who wants it asks `matmul_tf32`. 0 when none is given.
double cl_matmul_peak(const cl_device *d, ir_dtype t);

typedef enum cl_link_kind { CL_SWITCH, CL_FAT_TREE, CL_ETHERNET } cl_link_kind;
typedef struct cl_link {
  cl_link_kind kind;
  double bandwidth;  // of a device below the level, in one direction
  double latency;
  double taper;  // fat tree: share of full bandwidth across the top; 1 elsewhere
} cl_link;

typedef struct cl_store {  // host memory or a disk; size 0: none
  int64_t size;
  double bandwidth;  // of each device's way to it, in one direction
  double latency;
} cl_store;

typedef struct cl_level cl_level;
typedef struct cl_member {
  int64_t count;
  const cl_level *level;    // NULL for a device
  const cl_device *device;  // NULL for a level
} cl_member;
struct cl_level {
  const char *name;  // "dgx", "pod"
  bool node;         // devices that share a host
  int nmembers;      // kinds of members
  const cl_member *member;
  cl_link link;  // between members; what ONE DEVICE gets when all of them talk: its share of its
                 // member's link, and above nodes no more than its share of its node's cards (nor
                 // than it gets in the networks below); latency is the sum of card and link
  double nic_bandwidth, nic_latency;  // node: all its cards together, in one direction; 0: none
  cl_store host, disk;                // node
  double price;
  // Worked out by cl_level_make.
  int64_t devices;  // below it
  int height;       // levels from here down to the devices: 1 for a node of devices
  double share;     // of a device in its node's cards, the least of all; 0: no cards
};
// A level as it was written, `link.bandwidth` being that of a member (0: the speed of the cards),
// `link.latency` without the card, completed: devices, height, shares. A level that has devices for
// members is a node, whatever it is called. Its members are made before it.
const cl_level *cl_level_make(arena *a, const cl_level *written);

// The levels of one height, inner to outer: what a group of devices meets on its way out.
#define CL_TIERS 12
typedef struct cl_tier {
  int64_t unit;               // devices from each multiple of `unit` to the next lie in one level
  double bandwidth, latency;  // of the slowest
  bool node;                  // inside nodes
  bool unlike;                // members of a level here have other networks
} cl_tier;

// The tiers of a level by itself, inner first; returns how many. in_node: it lies in a node.
int cl_tiers(const cl_level *l, bool in_node, cl_tier *tier);
// The greatest common divisor; of x and 0 it is x. Units of tiers and groups are made of it.
int64_t cl_gcd(int64_t x, int64_t y);

typedef struct cl_cluster {
  const char *name;  // "dgx-a100-80g"
  const cl_level *top;
  int64_t devices;
  uint64_t digest;  // of all that is in it
  int kinds;        // of devices that differ in anything
  bool alike;       // all devices, and all members of every level: where a group lies is all one
  int ntiers;
  cl_tier tier[CL_TIERS];
} cl_cluster;
// At most CL_TIERS levels high.
const cl_cluster *cl_cluster_make(arena *a, const char *name, const cl_level *top);

// The device with this number, 0 .. devices-1.
const cl_device *cl_device_at(const cl_cluster *c, int64_t number);
// Devices of each name, in the order of the tree. Returns how many names; *nodes: nodes that lie in
// no other node.
typedef struct cl_named {
  const cl_device *device;
  int64_t count;
} cl_named;
int cl_census(arena *a, const cl_cluster *c, const cl_named **out, int64_t *nodes);
// The node that holds a device: level, and the numbers of its first device and how many it has.
const cl_level *cl_node_of(const cl_cluster *c, int64_t number, int64_t *first, int64_t *count);
// The lowest level that holds both devices: its link carries what they send each other.
const cl_level *cl_between(const cl_cluster *c, int64_t a, int64_t b);
// The same, with the number of its first device, and whether it is a node or lies in one.
const cl_level *cl_holds(const cl_cluster *c, int64_t a, int64_t b, int64_t *first, bool *in_node);
// The first `n` devices as a cluster of their own: whole nodes, or a part of one node. NULL, with a
// sentence in *why, when n is more than there are or would cut a node (other than the only one).
const cl_cluster *cl_part(arena *a, const cl_cluster *c, int64_t n, const char **why);

// Devices first .. first + n - 1 as a cluster of their own, numbered from 0, with the links that
// they have in the whole: what the ranks of a pipeline stage see. May cut nodes and groups
// anywhere.
const cl_cluster *cl_slice(arena *a, const cl_cluster *c, int64_t first, int64_t n);
// The devices of a cluster that differ in anything, in the order of the tree; returns how many.
int cl_device_kinds(arena *a, const cl_cluster *c, const cl_device *const **out);
uint64_t cl_device_digest(const cl_device *d);
// The outermost level above nodes that joins unlike networks, NULL when there is none.
const cl_level *cl_unlike_level(const cl_cluster *c);
// Speed of a member's link, as texts state it: of all its devices together. And the most that the
// cards and networks below it can use.
double cl_member_speed(const cl_level *l);
double cl_member_most(const cl_level *l);
// The same cluster with another speed of that link, at most cl_member_most. (Levels above never
// become faster by it.)
const cl_cluster *cl_with_speed(arena *a, const cl_cluster *c, const cl_level *l, double speed);

// ---- collectives --------------------------------------------------------------------------------

// A group of devices that a mesh axis makes: first + k * stride, k = 0 .. size-1.
typedef struct cl_group {
  int64_t first, stride, size;
} cl_group;

typedef enum cl_collective {
  CL_ALL_GATHER,      // M: bytes of the gathered value
  CL_REDUCE_SCATTER,  // M: bytes of the value before it
  CL_ALL_REDUCE,      // M: bytes of the value
  CL_ALL_TO_ALL,      // M: bytes a device holds before it
  CL_SEND,            // M: bytes sent to the next of the group
  CL_COLLECTIVES
} cl_collective;
const char *cl_collective_name(cl_collective k);  // "all_gather", as in plan --json

typedef struct cl_cost {
  double seconds;
  double intra, inter;  // bytes a device sends inside its node and out of it: exact (n-1)/n forms
  const char *how;      // "ring", "tree", "ring x ring": the algorithm that is fastest
} cl_cost;
// What a collective over a group of `size` devices `stride` apart takes, M in bytes, when all
// groups of that axis run at once (they share the network cards of their nodes, which cl_level.link
// counts per device already). Hierarchical: a group that spans levels is done factor by factor, and
// the bytes of an outer factor are those that are left after the inner ones. Ring: (n-1) steps of
// M/n and n-1 latencies; tree (all-reduce only): 2 log2(n) latencies and 2M bytes over the link. Of
// groups that differ (unlike levels) the slowest counts. n = 1 is free. A group whose members do
// not fill the members of a level evenly is cut into pieces that do; where there are none it is
// taken to cross the level at every step. An all-to-all is n-1 messages of M/n.
//
//   all-reduce of 1 GB over 16 GPUs of 2 nodes of 8:  reduce-scatter inside (7/8 GB at 300 GB/s),
//   all-reduce of 1/8 GB between (2 * 1/2 * 1/8 GB at 25 GB/s), all-gather inside
cl_cost cl_collective_cost(const cl_cluster *c, cl_collective k, int64_t stride, int64_t size,
                           double bytes);
// All that the cost depends on beside kind and bytes, as a number: what is equal costs the same.
uint64_t cl_route_digest(const cl_cluster *c, int64_t stride, int64_t size);
// The same for one group: what a stage pays that lies on the faster half of unlike networks.
cl_cost cl_group_cost(const cl_cluster *c, cl_collective k, cl_group g, double bytes);
// From one device to another; a pipeline boundary.
cl_cost cl_send_cost(const cl_cluster *c, int64_t from, int64_t to, double bytes);
// True when a group of this axis spans a level whose members have other networks (Holmes).
bool cl_spans_unlike(const cl_cluster *c, int64_t stride, int64_t size);

#endif
