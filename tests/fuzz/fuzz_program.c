// Program blobs: whatever the bytes, prog_open answers with a status and stays inside them. The
// checksum is put right, so that the checks behind it are reached; the input patches a real program
// (triples of position, value), or replaces it when it starts with the magic. An input of odd
// length is about the program for a device.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "tests/unit/toy_program.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  static toy *both[2];
  if (!both[0]) {
    both[0] = toy_build("next_token", TOY_GEMM);
    both[1] = toy_build("next_token", TOY_DEVICE);
  }
  const toy *t = both[n & 1];
  bool whole = n >= sizeof(prog_header) && memcmp(bytes, PROG_MAGIC, 8) == 0;
  size_t size = whole ? n : t->n;
  unsigned char *blob = malloc(size);  // exact size: ASan sees every step outside
  if (!blob) return 0;
  memcpy(blob, whole ? bytes : t->blob, size);
  if (!whole)
    for (size_t i = 0; i + 4 <= n; i += 4)
      blob[(bytes[i] + 256u * bytes[i + 1] + 65536u * (bytes[i + 2] & 3u)) % size] = bytes[i + 3];
  uint64_t sum = prog_checksum(blob, size), total = size;
  memcpy(blob + offsetof(prog_header, total_bytes), &total, sizeof total);
  sum = prog_checksum(blob, size);
  memcpy(blob + offsetof(prog_header, checksum), &sum, sizeof sum);
  prog p;
  status *s = prog_open(blob, size, t->code_bytes, &p);
  if (!s && !whole) {  // the image is the toy's
    status_free(prog_check_code(&p, t->code));
  }
  if (!s) {  // what was accepted can be asked
    for (uint32_t i = 0; i < p.nkernels; i++) (void)prog_argument_bytes(&p.kernels[i]);
    (void)prog_parameters(&p);
    (void)prog_vocab(&p);
    for (uint32_t i = 0; i < p.nsettings; i++) (void)strlen(prog_text(&p, p.settings[i].name));
  }
  status_free(s);
  free(blob);
  return 0;
}
