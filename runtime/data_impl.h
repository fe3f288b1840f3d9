// Shared by data.c (sources, order) and read.c (readers); nobody else includes this.
#ifndef DSM_DATA_IMPL_H
#define DSM_DATA_IMPL_H

#include "runtime/base/file.h"
#include "runtime/data.h"
#include "runtime/safetensors.h"

typedef struct token_file {
  const char *path;
  file_map map;
  int width;      // bytes of a token: 1 or 2
  int64_t start;  // position of its first token in the stream
  int64_t tokens;
} token_file;

// One tensor for one input, over all files.
typedef struct tensor_part {
  const st_tensor *tensor;  // of this file
  int64_t start;            // number of its first sample
} tensor_part;
typedef struct tensor_source {
  const prog_io *io;
  tensor_part *part;  // one for each file
  int64_t row_bytes;  // of one sample in the file
  int64_t row_elements;
  int64_t low, high;  // what numbers of this input may be; low > high: anything
} tensor_source;

typedef enum read_kind { READ_TENSORS, READ_NEXT, READ_MASKED, READ_SPAN } read_kind;

struct data {
  const prog *prog;
  const prog_entry *entry;
  const char *summary;
  uint64_t seed;
  bool shuffle;
  int64_t vocab;  // 0: unknown, nothing is checked
  int64_t samples;
  read_kind kind;

  token_file *files;
  int nfiles;
  int64_t tokens;          // of the whole stream
  int64_t stride, window;  // window k is tokens k*stride .. k*stride+window-1
  int32_t *raw;            // one window
  int32_t *scratch;        // what readers need beside it: 4 windows
  double share, mean;      // masked: p; span: p and mean
  int64_t mask_id, noise, spans;
  const prog_io *in_tokens, *in_targets, *in_length, *in_segments, *in_source;

  st_file *st;
  int nst;
  tensor_source *sources;
  int nsources;
};

// Finds the reader's inputs and sizes its windows.
status *read_open(data *d, const char *text, arena *a) STATUS_MUST_USE;
// Fills row `row` of micro-batch `micro` from the window in d->raw. `n` is the run's sample number.
status *read_row(data *d, unsigned char *base, int64_t micro, int64_t row, int64_t n,
                 int64_t *predicted) STATUS_MUST_USE;

#endif
