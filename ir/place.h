// Placements: where the elements of a value are on a mesh, and what it takes to move them.
//
// A *mesh* is an ordered list of named axes, outer to inner. Its devices are the product of the
// space axes; the axis `micro` is time: the micro-batches of a step run one after the other on the
// same devices. A *placement* says for each index of a value which axes cut it (major first) and
// over which axes the value is partial, that is, the true value is the sum (maximum, lse-merge) of
// what the coordinates hold. On every other axis the value is replicated. No axis cuts two indices
// of one value, and none both cuts it and makes it partial.
//
//   mesh data=4 micro=8
//   %x : f32[batch=64, seq=128]  cut batch by data, micro       each coordinate holds 2 samples
//   %g : f32[out=512, in=128]    partial sum over data, micro   a weight gradient before reduction
//
// A collective is never written by hand: it is the conversion between two placements, and
// place_convert names it. Over a time axis the all-reduce of a partial sum is `accumulate`.
#ifndef DSM_IR_PLACE_H
#define DSM_IR_PLACE_H

#include "ir/ir.h"

#define IR_MAX_AXES 8

typedef struct ir_axis {
  const char *name;  // data pipeline tensor ulysses ring expert, or micro; of a factor data.0,
                     // data.1, outer to inner
  int64_t size;
  bool time;  // coordinates follow each other on the same device
} ir_axis;

typedef struct ir_mesh {
  int naxes;
  ir_axis axis[IR_MAX_AXES];
} ir_mesh;

typedef enum ir_pattern { PATTERN_BLOCK, PATTERN_ZIGZAG } ir_pattern;
typedef enum ir_partial { PARTIAL_NONE, PARTIAL_SUM, PARTIAL_MAX, PARTIAL_LSE } ir_partial;

typedef struct ir_cut {
  ir_index *index;  // a leaf, by its root
  int naxes;
  int axis[4];  // positions in the mesh, major first
  ir_pattern pattern;
} ir_cut;

typedef struct ir_place {
  int ncuts;
  ir_cut cut[4];
  ir_partial partial;
  unsigned partial_axes;  // bit a: over mesh axis a
} ir_place;

// What one axis does to a value.
typedef enum ir_on_axis { ON_REPLICATED, ON_CUT, ON_PARTIAL } ir_on_axis;
ir_on_axis place_on(const ir_place *p, int axis);
// The index that `axis` cuts, or NULL.
ir_index *place_cut_index(const ir_place *p, int axis);

int mesh_axis(const ir_mesh *m, const char *name);  // -1 when absent
// The axis whose name `text` begins with, the longest if there are several, and its length; -1 when
// there is none: of "data.1.tensor" it is data.1, in a mesh without factors data.
int mesh_axis_at(const ir_mesh *m, const char *text, size_t *length);
// A set of axes, by bits, as exchanges name it: "data.tensor"; 0 when a name is none of them.
unsigned mesh_axes(const ir_mesh *m, const char *names);
const char *mesh_axes_text(arena *a, const ir_mesh *m, unsigned axes);
// The axis of that name, or its factors: `data` or data.0 and data.1, where states are shared by
// some of the data ranks alone; `ring` or ring.0 and ring.1, nodes and what is inside one. 0: none.
unsigned mesh_axes_of(const ir_mesh *m, const char *name);
int64_t mesh_parts(const ir_mesh *m,
                   unsigned axes);       // ranks of a group: the product of their sizes
int64_t mesh_devices(const ir_mesh *m);  // product of the space axes

// Placements made in the module's arena; NULL is "replicated everywhere".
const ir_place *place_cut(ir_module *m, const ir_place *base, ir_index *index, int axis);
const ir_place *place_partial(ir_module *m, const ir_place *base, ir_partial kind, int axis);

// How one axis is converted from `from` to `to`.
typedef enum ir_conversion {
  CONVERT_NONE,            // nothing to do
  CONVERT_SLICE,           // replicated -> cut: everyone keeps its part
  CONVERT_ALL_GATHER,      // cut -> replicated
  CONVERT_ALL_REDUCE,      // partial -> replicated
  CONVERT_REDUCE_SCATTER,  // partial -> cut
  CONVERT_ALL_TO_ALL,      // cut of one index -> cut of another
  CONVERT_ACCUMULATE,      // partial -> replicated over time
  CONVERT_IMPOSSIBLE,      // e.g. to partial from replicated; a time axis cannot be gathered
} ir_conversion;
ir_conversion place_convert_on(ir_on_axis from, ir_on_axis to, bool same_index, bool time);
// The same for placements on an axis of a mesh; on one of size 1 there is nothing to do.
ir_conversion place_convert(const ir_mesh *mesh, int axis, const ir_place *from,
                            const ir_place *to);
const char *place_convert_name(ir_conversion c);

// Whether an op moves bytes between ranks (or would: `part`).
bool ir_is_exchange(ir_opcode code);
// Of these, whether all ranks of a group take part at once.
bool ir_is_collective(ir_opcode code);
// The axes it moves them over.
unsigned ir_exchange_axes(const ir_module *m, const ir_op *op);

// Where what an op draws at random stands (runtime/base/random.h): the index is the sum of step[i]
// times the coordinate along i, over the n leaves that are given, outer to inner, without the
// sample's; and of ir_begin times the rank's coordinate, over the axes of the mesh. Of a whole
// value the steps are row-major. Returns a bound: every index is below it.
//
//   dropout [batch=4, seq=8, hidden=6], hidden cut by tensor=2: sizes 8 3 have steps 6 1, tensor 3
int64_t ir_draw_steps(const ir_module *m, const ir_op *op, const int64_t *size, int n,
                      int64_t *step);

// Where a rank's part of what the op counts begins, attribute `begins`: this times the rank's
// coordinate, summed over the axes of the mesh. Axes that cut the same index have each its own
// step, whichever is the outer one of the mesh.
//
//   16 positions, cut by ring=2 and inside it by ulysses=2: begins 8 for ring, 4 for ulysses
int64_t ir_begin(const ir_op *op, int axis);
// Zigzag: of n ranks along axes z and 2n pieces of an index, place p has pieces p and 2n - 1 - p,
// so that of a causal sequence each has as much to look at. With B the sum of begins over z and I
// that over the other axes, number u of a rank's part (half the part is `half`) stands at
//
//   u + I + B,  and from half on,  u + I >= half,  at  u + I + B + 2 half (n - 1) - 2 B
//
// which is attribute `mirror` of an op: half, n, z by bits.
typedef struct ir_mirror {
  int64_t half, n;
  unsigned axes;  // 0: not mirrored
} ir_mirror;
ir_mirror ir_mirror_of(const ir_op *op);

// "cut batch/data.micro, partial sum/tensor", or "" when replicated everywhere.
const char *place_print(arena *a, const ir_mesh *mesh, const ir_place *p);

#endif
