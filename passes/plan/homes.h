// Homes: bytes that live beside the device, what moves for them, and what they take.
//
// A rank has a share of its node's host memory and disk and a way there of its own (ir/cluster.h).
// Weights, gradients, optimizer state and saved activations each live on the device or on the host,
// weights and optimizer state also on the disk. What lives away comes and goes by *units*, a layer
// or what stands between layers, through a ring of two slots on the device: while one is worked on,
// the next is fetched or the last one evicted.
//
//   class        forward      backward               once a step
//   parameters   in           in                     where the optimizer leaves the new ones
//   gradients                 in (sum so far), out   in when the optimizer is on the device
//   activations  out          in
//   optimizer                                        gradients out, new weights in; it is updated
//                                                    where it lives, by the host
//
// The way in and the way out run at once. A phase hides what moves for it; the rest is waited for.
// (ZeRO-Infinity, SYSTEMS.md B1: with ZeRO 3 each rank fetches only its part of a layer.)
#ifndef DSM_PLAN_HOMES_H
#define DSM_PLAN_HOMES_H

#include "passes/plan/block.h"

// What a rank has beside its device.
typedef struct hm_store {
  int64_t host, disk;           // bytes; 0: none
  double host_rate, disk_rate;  // of the way from the device to the host, from there to the disk
  double host_wait, disk_wait;  // latencies
} hm_store;
// The least that any node has. A way is no faster than the device's own memory, so that nothing is
// faster for being away.
hm_store hm_store_of(const cl_cluster *c);
// Of the nodes of devices first .. last; and the most that any node has.
hm_store hm_store_in(const cl_cluster *c, int64_t first, int64_t last);
hm_store hm_store_best(const cl_cluster *c);

enum { HM_IN, HM_OUT, HM_WAYS };
// Bytes that move for each class, from the device's point of view.
typedef struct hm_moves {
  double link[PLAN_CLASSES][HM_WAYS];  // between device and host
  double disk[PLAN_CLASSES][HM_WAYS];  // between host and disk
} hm_moves;
void hm_add(hm_moves *to, const hm_moves *m, double times);

bool hm_any_away(const plan_choice *c);
// Bytes of weights, gradients and optimizer state (masters with it) that a rank keeps of `s`.
typedef struct hm_kept {
  double bytes[PLAN_CLASSES];
} hm_kept;
hm_kept hm_kept_of(const plan_choice *c, const bl_state *s);
// The same by where they live. Gradients on the device land on the host for an optimizer there.
typedef struct hm_held {
  double device[PLAN_CLASSES], host, disk;
} hm_held;
hm_held hm_held_by(const plan_choice *c, const bl_state *s);

// What moves for one unit in a phase of one micro-batch: `own` its weights, `saved` bytes for
// backward.
hm_moves hm_phase(const plan_choice *c, const bl_state *own, double saved, pg_phase phase);
// What moves around the update.
hm_moves hm_once(const plan_choice *c, const bl_state *s);
// Seconds of moves whose ways run at once.
double hm_seconds(const hm_store *st, const hm_moves *m);
// Seconds of moves that wait for each other: out, then in.
double hm_seconds_in_turn(const hm_store *st, const hm_moves *m);

// Seconds in which the host updates a state whose memory traffic is `bytes` and whose moves to and
// from the disk are those of `once`.
double hm_update_seconds(const hm_store *st, const hm_moves *once, double bytes);

#endif
