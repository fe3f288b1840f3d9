// safetensors files: any bytes give a status, and what is accepted can be read to its last byte.
// Input that does not start with a small length is taken as the JSON of a header, followed by data.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  size_t extra = 0, at = 0;
  if (n > 0 && bytes[0] == '{') {
    at = 8;
    extra = 64;
  }
  unsigned char *file = calloc(1, n + at + extra + 1);
  if (!file) return 0;
  memcpy(file + at, bytes, n);
  if (at) {
    uint64_t len = n;
    memcpy(file, &len, sizeof len);
  }
  // A copy of exact size, so that ASan sees a read behind the end.
  size_t size = n + at + extra;
  unsigned char *exact = malloc(size ? size : 1);
  memcpy(exact, file, size);
  arena a;
  arena_init(&a);
  st_file f;
  status *s = st_parse(&a, "fuzz", exact, size, &f);
  unsigned sum = 0;
  for (int i = 0; !s && i < f.n; i++)
    for (uint64_t k = 0; k < f.tensors[i].bytes; k++)
      sum += ((const unsigned char *)f.tensors[i].data)[k];
  if (sum == 0xffffffffu) abort();  // uses the sum
  status_free(s);
  arena_free(&a);
  free(exact);
  free(file);
  return 0;
}
