// safetensors files: strict reading by mmap, streaming writing.
//
//   file   = 8 bytes little-endian header length | JSON header | tensor data
//   header = {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//             "__metadata__": {"key": "text", ...}}
//
// Offsets count from the end of the header. A file is refused, by name and tensor, unless its
// header is at most 100 MB of JSON in exactly this form, every tensor has the bytes its shape and
// type need, and the tensors cover the data without holes or overlaps.
//
//   st_file f;
//   STATUS_DO(st_open(a, "model.safetensors", &f));
//   const st_tensor *t = st_find(&f, "wte.weight");
//   st_close(&f);
#ifndef DSM_SAFETENSORS_H
#define DSM_SAFETENSORS_H

#include "runtime/base/arena.h"
#include "runtime/base/file.h"
#include "runtime/base/map.h"
#include "runtime/base/status.h"
#include "runtime/program.h"

#define ST_MAX_HEADER ((uint64_t)100 * 1000 * 1000)
// Types of the format that programs do not have (U8, U32, U64): readable, not loadable.
#define ST_FOREIGN UINT32_MAX

typedef struct st_tensor {
  const char *name;
  const char *type;  // as in the file: "F32"
  uint32_t dtype;    // as in program.h, or ST_FOREIGN
  uint32_t rank;
  int64_t dims[PROG_MAX_RANK];
  const void *data;
  uint64_t bytes;
} st_tensor;

typedef struct st_file {
  const char *path;
  file_map map;
  st_tensor *tensors;  // in the order of the header
  int n;
  map by_name;   // name -> st_tensor
  map metadata;  // key -> text
} st_file;

// Maps and checks a file. Names and texts go into the arena; data stays in the mapping.
status *st_open(arena *a, const char *path, st_file *out) STATUS_MUST_USE;
void st_close(st_file *f);
// The same for bytes in memory; `path` is only for messages.
status *st_parse(arena *a, const char *path, const void *bytes, size_t n,
                 st_file *out) STATUS_MUST_USE;
const st_tensor *st_find(const st_file *f, const char *name);

// "[2, 3]" of a tensor, for messages. `buf` takes 200 bytes.
const char *st_shape(const st_tensor *t, char buf[200]);
const char *st_dims(const int64_t *dims, uint32_t rank, char buf[200]);

// Writes tensors in the order given (their `type` is ignored) and `npairs` pairs of metadata
// (key, text), flushes to disk and tells the file's size and the XXH3-64 of its header.
status *st_write(arena *a, const file_io *io, const char *path, const st_tensor *tensors, int n,
                 const char *const *pairs, int npairs, uint64_t *file_bytes,
                 uint64_t *header_xxh3) STATUS_MUST_USE;

// XXH3-64 of the JSON text of a file's header (its length shows in where that text ends).
uint64_t st_header_xxh3(const void *bytes, size_t n);

#endif
