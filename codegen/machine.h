// Tile sizes that suit a machine: the numbers by which builders differ between lowerings.
//
// On the host a tile lives in a core's caches and is walked in vectors, so tiles are large and of
// about equal size. On a GPU it lives in the registers of a block of threads: 16 elements a thread
// are enough, and extents are powers of two wherever a tile does not hold all of an axis, so that
// kernels of many shapes are one function (codegen/cuda.h).
#ifndef DSM_CODEGEN_MACHINE_H
#define DSM_CODEGEN_MACHINE_H

#include <stdbool.h>

typedef struct cg_limits {
  bool powers;                 // cut into powers of two, else into equal parts
  int map, map_cols;           // elements of an elementwise tile, columns at most
  int row_all, row_cols;       // a row of up to row_all is one tile, longer ones are cut
  int row_tile, rows;          // elements and rows of a tile of rows, at most
  int sum_cols, sum_rows;      // of a reduction along rows: columns; of one across: rows
  int table_cols, table_rows;  // of an embedding
  int weight_rows;             // rows of a step of norm weights' gradients
  int dot_m, dot_n, dot_k;     // of a product
  int cells;                   // a product has at least so many, when it can be cut so fine
} cg_limits;

// The same rows for every machine. The host's were measured on a Zen 4 (docs/performance.md). The
// GPU's were chosen by registers: 128 x 64 results of a product are 64 in each of 128 threads,
// other tiles 16 or 32, so that several blocks fit a multiprocessor.
#define CG_LIMITS                   \
  {[CG_HOST] = {.map = 4096,        \
                .map_cols = 4096,   \
                .row_all = 4096,    \
                .row_cols = 4096,   \
                .row_tile = 8192,   \
                .rows = 32,         \
                .sum_cols = 1024,   \
                .sum_rows = 32,     \
                .table_cols = 2048, \
                .table_rows = 8,    \
                .weight_rows = 16,  \
                .dot_m = 512,       \
                .dot_n = 128,       \
                .dot_k = 768,       \
                .cells = 12},       \
   [CG_CUDA] = {.powers = true,     \
                .map = 1024,        \
                .map_cols = 256,    \
                .row_all = 4096,    \
                .row_cols = 2048,   \
                .row_tile = 4096,   \
                .rows = 32,         \
                .sum_cols = 1024,   \
                .sum_rows = 32,     \
                .table_cols = 1024, \
                .table_rows = 4,    \
                .weight_rows = 32,  \
                .dot_m = 128,       \
                .dot_n = 64,        \
                .dot_k = 32}}

#endif
